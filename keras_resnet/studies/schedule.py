"""Learning-rate schedule: drops as soon as the error reaches a plateau, or later.

The test images are used to detect the plateau, as in the paper ("when the error
plateaus"), and to measure the final errors. The final errors can therefore be compared
with each other, but they are not test scores.
"""

import os

import numpy as np
from matplotlib.figure import Figure

from keras_resnet.studies import lib

PATIENCE = (1, 2, 4, 8)  # Epochs without a new lowest error after which the rate drops.


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Returns errors in %, learning rate and number of drops so far, for each epoch."""
    changes = {"schedule": "plateau", "warmup": 0.0, "patience": job["patience"]}
    folder = options.train(f"cifar_resnet{job['depth']}", job["seed"], **changes)
    metrics = lib.read_table(os.path.join(folder, "metrics.csv"))
    rates = [row["learning_rate"] for row in metrics]
    drops = np.cumsum(np.diff(rates, prepend=rates[0]) < 0).tolist()
    epochs = zip(lib.read_errors(folder), rates, drops, strict=True)
    return [{**errors, "learning_rate": rate, "drops": n} for errors, rate, n in epochs]


def draw(rows: lib.Rows) -> Figure:
    depths, epochs, patiences = (
        lib.distinct_values(rows, column) for column in ("depth", "epoch", "patience")
    )
    figure, (left, right) = lib.new_figure(
        f"test, {depths[-1]} layers", f"after {epochs[-1]} epochs"
    )
    for patience, colour in lib.pair_with_colours(patiences):
        where = {"depth": depths[-1], "patience": patience}
        runs = lib.select_runs(rows, "test_error", **where)
        lib.draw_curves(left, epochs, runs, f"patience {patience}", colour)
    left.set(xlabel="epoch", ylabel="error (%)")
    for depth, colour in lib.pair_with_colours(depths):
        runs = _select_final(rows, "test_error", depth)
        lib.draw_points(right, patiences, runs, f"{depth} layers", colour)
    right.set(xlabel="patience (epochs)", ylabel="test error (%)")
    right.set_xscale("log", base=2)
    right.set_xticks(patiences, map(str, patiences))
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        lib.add_legends(axes)
    left.set_yscale("symlog", linthresh=1)  # A logarithmic scale that includes 0.
    return figure


def _select_final(rows: lib.Rows, column: str, depth: int) -> list[list[float]]:
    """Returns a column after the last epoch, as a list of seeds for each patience."""
    where = {"depth": depth, "epoch": max(lib.distinct_values(rows, "epoch"))}
    return [
        lib.select_column(rows, column, patience=patience, **where)
        for patience in lib.distinct_values(rows, "patience")
    ]


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    depth = max(lib.distinct_values(rows, "depth"))
    patiences = lib.distinct_values(rows, "patience")

    def compare(column: str) -> lib.Verdict:
        errors = _select_final(rows, column, depth)
        result = "; ".join(
            f"{lib.format_mean(seed_errors)} with patience {patience}"
            for patience, seed_errors in zip(patiences, errors, strict=True)
        )
        gains = [a - b for a, b in zip(errors[0], errors[-1], strict=True)]
        return result, min(gains) > 0

    drops = [np.mean(counts) for counts in _select_final(rows, "drops", depth)]
    mean_drops = ", ".join(
        f"{count:.1f} with patience {patience}"
        for patience, count in zip(patiences, drops, strict=True)
    )
    result, holds = compare("training_error")
    return [compare("test_error"), (f"{result}; drops in a run: {mean_drops}", holds)]


STUDY = lib.Study(
    name="schedule", title="When to drop the learning rate",
    claim="The learning rate is divided by 10 when the error reaches a plateau (section 3.4). On "
    "CIFAR-10 it is divided at 32k and 48k of 64k iterations, long after the first plateau "
    "(section 4.2). Here it is divided whenever the test error has not fallen for a number of "
    "epochs, the patience. The final error is measured on the same images and is not a test score.",
    expectations=(
        "The longest patience ends with a lower test error than a patience of one epoch.",
        "The longest patience also ends with a lower training error. Learning rates that drop "
        "at the first setback are soon too small to learn with.",
    ),
    list_jobs=lib.make_job_lister(depth=None, patience=PATIENCE, seed=None), measure=measure,
    draw=draw, check_expectations=check_expectations,
    defaults=lib.Options(depths=(20,), epochs=48),
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
