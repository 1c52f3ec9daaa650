"""Construction of a run's network, with random or loaded weights."""

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
from keras_resnet.nets import (
    Head,
    build_network,
    channel_axis,
    draw_kernel,
    list_layers,
    pair_layers_with_stages,
)
from keras_resnet.spec import STRIDE_FROM_WEIGHTS, RunSpec
from keras_resnet.support import InputError, derive_seed
from keras_resnet.weights import Checkpoint, Origin, find_pixel_format
from keras_resnet.zoo import ResNet

# Maximum number of training images from which the pixel statistics are computed.
MAX_STATISTICS_IMAGES = 1000


def make_network(
    spec: RunSpec,
    images: Dataset,
    preprocessing: Preprocessing,
    checkpoint: Checkpoint | None,
) -> tuple[keras.Model, Dataset]:
    """Makes the network of a run. The first layer of the network normalises pixels.

    Returns:
        The network, and the dataset. If computing the pixel statistics reveals damaged
        images, other images replace them in the returned dataset.

    Raises:
        InputError: If the weights do not fit the network.
    """
    if checkpoint:
        network = _make_from_weights(spec, images, preprocessing, checkpoint)
    else:
        network, images = _make_from_scratch(spec, images, preprocessing)
    _seed_stochastic_depth(network, spec.seed)
    # In Keras, a frozen `BatchNormalization` layer normalises with its moving
    # statistics in training too, and does not update these statistics.
    for layer, stage in pair_layers_with_stages(network):
        if f"conv{stage}" in spec.freeze:
            layer.trainable = False
    pixel_format = find_pixel_format(network)
    assert pixel_format is not None  # The first layer normalises pixels.
    is_square = preprocessing.height == preprocessing.width
    pixel_format = pixel_format._replace(
        crop=preprocessing.crop,
        interpolation=preprocessing.interpolation,
        size=preprocessing.height if is_square else None,
    )
    # `origin` (preprocessing, class names, variant) is stored in saved files.
    network.origin = Origin("", pixel_format, images.classes, spec.model)
    # The saved network is compiled, so that users can call `evaluate` and `fit`.
    optimizer = keras.optimizers.SGD(name="sgd")  # Keras numbers its default names.
    network.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    # The next two calls build the metrics, as `fit` would. `EarlyStopping` and
    # `ReduceLROnPlateau` read from the metrics whether a higher value is better.
    network.compute_metrics(None, np.zeros(1), np.zeros((1, network.output_shape[-1])))
    network.reset_metrics()
    return network, images


def _make_from_scratch(
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


def _make_from_weights(
    spec: RunSpec, images: Dataset, preprocessing: Preprocessing, checkpoint: Checkpoint
) -> keras.Model:
    if checkpoint.origin.pixels is None:
        raise InputError(
            "The weights must include their pixel normalisation. Use a .keras file. "
            f"Received: weights={spec.weights!r}"
        )
    network = ResNet(
        spec.model,
        weights=checkpoint,
        input_shape=preprocessing.shape,
        classes=len(images.classes),
        shortcut=spec.shortcut,
        stride_on=None if spec.stride_on == STRIDE_FROM_WEIGHTS else spec.stride_on,
        zero_gamma=spec.recipe.zero_gamma,
        stochastic_depth=spec.recipe.stochastic_depth,
    )
    old_classes, classes = checkpoint.origin.classes, images.classes
    if checkpoint.num_classes == len(classes) and old_classes is None:
        print(
            f"{checkpoint.origin.source} does not name its {len(classes)} classes. They "
            "are assumed to be the dataset's classes, so the head keeps the loaded weights",
            file=sys.stderr,
        )
    # The dataset has other class names, so the head starts with random weights.
    elif checkpoint.num_classes == len(classes) and old_classes != classes:
        head = network.get_layer("predictions")
        head.kernel.assign(draw_kernel(head.kernel.shape))
        head.bias.assign(keras.ops.zeros_like(head.bias))
    return network


def _seed_stochastic_depth(network: keras.Model, seed: int) -> None:
    """Seeds each layer that drops branches; Keras would choose from 10^9 seeds only."""
    for layer in list_layers(network):
        if isinstance(layer, keras.layers.Dropout):
            layer_seed = derive_seed(seed, f"stochastic depth of {layer.name}")
            layer.seed_generator.state.assign([layer_seed % 2**32, layer_seed >> 32])


def _sample_views(
    images: Dataset, preprocessing: Preprocessing
) -> tuple[np.ndarray, Dataset]:
    """Returns preprocessed training images for the pixel statistics, and the dataset.

    The paper subtracts the mean of each pixel. This package subtracts the mean of each
    channel and divides by the channel's standard deviation, so that a network accepts
    images of any size. Damaged images in the sample are replaced in the dataset.
    """
    num_images = min(MAX_STATISTICS_IMAGES, len(images.train))
    indices = np.linspace(0, len(images.train) - 1, num_images).astype(int)
    try:
        return load_views(images.train.take(indices), preprocessing), images
    except tf.errors.OpError:
        train = replace_damaged(images.train, preprocessing, indices)
        images = dataclasses.replace(images, train=train)
        return load_views(train.take(indices), preprocessing), images
