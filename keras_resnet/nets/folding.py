"""The same network in fewer layers, before it is converted.

What a network needs to be trained, and an artifact does not: batch normalisation
apart from the convolutions, and dropout.
"""

import collections
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers

Norms = dict[str, layers.BatchNormalization]
Normalizations = dict[str, layers.Normalization]


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
    norms, normalizations = _find_foldable(graph)
    left_out = {norm.name for norm in norms.values()}
    divided = {normalization.name for normalization in normalizations.values()}

    def clone(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, keras.Model):
            return fold(layer)
        return _clone(layer, layer.name in norms, layer.name in divided)

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> KerasTensor:
        if layer.name in left_out or isinstance(layer, layers.Dropout):
            return args[0]
        return layer(*args, **kwargs)

    folded = keras.models.clone_model(graph, clone_function=clone, call_function=call)
    for layer in folded.layers:
        if isinstance(layer, keras.Model) or not layer.weights:
            continue
        weights = [
            np.array(w, float) for w in graph.get_layer(layer.name).get_weights()
        ]
        if layer.name in normalizations:
            weights[0] *= _scale(normalizations[layer.name])[:, None]
        if layer.name in norms:
            weights = _with_norm(*weights, norm=norms[layer.name])
        layer.set_weights(weights)
    return folded


def _find_foldable(graph: keras.Model) -> tuple[Norms, Normalizations]:
    """Finds the normalisations that become part of a convolution.

    Returns:
        The batch normalisation after, and the input's normalisation before a
        convolution, by the name of that convolution.
    """
    before = _layers_before(graph)
    norms: Norms = {}
    normalizations: Normalizations = {}
    for name, previous in before.items():
        layer = graph.get_layer(name)
        if _is_norm_of(layer, previous):
            norms[previous.name] = layer
        elif _is_plain(layer) and layer.groups == 1:
            is_padded = isinstance(previous, layers.ZeroPadding2D)
            first = before.get(previous.name) if is_padded else previous
            if _is_normalization_for(first, layer):
                normalizations[name] = first
    return norms, normalizations


def _clone(layer: layers.Layer, has_norm: bool, is_divided: bool) -> layers.Layer:
    """Returns a layer of the same configuration, in float32.

    Args:
        layer: The layer.
        has_norm: Whether it is a convolution that takes in a batch normalisation.
        is_divided: Whether it is a normalisation whose scale a convolution takes.
    """
    config = layer.get_config()
    if "dtype" in config:
        config["dtype"] = "float32"
    if "kernel_initializer" in config:
        # Random numbers take longer than all else, and are replaced afterwards.
        config["kernel_initializer"] = "zeros"
    if has_norm:
        config["use_bias"] = True
    if is_divided:
        config["mean"] = _statistics(layer)[0]
        config["variance"] = np.ones_like(config["mean"])
    return type(layer).from_config(config)


def _layers_before(graph: keras.Model) -> dict[str, layers.Layer]:
    """Returns the layer before each layer, where nothing else reads what that one gives.

    Args:
        graph: A functional model.

    Returns:
        A dict from a layer's name to the layer before it. Left out are layers that
        read several tensors, and those that are called several times.
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


def _channel_axis(convolution: layers.Conv2D) -> int:
    return 3 if convolution.data_format == "channels_last" else 1


def _is_norm_of(layer: layers.Layer, previous: layers.Layer) -> bool:
    """Whether a layer normalises the channels of the convolution before it."""
    return (
        type(layer) is layers.BatchNormalization
        and _is_plain(previous)
        and layer.axis % 4 == _channel_axis(previous)
    )


def _is_normalization_for(layer: layers.Layer, convolution: layers.Conv2D) -> bool:
    """Whether a layer normalises the channels that a convolution reads."""
    return (
        type(layer) is layers.Normalization
        and not layer.invert
        and [axis % 4 for axis in layer.axis] == [_channel_axis(convolution)]
    )


def _statistics(normalization: layers.Normalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance as they were given, or else adapted to."""
    mean, variance = normalization.input_mean, normalization.input_variance
    if mean is None:
        mean, variance = normalization.mean, normalization.variance
    return np.ravel(mean), np.ravel(variance)


def _scale(normalization: layers.Normalization) -> np.ndarray:
    """Returns what the layer multiplies channels by, float64 (channels,) or (1,)."""
    variance = np.float64(_statistics(normalization)[1])
    return 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())


def _with_norm(
    kernel: np.ndarray,
    bias: np.ndarray | float = 0.0,
    *,
    norm: layers.BatchNormalization,
) -> list[np.ndarray]:
    """Returns the kernel and bias of a convolution that ends in a batch normalisation.

    Args:
        kernel: float64 (height, width, channels in, channels out).
        bias: float64 (channels out,).
        norm: The batch normalisation.
    """
    variance, mean = np.float64(norm.moving_variance), np.float64(norm.moving_mean)
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale *= np.float64(norm.gamma)
    offset = np.float64(norm.beta) if norm.center else 0.0
    return [kernel * scale, (bias - mean) * scale + offset]
