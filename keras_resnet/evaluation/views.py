"""Views of an image: crops or scaled copies whose predictions are averaged.

The views follow the paper (section 4.1 and Tables 3 to 5):

- `"single"`: The central crop.
- `"10crop"`: The probabilities are averaged over `Preprocessing.ten_crops`.
- `"multiscale"`: The whole image is resized to five scales, with shorter sides of 224,
  256, 384, 480 and 640 pixels. The network accepts any size, because global average
  pooling precedes the dense layer. The probabilities are averaged over the five scales
  and over the image and its mirror image.

The paper averages "scores", which this module takes to be probabilities. The word
could also mean logits, or the final feature maps of an image and its mirror image, as
in reference [41] of the paper. The paper does not state how images are resized for
`"multiscale"`. This module uses `Preprocessing.interpolation`.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_resnet.data import PAPER_SCALES, CropReader, Preprocessing, central_crop
from keras_resnet.nets import channel_axis, has_imagenet_stem
from keras_resnet.support import InputError

VIEWS = ("single", "10crop", "multiscale")

# Function from a batch of views, and the keyword `training`, to probabilities of the
# shape (batch, classes). A `keras.Model` can be called in the same way.
ClassifyFunction = Callable[..., tf.Tensor]


class View(NamedTuple):
    """Functions that read views of an image and average the predictions for the views.

    Attributes:
        reader: Reader of the crops or scales of an image.
        classify: Function that returns the averaged probabilities of each image.
        num_crops: Number of crops per image. `None` means that a batch is one image.
        refresh_weights: Function that copies the current weights of the network, if
            `classify` uses a copy of the network.
    """

    reader: CropReader
    classify: ClassifyFunction
    num_crops: int | None = 1
    refresh_weights: Callable[[], object] = lambda: None


def make_view(name: str, model: keras.Model, preprocessing: Preprocessing) -> View:
    """Makes a view for a network. `name` is one of `VIEWS`.

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
    factory = _make_ten_crop_view if name == "10crop" else _make_multiscale_view
    return factory(model, preprocessing)


def _make_ten_crop_view(model: keras.Model, preprocessing: Preprocessing) -> View:
    def decode(encoded_image: tf.Tensor) -> tf.Tensor:
        return preprocessing.ten_crops(preprocessing.decode(encoded_image, False))

    def classify(images: tf.Tensor, training: bool) -> tf.Tensor:
        crops = tf.reshape(images, (-1, *preprocessing.shape))
        outputs = model(crops, training=training)
        crop_probabilities = tf.reshape(outputs, (-1, 10, outputs.shape[-1]))
        return tf.reduce_mean(crop_probabilities, axis=1)

    crops_spec = tf.TensorSpec((10, *preprocessing.shape), tf.uint8)
    reader = CropReader(decode, preprocessing.ten_crops, crops_spec)
    return View(reader, classify, num_crops=10)


def _make_multiscale_view(model: keras.Model, preprocessing: Preprocessing) -> View:
    if channel_axis() == 1:
        raise InputError("multiscale needs Keras's image_data_format 'channels_last'")
    any_size_input = keras.Input((None, None, preprocessing.channels), name="image")
    any_size_model = keras.models.clone_model(model, input_tensors=any_size_input)

    def resize(image: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(preprocessing.resize_shorter_side(image, s) for s in PAPER_SCALES)

    def decode(encoded_image: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return resize(preprocessing.decode(encoded_image, False))

    def classify(images: tuple[tf.Tensor, ...], training: bool) -> tf.Tensor:
        probabilities = [
            any_size_model(tf.concat([image, image[:, :, ::-1]], 0), training=training)
            for image in images
        ]
        return tf.reduce_mean(tf.concat(probabilities, 0), axis=0, keepdims=True)

    image_spec = tf.TensorSpec((None, None, preprocessing.channels), tf.uint8)
    return View(
        CropReader(decode, resize, (image_spec,) * len(PAPER_SCALES)),
        classify,
        num_crops=None,
        refresh_weights=lambda: any_size_model.set_weights(model.get_weights()),
    )
