"""Counts of the parameters and multiply-adds of a network."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
from keras import layers

from keras_resnet.nets.blocks import channel_axis
from keras_resnet.nets.graph import list_layers
from keras_resnet.nets.resnet import build_network
from keras_resnet.spec import find_variant
from keras_resnet.support import InputError, format_table


class LayerProfile(NamedTuple):
    """Cost of one layer with weights."""

    name: str
    kind: str  # Class name of the layer, such as "Conv2D".
    output_shape: tuple[int, ...]  # Output shape without the batch axis.
    parameters: int  # Number of trainable parameters.
    multiply_adds: int  # Count for one image; 0 unless `kind` is Conv2D or Dense.


@dataclasses.dataclass(frozen=True)
class Profile:
    """Cost of a network. Printing a `Profile` shows a table with a row per layer."""

    layers: tuple[LayerProfile, ...]  # Cost of each layer with weights.
    parameters: int  # Number of trainable parameters.
    multiply_adds: int  # Number of multiply-adds for one image.

    def __str__(self) -> str:
        total = LayerProfile("total", "", (), self.parameters, self.multiply_adds)
        rows = [
            (
                row.name,
                row.kind,
                "x".join(map(str, row.output_shape)),
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
            )
            for row in (*self.layers, total)
        ]
        header = ("layer", "kind", "output", "parameters", "multiply-adds")
        return format_table([header, *rows], left_columns=(0, 1, 2))


def profile(model: keras.Model) -> Profile:
    """Counts trainable parameters and multiply-adds of each layer and of the network.

    A convolution has output height x output width x kernel height x kernel width x
    input channels of a group x output channels multiply-adds, and a dense layer has
    inputs x outputs. Other layers count as 0, as in the paper's Table 1.

    Args:
        model: A built model with a fixed input size.

    Raises:
        InputError: If the model accepts inputs of any size.
    """
    rows = tuple(
        LayerProfile(
            layer.name,
            type(layer).__name__,
            tuple(layer.output.shape[1:]),
            sum(math.prod(weight.shape) for weight in layer.trainable_weights),
            _count_multiply_adds(layer, model),
        )
        for layer in list_layers(model)
        if layer.weights
    )
    parameters = sum(row.parameters for row in rows)
    return Profile(rows, parameters, sum(row.multiply_adds for row in rows))


def _count_multiply_adds(layer: layers.Layer, model: keras.Model) -> int:
    if isinstance(layer, layers.Dense):
        return math.prod(layer.kernel.shape)
    if not isinstance(layer, layers.Conv2D):
        return 0
    shape = layer.output.shape[1:]
    output_size = shape[:2] if channel_axis() == -1 else shape[1:]
    if None in output_size:
        raise InputError(
            "Multiply-adds require a fixed input size, such as input_shape=(224, 224, 3). "
            f"Received: {model.name} with input {model.input_shape}"
        )
    return math.prod(output_size) * math.prod(layer.kernel.shape)


# Billions of multiply-adds for one image, from Table 1 of the paper.
PAPER_TABLE_1 = {
    "resnet18": 1.8, "resnet34": 3.6, "resnet50": 3.8, "resnet101": 7.6, "resnet152": 11.3,
}  # fmt: skip
# Millions of parameters, from Table 6 of the paper.
PAPER_TABLE_6 = {
    "resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66,
    "resnet56": 0.85, "resnet110": 1.7, "resnet1202": 19.4,
}  # fmt: skip


def profile_paper_networks() -> Iterator[tuple[dict[str, Any], keras.Model]]:
    """Builds and profiles the networks of the paper's Tables 1 and 6.

    Yields a dict and the network. The keys of the dict are `table` (1 or 6), `network`
    (name), `shortcut`, `layers` (number of weighted layers), `paper` (cost that the
    paper states) and `ours` (cost that `profile` counts). The cost is in billions of
    multiply-adds for Table 1, and in millions of parameters for Table 6.
    """
    for table_number, printed_values in ((1, PAPER_TABLE_1), (6, PAPER_TABLE_6)):
        for name, printed_value in printed_values.items():
            variant = find_variant(name)
            # The paper trains ResNet-18 and ResNet-34 with shortcut A and with shortcut
            # B, deeper ImageNet networks with B, and CIFAR networks with A.
            shortcuts = "AB" if name in ("resnet18", "resnet34") else variant.shortcut
            for shortcut in shortcuts:
                network = build_network(variant.replace(shortcut=shortcut), name)
                cost = profile(network)
                millions, billions = cost.parameters / 1e6, cost.multiply_adds / 1e9
                row = {
                    "table": table_number,
                    "network": name,
                    "shortcut": shortcut,
                    "layers": variant.depth,
                    "paper": printed_value,
                    "ours": billions if table_number == 1 else millions,
                }
                yield row, network
