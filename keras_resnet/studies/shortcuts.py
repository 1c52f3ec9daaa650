"""Which shortcut: A, B and C against none, at the same depth and budget."""

from keras_resnet.studies.lib import (
    Options,
    Study,
    add_legends,
    distinct_values,
    draw_points,
    errors_by_epoch,
    mean_and_deviation,
    new_figure,
    select_column,
    with_colours,
)

KINDS = ("none", "A", "B", "C")


def jobs(options):
    return [
        {"shortcut": kind, "depth": depth, "seed": seed}
        for seed in range(options.seeds)
        for depth in options.depths
        for kind in KINDS
    ]


def measure(options, job):
    """Errors at the end, in %."""
    kind, depth = job["shortcut"], job["depth"]
    # None and A are the paper's own nets, whose runs other studies have too.
    name = f"cifar_{'plain' if kind == 'none' else 'res'}net{depth}"
    changes = {"shortcut": kind} if kind in "BC" else {}
    return errors_by_epoch(options.train(name, job["seed"], **changes))[-1:]


def draw(rows):
    figure, axes = new_figure("training", "held out")
    for each, column in zip(axes, ("training_error", "test_error"), strict=True):
        for depth, colour in with_colours(distinct_values(rows, "depth")):
            runs = [
                select_column(rows, column, shortcut=kind, depth=depth)
                for kind in KINDS
            ]
            draw_points(each, KINDS, runs, f"{depth} layers", colour, line="")
        each.set(xlabel="shortcut", ylabel="error (%)")
        each.set_yscale("symlog", linthresh=1)  # From no error to chance.
        each.set_ylim(bottom=0)
        add_legends(each)
    return figure


def judge(rows):
    depth = max(distinct_values(rows, "depth"))
    error = {
        kind: select_column(rows, "test_error", shortcut=kind, depth=depth)
        for kind in KINDS
    }
    seen = "; ".join(f"{kind} {mean_and_deviation(error[kind])}" for kind in KINDS)
    worst = [max(each) for each in zip(*(error[k] for k in "ABC"), strict=True)]
    best = [min(each) for each in zip(*(error[k] for k in "ABC"), strict=True)]
    gains = [a - b for a, b in zip(error["none"], worst, strict=True)]
    apart = [a - b for a, b in zip(worst, best, strict=True)]
    return [
        (f"with {depth} layers, held-out error: {seen}", min(gains) > 0),
        (
            f"A, B and C differ by {mean_and_deviation(apart, ' points')}, and the worst of them from "
            f"none by {mean_and_deviation(gains, ' points')}",
            max(apart) < min(gains),
        ),
    ]


STUDY = Study(
    name="shortcuts",
    title="Shortcuts A, B and C",
    claim="All three shortcuts are much better than none, and differ little: projections "
    "are not essential (table 3).",
    expected=(
        "each of A, B and C has a lower held-out error than none",
        "A, B and C differ by less than the worst of them differs from none",
    ),
    jobs=jobs,
    measure=measure,
    draw=draw,
    judge=judge,
    defaults=Options(depths=(20, 44)),
)


if __name__ == "__main__":
    from keras_resnet.studies.lib import run_study

    run_study(STUDY)
