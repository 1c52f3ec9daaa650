"""A SavedModel that takes raw pixels or encoded images, for TensorFlow Serving."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.evaluation import Classifier
from keras_resnet.nets import flat_layers
from keras_resnet.support import InputError, shorten_list

from ..device import LIMITS, Disagreement

# From the tensor that a signature takes to those that it gives, by name.
Endpoint = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def check_model(model: keras.Model) -> None:
    """Refuses a model that artifacts cannot be made of, and says what can be done.

    Raises:
        InputError: It has several inputs, layers that are not Keras's own, or an
            input of any size, or its logits and features cannot be told from its
            layers.
    """
    if len(getattr(model, "inputs", None) or [0]) > 1:
        raise InputError(
            "Export needs a network with one input, the image; export the part of it "
            "that reads the image. "
            f"Received: {model.name} with inputs {shorten_list(i.name for i in model.inputs)}"
        )
    custom = [
        f"{layer.name} ({type(layer).__name__})"
        for layer in flat_layers(model)
        if type(layer).__module__.split(".")[0] != "keras"
        or isinstance(layer, keras.layers.Lambda)
    ]
    if custom:
        raise InputError(
            "Export needs Keras's own layers, which every converter knows; replace the "
            "others, or write a SavedModel alone by Keras's model.export(PATH). "
            f"Received: {model.name} with {shorten_list(custom)}"
        )
    layers = {layer.name: layer for layer in model.layers}
    activation = getattr(layers.get("predictions"), "activation", None)
    if "avg_pool" not in layers or activation is not keras.activations.softmax:
        raise InputError(
            "Export needs a classifier of keras_resnet that ends in the layers avg_pool "
            f"and predictions, with softmax. Received: {model.name}"
        )
    if None in model.input_shape[1:]:
        raise InputError(
            "Export needs an input of one size; build the network with one, as by "
            "--image_size=224 with a file of its weights. "
            f"Received: {model.name} with input {model.input_shape}"
        )


def write_saved_model(classifier: Classifier, path: str) -> None:
    """Writes the SavedModel of a classifier.

    Signatures, with n any number of images:

    - `serving_default`: `image`, uint8 (n, height, width, channels), to
      `probabilities`, float32 (n, classes).
    - `image_bytes`: `image_bytes`, string (n,), JPEG, PNG, WebP, BMP or GIF files of
      any sizes, to `classes`, string (n, k), and `scores`, float32 (n, k), the
      likeliest first; k is 5, or the number of classes if that is less. A
      damaged file fails the whole request with InvalidArgument.
    - `features`: `image` as above to `features`, float32 (n, channels), the
      global average of the last stage.

    Args:
        classifier: The classifier.
        path: Folder to write.
    """
    preprocessing = classifier.preprocessing
    pixels = tf.TensorSpec((None, *preprocessing.shape), tf.uint8, "image")
    encoded = tf.TensorSpec((None,), tf.string, "image_bytes")
    network = tf.function(_frozen(classifier.model), input_signature=[pixels])
    names = tf.constant(classifier.classes)
    top = min(5, len(classifier.classes))

    def classify_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        image = tf.TensorSpec(preprocessing.shape, tf.uint8)
        images = tf.map_fn(preprocessing.read, image_bytes, fn_output_signature=image)
        scores, best = tf.math.top_k(network(images)["probabilities"], top)
        return {"classes": tf.gather(names, best), "scores": scores}

    def part(name: str) -> tuple[Endpoint, tf.TensorSpec]:
        return lambda image: {name: network(image)[name]}, pixels

    _write(
        path,
        serving_default=part("probabilities"),
        image_bytes=(classify_bytes, encoded),
        features=part("features"),
    )


def _frozen(model: keras.Model) -> Endpoint:
    """Returns the network as a function whose weights are constants.

    With constants TensorFlow's kernels lay the weights out once, not in every call
    (docs/serving.md). Signatures that call one `tf.function` share its constants.
    """
    features = model.get_layer("avg_pool").output
    outputs = {"probabilities": model.output, "features": features}
    both = keras.Model(model.input, outputs)
    trainable = [variable.numpy() for variable in both.trainable_variables]
    others = [variable.numpy() for variable in both.non_trainable_variables]

    def network(image: tf.Tensor) -> dict[str, tf.Tensor]:
        weights = [list(map(tf.constant, values)) for values in (trainable, others)]
        return both.stateless_call(*weights, image, training=False)[0]

    return network


def write_static(classifier: Classifier, path: str, pixels: str = "uint8") -> None:
    """Writes the SavedModel that converters read: one signature, static but for the batch.

    With a batch of 1 the converter would bake reshapes into nets that end in one
    position, and the file could not be resized to more images. `pixels` is the dtype of
    `image`, whose values are from 0 to 255 in any.
    """
    spec = tf.TensorSpec((None, *classifier.preprocessing.shape), pixels, "image")

    def classify(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": classifier.model(image, training=False)}

    _write(path, serving_default=(classify, spec))


def check_signatures(path: str, classifier: Classifier, images: np.ndarray) -> None:
    """Refuses a SavedModel whose `image_bytes` or `features` are not the classifier's.

    The images are uint8, (n, height, width, channels).

    Raises:
        Disagreement: Another class comes first, or features differ by more than
            1e-4 of the largest.
    """
    files = [tf.io.encode_png(image) for image in images]
    decoded = np.stack([classifier.preprocessing.read(file) for file in files])
    places = reference_logits(classifier.model, decoded).argmax(axis=1)
    expected = [classifier.classes[place].encode() for place in places]
    model = tf.saved_model.load(path)
    named = model.signatures["image_bytes"](image_bytes=tf.stack(files))["classes"]
    if named.numpy()[:, 0].tolist() != expected:
        raise Disagreement(
            "The signature image_bytes of the SavedModel names other classes than the "
            "Keras model"
        )
    served = model.signatures["features"](image=tf.constant(images))["features"].numpy()
    features = _features(classifier.model)(images, training=False)
    difference = np.abs(served - features).max() / np.abs(features).max()
    if not difference <= LIMITS["float32"].logits:
        raise Disagreement(
            f"The signature features of the SavedModel differs by {difference:.1e} of the "
            "largest from the Keras model"
        )


def _features(model: keras.Model) -> keras.Model:
    return keras.Model(model.input, model.get_layer("avg_pool").output)


def reference_logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Returns the Keras model's logits, which every artifact is compared with.

    They are float64, (n, classes), before the softmax, from the model's own features.
    The images are uint8, (n, height, width, channels).
    """
    features = _features(model)
    head = model.get_layer("predictions")
    kernel, bias = (np.asarray(w, np.float64) for w in head.get_weights())
    batches = [images[i : i + 64] for i in range(0, len(images), 64)]
    parts = [np.asarray(features(b, training=False), np.float64) for b in batches]
    return np.concatenate(parts) @ kernel + bias


def _write(path: str, **endpoints: tuple[Endpoint, tf.TensorSpec]) -> None:
    archive = keras.export.ExportArchive()
    # Without archive.track(model), which would store every variable twice; the
    # endpoints hold theirs.
    for name, (function, spec) in endpoints.items():
        archive.add_endpoint(name, function, input_signature=[spec])
    try:
        archive.write_out(path, verbose=False)
    except tf.errors.OpError as error:
        problem = error.message.splitlines()[0]
        raise OSError(f"Could not write {path}: {problem}") from error
