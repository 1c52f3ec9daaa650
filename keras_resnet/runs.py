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
import sys

from keras_resnet.spec import Recipe
from keras_resnet.support import InputError


def list_runs(root):
    """Lists the run folders below a folder, and what became of each.

    Args:
        root: a run folder, or a folder of them, at any depth.

    Returns:
        Dicts with the keys `name` (its path), `model`, `dataset`, `recipe`,
        `epochs_done`, `epochs`, `best_accuracy`, `last_accuracy`, `last_loss`,
        `seed`, `state` and `commit`, the best first; `None` where something is not
        known. The accuracies and the loss are of the held-out images; `state` is
        `"done"`, `"at step N of M"` (it runs, or was cut short there), or says what
        is wrong with the folder.

    Raises:
        InputError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise InputError(f"There is no folder {os.fspath(root)!r}")
    found = [_outcome(folder) for folder in _run_folders(os.fspath(root))]
    return sorted(found, key=lambda run: (-(run["best_accuracy"] or 0), run["name"]))


def _run_folders(root):
    """Yields each folder with a record, and each that has nothing of the kind."""
    if os.path.exists(os.path.join(root, "run.json")):
        yield root
        return
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        # Logs of local workers, and range tests.
        ours = entry.name.endswith(("-workers", "-find_lr"))
        if entry.is_dir(follow_symlinks=False) and not ours:
            yield from list(_run_folders(entry.path)) or [entry.path]


def _outcome(folder):
    from keras_resnet.evaluation import read_record

    run = dict.fromkeys(
        ("name", "model", "dataset", "recipe", "epochs_done", "epochs",
         "best_accuracy", "last_accuracy", "last_loss", "seed", "state", "commit")
    )  # fmt: skip
    run["name"] = folder
    try:
        record = read_record(folder)
        if record is None:
            return {**run, "state": "not a run folder"}
        settings = record["settings"]
        for key in ("model", "dataset", "recipe", "seed"):
            run[key] = settings[key]
        run["commit"] = record.get("commit")
        steps, total = _steps(settings)
        run["epochs"] = math.ceil(total / steps)
    except (InputError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return {**run, "state": "run.json is damaged"}
    try:
        rows = _read_rows(folder)
    except (KeyError, TypeError, ValueError, csv.Error):
        return {**run, "state": "metrics.csv is damaged"}
    run["epochs_done"] = len(rows)
    if rows:
        accuracies = [row["val_accuracy"] for row in rows]
        run["best_accuracy"], run["last_accuracy"] = max(accuracies), accuracies[-1]
        run["last_loss"] = rows[-1]["val_loss"]
    if os.path.exists(os.path.join(folder, "final.keras")):
        return {**run, "state": "done"}
    return {**run, "state": f"at step {_newest_step(folder)} of {total}"}


def _steps(settings):
    """Steps of an epoch, and in all; as `keras_resnet.pipelines.steps_per_epoch` has it."""
    fields = {field.name for field in dataclasses.fields(Recipe)}
    recipe = Recipe(**{k: v for k, v in settings.items() if k in fields})
    full, rest = divmod(settings["images"][0], recipe.batch_size)
    steps = full + (rest >= recipe.shares(settings["replicas"]))
    return steps, recipe.iterations or recipe.epochs * steps


def _read_rows(folder):
    path = os.path.join(folder, "metrics.csv")
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {key: float(row[key]) for key in ("val_accuracy", "val_loss")}
            for row in csv.DictReader(file)
        ]


def _newest_step(folder):
    """The step of the newest checkpoint that was written to the end; 0 if none."""
    note = pathlib.Path(folder, "checkpoints", "checkpoint")
    if not note.exists():
        return 0
    text = note.read_text(encoding="utf-8", errors="replace")
    found = re.match(r'model_checkpoint_path: ".*step-(\d+)"', text)
    return int(found[1]) if found else 0


def _table(runs):
    """The runs as lines of text, a column for each of their keys."""

    def share(value):
        return "" if value is None else f"{value:.2%}"

    lines = [
        ("name", "model", "dataset", "recipe", "epochs", "best", "last", "loss",
         "seed", "state", "commit")
    ]  # fmt: skip
    for run in runs:
        commit, dirty, _ = (run["commit"] or "").partition("-dirty")
        known = run["epochs_done"] is not None
        lines.append(
            (
                run["name"],
                run["model"] or "",
                run["dataset"] or "",
                run["recipe"] or "",
                f"{run['epochs_done']}/{run['epochs']}" if known else "",
                share(run["best_accuracy"]),
                share(run["last_accuracy"]),
                "" if run["last_loss"] is None else f"{run['last_loss']:.4f}",
                "" if run["seed"] is None else str(run["seed"]),
                run["state"],
                commit[:10] + dirty,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 4 <= place <= 8 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main(argv, as_csv=False):
    """Prints the runs in the named folders; all below `runs/` if none is named."""
    found = {run["name"]: run for root in argv or ["runs"] for run in list_runs(root)}
    runs = sorted(found.values(), key=lambda run: -(run["best_accuracy"] or 0))
    if as_csv:
        writer = csv.DictWriter(
            sys.stdout, _outcome(os.devnull).keys(), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(runs)
    else:
        print(_table(runs) if runs else "There are no runs yet.")


if __name__ == "__main__":
    from absl import flags

    from keras_resnet.support import run_command

    flags.DEFINE_boolean("csv", False, "Print CSV instead of a table.")
    run_command(lambda argv: main(argv, flags.FLAGS.csv), positional=True)
