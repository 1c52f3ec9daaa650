"""Tables as text and as CSV."""

import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from keras_resnet.support.errors import to_printable


def format_table(
    rows: Iterable[Sequence[str]], left_columns: Collection[int] = (0,)
) -> str:
    """Returns rows as text with aligned columns, two spaces apart.

    Args:
        rows: Rows with the same number of cells, usually with a header first.
        left_columns: Indices of the left-aligned columns. Others are right-aligned.
    """
    rows = [[to_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in left_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Returns rows as CSV text with a header.

    Spreadsheets would run a text like `=1+1`, so such a text gets a leading `'`. Control
    characters are escaped.

    Args:
        rows: Dicts from column names to values. A missing value becomes an empty cell.
        columns: Names of the columns to write. Default: all columns.
    """
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({k: _escape_cell(v) for k, v in row.items()} for row in rows)
    return text.getvalue()


def _escape_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = to_printable(value)
    is_formula = value[:1] in ("=", "+", "-", "@") and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?|[+-]?inf|nan")
