"""TFLite files: float32, float16, dynamic-range and int8."""

import os
import warnings

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from keras_resnet.run_folders import write_file

FORMATS = ("float32", "float16", "dynamic", "int8")


def write_tflite(static, path, format, calibration):
    """Converts a network to a `.tflite` file.

    Each takes `image`, uint8 (1, height, width, channels), normalises inside and
    gives `probabilities`, float32 (1, classes), under the signature
    `serving_default`.

    Args:
        static: path of a SavedModel that `saved_model.write_static` wrote.
        path: of the file to write.
        format: `"float32"`; `"float16"`: weights in half precision; `"dynamic"`:
            int8 weights, activations quantised as they come; `"int8"`: int8
            weights, for each channel, and activations, by ranges calibrated
            beforehand.
        calibration: uint8 (n, height, width, channels), images to calibrate
            int8 with; the others don't read it.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(
        static, signature_keys=["serving_default"]
    )
    if format != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if format == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if format == "int8":
        converter.representative_dataset = lambda: (
            {"image": image[None]} for image in calibration
        )
    with warnings.catch_warnings():
        # TensorFlow's own, that its interpreter, which calibrates, is deprecated.
        warnings.simplefilter("ignore")
        content = converter.convert()
    write_file(path, content)


def open_tflite(path):
    """Loads a `.tflite` file into LiteRT, on all CPUs.

    Returns:
        A function from uint8 images (n, height, width, channels) to their
        probabilities, float32 (n, classes).
    """
    interpreter = Interpreter(path, num_threads=os.cpu_count())
    serve = interpreter.get_signature_runner("serving_default")
    return lambda images: np.concatenate(
        [serve(image=images[i : i + 1])["probabilities"] for i in range(len(images))]
    )


def signatures(path):
    """Returns the inputs and outputs of each signature of a `.tflite` file."""
    interpreter = Interpreter(path)

    def describe(details):
        return {
            name: [np.dtype(tensor["dtype"]).name, tensor["shape"].tolist()]
            for name, tensor in details.items()
        }

    return {
        name: {
            "inputs": describe(
                interpreter.get_signature_runner(name).get_input_details()
            ),
            "outputs": describe(
                interpreter.get_signature_runner(name).get_output_details()
            ),
        }
        for name in interpreter.get_signature_list()
    }
