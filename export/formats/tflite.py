"""TFLite files in float32, in half precision and in several quantised formats.

To add a format, add a row to `TFLITE_FORMATS`.
"""

import dataclasses
import warnings

import numpy as np
import tensorflow as tf

from keras_resnet.support import filter_cpp_logs

_OPS = tf.lite.OpsSet


@dataclasses.dataclass(frozen=True)
class TFLiteFormat:
    """Settings of the converter for one kind of `.tflite` file."""

    # Dtype of the input `image` of the SavedModel to convert. With float32, the input
    # of the quantised file has scale 1 and needs no cast.
    pixel_dtype: str = "uint8"
    optimised: bool = True  # Whether weights are stored in fewer than 32 bits.
    weight_dtype: tf.DType | None = None  # Dtype of optimised weights. Default: int8.
    calibrated: bool = False  # Whether activations are quantised with calibration.
    ops: tuple[tf.lite.OpsSet, ...] = (_OPS.TFLITE_BUILTINS,)  # Allowed operations.
    # Dtypes of `image` and `probabilities`. Default: their dtypes in the SavedModel.
    io_dtypes: tuple[tf.DType, tf.DType] | None = None
    on_request: bool = False  # Whether the file is only written on explicit request.
    warning: str = ""  # Warning to print during the export.


TFLITE_FORMATS = {
    "float32": TFLiteFormat(optimised=False),
    "float16": TFLiteFormat(weight_dtype=tf.float16),
    # Weights are int8. Activations are quantised at run time, without calibration.
    "dynamic": TFLiteFormat(),
    "int8": TFLiteFormat("float32", calibrated=True, io_dtypes=(tf.uint8, tf.float32)),
    # int8_io is for devices without floating point: microcontrollers and Edge TPUs.
    "int8_io": TFLiteFormat(
        "float32", calibrated=True, ops=(_OPS.TFLITE_BUILTINS_INT8,),
        io_dtypes=(tf.int8, tf.int8), on_request=True,
    ),
    # The file computes in int8, but its input (pixels 0 to 255) and output are float32.
    "float_io": TFLiteFormat("float32", calibrated=True, on_request=True),
    "int16x8": TFLiteFormat(
        calibrated=True,
        # The first set of operations has no cast from uint8. The second set adds one.
        ops=(_OPS.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
             _OPS.TFLITE_BUILTINS),
        on_request=True,
        warning="int16x8 runs on LiteRT's reference kernels. On x86 it is about 30 "
        "times slower than int8",
    ),
}  # fmt: skip


def convert_to_tflite(folder: str, row: TFLiteFormat, calibration: np.ndarray) -> bytes:
    """Converts a network to the bytes of a `.tflite` file.

    The file has one signature, `serving_default`. Its input is `image`, raw pixels,
    (1, height, width, channels), which the network normalises itself. Its output is
    `probabilities`, (1, classes). The file contains the scale and the zero point of
    every int8 tensor. An int8 `image` has the scale 1 and the zero point -128.

    Args:
        folder: Folder that `write_static_model` wrote with `row.pixel_dtype`.
        row: Settings of the format, a value of `TFLITE_FORMATS`.
        calibration: Calibration set, uint8, (n, height, width, channels). Ignored
            unless `row.calibrated`.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(
        folder, signature_keys=["serving_default"]
    )
    converter.target_spec.supported_ops = row.ops
    if row.optimised:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if row.weight_dtype:
        converter.target_spec.supported_types = [row.weight_dtype]
    if row.calibrated:
        images = _add_extreme_pixels(calibration).astype(row.pixel_dtype)
        converter.representative_dataset = lambda: ({"image": x[None]} for x in images)
    if row.io_dtypes:
        converter.inference_input_type, converter.inference_output_type = row.io_dtypes
    with warnings.catch_warnings(), filter_cpp_logs():
        # Calibration uses TensorFlow's interpreter, which prints a deprecation warning.
        warnings.simplefilter("ignore")
        return converter.convert()


def _add_extreme_pixels(images: np.ndarray) -> np.ndarray:
    """Returns a copy of images, with a black and a white corner in the first image.

    The calibrated range of the input is then 0 to 255, so that the quantisation step of
    the input is 1.
    """
    images = images.copy()
    images[0, 0, 0] = 0
    images[0, -1, -1] = 255
    return images
