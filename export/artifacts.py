"""Table of artifacts with the functions that write and check them."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable

import numpy as np

from keras_resnet.evaluation import Classifier
from keras_resnet.support import InputError, check_choice, write_file

from .device import disable_telemetry, require_extra
from .formats import (
    TFLITE_FORMATS,
    WEB_MODELS,
    add_metadata,
    check_signatures,
    convert_to_tflite,
    write_onnx,
    write_openvino,
    write_saved_model,
    write_static_model,
    write_web,
)
from .quantization import REPAIR_DESCRIPTION, equalise, repair_network


@dataclasses.dataclass(frozen=True)
class Source:
    """The network to export, its calibration images and the folders to write to."""

    classifier: Classifier  # Network with folded batch normalisation.
    calibration: np.ndarray  # Calibration images, uint8, (n, height, width, channels).
    bundle_dir: str  # Folder that the artifacts are written to.
    scratch_dir: str  # Folder for intermediate files.
    repair: str = ""  # Description of the network's repair; empty if not repaired.
    # Folders of the SavedModels that converters read, by dtype of the model's input.
    static_models: dict[str, str] = dataclasses.field(default_factory=dict)

    def get_static_model(self, pixel_dtype: str) -> str:
        """Returns a SavedModel's folder, which the first call for each dtype writes."""
        if pixel_dtype not in self.static_models:
            path = tempfile.mkdtemp(dir=self.scratch_dir)
            write_static_model(self.classifier, path, pixel_dtype)
            self.static_models[pixel_dtype] = path
        return self.static_models[pixel_dtype]

    def with_repaired_network(self) -> "Source":
        """Returns a copy whose network is repaired, to lose less accuracy in int8."""
        classifier = repair_network(self.classifier, self.calibration)
        return dataclasses.replace(
            self, classifier=classifier, repair=REPAIR_DESCRIPTION, static_models={}
        )


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A kind of artifact, an entry of the table `ARTIFACTS`."""

    path: str  # Path relative to the bundle.
    write: Callable[[str, Source], None]  # Writes the artifact to a path.
    runtime: str | None  # Key of `RUNTIMES`; `None` for browser-only artifacts.
    precision: str | None = None  # Key of `LIMITS`; `None` for browser-only artifacts.
    calibrated: bool = False  # Whether writing needs calibration images.
    default: bool = False  # Whether exports include the artifact by default.
    requires: tuple[str, ...] = ()  # Keys of the artifacts that `write` reads.
    note: str = ""  # Advice for users of the artifact.
    # Raises `Disagreement` if the artifact's outputs besides `probabilities` are wrong.
    # The arguments are the artifact's path, the classifier and a few test images.
    check: Callable[[str, Classifier, np.ndarray], None] | None = None


def _adapt(write: Callable[..., None]) -> Callable[[str, Source], None]:
    """Adapts a function of `path` and `classifier` to the type of `Artifact.write`."""
    return lambda path, source: write(path=path, classifier=source.classifier)


def _make_tflite_artifact(name: str) -> Artifact:
    tflite_format = TFLITE_FORMATS[name]
    precision = name if name in ("float32", "float16") else "int8"

    def write(path: str, source: Source) -> None:
        model_dir = source.get_static_model(tflite_format.pixel_dtype)
        content = convert_to_tflite(model_dir, tflite_format, source.calibration)
        write_file(path, add_metadata(content, source.classifier))

    return Artifact(
        f"{name}.tflite", write, "LiteRT", precision, tflite_format.calibrated,
        default=not tflite_format.on_request, note=tflite_format.warning,
    )  # fmt: skip


def _write_openvino_int8(path: str, source: Source) -> None:
    # Import first, so that a missing package raises before the slow equalisation.
    with require_extra("openvino"), disable_telemetry():
        import nncf  # noqa: F401
        import openvino  # noqa: F401
    model = equalise(source.classifier.model, source.calibration)
    classifier = dataclasses.replace(source.classifier, model=model)
    write_openvino(path, classifier, source.calibration)


def _write_web(path: str, source: Source) -> None:
    paths = {n: os.path.join(source.bundle_dir, f"{n}.tflite") for n in WEB_MODELS}
    existing_paths = {n: p for n, p in paths.items() if os.path.exists(p)}
    write_web(path, source.classifier, existing_paths)


# All artifacts by name, in the order in which they are written.
ARTIFACTS = {
    "saved_model": Artifact(
        "saved_model/1", _adapt(write_saved_model), "TensorFlow", "float32",
        default=True, check=check_signatures,
    ),
    **{name: _make_tflite_artifact(name) for name in TFLITE_FORMATS},
    "onnx": Artifact("model.onnx", _adapt(write_onnx), "ONNX Runtime", "float32"),
    "openvino": Artifact("openvino", _adapt(write_openvino), "OpenVINO", "float32"),
    "openvino_int8": Artifact(
        "openvino_int8", _write_openvino_int8, "OpenVINO", "int8", calibrated=True,
        note="for CPUs with VNNI or AMX; check older CPUs with python -m export.verify",
    ),
    "web": Artifact("web", _write_web, None, requires=("float16", "int8")),
}  # fmt: skip


def resolve_formats(formats: Iterable[str] | None) -> list[str]:
    """Returns the names of the artifacts to write, in the order of `ARTIFACTS`.

    Args:
        formats: Keys of `ARTIFACTS`. Artifacts in their `requires` are added. Default:
            all artifacts whose `default` is true.

    Raises:
        InputError: If a name is unknown, or `formats` is empty.
    """
    if formats is None:
        return [name for name, artifact in ARTIFACTS.items() if artifact.default]
    selected = {check_choice("format", name, ARTIFACTS) for name in formats}
    if not selected:
        raise InputError(f"formats must not be empty. Accepted: {', '.join(ARTIFACTS)}")
    selected = selected.union(*(ARTIFACTS[name].requires for name in selected))
    return [name for name in ARTIFACTS if name in selected]
