"""Result tables of studies. A table is a list of dicts and is stored as a CSV file."""

import csv
import io
import os
import re
from collections.abc import Mapping
from typing import Any

from keras_resnet.support import InputError, StrPath, read_file, to_csv, write_file

# Row of a table: a dict from column names to values of type int, float or str.
Row = dict[str, Any]
Rows = list[Row]


def file_stem(settings: Mapping[str, Any]) -> str:
    """Returns a file name without extension, such as `resnet8-epochs-24-seed-0`.

    The file name consists of the names and values in `settings` that are not `None`.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    parts = [f"{name}-{value}".strip("-") for name, value in settings.items()]
    return re.sub(r"[^\w.=-]+", "_", "-".join(parts))


def write_table(path: StrPath, rows: Rows) -> None:
    """Writes rows as a CSV file. A column that a row does not have is left empty."""
    write_file(path, to_csv(rows))


def read_table(path: StrPath) -> Rows:
    """Reads a file that `write_table` wrote, and converts numbers to int or float.

    Raises:
        InputError: If the file is missing, empty or damaged.
    """
    try:
        text = io.StringIO(read_file(path, 2**28).decode(), newline="")
        lines = list(csv.DictReader(text, strict=True))
        if any(None in (*line, *line.values()) for line in lines):
            raise ValueError("the rows have different lengths")
        rows = [{k: _parse_value(v) for k, v in line.items()} for line in lines]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"The table {path} cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None
    if not rows:
        raise InputError(f"The table {path} must have at least one row")
    return rows


def is_table(path: StrPath) -> bool:
    """Returns whether the file exists and `read_table` can read it."""
    try:
        return bool(read_table(path))
    except InputError:
        return False


def _parse_value(text: str) -> int | float | str:
    for number_type in (int, float):
        try:
            return number_type(text)
        except ValueError:
            continue
    return text


def select_column(rows: Rows, column: str, **where: Any) -> list[Any]:
    """Returns the values of a column in the rows that match `where`, such as `seed=0`."""
    conditions = where.items()
    return [row[column] for row in rows if all(row[k] == v for k, v in conditions)]


def select_runs(rows: Rows, column: str, **where: Any) -> list[list[Any]]:
    """Returns the result of `select_column` for each seed, ordered by seed."""
    seeds = distinct_values(rows, "seed")
    return [select_column(rows, column, seed=seed, **where) for seed in seeds]


def distinct_values(rows: Rows, column: str) -> list[Any]:
    """Returns the distinct values of a column, sorted."""
    return sorted({row[column] for row in rows})


def read_errors(folder: StrPath) -> Rows:
    """Returns the `training_error` and `test_error` in % after each epoch of a run.

    `folder` is the run folder. As in the paper's figures, the training error is
    measured on augmented batches while the weights change.
    """
    return [
        {
            "epoch": row["epoch"],
            "training_error": round(100 * (1 - row["accuracy"]), 4),
            "test_error": round(100 * (1 - row["val_accuracy"]), 4),
        }
        for row in read_table(os.path.join(folder, "metrics.csv"))
    ]
