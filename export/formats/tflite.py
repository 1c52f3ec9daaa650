"""TFLite files: in float32 and half precision, and quantised in several ways.

A new kind of file is a row of `TFLITE_FORMATS`.
"""

import dataclasses
import warnings

import numpy as np
import tensorflow as tf

from keras_resnet.support import without_notes

_OPS = tf.lite.OpsSet


@dataclasses.dataclass(frozen=True)
class TFLiteFormat:
    """One way to write a `.tflite` file; it answers with float32 where not said."""

    # Type of the static SavedModel that it is converted from. From float32 pixels the
    # quantiser makes an input of scale 1 without a cast.
    pixels: str = "uint8"
    optimised: bool = True  # Whether weights are stored in fewer bits.
    weights: tf.DType | None = None  # Their type, where it is not int8.
    calibrated: bool = False  # Whether activations are quantised, by ranges of images.
    ops: tuple[tf.lite.OpsSet, ...] = (_OPS.TFLITE_BUILTINS,)  # No others are used.
    # Types of `image` and `probabilities`, if not the static SavedModel's.
    io: tuple[tf.DType, tf.DType] | None = None
    on_request: bool = False  # Whether it is left out where no formats are named.
    warning: str = ""  # What to know before using it.


TFLITE_FORMATS = {
    "float32": TFLiteFormat(optimised=False),
    "float16": TFLiteFormat(weights=tf.float16),
    # int8 weights, activations quantised as they come.
    "dynamic": TFLiteFormat(),
    "int8": TFLiteFormat("float32", calibrated=True, io=(tf.uint8, tf.float32)),
    # For clients that know integers only: microcontrollers, Edge TPU.
    "int8_io": TFLiteFormat(
        "float32", calibrated=True, ops=(_OPS.TFLITE_BUILTINS_INT8,),
        io=(tf.int8, tf.int8), on_request=True,
    ),
    # int8 within, for clients that give float32 pixels, from 0 to 255.
    "float_io": TFLiteFormat("float32", calibrated=True, on_request=True),
    "int16x8": TFLiteFormat(
        calibrated=True,
        # The first has no cast from uint8.
        ops=(_OPS.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
             _OPS.TFLITE_BUILTINS),
        on_request=True,
        warning="int16x8 runs on LiteRT's reference kernels: on x86 about 30 times "
        "slower than int8",
    ),
}  # fmt: skip


def convert_to_tflite(static: str, row: TFLiteFormat, calibration: np.ndarray) -> bytes:
    """Converts a network to a `.tflite` file.

    It takes `image`, raw pixels (1, height, width, channels), normalises inside
    and gives `probabilities`, (1, classes), under the signature
    `serving_default`; both in the types of `row`, of which int8 stands for a scale
    and a zero point that the file tells: of `image`, 1 and -128.

    Args:
        static: Path that `saved_model.write_static` wrote for `row.pixels`.
        row: A value of `TFLITE_FORMATS`.
        calibration: Images that calibrated formats measure activations with: uint8,
            (n, height, width, channels).
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(
        static, signature_keys=["serving_default"]
    )
    converter.target_spec.supported_ops = row.ops
    if row.optimised:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if row.weights:
        converter.target_spec.supported_types = [row.weights]
    if row.calibrated:
        images = _with_both_ends(calibration).astype(row.pixels)
        converter.representative_dataset = lambda: (
            {"image": image[None]} for image in images
        )
    if row.io:
        converter.inference_input_type, converter.inference_output_type = row.io
    with warnings.catch_warnings(), without_notes():
        # TensorFlow's own, that its interpreter, which calibrates, is deprecated.
        warnings.simplefilter("ignore")
        return converter.convert()


def _with_both_ends(images: np.ndarray) -> np.ndarray:
    """Returns images whose first has one pixel black and one white.

    So the calibrated range is all of 0 to 255, and a level of int8 is one of a pixel.
    """
    images = images.copy()
    images[0, 0, 0] = 0
    images[0, -1, -1] = 255
    return images
