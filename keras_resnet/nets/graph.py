"""Functions that find layers, stages and endpoints of a built network."""

import contextlib
import re
from collections.abc import Container, Iterator

import keras
from keras import KerasTensor, layers

from keras_resnet.support import InputError


def list_layers(model: keras.Model) -> list[layers.Layer]:
    """Returns the layers of a model. Layers of a sub-model replace the sub-model.

    Only very deep networks have sub-models (see `_MAX_BLOCKS_PER_MODEL`).
    """
    all_layers: list[layers.Layer] = []
    for layer in model.layers:
        all_layers += list_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return all_layers


def list_batch_norms(model: keras.Model) -> list[layers.BatchNormalization]:
    """Returns the batch normalisation layers of a model and of its sub-models."""
    return [x for x in list_layers(model) if isinstance(x, layers.BatchNormalization)]


@contextlib.contextmanager
def synchronize_batch_norms(model: keras.Model) -> Iterator[None]:
    """Synchronises batch normalisation over all replicas inside the context.

    A training step that is traced inside the context uses the statistics of the global
    batch. The layers are reset at the end, because a saved model has no replicas.
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
    """Yields layers with stage numbers (conv2: 2). The head has the highest number."""
    all_layers = list_layers(network)
    matches = [re.match(r"conv(\d+)_", layer.name) for layer in all_layers]
    last_stage = max(int(match[1]) for match in matches if match)
    for layer, match in zip(all_layers, matches, strict=True):
        # `post_bn` and `post_relu` belong to the last stage.
        stage = last_stage if layer.name.startswith("post_") else last_stage + 1
        yield layer, int(match[1]) if match else stage


_ENDPOINT = re.compile(r"(conv1)_(?:conv|relu)|(conv\d+)_block\d+_out")


def endpoints(model: keras.Model) -> dict[str, KerasTensor]:
    """Returns the output of each stage, for dense prediction and feature extraction.

    `keras.Model(model.input, endpoints(model))` outputs the features of all stages.

    The ratios of input size to output size are 2, 4, 8, 16 and 32 in ImageNet networks,
    1, 1, 2 and 4 in CIFAR networks, and 2, 8, 16, 32 and 32 in pre-activation networks,
    whose stages subsample in the last block. `output_stride` is the maximum ratio.

    Args:
        model: A model that this package built, or the same model loaded from a file.

    Returns:
        A dict from `"conv1"`, `"conv2"` and so on to symbolic tensors, (batch, height,
        width, channels), after the last ReLU of the stage. In pre-activation networks,
        the tensors are the sums before the next batch normalisation.

    Raises:
        InputError: If the model has no layers with the names of this package.
    """
    # Later blocks of a stage overwrite earlier blocks, so the last block remains.
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
    """Returns whether layer names include the max pooling of ImageNet networks."""
    return "pool1_pool" in names
