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
        images: Data set, whose classes the network gets.
        preprocessing: From its images to the network's input.
        checkpoint: Weights to start from, which bring their normalisation.

    Returns:
        The network; and the images. Those of the pixel statistics that are damaged
        are replaced.

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
    pixels = pixels_of(network)
    assert pixels is not None  # Its first layer normalises.
    is_square = preprocessing.height == preprocessing.width
    pixels = pixels._replace(
        crop=preprocessing.crop,
        interpolation=preprocessing.interpolation,
        size=preprocessing.height if is_square else None,
    )
    # What belongs to the weights travels in the saved file.
    network.origin = Origin("", pixels, images.classes, spec.model)
    # For `evaluate` and `fit` of the saved file.
    network.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    # `fit` would build the metrics. EarlyStopping and ReduceLROnPlateau ask them
    # whether a higher value is better.
    network.compute_metrics(None, np.zeros(1), np.zeros((1, network.output_shape[-1])))
    network.reset_metrics()
    return network, images


def _from_scratch(
    spec: RunSpec, images: Dataset, preprocessing: Preprocessing
) -> tuple[keras.Model, Dataset]:
    views, images = _sample_views(images, preprocessing)
    mean, variance = channel_statistics(views)
    normalise = keras.layers.Normalization(
        axis=channel_axis(), mean=mean, variance=variance, name="normalization"
    )
    head, shape = Head(classes=len(images.classes)), preprocessing.shape
    network = build_network(
        spec.variant, spec.model, head, input_shape=shape, normalise=normalise
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
    network = ResNet(
        spec.model,
        weights=checkpoint,
        input_shape=preprocessing.shape,
        classes=len(images.classes),
        shortcut=spec.shortcut,
        stride_on=None if spec.stride_on == OF_THE_WEIGHTS else spec.stride_on,
        zero_gamma=spec.recipe.zero_gamma,
        stochastic_depth=spec.recipe.stochastic_depth,
    )
    known, classes = checkpoint.origin.classes, images.classes
    if checkpoint.classes == len(classes) and known is None:
        print(
            f"{checkpoint.origin.source} does not name its {len(classes)} classes; its "
            "head is kept",
            file=sys.stderr,
        )
    elif checkpoint.classes == len(classes) and known != classes:
        head = network.get_layer("predictions")
        head.kernel.assign(head.kernel_initializer(head.kernel.shape))
        head.bias.assign(keras.ops.zeros_like(head.bias))
    return network


def _sample_views(
    images: Dataset, preprocessing: Preprocessing
) -> tuple[np.ndarray, Dataset]:
    """Returns some training images as the network gets them, and the usable images.

    The paper subtracts the mean of each pixel. The network subtracts the mean of each
    channel and divides by its standard deviation, so that it takes images of any size.
    """
    count = min(STATISTICS_IMAGES, len(images.train))
    places = np.linspace(0, len(images.train) - 1, count).astype(int)
    try:
        return load_views(images.train.take(places), preprocessing), images
    except tf.errors.OpError:
        train = replace_damaged(images.train, preprocessing, places)
        images = dataclasses.replace(images, train=train)
        return load_views(train.take(places), preprocessing), images
