"""Parameters and multiply-adds of a network."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
from keras import layers

from keras_resnet.nets.blocks import channel_axis
from keras_resnet.nets.graph import flat_layers
from keras_resnet.nets.resnet import build_network
from keras_resnet.spec import find_variant
from keras_resnet.support import InputError, format_table


class LayerProfile(NamedTuple):
    """One layer that has parameters.

    `kind` is the name of its class, such as `"Conv2D"`; `output_shape` is without the
    batch; only convolutions and dense layers have `multiply_adds`, as in the paper.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Profile:
    """Trainable parameters and multiply-adds for one image; prints as a table."""

    layers: tuple[LayerProfile, ...]
    parameters: int
    multiply_adds: int

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
        head = ("layer", "kind", "output", "parameters", "multiply-adds")
        return format_table([head, *rows], left=(0, 1, 2))


def profile(model: keras.Model) -> Profile:
    """Counts parameters and multiply-adds, per layer and in total.

    A convolution costs height x width x channels in x channels out x kernel
    height x kernel width, over the positions of its *output*; a dense layer
    channels in x channels out. Biases, batch normalisation, activations and
    pooling count as nothing, as in the paper's Table 1.

    Args:
        model: A built model with a fixed input size.

    Raises:
        InputError: The model takes any input size, so that the cost of a
            convolution is unknown.
    """
    rows = tuple(
        LayerProfile(
            layer.name,
            type(layer).__name__,
            tuple(layer.output.shape[1:]),
            sum(math.prod(weight.shape) for weight in layer.trainable_weights),
            _multiply_adds(layer, model),
        )
        for layer in flat_layers(model)
        if layer.weights
    )
    parameters = sum(row.parameters for row in rows)
    return Profile(rows, parameters, sum(row.multiply_adds for row in rows))


def _multiply_adds(layer: layers.Layer, model: keras.Model) -> int:
    if isinstance(layer, layers.Dense):
        return math.prod(layer.kernel.shape)
    if not isinstance(layer, layers.Conv2D):
        return 0
    shape = layer.output.shape[1:]
    positions = shape[:2] if channel_axis() == -1 else shape[1:]
    if None in positions:
        raise InputError(
            "Multiply-adds need a fixed input size, such as input_shape=(224, 224, 3). "
            f"Received: {model.name} with input {model.input_shape}"
        )
    return math.prod(positions) * math.prod(layer.kernel.shape)


# Table 1's multiply-adds, in 1e9, and Table 6's parameters, in 1e6, as printed.
PAPER_TABLE_1 = {
    "resnet18": 1.8, "resnet34": 3.6, "resnet50": 3.8, "resnet101": 7.6, "resnet152": 11.3,
}  # fmt: skip
PAPER_TABLE_6 = {
    "resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66,
    "resnet56": 0.85, "resnet110": 1.7, "resnet1202": 19.4,
}  # fmt: skip


def beside_paper() -> Iterator[tuple[dict[str, Any], keras.Model]]:
    """Yields each row of the paper's Tables 1 and 6 with its network, built for it.

    A row has the number of the `table`, the name of the `network`, its `shortcut`,
    its number of weighted `layers`, and the value of the `paper` beside `ours`:
    multiply-adds in 1e9 in Table 1, parameters in 1e6 in Table 6.
    """
    for table, paper in ((1, PAPER_TABLE_1), (6, PAPER_TABLE_6)):
        for name, printed in paper.items():
            variant = find_variant(name)
            # The paper trains its 18 and 34 layers with A and with B, its
            # bottleneck nets with B and its CIFAR nets with A.
            shortcuts = "AB" if name in ("resnet18", "resnet34") else variant.shortcut
            for shortcut in shortcuts:
                network = build_network(variant.changed(shortcut=shortcut), name)
                cost = profile(network)
                row = {
                    "table": table,
                    "network": name,
                    "shortcut": shortcut,
                    "layers": variant.depth,
                    "paper": printed,
                    "ours": (
                        cost.multiply_adds / 1e9
                        if table == 1
                        else cost.parameters / 1e6
                    ),
                }
                yield row, network
