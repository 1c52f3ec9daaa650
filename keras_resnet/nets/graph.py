"""Walking a built network: its layers, stages and batch normalisations."""

import contextlib
import re

import keras

from keras_resnet.support import InputError


def flat_layers(model):
    """Returns every layer of a model, those of its sub-models in their place.

    Args:
        model: a built `keras.Model`. Only the deepest nets have sub-models
            (see `keras_resnet.resnet`).
    """
    found = []
    for layer in model.layers:
        found += flat_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return found


def batch_norms(model):
    """Returns the batch normalisations of a model."""
    return [
        layer
        for layer in flat_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


@contextlib.contextmanager
def synchronized(model):
    """Batch normalisation over all replicas while a step is traced.

    Only there: the saved model stays an ordinary one, which also loads where
    there is nothing to synchronise with.
    """
    norms = batch_norms(model)
    for layer in norms:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in norms:
            layer.synchronized = False


def stages(network):
    """Yields each layer with the number of its stage: conv1 is 1, the head the last."""
    layers = flat_layers(network)
    numbers = [re.match(r"conv(\d+)_", layer.name) for layer in layers]
    last = max(int(number[1]) for number in numbers if number)
    for layer, number in zip(layers, numbers, strict=True):
        if number:
            yield layer, int(number[1])
        else:  # What follows a pre-activation net's last stage belongs to it.
            yield layer, last if layer.name.startswith("post_") else last + 1


_ENDPOINT = re.compile(r"(conv1)_(?:conv|relu)|(conv\d+)_block\d+_out")


def endpoints(model):
    """The output of each stage, for dense prediction and feature extraction.

    Args:
        model: a model built by this package, or one loaded from its file.

    Returns:
        A dict from `"conv1"`, `"conv2"`, ... to the symbolic output of that
        stage after its last ReLU, shaped (batch, height, width, channels); of a
        pre-activation net, the sum before the next normalisation. For ImageNet
        nets the strides are 2, 4, 8, 16 and 32 pixels, for CIFAR nets 1, 1, 2
        and 4, and none is above the net's `output_stride`. A pre-activation
        net's are 2, 8, 16, 32 and 32, since a stage ends by subsampling. Use as
        `keras.Model(model.input, endpoints(model))`.

    Raises:
        InputError: the model has no such layers.
    """
    found = {}
    for layer in model.layers:
        if match := _ENDPOINT.fullmatch(layer.name):
            found[match[1] or match[2]] = layer.output  # The last of a stage stays.
    if not found:
        raise InputError(
            "endpoints() needs a model of this package, with layers conv1_relu, "
            f"conv2_block1_out and so on. Received: model={model.name!r}"
        )
    return found


def has_imagenet_stem(names):
    """Whether a network of layers of these names begins with ImageNet's max pool."""
    return "pool1_pool" in names
