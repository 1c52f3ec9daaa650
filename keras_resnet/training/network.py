"""The network of a run: new or from weights, with frozen stages and a fresh head."""

import dataclasses
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import (
    Dataset,
    Preprocessing,
    channel_statistics,
    load_views,
    replace_damaged,
)
from keras_resnet.nets import Head, build_network, channel_axis, stages
from keras_resnet.spec import OF_THE_WEIGHTS, RunSpec
from keras_resnet.support import InputError
from keras_resnet.weights import Checkpoint, Origin, pixels_of
from keras_resnet.zoo import ResNet

# Number of training images over which the mean and variance of pixels are taken.
STATISTICS_IMAGES = 1000


def make_network(
    spec: RunSpec,
    images: Dataset,
    preprocessing: Preprocessing,
    checkpoint: Checkpoint | None,
) -> tuple[keras.Model, Dataset]:
    """Makes the network of a run; its first layer normalises raw pixels.

    Args:
        spec: The run.
        images: The data set, whose classes the network gets.
        preprocessing: From its images to the network's input.
        checkpoint: Weights to start from, which bring their normalisation.

    Returns:
        The network; and the images, in which damaged ones among those that the
        statistics are taken of are replaced.

    Raises:
        InputError: The weights do not fit.
    """
    if checkpoint:
        network = _from_weights(spec, images, preprocessing, checkpoint)
    else:
        network, images = _from_scratch(spec, images, preprocessing)
    # In training too, a frozen BatchNormalization of Keras uses its moving statistics
    # and does not change them.
    for layer, number in stages(network):
        if f"conv{number}" in spec.freeze:
            layer.trainable = False
    _note_origin(network, spec, images, preprocessing)
    _compile(network)
    return network, images


def _from_scratch(
    spec: RunSpec, images: Dataset, preprocessing: Preprocessing
) -> tuple[keras.Model, Dataset]:
    mean, variance, images = _pixel_statistics(images, preprocessing)
    normalise = keras.layers.Normalization(
        axis=channel_axis(), mean=mean, variance=variance, name="normalization"
    )
    network = build_network(
        spec.variant,
        spec.model,
        Head(classes=len(images.classes)),
        input_shape=preprocessing.shape,
        normalise=normalise,
    )
    return network, images


def _from_weights(
    spec: RunSpec, images: Dataset, preprocessing: Preprocessing, checkpoint: Checkpoint
) -> keras.Model:
    if checkpoint.origin.pixels is None:
        raise InputError(
            "The file does not say how its network's pixels are normalised; take a "
            f".keras file. Received: weights={spec.weights!r}"
        )
    is_stride_named = spec.stride_on != OF_THE_WEIGHTS
    network = ResNet(
        spec.model,
        weights=checkpoint,
        input_shape=preprocessing.shape,
        classes=len(images.classes),
        shortcut=spec.shortcut,
        stride_on=spec.stride_on if is_stride_named else None,
        zero_gamma=spec.recipe.zero_gamma,
        stochastic_depth=spec.recipe.stochastic_depth,
    )
    _renew_head(network, checkpoint, images.classes)
    return network


def _pixel_statistics(
    images: Dataset, preprocessing: Preprocessing
) -> tuple[list[float], list[float], Dataset]:
    """Returns mean and variance of each channel, and the images that were usable.

    The paper subtracts the mean of each pixel. This subtracts the mean of each channel
    and divides by its standard deviation, both over STATISTICS_IMAGES training images
    at most, so that one network takes images of any size.
    """
    count = min(STATISTICS_IMAGES, len(images.train))
    places = np.linspace(0, len(images.train) - 1, count).astype(int)
    try:
        views = load_views(images.train.take(places), preprocessing)
    except tf.errors.OpError:
        train = replace_damaged(images.train, preprocessing, places)
        images = dataclasses.replace(images, train=train)
        views = load_views(train.take(places), preprocessing)
    mean, variance = channel_statistics(views)
    return mean, variance, images


def _renew_head(
    network: keras.Model, checkpoint: Checkpoint, classes: tuple[str, ...]
) -> None:
    """Gives the head random weights if the same number of classes are other ones."""
    known = checkpoint.origin.classes
    if checkpoint.classes != len(classes) or known == classes:
        return
    if known is None:
        print(
            f"{checkpoint.origin.source} does not name its {len(classes)} classes; its "
            "head is kept",
            file=sys.stderr,
        )
        return
    head = network.get_layer("predictions")
    head.kernel.assign(head.kernel_initializer(head.kernel.shape))
    head.bias.assign(keras.ops.zeros_like(head.bias))


def _note_origin(
    network: keras.Model, spec: RunSpec, images: Dataset, preprocessing: Preprocessing
) -> None:
    """Notes what belongs to the weights; it travels in the saved file."""
    pixels = pixels_of(network)
    assert pixels is not None  # Its first layer normalises.
    is_square = preprocessing.height == preprocessing.width
    pixels = pixels._replace(
        crop=preprocessing.crop,
        interpolation=preprocessing.interpolation,
        size=preprocessing.height if is_square else None,
    )
    network.origin = Origin("", pixels, images.classes, spec.model)


def _compile(network: keras.Model) -> None:
    """Compiles a network for `evaluate` and `fit` of the saved file."""
    network.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    # `fit` would build the metrics. EarlyStopping and ReduceLROnPlateau ask them
    # whether a higher value is better.
    network.compute_metrics(None, np.zeros(1), np.zeros((1, network.output_shape[-1])))
    network.reset_metrics()
