"""ONNX files, for ONNX Runtime and other software that reads ONNX.

This module converts a Keras network layer by layer. A converter of TensorFlow graphs
would restrict the versions of other packages and add nodes that transpose or pad. This
module stores transposed kernels, and pads by an attribute of the convolutions.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import layers

from keras_resnet.evaluation import Classifier
from keras_resnet.support import InputError, write_file

from ..device import require_extra

if TYPE_CHECKING:
    import onnx

# Versions of the operator set and of the file format. ONNX Runtime supports both since
# its version 1.12 (2022).
OPSET, IR_VERSION = 17, 8


def write_onnx(path: str | os.PathLike[str], classifier: Classifier) -> None:
    """Writes a classifier to an ONNX file.

    The input is `image`, uint8, (n, height, width, channels), for any n. The graph
    normalises the image. The output is `probabilities`, float32, (n, classes). The
    metadata contain `classes` and `preprocessing` as JSON. For errors see `to_onnx`.
    """
    write_file(path, to_onnx(classifier).SerializeToString())


def to_onnx(classifier: Classifier) -> "onnx.ModelProto":
    """Returns the ONNX model that `write_onnx` writes.

    Raises:
        InputError: If this module does not support a layer of the network, or if the
            package `onnx` is not installed.
    """
    with require_extra("onnx"):
        import onnx
    helper, dtypes = onnx.helper, onnx.TensorProto
    graph = _Graph()
    pixels = graph.add("Cast", "image", to=dtypes.FLOAT)
    pixels = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    _emit_model(graph, classifier.model, _Value(pixels))
    graph.nodes[-1].output[0] = "probabilities"
    declare = helper.make_tensor_value_info
    shape: list[str | int | None] = ["batch", *classifier.preprocessing.shape]
    image = declare("image", dtypes.UINT8, shape)
    output = declare("probabilities", dtypes.FLOAT, ["batch", len(classifier.classes)])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, classifier.name, [image], [output], graph.constants
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="keras_resnet",
    )
    helper.set_model_props(model, describe_classifier(classifier))
    onnx.checker.check_model(model, full_check=True)
    return model


def describe_classifier(classifier: Classifier) -> dict[str, str]:
    """Returns the metadata of an ONNX or OpenVINO file: a dict from names to JSON."""
    return {
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "preprocessing": json.dumps(dataclasses.asdict(classifier.preprocessing)),
    }


@dataclasses.dataclass(frozen=True)
class _Value:
    """A tensor of an ONNX graph, (n, channels, height, width), and pending padding."""

    name: str
    # Number of rows or columns of zeros that the next node must add around the tensor:
    # (above, left, below, right). A Conv node adds the zeros by its attribute `pads`.
    pads: tuple[int, ...] = (0, 0, 0, 0)
    is_rectified: bool = False  # Whether the tensor cannot contain negative values.


class _Graph:
    """Nodes and constants of an ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node for the operator `kind` and returns the name of its output."""
        import onnx

        name = name or f"{kind.lower()}_{len(self.nodes)}"
        node = onnx.helper.make_node(kind, inputs, [name], name, **attributes)
        self.nodes.append(node)
        return name

    def add_constant(
        self, name: str, value: np.typing.ArrayLike, dtype: type = np.float32
    ) -> str:
        import onnx

        value = np.ascontiguousarray(value, dtype)
        self.constants.append(onnx.numpy_helper.from_array(value, name))
        return name

    def pad(self, value: _Value, name: str, channels: tuple[int, int] = (0, 0)) -> str:
        """Adds a Pad node for `value.pads` and `channels`, (number before, after)."""
        above, left, below, right = value.pads
        num_before, num_after = channels
        pads = [0, num_before, above, left, 0, num_after, below, right]
        sizes_name = self.add_constant(f"{name}/sizes", pads, np.int64)
        return self.add("Pad", value.name, sizes_name, name=name)

    def apply_pads(self, value: _Value) -> str:
        """Adds a Pad node if `value` has pads. Returns the padded tensor's name."""
        return self.pad(value, f"{value.name}/pad") if any(value.pads) else value.name


# Function that adds the nodes of a Keras layer to a graph. The arguments are the graph,
# the layer and the layer's input values. It returns the layer's output value.
_Emitter = Callable[..., _Value]


