"""Lists run folders with their results, sorted by accuracy.

python -m keras_resnet.runs
python -m keras_resnet.runs runs/cifar10 --csv > runs.csv
"""

import contextlib
import csv
import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

from keras_resnet import support
from keras_resnet.support import InputError, add_flags, option, read_flags, run_command


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Options of the command `runs`."""

    csv: bool = option(False, "Print CSV instead of a table.")


@dataclasses.dataclass
class RunSummary:
    """Settings and results of a run, a row of the table. `None` means unknown.

    Attributes:
        name: Path of the run folder.
        epochs_done: Number of epochs in metrics.csv.
        epochs: Total number of epochs of the complete run.
        best_accuracy: Best validation accuracy of all epochs, from 0 to 1.
        last_accuracy: Validation accuracy after the last completed epoch.
        last_loss: Validation loss after the last completed epoch.
        state: `"done"`, `"at step N of M"` (the run is in progress or was interrupted),
            or the reason why the folder could not be read.
        commit: Git commit of the code that started the run.
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
    """Returns the settings and results of all run folders in a folder.

    Args:
        root: Run folder, or folder that contains run folders at any depth.

    Returns:
        A dict with the fields of `RunSummary` for each run, the most accurate run first.

    Raises:
        InputError: If `root` is not a folder.
    """
    if not os.path.isdir(root):
        raise InputError(f"There is no folder {os.fspath(root)!r}")
    summaries = [vars(_read_summary(path)) for path in _find_folders(os.fspath(root))]
    return sorted(summaries, key=lambda r: (-(r["best_accuracy"] or 0), r["name"]))


def _find_folders(root: str) -> Iterator[str]:
    """Yields run folders in `root`, and folders with neither a run nor subfolders."""
    folders = [root]
    while folders:
        folder, subfolders = folders.pop(), []
        is_run = os.path.exists(os.path.join(folder, "run.json"))
        if not is_run:
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                subfolders = [e.path for e in entries if _may_contain_runs(e)]
        folders += subfolders
        if is_run or not (subfolders or folder == root):
            yield folder


def _may_contain_runs(entry: os.DirEntry[str]) -> bool:
    # Logs of local workers and learning rate range tests are not runs.
    is_auxiliary = entry.name.endswith(("-workers", "-find_lr"))
    return entry.is_dir(follow_symlinks=False) and not is_auxiliary


def _read_summary(folder: str) -> RunSummary:
    from keras_resnet.evaluation import find_checkpoints, read_record

    run = RunSummary(folder, state="run.json is damaged")
    try:
        record = read_record(folder)
        if record is None:
            return RunSummary(folder, state="not a run folder")
        spec, run.commit = record.spec, record.commit
        run.model, run.dataset, run.seed = spec.model, spec.dataset, spec.seed
        run.recipe = spec.recipe_name
        run.epochs = math.ceil(spec.total_steps / spec.steps_per_epoch)
        run.state = "metrics.csv is damaged"
        accuracies, losses = _read_metrics(folder)
    except (OSError, KeyError, TypeError, ValueError, ZeroDivisionError, csv.Error):
        return run
    run.epochs_done = len(accuracies)
    if accuracies:
        run.best_accuracy, run.last_accuracy = max(accuracies), accuracies[-1]
        run.last_loss = losses[-1]
    checkpoints = find_checkpoints(os.path.join(folder, "checkpoints"))
    run.state = f"at step {max(checkpoints, default=0)} of {spec.total_steps}"
    has_network = os.path.exists(os.path.join(folder, "final.keras"))
    # Version 0.1.0 noted no hash.
    if has_network and (record.final_sha256 or (spec.format == 1 and not checkpoints)):
        run.state = "done"
    return run


def _read_metrics(folder: str) -> tuple[list[float], list[float]]:
    """Returns the validation accuracy and the validation loss of each epoch."""
    path = os.path.join(folder, "metrics.csv")
    if not os.path.exists(path):
        return [], []
    rows = list(csv.DictReader(support.read_file(path).decode().splitlines()))
    accuracies = [float(row["val_accuracy"]) for row in rows]
    if not all(0 <= accuracy <= 1 for accuracy in accuracies):  # Also rejects NaN.
        raise ValueError("An accuracy must be from 0 to 1")
    return accuracies, [float(row["val_loss"]) for row in rows]


def _format_table(runs: list[dict[str, Any]]) -> str:
    """Returns the runs as a text table."""

    def to_text(value: object, format_spec: str = "") -> str:
        return "" if value is None else format(value, format_spec)

    rows = [
        ("name", "model", "dataset", "recipe", "epochs", "best", "last", "loss",
         "seed", "state", "commit")
    ]  # fmt: skip
    for run in runs:
        commit, dirty_suffix, _ = (run["commit"] or "").partition("-dirty")
        has_metrics = run["epochs_done"] is not None
        epochs = f"{run['epochs_done']}/{run['epochs']}" if has_metrics else ""
        rows.append(
            (run["name"], *(to_text(run[key]) for key in ("model", "dataset", "recipe")),
             epochs, to_text(run["best_accuracy"], ".2%"),
             to_text(run["last_accuracy"], ".2%"), to_text(run["last_loss"], ".4f"),
             to_text(run["seed"]), run["state"], commit[:10] + dirty_suffix)
        )  # fmt: skip
    return support.format_table(rows, left_columns=(0, 1, 2, 3, 9, 10))


def main(argv: list[str]) -> None:
    """Prints the runs in the folders `argv`. Default: the runs in the folder `runs`."""
    runs_by_name = {r["name"]: r for root in argv or ["runs"] for r in list_runs(root)}
    runs = sorted(runs_by_name.values(), key=lambda run: -(run["best_accuracy"] or 0))
    if read_flags(ListOptions).csv:
        columns = [field.name for field in dataclasses.fields(RunSummary)]
        print(support.to_csv(runs, columns), end="")
    else:
        print(_format_table(runs) if runs else "There are no runs yet.")


if __name__ == "__main__":
    add_flags(ListOptions)
    run_command(main, accepts_positional=True)
