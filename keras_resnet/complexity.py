"""Prints the parameters and multiply-adds of networks.

python -m keras_resnet.complexity

Without --model, this command compares the networks with Tables 1 and 6 of the
paper. With --model, it lists every layer of one network.
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
    """Options of the command."""

    model: str | None = option(
        None, "Network to print layer by layer. Default: print the tables."
    )
    shortcut: str | None = option(
        None, "Shortcut: A, B, C or none. Default: as in the paper."
    )


def compare_with_paper() -> str:
    """Returns a text that compares the networks with the paper's Tables 1 and 6."""
    from keras_resnet.nets import profile_paper_networks

    rows = [row for row, _ in profile_paper_networks()]
    parts = []
    head = ("network", "shortcut", "layers", "paper", "ours", "off by", "")
    for table, title in ((1, "multiply-adds, in 1e9"), (6, "parameters, in 1e6")):
        lines = [_format_cells(row) for row in rows if row["table"] == table]
        text = format_table([head, *lines], left=(0, 1, 6))
        parts.append(f"Table {table}: {title}\n{text}")
    return "\n\n".join(parts)


def _format_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the table cells of a row of `profile_paper_networks`."""
    printed, value = row["paper"], row["ours"]
    decimals = len(str(printed).split(".")[1])
    rounds_to_printed = round(value, decimals) == printed
    note = "" if rounds_to_printed else f"does not round to {printed}"
    numbers = str(printed), f"{value:.3f}", f"{value / printed - 1:+.1%}"
    return row["network"], row["shortcut"], str(row["layers"]), *numbers, note


def main(argv: list[str]) -> None:
    """Prints the comparison with the paper, or the layers of one network."""
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
