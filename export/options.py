"""Options of an export."""

import dataclasses
from typing import Any

from keras_resnet.spec import ModelOptions
from keras_resnet.support import option


@dataclasses.dataclass(frozen=True)
class ExportOptions(ModelOptions):
    """Options of `python -m export` and of `export.bundle.export`."""

    output: str = option("artifacts/resnet20-digits", "Folder of the bundle.")
    formats: tuple[str, ...] | None = option(
        None,
        "Artifacts to write. Default: saved_model, float32, float16, dynamic, int8. "
        "Others: int8_io, float_io, int16x8, onnx, openvino, openvino_int8, web.",
    )
    # A notebook may also pass a `keras_resnet.data.Dataset`.
    dataset: Any = option(
        None, "Test images: digits, folder:PATH or TFDS name. Default: the model's."
    )
    data_dir: str | None = option(
        None, "Folder of prepared TFDS datasets. Default: that of TFDS."
    )
    images: int = option(2000, "Maximum number of test images.", 1)
    calibration: str | None = option(
        None,
        "Calibration images for int8: folder:PATH, with images of any class, or a "
        "dataset with training images. Default: training images of `dataset`.",
    )
    seed: int = option(0, "Random seed for the choice of calibration images.", 0)
    share_images: bool = option(
        False, "Put test images into check.npz even if their licence is unknown."
    )
    debug_quantization: bool = option(False, "Report the error of each layer in int8.")
