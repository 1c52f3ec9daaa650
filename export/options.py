"""What can be chosen of an export."""

import dataclasses
from typing import Any

from keras_resnet.spec import ModelOptions
from keras_resnet.support import option


@dataclasses.dataclass(frozen=True)
class ExportOptions(ModelOptions):
    """What is asked of an export."""

    output: str = option("artifacts/resnet20-digits", "Folder to write.")
    formats: tuple[str, ...] | None = option(
        None,
        "Artifacts to write: saved_model, float32, float16, dynamic, int8 if not given; "
        "also int8_io, float_io, int16x8, onnx, openvino, openvino_int8, web.",
    )
    # A notebook may also pass a `keras_resnet.data.Dataset`.
    dataset: Any = option(None, "digits, folder:PATH or a TFDS name; the model's own.")
    data_dir: str | None = option(
        None, "Folder of prepared TFDS sets; TFDS's own if not given."
    )
    images: int = option(2000, "Held-out images to check on, at most.", 1)
    calibration: str | None = option(
        None,
        "What int8 is calibrated on: folder:PATH, with images of any class, or the "
        "training images of another data set; if not given, those of the data set.",
    )
    seed: int = option(0, "Of the choice of images for calibration.", 0)
    share_images: bool = option(
        False, "Put held-out images into check.npz, though their licence is not known."
    )
    debug_quantization: bool = option(
        False, "Show layer by layer where int8 departs from float."
    )