def _emit_model(graph: _Graph, model: keras.Model, value: _Value) -> _Value:
    """Adds the nodes of a functional model, whose input is `value`, to the graph."""
    # `clone_model` is only called to pass each layer to `visit`, inputs first.
    clone_input = keras.Input(batch_shape=model.input.shape, dtype=model.input.dtype)
    values = {id(clone_input): value}  # ONNX values by the id of the clone's tensors.

    def visit(layer: keras.Layer, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        output = layer(*args, **kwargs)
        inputs = [values[id(tensor)] for tensor in keras.tree.flatten(args)]
        emit = _EMITTERS.get(type(layer), _emit_model)
        values[id(output)] = emit(graph, model.get_layer(layer.name), *inputs)
        return output

    clone = keras.models.clone_model(
        keras.Model(model.input, model.output), clone_input, _clone_layer, visit
    )
    return values[id(clone.output)]


def _clone_layer(layer: keras.Layer) -> keras.Layer:
    if not isinstance(layer, keras.Model) and type(layer) not in _EMITTERS:
        raise InputError(
            "Use only layers that the ONNX export supports: "
            f"{', '.join(layer_type.__name__ for layer_type in _EMITTERS)}. "
            f"Received: {layer.name}, {type(layer).__name__}"
        )
    config = layer.get_config()
    if "kernel_initializer" in config:
        # Random kernels would be slower, and no code reads the kernels of the clone.
        config["kernel_initializer"] = "zeros"
    return type(layer).from_config(config)


def _add_activation(graph: _Graph, layer: keras.Layer, name: str) -> _Value:
    """Applies the layer's activation to the tensor `name`. Linear ones need no node."""
    activation = keras.activations.serialize(layer.activation)
    if activation == "linear":
        return _Value(name)
    operators = {"relu": "Relu", "sigmoid": "Sigmoid", "softmax": "Softmax"}
    if activation not in operators:
        raise InputError(
            "Use only activations that the ONNX export supports: linear, "
            f"{', '.join(operators)}. Received: {layer.name} with {activation}"
        )
    name = graph.add(operators[activation], name, name=f"{layer.name}/{activation}")
    return _Value(name, is_rectified=activation == "relu")


def _emit_activation(graph: _Graph, layer: layers.Activation, value: _Value) -> _Value:
    return _add_activation(graph, layer, graph.apply_pads(value))


def _emit_normalization(graph: _Graph, layer: keras.Layer, value: _Value) -> _Value:
    mean, variance = np.reshape([layer.mean, layer.variance], (2, -1, 1, 1))
    mean_name = graph.add_constant(f"{layer.name}/mean", mean)
    name = graph.add("Sub", graph.apply_pads(value), mean_name)
    # If the variance is 1, `nets.fold` has moved the division into the convolution.
    if (variance != 1).any():
        deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
        deviation_name = graph.add_constant(f"{layer.name}/deviation", deviation)
        name = graph.add("Div", name, deviation_name)
    return _Value(name)


def _emit_batch_norm(graph: _Graph, layer: keras.Layer, value: _Value) -> _Value:
    *affine, mean, variance = layer.get_weights()
    gamma = affine.pop(0) if layer.scale else np.ones_like(mean)
    beta = affine.pop(0) if layer.center else np.zeros_like(mean)
    arrays = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    input_name = graph.apply_pads(value)
    constants = [graph.add_constant(f"{layer.name}/{p}", w) for p, w in arrays.items()]
    attributes = {"name": layer.name, "epsilon": layer.epsilon}
    return _Value(graph.add("BatchNormalization", input_name, *constants, **attributes))


def _emit_zero_padding(graph: _Graph, layer: keras.Layer, value: _Value) -> _Value:
    (above, below), (left, right) = layer.padding
    if layer.data_format == "channels_first":
        # Shortcut A uses this data format to pad channels, see `nets.blocks`.
        return _Value(graph.pad(value, layer.name, channels=(left, right)))
    pads = np.add(value.pads, (above, left, below, right))
    return dataclasses.replace(value, pads=tuple(pads.tolist()))


def _emit_convolution(graph: _Graph, layer: layers.Conv2D, value: _Value) -> _Value:
    pads = value.pads
    sizes = zip(layer.dilation_rate, layer.kernel_size, strict=True)
    total_pads = [rate * (size - 1) for rate, size in sizes]
    if layer.padding == "same" and any(total_pads):
        if any(p % 2 for p in total_pads) or layer.strides != (1, 1):
            raise InputError(
                "For the ONNX export, use padding='same' only in convolutions with "
                f"stride 1 and kernels of odd size. Received: {layer.name}"
            )
        pads = np.add(pads, [p // 2 for p in total_pads * 2]).tolist()
    kernel, *bias = layer.get_weights()
    weights = [graph.add_constant(f"{layer.name}/kernel", kernel.transpose(3, 2, 0, 1))]
    weights += [graph.add_constant(f"{layer.name}/bias", b) for b in bias]
    name = graph.add(
        "Conv", value.name, *weights, name=layer.name, group=layer.groups, pads=pads,
        kernel_shape=layer.kernel_size, strides=layer.strides,
        dilations=layer.dilation_rate,
    )  # fmt: skip
    return _add_activation(graph, layer, name)


def _emit_max_pooling(graph: _Graph, layer: keras.Layer, value: _Value) -> _Value:
    # The attribute `pads` of MaxPool pads with minus infinity instead of zeros. If no
    # value is negative, the maxima are the same. Otherwise, a Pad node must add zeros.
    is_rectified = value.is_rectified
    name = value.name if is_rectified else graph.apply_pads(value)
    pads = value.pads if is_rectified else (0, 0, 0, 0)
    name = graph.add("MaxPool", name, name=layer.name, pads=pads, **_get_pool(layer))
    return _Value(name, is_rectified=is_rectified)


def _emit_average_pooling(graph: _Graph, layer: keras.Layer, value: _Value) -> _Value:
    # For one-pixel windows, MaxPool equals AveragePool, which is not exact in int8.
    kind = "AveragePool" if max(layer.pool_size) > 1 else "MaxPool"
    name = graph.add(kind, graph.apply_pads(value), name=layer.name, **_get_pool(layer))
    return _Value(name, is_rectified=value.is_rectified)


def _get_pool(layer: layers.MaxPooling2D | layers.AveragePooling2D) -> dict[str, Any]:
    """Returns the ONNX attributes of a pooling layer."""
    return {
        "kernel_shape": layer.pool_size,
        "strides": layer.strides,
        # By default, ONNX excludes the padding from averages, as TensorFlow does.
        "auto_pad": "SAME_UPPER" if layer.padding == "same" else "NOTSET",
    }


def _emit_global_pooling(graph: _Graph, layer: keras.Layer, value: _Value) -> _Value:
    name = graph.add("GlobalAveragePool", graph.apply_pads(value), name=layer.name)
    name = name if layer.keepdims else graph.add("Flatten", name)
    return _Value(name, is_rectified=value.is_rectified)


def _emit_dense(graph: _Graph, layer: layers.Dense, value: _Value) -> _Value:
    arrays = zip(("kernel", "bias"), layer.get_weights(), strict=False)
    weights = [graph.add_constant(f"{layer.name}/{part}", w) for part, w in arrays]
    name = graph.add("Gemm", value.name, *weights, name=layer.name)
    return _add_activation(graph, layer, name)


def _make_pairwise_emitter(kind: str) -> _Emitter:
    def emit(graph: _Graph, layer: keras.Layer, *values: _Value) -> _Value:
        return _Value(graph.add(kind, *map(graph.apply_pads, values), name=layer.name))

    return emit


_EMITTERS: dict[type[keras.Layer], _Emitter] = {
    layers.Activation: _emit_activation,
    layers.Add: _make_pairwise_emitter("Add"),
    layers.AveragePooling2D: _emit_average_pooling,
    layers.BatchNormalization: _emit_batch_norm,
    layers.Conv2D: _emit_convolution,
    layers.Dense: _emit_dense,
    layers.Dropout: lambda graph, layer, value: value,
    layers.GlobalAveragePooling2D: _emit_global_pooling,
    layers.MaxPooling2D: _emit_max_pooling,
    layers.Multiply: _make_pairwise_emitter("Mul"),
    layers.Normalization: _emit_normalization,
    layers.ZeroPadding2D: _emit_zero_padding,
}
