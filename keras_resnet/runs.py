"""Lists run folders with their results, the best first.

python -m keras_resnet.runs
python -m keras_resnet.runs runs/cifar10 --csv > runs.csv
"""

import csv
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from keras_resnet.support import (
    InputError,
    define_flags,
    format_table,
    option,
    read_flags,
    run_command,
    to_csv,
)


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """How runs are listed."""

    csv: bool = option(False, "Print CSV instead of a table.")


@dataclasses.dataclass
class Outcome:
    """What became of a run; the columns of the table. `None` is unknown.

    Attributes:
        name: Path of the folder.
        epochs_done: Number of epochs with metrics.
        epochs: Number of epochs that the run was to have.
        best_accuracy: Best accuracy on the held-out images, from 0 to 1.
        last_accuracy: Accuracy on the held-out images after the last epoch.
        last_loss: Loss on the held-out images after the last epoch.
        state: `"done"`, `"at step N of M"` (the run goes on, or was cut short there),
            or what is wrong with the folder.
        commit: Commit of the checkout that began the run.
    """

    name: str
    model: str | None = None
    dataset: str | None = None
    recipe: str | None = None
    epochs_done: int | None = None
    epochs: int | None = None
    best_accuracy: float | None = None
    last_accuracy: float | None = None
    last_loss: float | None = None
    seed: int | None = None
    state: str = ""
    commit: str | None = None


def list_runs(root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Lists the run folders below a folder, and what became of each.

    Args:
        root: Run folder, or folder of them, at any depth.

    Returns:
        The fields of `Outcome` as a dict for each run, the best first.

    Raises:
        InputError: There is no such folder.
    """
    if not os.path.isdir(root):
        raise InputError(f"There is no folder {os.fspath(root)!r}")
    outcomes = [vars(_outcome(folder)) for folder in _run_folders(os.fspath(root))]
    return sorted(outcomes, key=lambda run: (-(run["best_accuracy"] or 0), run["name"]))


def _run_folders(root: str) -> Iterator[str]:
    """Yields each folder with a record, and each that has nothing of the kind."""
    if os.path.exists(os.path.join(root, "run.json")):
        yield root
        return
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        # Logs of local workers, and range tests.
        ours = entry.name.endswith(("-workers", "-find_lr"))
        if entry.is_dir(follow_symlinks=False) and not ours:
            yield from list(_run_folders(entry.path)) or [entry.path]


def _outcome(folder: str) -> Outcome:
    from keras_resnet.evaluation import read_record

    run = Outcome(folder, state="run.json is damaged")
    try:
        record = read_record(folder)
        if record is None:
            return Outcome(folder, state="not a run folder")
        spec, run.commit = record.spec, record.commit
        run.model, run.dataset, run.seed = spec.model, spec.dataset, spec.seed
        run.recipe = spec.recipe_name
        run.epochs = math.ceil(spec.total_steps / spec.steps_per_epoch)
        run.state = "metrics.csv is damaged"
        accuracies, losses = _read_metrics(folder)
    except (InputError, KeyError, TypeError, ValueError, ZeroDivisionError, csv.Error):
        return run
    run.epochs_done = len(accuracies)
    if accuracies:
        run.best_accuracy, run.last_accuracy = max(accuracies), accuracies[-1]
        run.last_loss = losses[-1]
    run.state = f"at step {_newest_step(folder)} of {spec.total_steps}"
    if os.path.exists(os.path.join(folder, "final.keras")):
        run.state = "done"
    return run


def _read_metrics(folder: str) -> tuple[list[float], list[float]]:
    """Returns the validation accuracy and the validation loss of each epoch."""
    path = os.path.join(folder, "metrics.csv")
    if not os.path.exists(path):
        return [], []
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    accuracies = [float(row["val_accuracy"]) for row in rows]
    return accuracies, [float(row["val_loss"]) for row in rows]


def _newest_step(folder: str) -> int:
    """Returns the step of the newest checkpoint that is whole; 0 if there is none."""
    note = pathlib.Path(folder, "checkpoints", "checkpoint")
    if not note.exists():
        return 0
    text = note.read_text(encoding="utf-8", errors="replace")
    match = re.match(r'model_checkpoint_path: ".*step-(\d+)"', text)
    return int(match[1]) if match else 0


def _table(runs: list[dict[str, Any]]) -> str:
    """Returns the runs as lines of text, a column for each of their keys."""

    def text(value: object, form: str = "") -> str:
        return "" if value is None else format(value, form)

    rows = [
        ("name", "model", "dataset", "recipe", "epochs", "best", "last", "loss",
         "seed", "state", "commit")
    ]  # fmt: skip
    for run in runs:
        commit, dirty, _ = (run["commit"] or "").partition("-dirty")
        known = run["epochs_done"] is not None
        rows.append(
            (
                run["name"],
                text(run["model"]),
                text(run["dataset"]),
                text(run["recipe"]),
                f"{run['epochs_done']}/{run['epochs']}" if known else "",
                text(run["best_accuracy"], ".2%"),
                text(run["last_accuracy"], ".2%"),
                text(run["last_loss"], ".4f"),
                text(run["seed"]),
                run["state"],
                commit[:10] + dirty,
            )
        )
    return format_table(rows, left=(0, 1, 2, 3, 9, 10))


def main(argv: list[str]) -> None:
    """Prints the runs in the named folders; all below `runs/` if none is named."""
    by_name = {run["name"]: run for root in argv or ["runs"] for run in list_runs(root)}
    runs = sorted(by_name.values(), key=lambda run: -(run["best_accuracy"] or 0))
    if read_flags(ListOptions).csv:
        columns = [field.name for field in dataclasses.fields(Outcome)]
        print(to_csv(runs, columns), end="")
    else:
        print(_table(runs) if runs else "There are no runs yet.")


if __name__ == "__main__":
    define_flags(ListOptions)
    run_command(main, positional=True)
