"""Walking a built network: its layers, stages and batch normalisations."""

import contextlib
import re
from collections.abc import Container, Iterator

import keras
from keras import KerasTensor, layers

from keras_resnet.support import InputError


def flat_layers(model: keras.Model) -> list[layers.Layer]:
    """Returns every layer of a model, with those of its sub-models in their place.

    Only the deepest networks have sub-models; see `keras_resnet.nets.resnet`.
    """
    flat: list[layers.Layer] = []
    for layer in model.layers:
        flat += flat_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return flat


def batch_norms(model: keras.Model) -> list[layers.BatchNormalization]:
    """Returns the batch normalisations of a model."""
    return [
        la for la in flat_layers(model) if isinstance(la, layers.BatchNormalization)
    ]


@contextlib.contextmanager
def synchronized(model: keras.Model) -> Iterator[None]:
    """Normalises batches over all replicas while a step is traced.

    The saved model stays an ordinary one, which also loads without replicas.
    """
    norms = batch_norms(model)
    for layer in norms:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in norms:
            layer.synchronized = False


def stages(network: keras.Model) -> Iterator[tuple[layers.Layer, int]]:
    """Yields each layer with the number of its stage: conv1 is 1, the head the last."""
    flat = flat_layers(network)
    matches = [re.match(r"conv(\d+)_", layer.name) for layer in flat]
    last = max(int(match[1]) for match in matches if match)
    for layer, match in zip(flat, matches, strict=True):
        if match:
            yield layer, int(match[1])
        else:  # What follows a pre-activation net's last stage belongs to it.
            yield layer, last if layer.name.startswith("post_") else last + 1


_ENDPOINT = re.compile(r"(conv1)_(?:conv|relu)|(conv\d+)_block\d+_out")


def endpoints(model: keras.Model) -> dict[str, KerasTensor]:
    """Returns the output of each stage, for dense prediction and feature extraction.

    Args:
        model: A model built by this package, or one loaded from its file.

    Returns:
        A dict from `"conv1"`, `"conv2"`, ... to the symbolic output of that
        stage after its last ReLU, shaped (batch, height, width, channels); of a
        pre-activation net, the sum before the next normalisation. For ImageNet
        nets the strides are 2, 4, 8, 16 and 32 pixels, for CIFAR nets 1, 1, 2
        and 4, and none is above the net's `output_stride`. A pre-activation
        net's are 2, 8, 16, 32 and 32, since a stage ends by subsampling. Use as
        `keras.Model(model.input, endpoints(model))`.

    Raises:
        InputError: The model has no such layers.
    """
    # Of the blocks of a stage, the last one's output stays.
    outputs = {
        match[1] or match[2]: layer.output
        for layer in model.layers
        if (match := _ENDPOINT.fullmatch(layer.name))
    }
    if not outputs:
        raise InputError(
            "endpoints() needs a model of this package, with layers conv1_relu, "
            f"conv2_block1_out and so on. Received: model={model.name!r}"
        )
    return outputs


def has_imagenet_stem(names: Container[str]) -> bool:
    """Whether a network whose layers have these names begins with a max pool."""
    return "pool1_pool" in names
