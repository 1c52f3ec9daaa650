"""Functions that find the layers, stages and endpoints of a built network."""

import contextlib
import re
from collections.abc import Container, Iterator

import keras
from keras import KerasTensor, layers

from keras_resnet.support import InputError


def flat_layers(model: keras.Model) -> list[layers.Layer]:
    """Returns all layers of a model, with sub-models replaced by their layers.

    Only the deepest networks have sub-models; see `keras_resnet.nets.resnet`.
    """
    flat: list[layers.Layer] = []
    for layer in model.layers:
        flat += flat_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return flat


def batch_norms(model: keras.Model) -> list[layers.BatchNormalization]:
    """Returns the batch normalisation layers of a model."""
    return [
        la for la in flat_layers(model) if isinstance(la, layers.BatchNormalization)
    ]


@contextlib.contextmanager
def synchronized_batch_norms(model: keras.Model) -> Iterator[None]:
    """Synchronises batch normalisation over all replicas inside the context.

    A step that is traced inside the context uses the statistics of the whole batch.
    The layers are reset afterwards, so that a saved model does not need replicas.
    """
    norms = batch_norms(model)
    for layer in norms:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in norms:
            layer.synchronized = False


def layers_with_stages(network: keras.Model) -> Iterator[tuple[layers.Layer, int]]:
    """Yields each layer and its stage number: 1 for conv1, the highest for the head."""
    flat = flat_layers(network)
    matches = [re.match(r"conv(\d+)_", layer.name) for layer in flat]
    last = max(int(match[1]) for match in matches if match)
    for layer, match in zip(flat, matches, strict=True):
        if match:
            yield layer, int(match[1])
        else:  # `post_bn` and `post_relu` belong to the last stage.
            yield layer, last if layer.name.startswith("post_") else last + 1


_ENDPOINT = re.compile(r"(conv1)_(?:conv|relu)|(conv\d+)_block\d+_out")


def endpoints(model: keras.Model) -> dict[str, KerasTensor]:
    """Returns the output of each stage, for dense prediction and feature extraction.

    `keras.Model(model.input, endpoints(model))` outputs the features of all stages.

    The strides are 2, 4, 8, 16 and 32 pixels in ImageNet networks, and 1, 1, 2 and 4
    in CIFAR networks. They are 2, 8, 16, 32 and 32 in pre-activation networks, whose
    stages end with the subsampling. The network's `output_stride` limits them.

    Args:
        model: A model that this package built, also after saving and loading.

    Returns:
        A dict with the keys `"conv1"`, `"conv2"` and so on. Each value is a symbolic
        tensor, (batch, height, width, channels), after the last ReLU of the stage. In
        pre-activation networks it is the sum before the next batch normalisation.

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
    """Returns whether the layer names are those of a network with a max pool."""
    return "pool1_pool" in names
