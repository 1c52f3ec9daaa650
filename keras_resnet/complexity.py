"""Parameters and multiply-adds of a network.

    python -m keras_resnet.complexity

prints the paper's Table 1 and Table 6 beside ours; with --model, every layer of
one network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.support import (
    define_flags,
    format_table,
    option,
    read_flags,
    run_command,
)


@dataclasses.dataclass(frozen=True)
class ComplexityOptions:
    """Which network is counted."""

    model: str | None = option(
        None, "Network to print layer by layer; none prints the tables."
    )
    shortcut: str | None = option(
        None, "A, B, C or none; default: the paper's for that network."
    )


def compare_with_paper() -> str:
    """Returns the paper's Tables 1 and 6 beside our networks', as text."""
    from keras_resnet.nets import beside_paper

    rows = [row for row, _ in beside_paper()]
    parts = []
    head = ("network", "shortcut", "layers", "paper", "ours", "off by", "")
    for table, title in ((1, "multiply-adds, in 1e9"), (6, "parameters, in 1e6")):
        lines = [_cells(row) for row in rows if row["table"] == table]
        text = format_table([head, *lines], left=(0, 1, 6))
        parts.append(f"Table {table}: {title}\n{text}")
    return "\n\n".join(parts)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a row of `beside_paper` as text."""
    printed, value = row["paper"], row["ours"]
    decimals = len(str(printed).split(".")[1])
    rounds = round(value, decimals) == printed
    note = "" if rounds else f"does not round to {printed}"
    numbers = str(printed), f"{value:.3f}", f"{value / printed - 1:+.1%}"
    return row["network"], row["shortcut"], str(row["layers"]), *numbers, note


def main(argv: list[str]) -> None:
    """Prints the paper's tables, or the layers of the network in --model."""
    del argv
    options = read_flags(ComplexityOptions)
    if options.model:
        from keras_resnet.nets import profile
        from keras_resnet.zoo import ResNet

        print(profile(ResNet(options.model, shortcut=options.shortcut)))
    else:
        print(compare_with_paper())


if __name__ == "__main__":
    define_flags(ComplexityOptions)
    run_command(main)
