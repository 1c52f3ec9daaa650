"""The table of artifacts: what each is made of, what runs it, how it is judged."""

import dataclasses
import os
import tempfile
from collections.abc import Callable

import numpy as np

from keras_resnet.evaluation import Classifier
from keras_resnet.support import write_file

from .formats import (
    MODELS,
    TFLITE_FORMATS,
    add_metadata,
    check_signatures,
    convert_to_tflite,
    write_onnx,
    write_openvino,
    write_saved_model,
    write_static,
    write_web,
)
from .quantization import REPAIR, repair


@dataclasses.dataclass(frozen=True)
class Source:
    """What artifacts are made of.

    Attributes:
        classifier: whose model is folded (see `folding.fold`).
        calibration: uint8 (n, height, width, channels).
        bundle: folder that the artifacts are written to.
        scratch: folder for what is needed on the way.
        repair: what was done to the network so that int8 loses less.
        statics: where the SavedModels for converters are, by type of pixel.
    """

    classifier: Classifier
    calibration: np.ndarray
    bundle: str
    scratch: str
    repair: str = ""
    statics: dict = dataclasses.field(default_factory=dict)

    def static(self, pixels):
        """Path of a SavedModel for converters, which takes images of that type."""
        if pixels not in self.statics:
            path = tempfile.mkdtemp(dir=self.scratch)
            write_static(self.classifier, path, pixels)
            self.statics[pixels] = path
        return self.statics[pixels]

    def repaired(self):
        """The same with a network that loses less in int8."""
        return dataclasses.replace(
            self,
            classifier=repair(self.classifier, self.calibration),
            repair=REPAIR,
            statics={},
        )


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One kind of artifact.

    Attributes:
        path: in the bundle.
        write: function of (path, source) that writes it.
        runtime: a key of `RUNTIMES`; `None` if no program here can run it.
        precision: in which it computes, a key of `verify.LIMITS`; `None` if it is
            not judged.
        calibrated: whether it needs calibration images.
        default: whether it is written without being asked for.
        needs: other artifacts that it is made of.
        note: what its user must know beyond its signature.
        check: function of (path, classifier, images) that refuses it for what
            `probabilities` does not show.
    """

    path: str
    write: Callable
    runtime: str | None
    precision: str | None = None
    calibrated: bool = False
    default: bool = False
    needs: tuple[str, ...] = ()
    note: str = ""
    check: Callable = lambda path, classifier, images: None


def _saved_model(path, source):
    write_saved_model(source.classifier, path)


def _openvino_int8(path, source):
    write_openvino(path, source.classifier, source.calibration)


def _web(path, source):
    files = {name: os.path.join(source.bundle, f"{name}.tflite") for name in MODELS}
    present = {name: file for name, file in files.items() if os.path.exists(file)}
    write_web(path, source.classifier, present)


def _tflite(format, precision="int8"):
    row = TFLITE_FORMATS[format]

    def write(path, source):
        content = convert_to_tflite(source.static(row.pixels), row, source.calibration)
        write_file(path, add_metadata(content, source.classifier))

    return Artifact(
        f"{format}.tflite", write, "LiteRT", precision, row.calibrated,
        default=not row.on_request, note=row.warning or "",
    )  # fmt: skip


# In the order in which they are written.
ARTIFACTS = {
    "saved_model": Artifact(
        "saved_model/1",
        _saved_model,
        "TensorFlow",
        "float32",
        default=True,
        check=check_signatures,
    ),
    "float32": _tflite("float32", "float32"),
    "float16": _tflite("float16", "float16"),
    **{
        name: _tflite(name)
        for name in TFLITE_FORMATS
        if name not in ("float32", "float16")
    },
    "onnx": Artifact(
        "model.onnx",
        lambda path, source: write_onnx(path, source.classifier),
        "ONNX Runtime",
        "float32",
    ),
    "openvino": Artifact(
        "openvino",
        lambda path, source: write_openvino(path, source.classifier),
        "OpenVINO",
        "float32",
    ),
    "openvino_int8": Artifact(
        "openvino_int8",
        _openvino_int8,
        "OpenVINO",
        "int8",
        calibrated=True,
        note="for CPUs with VNNI or AMX; on older ones run python -m export.verify",
    ),
    "web": Artifact("web", _web, None, needs=("float16", "int8")),
}
