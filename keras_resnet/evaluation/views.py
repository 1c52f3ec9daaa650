"""Views of an image, over which its prediction is averaged.

The views follow the paper (section 4.1 and Tables 3 to 5):

- `"single"`: The central crop.
- `"10crop"`: The probabilities are averaged over `Preprocessing.ten_crops`.
- `"multiscale"`: The network is applied to the whole image, resized so that its shorter
  side is 224, 256, 384, 480 and 640 pixels. The dense layer follows the global average
  pooling, so any size fits. The probabilities are averaged over the five scales and
  over the image and its mirror image.

The paper averages "scores" without further detail. It could also mean averaging the
logits, or averaging the final feature maps of the two mirror images as in its
reference [41]. It does not state the interpolation; `"multiscale"` uses that of the
weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_resnet.data import PAPER_SCALES, CropReader, Preprocessing, central_crop
from keras_resnet.nets import channel_axis, has_imagenet_stem
from keras_resnet.support import InputError

VIEWS = ("single", "10crop", "multiscale")

# A function of a batch of views and of `training=False` that returns probabilities
# (batch, classes), such as a `keras.Model`.
ClassifyFunction = Callable[..., tf.Tensor]


class View(NamedTuple):
    """The crops or scales of an image and the average over their predictions.

    Attributes:
        reader: Functions that return the crops or scales of an image.
        classify: Function that returns the averaged probabilities of each image.
        crops: Number of crops per image; `None` if each batch is a single image.
        refresh: Function that copies the current weights of the network to `classify`,
            if that has weights of its own.
    """

    reader: CropReader
    classify: ClassifyFunction
    crops: int | None = 1
    refresh: Callable[[], object] = lambda: None


def make_view(name: str, model: keras.Model, preprocessing: Preprocessing) -> View:
    """Returns a view, one of `VIEWS`, for a network.

    Raises:
        InputError: If the network does not support the view.
    """
    is_imagenet = has_imagenet_stem({layer.name for layer in model.layers})
    if name != "single" and not is_imagenet:
        raise InputError(
            "10crop and multiscale need an ImageNet network, because a CIFAR network "
            f"takes the whole image. Received: views={name!r} with {model.name}"
        )
    if name == "single":
        return View(central_crop(preprocessing), model)
    make = _make_ten_crops if name == "10crop" else _make_multiscale
    return make(model, preprocessing)


def _make_ten_crops(model: keras.Model, preprocessing: Preprocessing) -> View:
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return preprocessing.ten_crops(preprocessing.decode(encoded, False))

    def classify(images: tf.Tensor, training: bool) -> tf.Tensor:
        crops = tf.reshape(images, (-1, *preprocessing.shape))
        probabilities = model(crops, training=training)
        return tf.reduce_mean(
            tf.reshape(probabilities, (-1, 10, probabilities.shape[-1])), axis=1
        )

    spec = tf.TensorSpec((10, *preprocessing.shape), tf.uint8)
    return View(CropReader(decode, preprocessing.ten_crops, spec), classify, crops=10)


def _make_multiscale(model: keras.Model, preprocessing: Preprocessing) -> View:
    if channel_axis() == 1:
        raise InputError("multiscale needs Keras's image_data_format 'channels_last'")
    any_size = keras.Input((None, None, preprocessing.channels), name="image")
    any_size_model = keras.models.clone_model(model, input_tensors=any_size)

    def resize(image: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(
            preprocessing.resize_shorter_side(image, side) for side in PAPER_SCALES
        )

    def decode(encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return resize(preprocessing.decode(encoded, False))

    def classify(images: tuple[tf.Tensor, ...], training: bool) -> tf.Tensor:
        probabilities = [
            any_size_model(tf.concat([image, image[:, :, ::-1]], 0), training=training)
            for image in images
        ]
        return tf.reduce_mean(tf.concat(probabilities, 0), axis=0, keepdims=True)

    spec = tf.TensorSpec((None, None, preprocessing.channels), tf.uint8)
    return View(
        CropReader(decode, resize, (spec,) * len(PAPER_SCALES)),
        classify,
        crops=None,
        refresh=lambda: any_size_model.set_weights(model.get_weights()),
    )
