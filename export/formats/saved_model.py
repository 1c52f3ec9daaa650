"""SavedModels: one for TensorFlow Serving, and one that the TFLite converter reads."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.evaluation import Classifier
from keras_resnet.nets import list_layers
from keras_resnet.support import InputError, shorten_list

from ..device import LIMITS, Disagreement

# Function of a SavedModel signature. Maps the input to a dict of named output tensors.
Endpoint = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def check_model(model: keras.Model) -> None:
    """Checks that a model can be exported.

    Raises:
        InputError: If the model has several inputs, layers that are not part of Keras
            or a variable input size, or if the layer `avg_pool` or `predictions` is
            missing, which the export needs for features and logits.
    """
    if len(getattr(model, "inputs", None) or [0]) > 1:
        raise InputError(
            "Export needs a network with one input, the image. Export the part of the "
            f"network that reads the image. Received: {model.name} with inputs "
            f"{shorten_list(i.name for i in model.inputs)}"
        )
    custom_layers = [
        f"{layer.name} ({type(layer).__name__})"
        for layer in list_layers(model)
        if type(layer).__module__.split(".")[0] != "keras"
        or isinstance(layer, keras.layers.Lambda)
    ]
    if custom_layers:
        raise InputError(
            "Export supports only the layers of Keras, which every converter can read. "
            "Replace other layers, or write a SavedModel with model.export(PATH). "
            f"Received: {model.name} with {shorten_list(custom_layers)}"
        )
    layers = {layer.name: layer for layer in model.layers}
    activation = getattr(layers.get("predictions"), "activation", None)
    if "avg_pool" not in layers or activation is not keras.activations.softmax:
        raise InputError(
            "Export needs a classifier from keras_resnet with the layers 'avg_pool' "
            f"and 'predictions' (activation: softmax). Received: {model.name}"
        )
    if None in model.input_shape[1:]:
        raise InputError(
            "Export needs a fixed input size. Rebuild the network from its weight file "
            "with a fixed size, for example with --image_size=224. "
            f"Received: {model.name} with input {model.input_shape}"
        )


def write_saved_model(classifier: Classifier, path: str) -> None:
    """Writes the SavedModel of a classifier for TensorFlow Serving.

    The SavedModel has three signatures. In all shapes, n is any number of images:

    - `serving_default`: Maps `image`, uint8, (n, height, width, channels), to
      `probabilities`, float32, (n, classes).
    - `image_bytes`: Maps `image_bytes`, string, (n,), to `classes`, string, (n, k), and
      `scores`, float32, (n, k). The inputs are JPEG, PNG, WebP, BMP or GIF files of any
      size. The outputs are the k most probable classes of each file, in descending
      order. k is 5, or the number of classes if that is smaller. A damaged file makes
      the whole request fail with InvalidArgument.
    - `features`: Maps `image`, as for `serving_default`, to `features`, float32,
      (n, channels), the global average of the last stage's output.
    """
    preprocessing = classifier.preprocessing
    pixel_spec = tf.TensorSpec((None, *preprocessing.shape), tf.uint8, "image")
    bytes_spec = tf.TensorSpec((None,), tf.string, "image_bytes")
    network = tf.function(_freeze(classifier.model), input_signature=[pixel_spec])
    class_names = tf.constant(classifier.classes)
    k = min(5, len(classifier.classes))

    def classify_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = tf.TensorSpec(preprocessing.shape, tf.uint8)
        images = tf.map_fn(preprocessing.read, image_bytes, fn_output_signature=spec)
        scores, indices = tf.math.top_k(network(images)["probabilities"], k)
        return {"classes": tf.gather(class_names, indices), "scores": scores}

    def make_endpoint(name: str) -> tuple[Endpoint, tf.TensorSpec]:
        return lambda image: {name: network(image)[name]}, pixel_spec

    _write_archive(
        path,
        serving_default=make_endpoint("probabilities"),
        image_bytes=(classify_bytes, bytes_spec),
        features=make_endpoint("features"),
    )


def _freeze(model: keras.Model) -> Endpoint:
    """Returns the network as a function whose weights are constants.

    TensorFlow converts constants to the memory layout of its kernels once, but converts
    variables in every call (docs/how-to/serve.md). All signatures that call the
    returned function share the constants.
    """
    features = model.get_layer("avg_pool").output
    outputs = {"probabilities": model.output, "features": features}
    model = keras.Model(model.input, outputs)
    trainable_values = [variable.numpy() for variable in model.trainable_variables]
    other_values = [variable.numpy() for variable in model.non_trainable_variables]

    def network(image: tf.Tensor) -> dict[str, tf.Tensor]:
        weights = [list(map(tf.constant, w)) for w in (trainable_values, other_values)]
        return model.stateless_call(*weights, image, training=False)[0]

    return network


def write_static_model(classifier: Classifier, path: str, dtype: str = "uint8") -> None:
    """Writes the SavedModel that the TFLite converter reads.

    The only signature, `serving_default`, has static shapes except for the batch size.
    With a static batch size and a last feature map of 1x1, the converter would write
    the batch size into reshapes, so that LiteRT could not enlarge the batch.
    `dtype` is the dtype of the input `image`, whose values are always 0 to 255.
    """
    spec = tf.TensorSpec((None, *classifier.preprocessing.shape), dtype, "image")

    def classify(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": classifier.model(image, training=False)}

    _write_archive(path, serving_default=(classify, spec))


def check_signatures(path: str, classifier: Classifier, images: np.ndarray) -> None:
    """Compares the signatures `image_bytes` and `features` with the Keras model.

    `images` is uint8, (n, height, width, channels).

    Raises:
        Disagreement: If the SavedModel and the Keras model predict different classes,
            or if their features differ by more than 1e-4 of the largest feature.
    """
    files = [tf.io.encode_png(image) for image in images]
    decoded_images = np.stack(list(map(classifier.preprocessing.read, files)))
    indices = compute_reference_logits(classifier.model, decoded_images).argmax(axis=1)
    expected_classes = [classifier.classes[index].encode() for index in indices]
    model = tf.saved_model.load(path)
    predicted = model.signatures["image_bytes"](image_bytes=tf.stack(files))["classes"]
    if predicted.numpy()[:, 0].tolist() != expected_classes:
        raise Disagreement(
            "The signature 'image_bytes' of the SavedModel and the Keras model predict "
            "different classes"
        )
    output = model.signatures["features"](image=tf.constant(images))["features"].numpy()
    features = _make_feature_model(classifier.model)(images, training=False)
    difference = np.abs(output - features).max() / np.abs(features).max()
    if not difference <= (limit := LIMITS["float32"].logits):
        raise Disagreement(
            "The signature 'features' of the SavedModel and the Keras model differ by "
            f"{difference:.1e} of the largest feature; the limit is {limit:.0e}"
        )


def _make_feature_model(model: keras.Model) -> keras.Model:
    return keras.Model(model.input, model.get_layer("avg_pool").output)


def compute_reference_logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Returns the logits of the Keras model, with which every artifact is compared.

    `images` is uint8, (n, height, width, channels). The logits are the inputs of the
    softmax, (n, classes). The last layer is computed in float64.
    """
    compute_features = _make_feature_model(model)
    head = model.get_layer("predictions")
    kernel, bias = (np.asarray(w, np.float64) for w in head.get_weights())
    batches = [images[i : i + 64] for i in range(0, len(images), 64)]
    features = np.concatenate([compute_features(b, training=False) for b in batches])
    return features.astype(np.float64) @ kernel + bias


def _write_archive(path: str, **endpoints: tuple[Endpoint, tf.TensorSpec]) -> None:
    archive = keras.export.ExportArchive()
    # The endpoints already contain the variables. archive.track(model) would store each
    # variable a second time.
    for name, (function, spec) in endpoints.items():
        archive.add_endpoint(name, function, input_signature=[spec])
    try:
        archive.write_out(path, verbose=False)
    except tf.errors.OpError as error:
        problem = error.message.splitlines()[0]
        raise OSError(f"Could not write {path}: {problem}") from error
