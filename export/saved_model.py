"""A SavedModel that takes raw pixels or encoded images, for TensorFlow Serving."""

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError


def check_model(model):
    """Refuses a model whose logits and features cannot be told from its layers."""
    layers = {layer.name: layer for layer in model.layers}
    head = layers.get("predictions")
    if (
        "avg_pool" not in layers
        or getattr(head, "activation", None) is not keras.activations.softmax
    ):
        raise InputError(
            "Export needs a classifier of keras_resnet that ends in the layers avg_pool "
            f"and predictions, with softmax. Received: {model.name}"
        )


def write_saved_model(classifier, path):
    """Writes the SavedModel of a classifier.

    Signatures, with n any number of images:

    - `serving_default`: `image`, uint8 (n, height, width, channels), to
      `probabilities`, float32 (n, classes).
    - `image_bytes`: `image_bytes`, string (n,), JPEG, PNG, WebP, BMP or GIF files of
      any size, to `classes`, string (n, k), and `scores`, float32 (n, k), the
      likeliest first; k is 5, or the number of classes if that is less. A
      damaged file fails the whole request with InvalidArgument.
    - `features`: `image` as above to `features`, float32 (n, channels), the
      global average of the last stage.

    Args:
        classifier: a `keras_resnet.classifiers.Classifier`.
        path: of the folder to write.
    """
    model, preprocessing = classifier.model, classifier.preprocessing
    features = keras.Model(model.input, model.get_layer("avg_pool").output)
    names = tf.constant(classifier.classes)
    top = min(5, len(classifier.classes))

    def classify_bytes(image_bytes):
        images = tf.map_fn(
            preprocessing.read,
            image_bytes,
            fn_output_signature=tf.TensorSpec(preprocessing.shape, tf.uint8),
        )
        scores, best = tf.math.top_k(model(images, training=False), top)
        return {"classes": tf.gather(names, best), "scores": scores}

    pixels = tf.TensorSpec((None, *preprocessing.shape), tf.uint8, "image")
    encoded = tf.TensorSpec((None,), tf.string, "image_bytes")
    _write(
        path,
        serving_default=(
            lambda image: {"probabilities": model(image, training=False)},
            pixels,
        ),
        image_bytes=(classify_bytes, encoded),
        features=(lambda image: {"features": features(image, training=False)}, pixels),
    )


def write_static(classifier, path):
    """Writes the SavedModel that converters read: one signature, one image.

    Args:
        classifier: a `keras_resnet.classifiers.Classifier`.
        path: of the folder to write.
    """
    pixels = tf.TensorSpec((1, *classifier.preprocessing.shape), tf.uint8, "image")
    _write(
        path,
        serving_default=(
            lambda image: {"probabilities": classifier.model(image, training=False)},
            pixels,
        ),
    )


def open_saved_model(path):
    """Loads a SavedModel.

    Returns:
        A function from uint8 images (n, height, width, channels) to their
        probabilities, float32 (n, classes).
    """
    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]

    def classify(images):
        return serve(image=tf.constant(images))["probabilities"].numpy()

    classify.keep = loaded  # The signature does not hold the variables alive.
    return classify


def signatures(path):
    """Returns the inputs and outputs of each signature of a SavedModel."""

    def describe(specs):
        return {
            name: [spec.dtype.name, [-1 if n is None else n for n in spec.shape]]
            for name, spec in specs.items()
        }

    loaded = tf.saved_model.load(path)
    return {
        name: {
            "inputs": describe(function.structured_input_signature[1]),
            "outputs": describe(function.structured_outputs),
        }
        for name, function in loaded.signatures.items()
    }


def reference(model, images, batch_size=64):
    """Logits of the Keras model, which every artifact is held against.

    Args:
        model: see `check_model`.
        images: uint8 (n, height, width, channels).
        batch_size: images at a time.

    Returns:
        float64 (n, classes): before the softmax, from the model's own features.
    """
    features = keras.Model(model.input, model.get_layer("avg_pool").output)
    kernel, bias = (np.float64(w) for w in model.get_layer("predictions").get_weights())
    parts = [
        np.float64(features(images[i : i + batch_size], training=False))
        for i in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts) @ kernel + bias


def _write(path, **endpoints):
    archive = keras.export.ExportArchive()
    # Without archive.track(model), which would store every variable twice; the
    # endpoints hold theirs.
    for name, (function, spec) in endpoints.items():
        archive.add_endpoint(name, function, input_signature=[spec])
    try:
        archive.write_out(path, verbose=False)
    except tf.errors.OpError as error:
        raise OSError(
            f"Could not write {path}: {error.message.splitlines()[0]}"
        ) from error
