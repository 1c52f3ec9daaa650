"""Conversion to an equivalent network with fewer layers, for inference."""

import collections
import itertools
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers


def fold(model: keras.Model) -> keras.Model:
    """Returns a float32 network that computes the same function with fewer layers.

    - A batch normalisation is merged into the preceding convolution, unless another
      layer also reads the output of the convolution. A batch normalisation after a sum
      is kept.
    - The scale of the input normalisation is merged into the first convolution. The
      subtraction of the mean is kept, because the first convolution pads images with
      zeros, which represent the mean only after the subtraction.
    - Dropout is removed.

    All other layers are kept, and no layer is renamed.

    Args:
        model: A functional model of any precision, which is not changed. A model
            without a graph of layers is returned unchanged.

    Returns:
        A functional model with the same inputs and outputs as `model`. The returned
        model is not compiled and consists of standard Keras layers.
    """
    if not hasattr(model, "operations"):
        return model
    # The clone of a compiled model is compiled, too. Clone an uncompiled copy instead.
    graph = keras.Model(model.input, model.output, name=model.name)
    # Both dicts map a convolution's name to the normalisation layer to merge into it.
    batch_norms: dict[str, layers.BatchNormalization] = {}
    input_norms: dict[str, layers.Normalization] = {}
    predecessors = _find_predecessors(graph)
    for name, predecessor in predecessors.items():
        layer = graph.get_layer(name)
        if _is_linear_conv(predecessor) and _normalises(
            layer, layers.BatchNormalization, predecessor
        ):
            batch_norms[predecessor.name] = layer
        elif _is_linear_conv(layer) and layer.groups == 1:
            is_padded = isinstance(predecessor, layers.ZeroPadding2D)
            norm = predecessors.get(predecessor.name) if is_padded else predecessor
            if norm and _normalises(norm, layers.Normalization, layer):
                input_norms[name] = norm
    merged_names = {norm.name for norm in batch_norms.values()}
    shift_only_names = {norm.name for norm in input_norms.values()}

    def clone_layer(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, keras.Model):
            return fold(layer)
        config = layer.get_config()
        if "dtype" in config:
            config["dtype"] = "float32"
        if "kernel_initializer" in config:
            # Random kernels are slow to draw and would be replaced below.
            config["kernel_initializer"] = "zeros"
        if layer.name in batch_norms:
            config["use_bias"] = True
        if layer.name in shift_only_names:
            config["mean"] = _get_statistics(layer)[0]
            config["variance"] = np.ones_like(config["mean"])
        return type(layer).from_config(config)

    def call_layer(layer: layers.Layer, *args: Any, **kwargs: Any) -> KerasTensor:
        if layer.name in merged_names or isinstance(layer, layers.Dropout):
            return args[0]
        return layer(*args, **kwargs)

    folded_model = keras.models.clone_model(
        graph, clone_function=clone_layer, call_function=call_layer
    )
    for layer in folded_model.layers:
        if isinstance(layer, keras.Model) or not layer.weights:
            continue
        original_layer = graph.get_layer(layer.name)
        weights = [np.array(weight, float) for weight in original_layer.get_weights()]
        if layer.name in input_norms:
            variance = np.float64(_get_statistics(input_norms[layer.name])[1])
            scale = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
            weights[0] *= scale[:, None]
        if layer.name in batch_norms:
            weights = _merge_norm(batch_norms[layer.name], *weights)
        layer.set_weights(weights)
    return folded_model


def _find_predecessors(graph: keras.Model) -> dict[str, layers.Layer]:
    """Maps a layer's name to the preceding layer, if the two layers may be merged.

    A layer has an entry if it reads a single tensor that no other layer reads, and if
    the model calls the layer and the preceding layer only once.
    """
    nodes = list(itertools.chain.from_iterable(graph._nodes_by_depth.values()))
    num_calls = collections.Counter(node.operation.name for node in nodes)
    source_by_id = {id(t): node.operation for node in nodes for t in node.outputs}
    num_readers = collections.Counter(map(id, graph.outputs))
    for node in nodes:
        num_readers.update(map(id, node.input_tensors))
    predecessors = {}
    for node in nodes:
        name = node.operation.name
        input_ids = [id(tensor) for tensor in node.input_tensors]
        if len(input_ids) == 1 and num_readers[input_ids[0]] == num_calls[name] == 1:
            predecessors[name] = source_by_id[input_ids[0]]
    return {n: la for n, la in predecessors.items() if num_calls[la.name] == 1}


def _is_linear_conv(layer: layers.Layer) -> bool:
    return type(layer) is layers.Conv2D and layer.activation is keras.activations.linear


def _normalises(
    layer: layers.Layer, layer_class: type[layers.Layer], convolution: layers.Conv2D
) -> bool:
    """Returns whether `layer` is a `layer_class` for the channels of `convolution`."""
    if type(layer) is not layer_class or getattr(layer, "invert", False):
        return False
    axis = 3 if convolution.data_format == "channels_last" else 1
    return [a % 4 for a in np.ravel(layer.axis)] == [axis]


def _get_statistics(norm: layers.Normalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance of a layer, from its constructor or from `adapt`."""
    mean, variance = norm.input_mean, norm.input_variance
    if mean is None:
        mean, variance = norm.mean, norm.variance
    return np.ravel(mean), np.ravel(variance)


def _merge_norm(
    norm: layers.BatchNormalization, kernel: np.ndarray, bias: np.ndarray | float = 0.0
) -> list[np.ndarray]:
    """Returns the float64 kernel and bias after merging a batch normalisation."""
    variance, mean = np.float64(norm.moving_variance), np.float64(norm.moving_mean)
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale *= np.float64(norm.gamma)
    offset = np.float64(norm.beta) if norm.center else 0.0
    return [kernel * scale, (bias - mean) * scale + offset]
