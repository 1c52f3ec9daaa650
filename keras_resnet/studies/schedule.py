"""When to drop the learning rate: as soon as the error levels off, or later.

The held-out images both tell when to drop and judge the result, as in the paper's
"when the error plateaus"; so the final errors compare runs and are no test scores.
"""

import os

import numpy as np
from matplotlib.figure import Figure

from keras_resnet.studies import lib

PATIENCE = (1, 2, 4, 8)  # Epochs without a lower error, after which the rate drops.


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Errors in % and learning rate of each epoch, and how often it has dropped."""
    changes = {"schedule": "plateau", "warmup": 0.0, "patience": job["patience"]}
    folder = options.train(f"cifar_resnet{job['depth']}", job["seed"], **changes)
    logged = lib.read_table(os.path.join(folder, "metrics.csv"))
    rates = [row["learning_rate"] for row in logged]
    drops = np.cumsum(np.diff(rates, prepend=rates[0]) < 0).tolist()
    epochs = zip(lib.errors_by_epoch(folder), rates, drops, strict=True)
    return [
        {**errors, "learning_rate": rate, "drops": count}
        for errors, rate, count in epochs
    ]


def draw(rows: lib.Rows) -> Figure:
    depths, epochs, patiences = (
        lib.distinct_values(rows, column) for column in ("depth", "epoch", "patience")
    )
    figure, (left, right) = lib.new_figure(
        f"held out, {depths[-1]} layers", f"after {epochs[-1]} epochs"
    )
    for patience, colour in lib.with_colours(patiences):
        where = {"depth": depths[-1], "patience": patience}
        runs = lib.select_runs(rows, "test_error", **where)
        lib.draw_curves(left, epochs, runs, f"patience {patience}", colour)
    left.set(xlabel="epoch", ylabel="error (%)")
    for depth, colour in lib.with_colours(depths):
        runs = _final(rows, "test_error", depth)
        lib.draw_points(right, patiences, runs, f"{depth} layers", colour)
    right.set(xlabel="patience (epochs)", ylabel="held-out error (%)")
    right.set_xscale("log", base=2)
    right.set_xticks(patiences, map(str, patiences))
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        lib.add_legends(axes)
    left.set_yscale("symlog", linthresh=1)  # Errors of 0 have a place too.
    return figure


def _final(rows: lib.Rows, column: str, depth: int) -> list[list[float]]:
    """A column after the last epoch, of all seeds, for each patience."""
    where = {"depth": depth, "epoch": max(lib.distinct_values(rows, "epoch"))}
    return [
        lib.select_column(rows, column, patience=patience, **where)
        for patience in lib.distinct_values(rows, "patience")
    ]


def judge(rows: lib.Rows) -> list[lib.Verdict]:
    depth = max(lib.distinct_values(rows, "depth"))
    patiences = lib.distinct_values(rows, "patience")

    def verdict(column: str) -> lib.Verdict:
        errors = _final(rows, column, depth)
        seen = "; ".join(
            f"{lib.mean_and_deviation(of_seeds)} with patience {patience}"
            for patience, of_seeds in zip(patiences, errors, strict=True)
        )
        better = [a - b for a, b in zip(errors[0], errors[-1], strict=True)]
        return seen, min(better) > 0

    drops = [np.mean(counts) for counts in _final(rows, "drops", depth)]
    dropped = ", ".join(
        f"{count:.1f} with patience {patience}"
        for patience, count in zip(patiences, drops, strict=True)
    )
    seen, holds = verdict("training_error")
    return [verdict("test_error"), (f"{seen}; drops in a run: {dropped}", holds)]


STUDY = lib.Study(
    name="schedule", title="When to drop the learning rate",
    claim="The rate is divided by 10 when the error levels off (section 3.4), and on "
    "CIFAR-10 at 32k and 48k of 64k iterations, long after it first does (section 4.2). Here "
    "it is divided each time that the held-out error has not fallen for some epochs, the "
    "patience: as the same images judge the end, its errors compare runs and are no scores.",
    expected=(
        "the longest patience ends with a lower held-out error than a patience of one "
        "epoch",
        "and with a lower training error: rates that drop at the first "
        "setback are soon too small to learn with",
    ),
    jobs=lib.combine(depth=None, patience=PATIENCE, seed=None),
    measure=measure, draw=draw, judge=judge,
    defaults=lib.Options(depths=(20,), epochs=48),
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
