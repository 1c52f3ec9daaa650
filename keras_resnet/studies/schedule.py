"""Learning-rate schedule: lower the rate at the first plateau of the error, or later.

The test images are used to detect the plateau, as in the paper ("when the error
plateaus"), and to measure the final errors. The final errors of two patiences can be
compared, but they are not test scores, because the test images influence training.
"""

import os

import numpy as np
from matplotlib.figure import Figure

from keras_resnet.studies import lib

# Numbers of epochs without a new lowest error before the learning rate is lowered.
PATIENCES = (1, 2, 4, 8)


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Trains a network. Returns errors in %, learning rates and drop counts by epoch."""
    changes = {"schedule": "plateau", "warmup": 0.0, "patience": job["patience"]}
    folder = options.train(f"cifar_resnet{job['depth']}", job["seed"], **changes)
    metrics = lib.read_table(os.path.join(folder, "metrics.csv"))
    learning_rates = [row["learning_rate"] for row in metrics]
    drops = np.cumsum(np.diff(learning_rates, prepend=learning_rates[0]) < 0).tolist()
    values = zip(lib.read_errors(folder), learning_rates, drops, strict=True)
    return [{**errors, "learning_rate": rate, "drops": n} for errors, rate, n in values]


def draw(rows: lib.Rows) -> Figure:
    depths, epochs, patiences = (
        lib.distinct_values(rows, column) for column in ("depth", "epoch", "patience")
    )
    figure, (curve_panel, final_panel) = lib.new_figure(
        f"test, {depths[-1]} layers", f"after {epochs[-1]} epochs"
    )
    for patience, colour in lib.pair_with_colours(patiences):
        where = {"depth": depths[-1], "patience": patience}
        runs = lib.select_runs(rows, "test_error", **where)
        lib.draw_curves(curve_panel, epochs, runs, f"patience {patience}", colour)
    curve_panel.set(xlabel="epoch", ylabel="error (%)")
    for depth, colour in lib.pair_with_colours(depths):
        values = _select_final(rows, "test_error", depth)
        lib.draw_points(final_panel, patiences, values, f"{depth} layers", colour)
    final_panel.set(xlabel="patience (epochs)", ylabel="test error (%)")
    final_panel.set_xscale("log", base=2)
    final_panel.set_xticks(patiences, map(str, patiences))
    for axes in (curve_panel, final_panel):
        axes.set_ylim(bottom=0)
        lib.add_legends(axes)
    curve_panel.set_yscale("symlog", linthresh=1)  # Like a log scale, but includes 0.
    return figure


def _select_final(rows: lib.Rows, column: str, depth: int) -> list[list[float]]:
    """Returns final values of a column: for each patience, a list over all seeds."""
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

    mean_drops = [np.mean(counts) for counts in _select_final(rows, "drops", depth)]
    drops_text = ", ".join(
        f"{mean:.1f} with patience {patience}"
        for patience, mean in zip(patiences, mean_drops, strict=True)
    )
    result, holds = compare("training_error")
    return [compare("test_error"), (f"{result}; drops in a run: {drops_text}", holds)]


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
    list_jobs=lib.make_job_lister(depth=None, patience=PATIENCES, seed=None), measure=measure,
    draw=draw, check_expectations=check_expectations,
    defaults=lib.Options(depths=(20,), epochs=48),
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
