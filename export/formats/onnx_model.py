"""An ONNX file, for ONNX Runtime and all else that reads the format.

The graph is written layer by layer: a converter of TensorFlow graphs would bring
its own demands on versions, and leave transpositions and paddings in the graph
that fold into the convolutions here.
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

from ..device import needs

if TYPE_CHECKING:
    import onnx

# ONNX Runtime reads these from 1.12 on, of 2022.
OPSET, IR_VERSION = 17, 8


def write_onnx(path: str | os.PathLike[str], classifier: Classifier) -> None:
    """Writes the ONNX file of a classifier.

    It takes `image`, uint8 (n, height, width, channels) with any n, normalises
    inside and gives `probabilities`, float32 (n, classes). Its metadata hold
    `classes` and `preprocessing`, in JSON. It raises what `to_onnx` does.
    """
    write_file(path, to_onnx(classifier).SerializeToString())


def to_onnx(classifier: Classifier) -> "onnx.ModelProto":
    """Returns the ONNX model of a classifier; see `write_onnx`.

    Raises:
        InputError: It has a layer that no network of keras_resnet has, or the
            distribution `onnx` is not installed.
    """
    with needs("onnx"):
        import onnx
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = _Graph()
    pixels = graph.add("Cast", "image", to=kinds.FLOAT)
    pixels = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    _emit_model(graph, classifier.model, _Value(pixels))
    graph.nodes[-1].output[0] = "probabilities"
    describe = helper.make_tensor_value_info
    shape: list[str | int | None] = ["batch", *classifier.preprocessing.shape]
    images = describe("image", kinds.UINT8, shape)
    answers = describe("probabilities", kinds.FLOAT, ["batch", len(classifier.classes)])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, classifier.name, [images], [answers], graph.constants
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="keras_resnet",
    )
    helper.set_model_props(model, describe_classifier(classifier))
    onnx.checker.check_model(model, full_check=True)
    return model


def describe_classifier(classifier: Classifier) -> dict[str, str]:
    """Returns what a file says of its classifier: `classes`, `preprocessing`, in JSON."""
    return {
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "preprocessing": json.dumps(dataclasses.asdict(classifier.preprocessing)),
    }


@dataclasses.dataclass(frozen=True)
class _Value:
    """A tensor of the graph, (n, channels, height, width)."""

    name: str
    # Rows and columns of zeros that its reader adds: above, left, below, right.
    pads: tuple[int, ...] = (0, 0, 0, 0)
    rectified: bool = False  # Whether nothing in it is below zero.


class _Graph:
    """The nodes and constants of an ONNX graph that is being written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node and returns the name of its output."""
        import onnx

        name = name or f"{kind.lower()}_{len(self.nodes)}"
        node = onnx.helper.make_node(kind, inputs, [name], name, **attributes)
        self.nodes.append(node)
        return name

    def constant(
        self, name: str, value: np.typing.ArrayLike, dtype: type = np.float32
    ) -> str:
        """Adds an array and returns its name."""
        import onnx

        value = np.ascontiguousarray(value, dtype)
        self.constants.append(onnx.numpy_helper.from_array(value, name))
        return name

    def pad(self, value: _Value, name: str, channels: tuple[int, int] = (0, 0)) -> str:
        """Adds the zeros around a value, and channels of zeros; returns a name."""
        above, left, below, right = value.pads
        front, behind = channels
        pads = [0, front, above, left, 0, behind, below, right]
        sizes = self.constant(f"{name}/sizes", pads, np.int64)
        return self.add("Pad", value.name, sizes, name=name)

    def padded(self, value: _Value) -> str:
        """Returns the name of a value with its zeros around it."""
        return self.pad(value, f"{value.name}/pad") if any(value.pads) else value.name


# From the graph, a layer and the values that it reads to the value that it computes.
_Emitter = Callable[..., _Value]


def _emit_model(graph: _Graph, model: keras.Model, value: _Value) -> _Value:
    """Adds every layer of a functional model with one input, `value`, and one output."""
    entry = keras.Input(batch_shape=model.input.shape, dtype=model.input.dtype)
    values = {id(entry): value}

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        output = layer(*args, **kwargs)
        inputs = [values[id(tensor)] for tensor in keras.tree.flatten(args)]
        emit = _EMITTERS.get(type(layer), _emit_model)
        values[id(output)] = emit(graph, model.get_layer(layer.name), *inputs)
        return output

    walked = keras.models.clone_model(
        keras.Model(model.input, model.output), entry, _clone_without_weights, call
    )
    return values[id(walked.output)]


def _clone_without_weights(layer: keras.Layer) -> keras.Layer:
    if not isinstance(layer, keras.Model) and type(layer) not in _EMITTERS:
        raise InputError(
            "ONNX can be written of the layers "
            f"{', '.join(kind.__name__ for kind in _EMITTERS)}. "
            f"Received: {layer.name}, {type(layer).__name__}"
        )
    config = layer.get_config()
    if "kernel_initializer" in config:
        config["kernel_initializer"] = "zeros"  # The weights are the model's.
    return type(layer).from_config(config)


def _activated(graph: _Graph, layer: keras.Layer, name: str) -> _Value:
    """Adds the activation of a layer after a tensor, if it has one."""
    activation = keras.activations.serialize(layer.activation)
    if activation == "linear":
        return _Value(name)
    kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "softmax": "Softmax"}
    if activation not in kinds:
        raise InputError(
            f"ONNX can be written of the activations linear, {', '.join(kinds)}. "
            f"Received: {layer.name} with {activation}"
        )
    name = graph.add(kinds[activation], name, name=f"{layer.name}/{activation}")
    return _Value(name, rectified=activation == "relu")


def _activation(graph: _Graph, layer: layers.Activation, value: _Value) -> _Value:
    return _activated(graph, layer, graph.padded(value))


def _normalization(graph: _Graph, layer: layers.Normalization, value: _Value) -> _Value:
    mean, variance = np.reshape([layer.mean, layer.variance], (2, -1, 1, 1))
    subtracted = graph.constant(f"{layer.name}/mean", mean)
    name = graph.add("Sub", graph.padded(value), subtracted)
    if (variance != 1).any():  # Else it is folded into the convolution.
        deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
        divisor = graph.constant(f"{layer.name}/deviation", deviation)
        name = graph.add("Div", name, divisor)
    return _Value(name)


def _batch_normalization(graph: _Graph, layer: keras.Layer, value: _Value) -> _Value:
    *affine, mean, variance = layer.get_weights()
    gamma = affine.pop(0) if layer.scale else np.ones_like(mean)
    beta = affine.pop(0) if layer.center else np.zeros_like(mean)
    parts = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    read = graph.padded(value)
    constants = [graph.constant(f"{layer.name}/{p}", w) for p, w in parts.items()]
    attributes = {"name": layer.name, "epsilon": layer.epsilon}
    return _Value(graph.add("BatchNormalization", read, *constants, **attributes))


def _zero_padding(graph: _Graph, layer: layers.ZeroPadding2D, value: _Value) -> _Value:
    (above, below), (left, right) = layer.padding
    if layer.data_format == "channels_first":
        # The channels of shortcut A: see `keras_resnet.nets.blocks`.
        return _Value(graph.pad(value, layer.name, channels=(left, right)))
    pads = np.add(value.pads, (above, left, below, right))
    return dataclasses.replace(value, pads=tuple(pads.tolist()))


def _convolution(graph: _Graph, layer: layers.Conv2D, value: _Value) -> _Value:
    pads = value.pads
    sizes = zip(layer.dilation_rate, layer.kernel_size, strict=True)
    reach = [rate * (size - 1) for rate, size in sizes]
    if layer.padding == "same" and any(reach):
        if any(r % 2 for r in reach) or layer.strides != (1, 1):
            raise InputError(
                "ONNX can be written of convolutions with padding='same' whose stride "
                f"is 1 and whose kernel is odd. Received: {layer.name}"
            )
        pads = np.add(pads, [r // 2 for r in reach * 2]).tolist()
    kernel, *bias = layer.get_weights()
    weights = [graph.constant(f"{layer.name}/kernel", kernel.transpose(3, 2, 0, 1))]
    weights += [graph.constant(f"{layer.name}/bias", b) for b in bias]
    name = graph.add(
        "Conv", value.name, *weights, name=layer.name, group=layer.groups, pads=pads,
        kernel_shape=layer.kernel_size, strides=layer.strides,
        dilations=layer.dilation_rate,
    )  # fmt: skip
    return _activated(graph, layer, name)


def _max_pooling(graph: _Graph, layer: layers.MaxPooling2D, value: _Value) -> _Value:
    # ONNX pads with minus infinity. After a ReLU that is the same as zeros.
    fits = value.rectified
    read = value.name if fits else graph.padded(value)
    pads = value.pads if fits else (0, 0, 0, 0)
    name = graph.add("MaxPool", read, name=layer.name, pads=pads, **_window(layer))
    return _Value(name, rectified=fits)


def _average_pooling(graph: _Graph, layer: keras.Layer, value: _Value) -> _Value:
    # One of a single pixel is a choice of pixels, which stays exact in int8.
    kind = "AveragePool" if max(layer.pool_size) > 1 else "MaxPool"
    name = graph.add(kind, graph.padded(value), name=layer.name, **_window(layer))
    return _Value(name, rectified=value.rectified)


def _window(layer: layers.MaxPooling2D | layers.AveragePooling2D) -> dict[str, Any]:
    return {
        "kernel_shape": layer.pool_size,
        "strides": layer.strides,
        # What is padded counts in no average, in TensorFlow neither.
        "auto_pad": "SAME_UPPER" if layer.padding == "same" else "NOTSET",
    }


def _global_average_pooling(graph: _Graph, layer: keras.Layer, value: _Value) -> _Value:
    name = graph.add("GlobalAveragePool", graph.padded(value), name=layer.name)
    name = name if layer.keepdims else graph.add("Flatten", name)
    return _Value(name, rectified=value.rectified)


def _dense(graph: _Graph, layer: layers.Dense, value: _Value) -> _Value:
    parts = zip(("kernel", "bias"), layer.get_weights(), strict=False)
    weights = [graph.constant(f"{layer.name}/{part}", w) for part, w in parts]
    name = graph.add("Gemm", value.name, *weights, name=layer.name)
    return _activated(graph, layer, name)


def _pairwise(kind: str) -> _Emitter:
    def emit(graph: _Graph, layer: keras.Layer, *values: _Value) -> _Value:
        return _Value(graph.add(kind, *map(graph.padded, values), name=layer.name))

    return emit


_EMITTERS: dict[type[keras.Layer], _Emitter] = {
    layers.Activation: _activation,
    layers.Add: _pairwise("Add"),
    layers.AveragePooling2D: _average_pooling,
    layers.BatchNormalization: _batch_normalization,
    layers.Conv2D: _convolution,
    layers.Dense: _dense,
    layers.Dropout: lambda graph, layer, value: value,
    layers.GlobalAveragePooling2D: _global_average_pooling,
    layers.MaxPooling2D: _max_pooling,
    layers.Multiply: _pairwise("Mul"),
    layers.Normalization: _normalization,
    layers.ZeroPadding2D: _zero_padding,
}
