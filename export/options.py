"""Options of an export."""

import dataclasses
from typing import Any

from keras_resnet.spec import ModelOptions
from keras_resnet.support import option


@dataclasses.dataclass(frozen=True)
class ExportOptions(ModelOptions):
    """Options of `python -m export` and of `export.bundle.export`."""

    output: str = option("artifacts/resnet20-digits", "Folder for the new bundle.")
    formats: tuple[str, ...] | None = option(
        None,
        "Artifacts to write. Default: saved_model, float32, float16, dynamic, int8. "
        "Others: int8_io, float_io, int16x8, onnx, openvino, openvino_int8, web.",
    )
    # In Python, the value may also be a `keras_resnet.data.Dataset`.
    dataset: Any = option(
        None,
        "Dataset of the test images: digits, folder:PATH, tfrecord:PATH or a TFDS "
        "name. Default: the dataset that the model was trained on.",
    )
    data_dir: str | None = option(None, "Folder of TFDS datasets. Default: TFDS's own.")
    images: int = option(2000, "Maximum number of test images.", 1)
    calibration: str | None = option(
        None,
        "Calibration images for int8: folder:PATH with images of any class, or the "
        "training images of a dataset. Default: the training images of `dataset`.",
    )
    seed: int = option(0, "Random seed for the choice of calibration images.", 0)
    share_images: bool = option(
        False,
        "Put test images of any dataset into check.npz. Default: only images of digits "
        "and fashion_mnist, whose licences allow it; else generated patterns.",
    )
    debug_quantization: bool = option(False, "Report the int8 error of each layer.")
