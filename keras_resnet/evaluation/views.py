"""The views of an image that its prediction is averaged over.

These are the paper's, of section 4.1 and Tables 3 to 5:

- `"single"`: the central crop.
- `"10crop"`: the softmax averaged over `Preprocessing.ten_crops`.
- `"multiscale"`: the whole image, not square, with its shorter side at 224,
  256, 384, 480 and 640 pixels: fully convolutional, the dense layer on the
  global average of the final map; softmax averaged over the scales and over
  the image and its mirror. The paper says "scores" and "averaged" without
  saying where; averaging the logits, or the final maps of the two mirror
  images as in its reference [41], would be other readings. It does not state
  the interpolation either: here it is the weights' own.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_resnet.data import PAPER_SCALES, Cut, Preprocessing, central_crop
from keras_resnet.nets import channel_axis, has_imagenet_stem
from keras_resnet.support import InputError

VIEWS = ("single", "10crop", "multiscale")

# From what is cut from a batch of images, and `training=False`, to probabilities
# (batch, classes). A `keras.Model` is one.
Classify = Callable[..., tf.Tensor]


class View(NamedTuple):
    """How a network judges an image.

    Attributes:
        cut: What is taken of each image; see `keras_resnet.data.evaluation_batches`.
        classify: From a batch of that to probabilities.
        crops: Number of crops of an image; `None` if an image fills a batch.
        refresh: Copies the weights that the network has now, if `classify` has its
            own.
    """

    cut: Cut
    classify: Classify
    crops: int | None = 1
    refresh: Callable[[], object] = lambda: None


def make_view(name: str, model: keras.Model, preprocessing: Preprocessing) -> View:
    """Makes a view, one of `VIEWS`, for a network.

    Raises:
        InputError: The view is not for this network.
    """
    stem = has_imagenet_stem({layer.name for layer in model.layers})
    if name != "single" and not stem:
        raise InputError(
            "10crop and multiscale are for ImageNet nets; a CIFAR net sees the whole "
            f"image. Received: views={name!r} with {model.name}"
        )
    if name == "single":
        return View(central_crop(preprocessing), model)
    make = _ten_crops if name == "10crop" else _multiscale
    return make(model, preprocessing)


def _ten_crops(model: keras.Model, preprocessing: Preprocessing) -> View:
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return preprocessing.ten_crops(preprocessing.decode(encoded, False))

    def classify(images: tf.Tensor, training: bool) -> tf.Tensor:
        flat = tf.reshape(images, (-1, *preprocessing.shape))
        probabilities = model(flat, training=training)
        return tf.reduce_mean(
            tf.reshape(probabilities, (-1, 10, probabilities.shape[-1])), axis=1
        )

    spec = tf.TensorSpec((10, *preprocessing.shape), tf.uint8)
    return View(Cut(decode, preprocessing.ten_crops, spec), classify, crops=10)


def _multiscale(model: keras.Model, preprocessing: Preprocessing) -> View:
    if channel_axis() == 1:
        raise InputError("multiscale needs Keras's image_data_format 'channels_last'")
    any_size = keras.Input((None, None, preprocessing.channels), name="image")
    whole = keras.models.clone_model(model, input_tensors=any_size)

    def scales(image: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(preprocessing.whole_at(image, side) for side in PAPER_SCALES)

    def decode(encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return scales(preprocessing.decode(encoded, False))

    def classify(images: tuple[tf.Tensor, ...], training: bool) -> tf.Tensor:
        probabilities = [
            whole(tf.concat([image, image[:, :, ::-1]], 0), training=training)
            for image in images
        ]
        return tf.reduce_mean(tf.concat(probabilities, 0), axis=0, keepdims=True)

    spec = tf.TensorSpec((None, None, preprocessing.channels), tf.uint8)
    return View(
        Cut(decode, scales, (spec,) * len(PAPER_SCALES)),
        classify,
        crops=None,
        refresh=lambda: whole.set_weights(model.get_weights()),
    )
