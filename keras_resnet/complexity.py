"""Prints the numbers of parameters and multiply-adds of networks.

python -m keras_resnet.complexity

Without --model, this command compares the networks with Tables 1 and 6 of the
paper. With --model, it lists every layer of one network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.support import (
    add_flags,
    format_table,
    option,
    read_flags,
    run_command,
)


@dataclasses.dataclass(frozen=True)
class ComplexityOptions:
    """Options of the command `complexity`."""

    model: str | None = option(
        None, "Variant whose layers are listed. Default: totals of paper networks."
    )
    shortcut: str | None = option(
        None, "Shortcut: A, B, C or none. Default: as in the paper."
    )


def compare_with_paper() -> str:
    """Returns two text tables that compare networks with the paper's Tables 1 and 6."""
    from keras_resnet.nets import profile_paper_networks

    rows = [row for row, _ in profile_paper_networks()]
    sections = []
    header = ("network", "shortcut", "layers", "paper", "ours", "off by", "")
    for table, title in ((1, "multiply-adds, billions"), (6, "parameters, millions")):
        cells = [_format_cells(row) for row in rows if row["table"] == table]
        text = format_table([header, *cells], left_columns=(0, 1, 6))
        sections.append(f"Table {table}: {title}\n{text}")
    return "\n\n".join(sections)


def _format_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the table cells of a row of `profile_paper_networks`."""
    paper_value, value = row["paper"], row["ours"]
    decimals = len(str(paper_value).split(".")[1])
    rounds_to_paper = round(value, decimals) == paper_value
    remark = "" if rounds_to_paper else f"does not round to {paper_value}"
    numbers = str(paper_value), f"{value:.3f}", f"{value / paper_value - 1:+.1%}"
    return row["network"], row["shortcut"], str(row["layers"]), *numbers, remark


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
    add_flags(ComplexityOptions)
    run_command(main)
