"""Parameters and multiply-adds of a network."""

import dataclasses
import math

import keras

from keras_resnet.nets.blocks import channel_axis
from keras_resnet.nets.graph import flat_layers
from keras_resnet.nets.resnet import build_network, make_input
from keras_resnet.spec import find_variant
from keras_resnet.support import InputError, format_table


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """One layer that has parameters.

    Attributes:
        name: of the layer.
        kind: its class, such as `"Conv2D"`.
        output_shape: without the batch.
        parameters: trainable ones.
        multiply_adds: of convolutions and dense layers for one image; 0 for
            others, as in the paper.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Profile:
    """Parameters and multiply-adds of a network; prints as a table.

    Attributes:
        layers: those that have parameters, in order.
        parameters: trainable parameters of the whole.
        multiply_adds: of the whole, for one image.
    """

    layers: tuple[LayerProfile, ...]
    parameters: int
    multiply_adds: int

    def __str__(self):
        head = ("layer", "kind", "output", "parameters", "multiply-adds")
        rows = [
            (
                layer.name,
                layer.kind,
                "x".join(map(str, layer.output_shape)),
                f"{layer.parameters:,}",
                f"{layer.multiply_adds:,}",
            )
            for layer in self.layers
        ]
        total = ("total", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}")
        return format_table([head, *rows, total], left=(0, 1, 2))


def profile(model):
    """Counts parameters and multiply-adds, per layer and in total.

    A convolution costs height x width x channels in x channels out x kernel
    height x kernel width, over the positions of its *output*; a dense layer
    channels in x channels out. Biases, batch normalisation, activations and
    pooling count as nothing, as in the paper's Table 1.

    Args:
        model: a built `keras.Model` with a fixed input size.

    Returns:
        A `Profile`.

    Raises:
        InputError: the model takes any input size, so that a convolution's cost
            is unknown.
    """

    rows = []
    for layer in flat_layers(model):
        if not layer.weights:
            continue
        shape = tuple(layer.output.shape[1:])
        cost = 0
        if isinstance(layer, keras.layers.Conv2D):
            positions = shape[:2] if channel_axis() == -1 else shape[1:]
            if None in positions:
                raise InputError(
                    "Multiply-adds need a fixed input size, such as "
                    f"input_shape=(224, 224, 3). Received: {model.name} with input "
                    f"{model.input_shape}"
                )
            cost = math.prod(positions) * math.prod(layer.kernel.shape)
        elif isinstance(layer, keras.layers.Dense):
            cost = math.prod(layer.kernel.shape)
        parameters = sum(math.prod(w.shape) for w in layer.trainable_weights)
        rows.append(
            LayerProfile(layer.name, type(layer).__name__, shape, parameters, cost)
        )
    return Profile(
        tuple(rows),
        sum(row.parameters for row in rows),
        sum(row.multiply_adds for row in rows),
    )


# Table 1's multiply-adds, in 1e9, and Table 6's parameters, in 1e6, as printed.
PAPER_TABLE_1 = {
    "resnet18": 1.8,
    "resnet34": 3.6,
    "resnet50": 3.8,
    "resnet101": 7.6,
    "resnet152": 11.3,
}


PAPER_TABLE_6 = {
    "resnet20": 0.27,
    "resnet32": 0.46,
    "resnet44": 0.66,
    "resnet56": 0.85,
    "resnet110": 1.7,
    "resnet1202": 19.4,
}


def beside_paper():
    """The paper's Tables 1 and 6, beside our networks, which are built for it.

    Yields:
        Pairs of a row and its network, a `keras.Model`. The row is a dict of `table`
        (1 or 6), `network`, `shortcut`, `layers`, `paper`, the value as printed, and
        `ours`: multiply-adds in 1e9 in Table 1, parameters in 1e6 in Table 6.
    """
    for table, column, scale, paper in (
        (1, "multiply_adds", 1e9, PAPER_TABLE_1),
        (6, "parameters", 1e6, PAPER_TABLE_6),
    ):
        for name, printed in paper.items():
            variant = find_variant(name)
            # The paper trains its 18 and 34 layers with A and with B, its
            # bottleneck nets with B and its CIFAR nets with A.
            shortcuts = "AB" if name in ("resnet18", "resnet34") else variant.shortcut
            for shortcut in shortcuts:
                row_variant = variant.changed(shortcut=shortcut)
                network = build_network(row_variant, *make_input(row_variant), name)
                row = {
                    "table": table,
                    "network": name,
                    "shortcut": shortcut,
                    "layers": variant.depth,
                    "paper": printed,
                    "ours": getattr(profile(network), column) / scale,
                }
                yield row, network
