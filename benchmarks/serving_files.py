"""Files for `benchmarks.serving`: artifacts of this package and files of the peers.

All files are made from one `keras.applications.ResNet50` with random weights.
"""

import contextlib
import dataclasses
import functools
import io
import os
import sys

import numpy as np

# Artifacts of this package, as keys of `export.artifacts.ARTIFACTS`.
OUR_ARTIFACTS = ("saved_model", "float32", "int8", "onnx", "openvino", "openvino_int8")


def prepare_file(name, folder):
    """Makes one of `FILE_NAMES` unless the file exists.

    Call this function in a new process, because its imports take gigabytes of memory.

    Args:
        name: Name of the file. Files must be made in the order of `FILE_NAMES`.
        folder: Folder of the files.
    """
    path, temporary_dir = os.path.join(folder, name), os.path.join(folder, "parts")
    if os.path.exists(path):
        return
    sys.modules["openvino_telemetry"] = None  # Disables OpenVINO's telemetry.
    from export.artifacts import ARTIFACTS
    from keras_resnet.support import filter_cpp_logs

    os.makedirs(temporary_dir, exist_ok=True)
    temporary_path = os.path.join(temporary_dir, name)
    with filter_cpp_logs(), contextlib.redirect_stdout(io.StringIO()):
        if name in OUR_ARTIFACTS:
            ARTIFACTS[name].write(temporary_path, _make_source(folder))
        else:
            PEER_WRITERS[name](temporary_path, folder)
    os.replace(temporary_path, path)


@functools.cache
def _make_source(folder):
    """Returns the input of `Artifact.write`. Makes missing weights and images."""
    import keras

    from export.artifacts import Source
    from keras_resnet.evaluation import load_classifier
    from keras_resnet.nets import fold

    weights_path, parts_dir = (os.path.join(folder, n) for n in ("net.h5", "parts"))
    if not os.path.exists(weights_path):
        keras.utils.set_random_seed(0)
        network = keras.applications.ResNet50(weights=None)
        _randomise_batch_norms(network)
        colours = np.random.default_rng(0).uniform(-64, 320, (16, 7, 7, 3))
        gradients = keras.ops.image.resize(colours, (224, 224), "bicubic")
        images = np.clip(gradients, 0, 255).astype(np.uint8)
        np.save(os.path.join(folder, "images.npy"), images)
        temporary_path = os.path.join(parts_dir, "net.h5")
        network.save(temporary_path)
        os.replace(temporary_path, weights_path)
    classifier = load_classifier(weights_path)
    classifier = dataclasses.replace(classifier, model=fold(classifier.model))
    return Source(classifier, load_images(folder), folder, parts_dir)


def _randomise_batch_norms(network):
    """Randomises batch normalisation, so that folding changes every weight."""
    import keras

    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            # Small scales at the ends of blocks, as after training, bound activations.
            low, high = (0.1, 0.3) if layer.name.endswith("_3_bn") else (0.5, 1.5)
            scale, variance = (rng.uniform(*r, n) for r in ((low, high), (0.5, 2)))
            offset, mean = rng.normal(0, 0.3, (2, n))
            layer.set_weights([scale, offset, mean, variance])


def preprocess(images):
    """Normalises images like `keras.applications.resnet.preprocess_input`."""
    return np.float32(images[..., ::-1]) - np.float32((103.939, 116.779, 123.68))


def load_images(folder):
    """Returns the images that `_make_source` saved, uint8, (16, 224, 224, 3)."""
    return np.load(os.path.join(folder, "images.npy"))


def export_keras(path, folder):
    """Exports the keras.applications network with `model.export`."""
    import keras

    network = keras.models.load_model(os.path.join(folder, "net.h5"), compile=False)
    network.export(path, verbose=False)


def to_tflite(path, folder, int8=False):
    """Converts the Keras SavedModel to TFLite. int8 follows TFLite's guide."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(os.path.join(folder, "keras"))
    if int8:
        images = preprocess(load_images(folder))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in images)
    with open(path, "wb") as file:
        file.write(converter.convert())


def to_openvino(path, folder, int8=False):
    """Converts the Keras SavedModel to OpenVINO. int8 uses NNCF's defaults."""
    import nncf
    import openvino

    model = openvino.convert_model(os.path.join(folder, "keras"))
    if int8:
        images = preprocess(load_images(folder))
        model = nncf.quantize(model, nncf.Dataset([image[None] for image in images]))
    os.makedirs(path, exist_ok=True)
    openvino.save_model(model, os.path.join(path, "model.xml"), compress_to_fp16=False)


def to_onnx_int8(path, folder):
    """Quantises the ONNX artifact as in ONNX Runtime's guide for x86 (QDQ, uint8)."""
    from onnxruntime import quantization

    class ImageReader(quantization.CalibrationDataReader):
        images = iter(load_images(folder))

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"image": image[None]}

    quantization.quantize_static(
        os.path.join(folder, "onnx"), path, ImageReader(), quantization.QuantFormat.QDQ,
        per_channel=True, activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip


# Functions that write the files of the peers, by file name.
PEER_WRITERS = {
    "keras": export_keras,
    "keras.tflite": to_tflite,
    "keras_int8.tflite": functools.partial(to_tflite, int8=True),
    "keras_openvino": to_openvino,
    "keras_nncf": functools.partial(to_openvino, int8=True),
    "onnx_int8": to_onnx_int8,
}
FILE_NAMES = (*OUR_ARTIFACTS, *PEER_WRITERS)
