"""The table of artifacts: what each is made of, what runs it, how it is judged."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable

import numpy as np

from keras_resnet.evaluation import Classifier
from keras_resnet.support import InputError, choose, write_file

from .device import needs, without_telemetry
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
    """What artifacts are made of."""

    classifier: Classifier  # Folded; see `keras_resnet.nets.fold`.
    calibration: np.ndarray  # uint8, (n, height, width, channels)
    bundle: str  # Folder that the artifacts are written to.
    scratch: str  # Folder for intermediate files.
    repair: str = ""  # What was done to the network so that int8 loses less.
    # Folders of the SavedModels for converters, by type of pixel.
    statics: dict[str, str] = dataclasses.field(default_factory=dict)

    def static(self, pixels: str) -> str:
        """Returns the folder of a SavedModel for converters, of that type of pixel."""
        if pixels not in self.statics:
            path = tempfile.mkdtemp(dir=self.scratch)
            write_static(self.classifier, path, pixels)
            self.statics[pixels] = path
        return self.statics[pixels]

    def repaired(self) -> "Source":
        """Returns the same with a network that loses less in int8."""
        network = repair_network(self.classifier, self.calibration)
        return dataclasses.replace(self, classifier=network, repair=REPAIR, statics={})


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One kind of artifact."""

    path: str  # In the bundle.
    write: Callable[[str, Source], None]  # To a path.
    runtime: str | None  # Key of `RUNTIMES`; `None` if no program here can run it.
    precision: str | None = None  # Key of `LIMITS`; `None` if it is not judged.
    calibrated: bool = False  # Whether it needs calibration images.
    default: bool = False  # Whether it is written if no formats are named.
    needs: tuple[str, ...] = ()  # Other artifacts that it is made of.
    note: str = ""  # What its user must know beyond its signature.
    # Refuses the artifact at a path for faults that `probabilities` does not show, by
    # the classifier and some images.
    check: Callable[[str, Classifier, np.ndarray], None] | None = None


def _alone(write: Callable[..., None]) -> Callable[[str, Source], None]:
    """Returns what writes an artifact that is made of the classifier alone."""
    return lambda path, source: write(path=path, classifier=source.classifier)


def _tflite(name: str) -> Artifact:
    row = TFLITE_FORMATS[name]
    precision = name if name in ("float32", "float16") else "int8"

    def write(path: str, source: Source) -> None:
        content = convert_to_tflite(source.static(row.pixels), row, source.calibration)
        write_file(path, add_metadata(content, source.classifier))

    return Artifact(
        f"{name}.tflite", write, "LiteRT", precision, row.calibrated,
        default=not row.on_request, note=row.warning,
    )  # fmt: skip


def _write_openvino_int8(path: str, source: Source) -> None:
    with needs("openvino"), without_telemetry():  # Before the network is equalised.
        import nncf  # noqa: F401
        import openvino  # noqa: F401
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
        "saved_model/1", _alone(write_saved_model), "TensorFlow", "float32",
        default=True, check=check_signatures,
    ),
    **{name: _tflite(name) for name in TFLITE_FORMATS},
    "onnx": Artifact("model.onnx", _alone(write_onnx), "ONNX Runtime", "float32"),
    "openvino": Artifact("openvino", _alone(write_openvino), "OpenVINO", "float32"),
    "openvino_int8": Artifact(
        "openvino_int8", _write_openvino_int8, "OpenVINO", "int8", calibrated=True,
        note="for CPUs with VNNI or AMX; on older ones run python -m export.verify",
    ),
    "web": Artifact("web", _write_web, None, needs=("float16", "int8")),
}  # fmt: skip


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
