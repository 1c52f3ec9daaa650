"""Files for `benchmarks.serving`: artifacts of this package and files of the peers.

All are made from a `keras.applications.ResNet50` with random weights, saved by Keras.
"""

import contextlib
import dataclasses
import functools
import io
import os
import sys

import numpy as np

OURS = ("saved_model", "float32", "int8", "onnx", "openvino", "openvino_int8")


def prepare(name, folder):
    """Makes one file unless it is in the folder already.

    The function needs a separate process, since its imports take gigabytes of memory.

    Args:
        name: Name of the file, from `OURS` or `PEERS`. Files need those before them.
        folder: Folder of the files.
    """
    path, temporary_dir = os.path.join(folder, name), os.path.join(folder, "parts")
    if os.path.exists(path):
        return
    sys.modules["openvino_telemetry"] = None  # Disables OpenVINO's telemetry.
    from export.artifacts import ARTIFACTS
    from keras_resnet.support import filter_native_logs

    os.makedirs(temporary_dir, exist_ok=True)
    temporary_path = os.path.join(temporary_dir, name)
    with filter_native_logs(), contextlib.redirect_stdout(io.StringIO()):
        if name in OURS:
            ARTIFACTS[name].write(temporary_path, _make_source(folder))
        else:
            PEERS[name](temporary_path, folder)
    os.replace(temporary_path, path)


@functools.cache
def _make_source(folder):
    """Returns the input of the artifact writers; makes weights and images if needed."""
    import keras

    from export.artifacts import Source
    from keras_resnet.evaluation import load_classifier
    from keras_resnet.nets import fold

    weights = os.path.join(folder, "net.h5")
    if not os.path.exists(weights):
        keras.utils.set_random_seed(0)
        network = keras.applications.ResNet50(weights=None)
        _randomise(network)
        coarse = np.random.default_rng(0).uniform(-64, 320, (16, 7, 7, 3))
        smooth = keras.ops.image.resize(coarse, (224, 224), "bicubic")
        images = np.clip(smooth, 0, 255).astype(np.uint8)
        np.save(os.path.join(folder, "images.npy"), images)
        temporary_path = os.path.join(folder, "parts", "net.h5")
        network.save(temporary_path)
        os.replace(temporary_path, weights)
    classifier = load_classifier(weights)
    folded = dataclasses.replace(classifier, model=fold(classifier.model))
    return Source(folded, load_images(folder), folder, os.path.join(folder, "parts"))


def _randomise(network):
    """Randomises batch normalisation, so that folding it changes every weight."""
    import keras

    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            # A small last scale of each block, as after training, bounds activations.
            low, high = (0.1, 0.3) if layer.name.endswith("_3_bn") else (0.5, 1.5)
            scale, variance = (rng.uniform(*r, size) for r in ((low, high), (0.5, 2)))
            offset, mean = rng.normal(0, 0.3, (2, size))
            layer.set_weights([scale, offset, mean, variance])


def preprocess(images):
    """Does the same as `keras.applications.resnet.preprocess_input`, without Keras."""
    return np.float32(images[..., ::-1]) - np.float32((103.939, 116.779, 123.68))


def load_images(folder):
    """Returns the calibration images, uint8, (16, 224, 224, 3), after they are made."""
    return np.load(os.path.join(folder, "images.npy"))


def export_keras(path, folder):
    """Exports the keras.applications network with `model.export`."""
    import keras

    network = keras.models.load_model(os.path.join(folder, "net.h5"), compile=False)
    network.export(path, verbose=False)


def to_tflite(path, folder, int8=False):
    """Converts to TFLite; int8 is "full integer with float fallback" of its guide."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(os.path.join(folder, "keras"))
    if int8:
        images = preprocess(load_images(folder))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in images)
    with open(path, "wb") as file:
        file.write(converter.convert())


def to_openvino(path, folder, int8=False):
    """Converts with OpenVINO; int8 uses NNCF's defaults."""
    import nncf
    import openvino

    model = openvino.convert_model(os.path.join(folder, "keras"))
    if int8:
        images = preprocess(load_images(folder))
        model = nncf.quantize(model, nncf.Dataset([image[None] for image in images]))
    os.makedirs(path, exist_ok=True)
    file = os.path.join(path, "model.xml")
    openvino.save_model(model, file, compress_to_fp16=False)


def to_onnx_int8(path, folder):
    """Quantises the ONNX artifact as in ONNX Runtime's guide for x86 (QDQ, uint8)."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        images = iter(load_images(folder))

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"image": image[None]}

    quantization.quantize_static(
        os.path.join(folder, "onnx"), path, Reader(), quantization.QuantFormat.QDQ,
        per_channel=True, activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip


PEERS = {
    "keras": export_keras,
    "keras.tflite": to_tflite,
    "keras_int8.tflite": functools.partial(to_tflite, int8=True),
    "keras_openvino": to_openvino,
    "keras_nncf": functools.partial(to_openvino, int8=True),
    "onnx_int8": to_onnx_int8,
}
