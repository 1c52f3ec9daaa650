"""When to drop the learning rate: as soon as the error levels off, or later.

The held-out images both tell when to drop and judge the result, as in the paper's
"when the error plateaus"; so the final errors compare runs and are no test scores.
"""

import os

import numpy as np

from keras_resnet.studies.lib import (
    Options,
    Study,
    add_legends,
    distinct_values,
    draw_curves,
    draw_points,
    errors_by_epoch,
    mean_and_deviation,
    new_figure,
    read_table,
    select_column,
    with_colours,
)

PATIENCE = (1, 2, 4, 8)  # Epochs without a lower error, after which the rate drops.


def jobs(options):
    return [
        {"depth": depth, "patience": patience, "seed": seed}
        for seed in range(options.seeds)
        for depth in options.depths
        for patience in PATIENCE
    ]


def measure(options, job):
    """Errors in % and learning rate of each epoch, and how often it has dropped."""
    folder = options.train(
        f"cifar_resnet{job['depth']}",
        job["seed"],
        schedule="plateau",
        warmup=0.0,
        patience=job["patience"],
    )
    logged = read_table(os.path.join(folder, "metrics.csv"))
    rates = [row["learning_rate"] for row in logged]
    dropped = np.cumsum(np.diff(rates, prepend=rates[0]) < 0).tolist()
    return [
        {**errors, "learning_rate": rate, "drops": count}
        for errors, rate, count in zip(
            errors_by_epoch(folder), rates, dropped, strict=True
        )
    ]


def draw(rows):
    deepest, epochs = (
        max(distinct_values(rows, "depth")),
        distinct_values(rows, "epoch"),
    )
    figure, (left, right) = new_figure(
        f"held out, {deepest} layers", f"after {epochs[-1]} epochs"
    )
    patience = distinct_values(rows, "patience")
    for each, colour in with_colours(patience):
        runs = [
            select_column(rows, "test_error", depth=deepest, patience=each, seed=seed)
            for seed in distinct_values(rows, "seed")
        ]
        draw_curves(left, epochs, runs, f"patience {each}", colour)
    left.set(xlabel="epoch", ylabel="error (%)")
    for depth, colour in with_colours(distinct_values(rows, "depth")):
        runs = [_final(rows, "test_error", depth, each) for each in patience]
        draw_points(right, patience, runs, f"{depth} layers", colour)
    right.set(xlabel="patience (epochs)", ylabel="held-out error (%)")
    right.set_xscale("log", base=2)
    right.set_xticks(patience, map(str, patience))
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        add_legends(axes)
    left.set_yscale("symlog", linthresh=1)  # Errors of 0 have a place too.
    return figure


def _final(rows, column, depth, patience):
    last = max(distinct_values(rows, "epoch"))
    return select_column(rows, column, depth=depth, patience=patience, epoch=last)


def judge(rows):
    depth, patience = (
        max(distinct_values(rows, "depth")),
        distinct_values(rows, "patience"),
    )
    found = []
    for column in ("test_error", "training_error"):
        errors = [_final(rows, column, depth, each) for each in patience]
        seen = "; ".join(
            f"{mean_and_deviation(error)} with patience {each}"
            for each, error in zip(patience, errors, strict=True)
        )
        better = [a - b for a, b in zip(errors[0], errors[-1], strict=True)]
        found.append((seen, min(better) > 0))
    drops = [np.mean(_final(rows, "drops", depth, each)) for each in patience]
    seen = ", ".join(
        f"{count:.1f} with patience {each}"
        for each, count in zip(patience, drops, strict=True)
    )
    found[1] = (f"{found[1][0]}; drops in a run: {seen}", found[1][1])
    return found


STUDY = Study(
    name="schedule",
    title="When to drop the learning rate",
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
    jobs=jobs,
    measure=measure,
    draw=draw,
    judge=judge,
    defaults=Options(depths=(20,), epochs=48),
)


if __name__ == "__main__":
    from keras_resnet.studies.lib import run_study

    run_study(STUDY)
