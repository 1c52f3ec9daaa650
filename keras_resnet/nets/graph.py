"""Functions that find layers, stages and endpoints of a built network."""

import contextlib
import re
from collections.abc import Container, Iterator

import keras
from keras import KerasTensor, layers

from keras_resnet.support import InputError


def list_layers(model: keras.Model) -> list[layers.Layer]:
    """Returns the layers of a model and of its sub-models, without the sub-models.

    Only very deep networks have sub-models (see `_MAX_BLOCKS_PER_MODEL`).
    """
    all_layers: list[layers.Layer] = []
    for layer in model.layers:
        all_layers += list_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return all_layers


def list_batch_norms(model: keras.Model) -> list[layers.BatchNormalization]:
    """Returns the batch normalisation layers of a model and of its sub-models."""
    return [
        la for la in list_layers(model) if isinstance(la, layers.BatchNormalization)
    ]


@contextlib.contextmanager
def synchronize_batch_norms(model: keras.Model) -> Iterator[None]:
    """Synchronises batch normalisation over all replicas inside the context.

    A training step that is traced inside the context uses the statistics of the whole
    batch. The layers are reset at the end, so that a saved model needs no replicas.
    """
    norms = list_batch_norms(model)
    for layer in norms:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in norms:
            layer.synchronized = False


def pair_layers_with_stages(network: keras.Model) -> Iterator[tuple[layers.Layer, int]]:
    """Yields each layer and its stage, such as 2 for conv2. The head is the last."""
    all_layers = list_layers(network)
    matches = [re.match(r"conv(\d+)_", layer.name) for layer in all_layers]
    last = max(int(match[1]) for match in matches if match)
    for layer, match in zip(all_layers, matches, strict=True):
        if match:
            yield layer, int(match[1])
        else:  # `post_bn` and `post_relu` belong to the last stage.
            yield layer, last if layer.name.startswith("post_") else last + 1


_ENDPOINT = re.compile(r"(conv1)_(?:conv|relu)|(conv\d+)_block\d+_out")


def endpoints(model: keras.Model) -> dict[str, KerasTensor]:
    """Returns the output of each stage, for dense prediction and feature extraction.

    `keras.Model(model.input, endpoints(model))` outputs the features of all stages.

    The ratios of input size to output size are 2, 4, 8, 16 and 32 in ImageNet networks,
    1, 1, 2 and 4 in CIFAR networks, and 2, 8, 16, 32 and 32 in pre-activation networks,
    whose stages subsample in the last block. `output_stride` is the maximum ratio.

    Args:
        model: A model that this package built. It may have been saved and loaded.

    Returns:
        A dict from `"conv1"`, `"conv2"` and so on to symbolic tensors, (batch, height,
        width, channels), after the last ReLU of the stage. In pre-activation networks
        they are the sums before the next batch normalisation.

    Raises:
        InputError: If the model has no layers with the names of this package.
    """
    # Later blocks overwrite earlier ones, so the last block of each stage remains.
    outputs = {
        match[1] or match[2]: layer.output
        for layer in model.layers
        if (match := _ENDPOINT.fullmatch(layer.name))
    }
    if not outputs:
        raise InputError(
            "endpoints() requires a model of this package, with layers conv1_relu, "
            f"conv2_block1_out and so on. Received: model={model.name!r}"
        )
    return outputs


def has_imagenet_stem(names: Container[str]) -> bool:
    """Returns whether the layer names contain the max pool of ImageNet networks."""
    return "pool1_pool" in names
