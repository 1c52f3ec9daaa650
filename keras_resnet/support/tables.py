"""Tables as text and as CSV."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any


def format_table(rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Aligns rows of text in columns.

    Args:
        rows: The rows, each with as many cells; the first one is usually the head.
        left: Numbers of the columns that are aligned to the left. The others are
            aligned to the right.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Returns rows as CSV.

    Args:
        rows: The rows, from column names to values. A missing value is left empty.
        columns: Names of the columns that are written. Without them, all are.
    """
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
