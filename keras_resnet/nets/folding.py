"""The same network in fewer layers: without what only training needs."""

import collections
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers


def fold(model: keras.Model) -> keras.Model:
    """Returns a network that computes the same with fewer layers, in float32.

    - A batch normalisation becomes part of the convolution before it, where no
      other layer reads that. Those of a pre-activation net that follow a sum stay.
    - The scale of the input's normalisation becomes part of the first convolution.
      Its mean is still subtracted: where the image ends, zeros are padded after
      it, which stand for the mean.
    - Dropout is left out.

    Layers keep their names, and what this function does not know stays as it is.

    Args:
        model: A functional model of any precision, left unchanged. Others, which
            have no graph of layers, are returned as they are.

    Returns:
        A functional model of standard layers with the same inputs and outputs,
        without compilation.
    """
    if not hasattr(model, "operations"):
        return model
    # Not the model itself: a clone of it would be compiled as it is.
    graph = keras.Model(model.input, model.output, name=model.name)
    # By the name of the convolution that they become part of.
    norms: dict[str, layers.BatchNormalization] = {}
    normalizations: dict[str, layers.Normalization] = {}
    before = _layers_before(graph)
    for name, previous in before.items():
        layer = graph.get_layer(name)
        if _is_plain(previous) and _normalises(
            layer, layers.BatchNormalization, previous
        ):
            norms[previous.name] = layer
        elif _is_plain(layer) and layer.groups == 1:
            is_padded = isinstance(previous, layers.ZeroPadding2D)
            first = before.get(previous.name) if is_padded else previous
            if first and _normalises(first, layers.Normalization, layer):
                normalizations[name] = first
    left_out = {norm.name for norm in norms.values()}
    divided = {normalization.name for normalization in normalizations.values()}

    def clone(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, keras.Model):
            return fold(layer)
        config = layer.get_config()
        if "dtype" in config:
            config["dtype"] = "float32"
        if "kernel_initializer" in config:
            # Random numbers take longer than all else, and are replaced below.
            config["kernel_initializer"] = "zeros"
        if layer.name in norms:
            config["use_bias"] = True
        if layer.name in divided:
            config["mean"] = _statistics(layer)[0]
            config["variance"] = np.ones_like(config["mean"])
        return type(layer).from_config(config)

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> KerasTensor:
        if layer.name in left_out or isinstance(layer, layers.Dropout):
            return args[0]
        return layer(*args, **kwargs)

    folded = keras.models.clone_model(graph, clone_function=clone, call_function=call)
    for layer in folded.layers:
        if isinstance(layer, keras.Model) or not layer.weights:
            continue
        original = graph.get_layer(layer.name)
        weights = [np.array(weight, float) for weight in original.get_weights()]
        if layer.name in normalizations:
            variance = np.float64(_statistics(normalizations[layer.name])[1])
            scale = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
            weights[0] *= scale[:, None]
        if layer.name in norms:
            weights = _with_norm(norms[layer.name], *weights)
        layer.set_weights(weights)
    return folded


def _layers_before(graph: keras.Model) -> dict[str, layers.Layer]:
    """Returns the layer before each layer, where nothing else reads its output.

    Left out are layers that read several tensors or are called several times.
    """
    nodes = [node for depth in graph._nodes_by_depth.values() for node in depth]
    calls = collections.Counter(node.operation.name for node in nodes)
    makers = {id(tensor): node.operation for node in nodes for tensor in node.outputs}
    readers = collections.Counter(map(id, graph.outputs))
    for node in nodes:
        readers.update(map(id, node.input_tensors))
    before = {}
    for node in nodes:
        name = node.operation.name
        read = [id(tensor) for tensor in node.input_tensors]
        if len(read) == 1 and readers[read[0]] == calls[name] == 1:
            before[name] = makers[read[0]]
    return {name: layer for name, layer in before.items() if calls[layer.name] == 1}


def _is_plain(layer: layers.Layer) -> bool:
    """Whether a layer is a convolution and nothing more."""
    return type(layer) is layers.Conv2D and layer.activation is keras.activations.linear


def _normalises(
    layer: layers.Layer, kind: type[layers.Layer], convolution: layers.Conv2D
) -> bool:
    """Whether a layer is of a kind and normalises the channels of a convolution."""
    if type(layer) is not kind or getattr(layer, "invert", False):
        return False
    axis = 3 if convolution.data_format == "channels_last" else 1
    return [a % 4 for a in np.ravel(layer.axis)] == [axis]


def _statistics(normalization: layers.Normalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance as they were given, or else adapted to."""
    mean, variance = normalization.input_mean, normalization.input_variance
    if mean is None:
        mean, variance = normalization.mean, normalization.variance
    return np.ravel(mean), np.ravel(variance)


def _with_norm(
    norm: layers.BatchNormalization, kernel: np.ndarray, bias: np.ndarray | float = 0.0
) -> list[np.ndarray]:
    """Returns a convolution's float64 kernel and bias with the normalisation after it."""
    variance, mean = np.float64(norm.moving_variance), np.float64(norm.moving_mean)
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale *= np.float64(norm.gamma)
    offset = np.float64(norm.beta) if norm.center else 0.0
    return [kernel * scale, (bias - mean) * scale + offset]
