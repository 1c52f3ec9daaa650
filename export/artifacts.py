"""The table of artifacts: what each is made of, what runs it, how it is judged."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable

import numpy as np

from keras_resnet.evaluation import Classifier
from keras_resnet.support import InputError, choose, write_file

from .formats import (
    TFLITE_FORMATS,
    WEB_MODELS,
    add_metadata,
    check_signatures,
    convert_to_tflite,
    write_onnx,
    write_openvino,
    write_saved_model,
    write_static,
    write_web,
)
from .quantization import REPAIR, equalise, repair_network


@dataclasses.dataclass(frozen=True)
class Source:
    """What artifacts are made of.

    Attributes:
        classifier: The network, folded; see `keras_resnet.nets.fold`.
        calibration: Calibration set, uint8, (n, height, width, channels).
        bundle: Folder that the artifacts are written to.
        scratch: Folder for intermediate files.
        repair: What was done to the network so that int8 loses less.
        statics: Folders of the SavedModels for converters, by type of pixel.
    """

    classifier: Classifier
    calibration: np.ndarray
    bundle: str
    scratch: str
    repair: str = ""
    statics: dict[str, str] = dataclasses.field(default_factory=dict)

    def static(self, pixels: str) -> str:
        """Returns the folder of a SavedModel for converters.

        Args:
            pixels: Type of its images.
        """
        if pixels not in self.statics:
            path = tempfile.mkdtemp(dir=self.scratch)
            write_static(self.classifier, path, pixels)
            self.statics[pixels] = path
        return self.statics[pixels]

    def repaired(self) -> "Source":
        """Returns the same with a network that loses less in int8."""
        return dataclasses.replace(
            self,
            classifier=repair_network(self.classifier, self.calibration),
            repair=REPAIR,
            statics={},
        )


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One kind of artifact.

    Attributes:
        path: Path in the bundle.
        write: Writes the artifact to a path.
        runtime: Key of `RUNTIMES`; `None` if no program here can run it.
        precision: Precision in which it computes, a key of `LIMITS`; `None` if it is
            not judged.
        calibrated: Whether it needs calibration images.
        default: Whether it is written if no formats are named.
        needs: Other artifacts that it is made of.
        note: What its user must know beyond its signature.
        check: Refuses an artifact, at a path, for faults that `probabilities` does
            not show. It gets the classifier and some images.
    """

    path: str
    write: Callable[[str, Source], None]
    runtime: str | None
    precision: str | None = None
    calibrated: bool = False
    default: bool = False
    needs: tuple[str, ...] = ()
    note: str = ""
    check: Callable[[str, Classifier, np.ndarray], None] | None = None

    @property
    def can_be_repaired(self) -> bool:
        """Whether `Source.repaired` helps: it is made for TFLite's way to round."""
        return self.calibrated and self.runtime == "LiteRT"


def _tflite(name: str, precision: str = "int8") -> Artifact:
    row = TFLITE_FORMATS[name]

    def write(path: str, source: Source) -> None:
        content = convert_to_tflite(source.static(row.pixels), row, source.calibration)
        write_file(path, add_metadata(content, source.classifier))

    return Artifact(
        f"{name}.tflite", write, "LiteRT", precision, row.calibrated,
        default=not row.on_request, note=row.warning or "",
    )  # fmt: skip


def _write_openvino_int8(path: str, source: Source) -> None:
    model = equalise(source.classifier.model, source.calibration)
    classifier = dataclasses.replace(source.classifier, model=model)
    write_openvino(path, classifier, source.calibration)


def _write_web(path: str, source: Source) -> None:
    files = {n: os.path.join(source.bundle, f"{n}.tflite") for n in WEB_MODELS}
    present = {name: file for name, file in files.items() if os.path.exists(file)}
    write_web(path, source.classifier, present)


# In the order in which they are written.
ARTIFACTS = {
    "saved_model": Artifact(
        "saved_model/1",
        lambda path, source: write_saved_model(source.classifier, path),
        "TensorFlow",
        "float32",
        default=True,
        check=check_signatures,
    ),
    **{
        name: _tflite(name, name if name in ("float32", "float16") else "int8")
        for name in TFLITE_FORMATS
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
        _write_openvino_int8,
        "OpenVINO",
        "int8",
        calibrated=True,
        note="for CPUs with VNNI or AMX; on older ones run python -m export.verify",
    ),
    "web": Artifact("web", _write_web, None, needs=("float16", "int8")),
}


def order_formats(formats: Iterable[str] | None) -> list[str]:
    """Returns the artifacts to write, in order: those named and what they need.

    Args:
        formats: Keys of `ARTIFACTS`; `None` names the default ones.

    Raises:
        InputError: There is no such artifact, or none is named.
    """
    if formats is None:
        return [name for name, artifact in ARTIFACTS.items() if artifact.default]
    wanted = {choose("format", name, ARTIFACTS) for name in formats}
    if not wanted:
        raise InputError(f"Name at least one format: {', '.join(ARTIFACTS)}")
    wanted = wanted.union(*(ARTIFACTS[name].needs for name in wanted))
    return [name for name in ARTIFACTS if name in wanted]
