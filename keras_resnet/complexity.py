"""Parameters and multiply-adds of a network.

    python -m keras_resnet.complexity

prints the paper's Table 1 and Table 6 beside ours; with --model, every layer of
one network.
"""

import dataclasses
import math

from keras_resnet.errors import InputError


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
        return _table([head, *rows, total], left=(0, 1, 2))


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
    import keras

    from keras_resnet.blocks import channel_axis, flat_layers

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
_TABLE_1 = {
    "resnet18": 1.8,
    "resnet34": 3.6,
    "resnet50": 3.8,
    "resnet101": 7.6,
    "resnet152": 11.3,
}
_TABLE_6 = {
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
    from keras_resnet.resnet import ResNet
    from keras_resnet.variants import find_variant

    for table, column, scale, paper in (
        (1, "multiply_adds", 1e9, _TABLE_1),
        (6, "parameters", 1e6, _TABLE_6),
    ):
        for name, printed in paper.items():
            variant = find_variant(name)
            # The paper trains its 18 and 34 layers with A and with B, its
            # bottleneck nets with B and its CIFAR nets with A.
            shortcuts = "AB" if name in ("resnet18", "resnet34") else variant.shortcut
            for shortcut in shortcuts:
                network = ResNet(name, shortcut=shortcut)
                row = {
                    "table": table,
                    "network": name,
                    "shortcut": shortcut,
                    "layers": variant.depth,
                    "paper": printed,
                    "ours": getattr(profile(network), column) / scale,
                }
                yield row, network


def compare_with_paper():
    """Returns the paper's Tables 1 and 6 beside our networks', as text."""
    rows = [row for row, _ in beside_paper()]

    def part(table, title):
        head = ("network", "shortcut", "layers", "paper", "ours", "off by", "")
        lines = [_beside(row) for row in rows if row["table"] == table]
        return f"Table {table}: {title}\n{_table([head, *lines], left=(0, 1, 6))}"

    return "\n\n".join(
        [part(1, "multiply-adds, in 1e9"), part(6, "parameters, in 1e6")]
    )


def _beside(row):
    """A row of `beside_paper` in words."""
    printed, value = row["paper"], row["ours"]
    decimals = len(str(printed).split(".")[1])
    rounds = round(value, decimals) == printed
    return (
        row["network"],
        row["shortcut"],
        str(row["layers"]),
        str(printed),
        f"{value:.3f}",
        f"{value / printed - 1:+.1%}",
        "" if rounds else f"does not round to {printed}",
    )


def _table(rows, left):
    """Aligns rows of text: the columns in `left` to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def main(argv):
    """Prints the paper's tables, or the layers of the network in --model."""
    del argv
    from absl import flags

    if name := flags.FLAGS.model:
        from keras_resnet.resnet import ResNet

        print(profile(ResNet(name, shortcut=flags.FLAGS.shortcut)))
    else:
        print(compare_with_paper())


if __name__ == "__main__":
    from absl import flags

    from keras_resnet import programs

    flags.DEFINE_string(
        "model", None, "Network to print layer by layer; none prints the tables."
    )
    flags.DEFINE_string(
        "shortcut", None, "A, B, C or none; default: the paper's for that network."
    )
    programs.run(main)
