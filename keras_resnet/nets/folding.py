"""Conversion to an equivalent network without the layers that only training needs."""

import collections
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers


def fold(model: keras.Model) -> keras.Model:
    """Returns a float32 network that computes the same function with fewer layers.

    - A batch normalisation is merged into the convolution before it, unless another
      layer also reads the output of that convolution. After a sum it is kept.
    - The scale of the input normalisation is merged into the first convolution. The
      subtraction of the mean is kept, because the first convolution pads the
      normalised image with zeros, which stand for the mean.
    - Dropout is removed.

    All other layers are kept, and layers keep their names.

    Args:
        model: A functional model of any precision, which is not changed. A model
            without a graph of layers is returned unchanged.

    Returns:
        A functional model of standard layers with the same inputs and outputs, not
        compiled.
    """
    if not hasattr(model, "operations"):
        return model
    # A clone of `model` itself would also be compiled if `model` is.
    graph = keras.Model(model.input, model.output, name=model.name)
    # Normalisations to merge, by the name of the convolution that absorbs them.
    norms: dict[str, layers.BatchNormalization] = {}
    normalizations: dict[str, layers.Normalization] = {}
    before = _layers_before(graph)
    for name, previous in before.items():
        layer = graph.get_layer(name)
        if _is_linear_conv(previous) and _normalises(
            layer, layers.BatchNormalization, previous
        ):
            norms[previous.name] = layer
        elif _is_linear_conv(layer) and layer.groups == 1:
            is_padded = isinstance(previous, layers.ZeroPadding2D)
            first = before.get(previous.name) if is_padded else previous
            if first and _normalises(first, layers.Normalization, layer):
                normalizations[name] = first
    removed_names = {norm.name for norm in norms.values()}
    unscaled_names = {normalization.name for normalization in normalizations.values()}

    def clone(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, keras.Model):
            return fold(layer)
        config = layer.get_config()
        if "dtype" in config:
            config["dtype"] = "float32"
        if "kernel_initializer" in config:
            # Drawing random kernels is slow, and the weights are set below anyway.
            config["kernel_initializer"] = "zeros"
        if layer.name in norms:
            config["use_bias"] = True
        if layer.name in unscaled_names:
            config["mean"] = _statistics(layer)[0]
            config["variance"] = np.ones_like(config["mean"])
        return type(layer).from_config(config)

    def call(layer: layers.Layer, *args: Any, **kwargs: Any) -> KerasTensor:
        if layer.name in removed_names or isinstance(layer, layers.Dropout):
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
            weights = _merge_norm(norms[layer.name], *weights)
        layer.set_weights(weights)
    return folded


def _layers_before(graph: keras.Model) -> dict[str, layers.Layer]:
    """Returns the preceding layer of each layer that is the only reader of its input.

    The result has no entry for a layer that reads several tensors, or if either of
    the two layers is called several times.
    """
    nodes = [node for depth in graph._nodes_by_depth.values() for node in depth]
    num_calls = collections.Counter(node.operation.name for node in nodes)
    sources = {id(tensor): node.operation for node in nodes for tensor in node.outputs}
    num_readers = collections.Counter(map(id, graph.outputs))
    for node in nodes:
        num_readers.update(map(id, node.input_tensors))
    before = {}
    for node in nodes:
        name = node.operation.name
        inputs = [id(tensor) for tensor in node.input_tensors]
        if len(inputs) == 1 and num_readers[inputs[0]] == num_calls[name] == 1:
            before[name] = sources[inputs[0]]
    return {name: layer for name, layer in before.items() if num_calls[layer.name] == 1}


def _is_linear_conv(layer: layers.Layer) -> bool:
    return type(layer) is layers.Conv2D and layer.activation is keras.activations.linear


def _normalises(
    layer: layers.Layer, kind: type[layers.Layer], convolution: layers.Conv2D
) -> bool:
    """Returns whether a layer of class `kind` normalises a convolution's channels."""
    if type(layer) is not kind or getattr(layer, "invert", False):
        return False
    axis = 3 if convolution.data_format == "channels_last" else 1
    return [a % 4 for a in np.ravel(layer.axis)] == [axis]


def _statistics(normalization: layers.Normalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and variance given to the constructor or set by `adapt`."""
    mean, variance = normalization.input_mean, normalization.input_variance
    if mean is None:
        mean, variance = normalization.mean, normalization.variance
    return np.ravel(mean), np.ravel(variance)


def _merge_norm(
    norm: layers.BatchNormalization, kernel: np.ndarray, bias: np.ndarray | float = 0.0
) -> list[np.ndarray]:
    """Merges a batch normalisation into the kernel and bias before it, in float64."""
    variance, mean = np.float64(norm.moving_variance), np.float64(norm.moving_mean)
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale *= np.float64(norm.gamma)
    offset = np.float64(norm.beta) if norm.center else 0.0
    return [kernel * scale, (bias - mean) * scale + offset]
