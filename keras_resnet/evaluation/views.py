"""Views of an image, which are crops or scales whose predictions are averaged.

The views follow the paper (section 4.1 and Tables 3 to 5):

- `"single"`: The central crop.
- `"10crop"`: The probabilities are averaged over `Preprocessing.ten_crops`.
- `"multiscale"`: The network is applied to the whole image, resized so that its shorter
  side is 224, 256, 384, 480 and 640 pixels. The dense layer follows the global average
  pooling, so images of any size fit. The probabilities are averaged over the five
  scales and over the image and its mirror image.

The paper states that "scores" are averaged, without further detail. It could also mean
the logits, or the final feature maps of an image and its mirror image as in its
reference [41]. The paper does not state the interpolation of `"multiscale"`. It is
`Preprocessing.interpolation` here.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_resnet.data import PAPER_SCALES, CropReader, Preprocessing, central_crop
from keras_resnet.nets import channel_axis, has_imagenet_stem
from keras_resnet.support import InputError

VIEWS = ("single", "10crop", "multiscale")

# Function that takes a batch of views and the keyword `training`, and that returns
# probabilities, (batch, classes). A `keras.Model` is such a function.
ClassifyFunction = Callable[..., tf.Tensor]


class View(NamedTuple):
    """Functions that read the views of an image and average their predictions.

    Attributes:
        reader: Functions that read the crops or scales of an image.
        classify: Function that returns the averaged probabilities of each image.
        crops: Number of crops per image; `None` if a batch is a single image.
        refresh_weights: Function that updates the weights of `classify`, if that uses a
            copy of the network.
    """

    reader: CropReader
    classify: ClassifyFunction
    crops: int | None = 1
    refresh_weights: Callable[[], object] = lambda: None


def make_view(name: str, model: keras.Model, preprocessing: Preprocessing) -> View:
    """Makes the view with a name from `VIEWS` for a network.

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
    make = _make_ten_crop_view if name == "10crop" else _make_multiscale_view
    return make(model, preprocessing)


def _make_ten_crop_view(model: keras.Model, preprocessing: Preprocessing) -> View:
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return preprocessing.ten_crops(preprocessing.decode(encoded, False))

    def classify(images: tf.Tensor, training: bool) -> tf.Tensor:
        crops = tf.reshape(images, (-1, *preprocessing.shape))
        outputs = model(crops, training=training)
        crop_probabilities = tf.reshape(outputs, (-1, 10, outputs.shape[-1]))
        return tf.reduce_mean(crop_probabilities, axis=1)

    spec = tf.TensorSpec((10, *preprocessing.shape), tf.uint8)
    return View(CropReader(decode, preprocessing.ten_crops, spec), classify, crops=10)


def _make_multiscale_view(model: keras.Model, preprocessing: Preprocessing) -> View:
    if channel_axis() == 1:
        raise InputError("multiscale needs Keras's image_data_format 'channels_last'")
    any_size_input = keras.Input((None, None, preprocessing.channels), name="image")
    any_size_model = keras.models.clone_model(model, input_tensors=any_size_input)

    def resize(image: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(preprocessing.resize_shorter_side(image, s) for s in PAPER_SCALES)

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
        refresh_weights=lambda: any_size_model.set_weights(model.get_weights()),
    )
