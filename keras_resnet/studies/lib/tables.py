"""Tables of studies: lists of dicts, kept as CSV."""

import csv
import os
import re
from collections.abc import Mapping
from typing import Any

from keras_resnet.support import InputError, Path, to_csv, write_file

# Values are int, float or str: only the study that made a column knows which.
Row = dict[str, Any]
Rows = list[Row]


def run_key(about: Mapping[str, Any]) -> str:
    """Names a file after what it holds, such as `resnet8-epochs-24-seed-0`.

    Values of `None` are left out.
    """
    known = {name: value for name, value in about.items() if value is not None}
    parts = [f"{name}-{value}".strip("-") for name, value in known.items()]
    return re.sub(r"[^\w.=-]+", "_", "-".join(parts))


def write_table(path: Path, rows: Rows) -> None:
    """Writes rows as CSV; columns that a row lacks are empty."""
    write_file(path, to_csv(rows))


def read_table(path: Path) -> Rows:
    """Reads rows that `write_table` wrote; numbers are numbers again.

    Raises:
        InputError: There is no such table, or it is empty or damaged.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [
                {name: _value(text) for name, text in row.items()}
                for row in csv.DictReader(file, strict=True)
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"There is no table to make a report of: {path} "
            f"({getattr(error, 'strerror', None) or error})"
        ) from None
    if not rows:
        raise InputError(f"There is no table to make a report of: {path} is empty")
    return rows


def is_table(path: Path) -> bool:
    """Whether a file is there that `read_table` reads."""
    try:
        return bool(read_table(path))
    except InputError:
        return False


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except (ValueError, TypeError):  # `None` where a row is too short.
            continue
    return text


def select_column(rows: Rows, column: str, **where: Any) -> list[Any]:
    """The values of a column in the rows that match."""
    conditions = where.items()
    return [row[column] for row in rows if all(row[k] == v for k, v in conditions)]


def select_runs(rows: Rows, column: str, **where: Any) -> list[list[Any]]:
    """The values of a column in the rows that match, by seed."""
    seeds = distinct_values(rows, "seed")
    return [select_column(rows, column, seed=seed, **where) for seed in seeds]


def distinct_values(rows: Rows, column: str) -> list[Any]:
    """The different values of a column, in order."""
    return sorted({row[column] for row in rows})


def errors_by_epoch(folder: Path) -> Rows:
    """Errors of a run folder after each epoch, in %.

    A row has `epoch`, `training_error` (of augmented images, while the weights change,
    as in the paper's figures) and `test_error`, of held-out images.
    """
    return [
        {
            "epoch": row["epoch"],
            "training_error": round(100 * (1 - row["accuracy"]), 4),
            "test_error": round(100 * (1 - row["val_accuracy"]), 4),
        }
        for row in read_table(os.path.join(folder, "metrics.csv"))
    ]
