"""How strongly layers respond: deviations after batch norm, before the nonlinearity."""

import statistics

from keras_resnet.studies.lib import (
    KINDS,
    Options,
    Study,
    add_legends,
    distinct_values,
    draw_curves,
    mean_and_deviation,
    new_figure,
    plain_and_residual,
    select_column,
    with_colours,
)


def measure(options, job):
    """Standard deviation of each 3x3 layer of a trained net, on training images."""
    from keras_resnet.evaluation import load_classifier
    from keras_resnet.studies.lib import responses

    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    found = responses(load_classifier(folder).model, options.load().train.images[:1000])
    return [{"layer": n, "deviation": each} for n, each in enumerate(found, 1)]


def draw(rows):
    figure, axes = new_figure("in order", "sorted by magnitude", width=6, share_y=True)
    seeds = distinct_values(rows, "seed")
    for depth, colour in with_colours(distinct_values(rows, "depth")):
        for kind, (title, _) in KINDS.items():
            where = {"depth": depth, "kind": kind}
            runs = [
                select_column(rows, "deviation", seed=seed, **where) for seed in seeds
            ]
            for each, ordered in zip(
                axes, (runs, [sorted(run, reverse=True) for run in runs]), strict=True
            ):
                draw_curves(
                    each, None, ordered, f"{title}, {depth}", colour, kind == "plain"
                )
    for each in axes:
        each.set_xlabel("3x3 layer")
    axes[0].set_ylabel("standard deviation of the response")
    add_legends(axes[1])
    return figure


def judge(rows):
    depths, seeds = distinct_values(rows, "depth"), distinct_values(rows, "seed")

    def means(kind, depth):
        where = {"kind": kind, "depth": depth}
        return [
            statistics.mean(select_column(rows, "deviation", seed=seed, **where))
            for seed in seeds
        ]

    plain, residual = ({d: means(kind, d) for d in depths} for kind in KINDS)
    smaller = [
        a < b for d in depths for a, b in zip(residual[d], plain[d], strict=True)
    ]
    shallow, deep = residual[depths[0]], residual[depths[-1]]
    return [
        (
            "mean over layers, residual against plain: "
            + "; ".join(
                f"{d} layers {mean_and_deviation(residual[d], '')} against {mean_and_deviation(plain[d], '')}"
                for d in depths
            ),
            all(smaller),
        ),
        (
            f"mean over layers, residual: {mean_and_deviation(shallow, '')} with {depths[0]}, "
            f"{mean_and_deviation(deep, '')} with {depths[-1]}",
            all(b < a for a, b in zip(shallow, deep, strict=True)),
        ),
    ]


STUDY = Study(
    name="responses",
    title="Layer responses",
    claim="Residual functions are closer to zero than others: the outputs of residual "
    "nets' 3x3 layers, after batch norm and before what follows, deviate less than those of "
    "plain nets, and the less the deeper the net: each layer changes the signal less "
    "(section 4.2, figure 7). After batch norm this is mostly the scale that it has learnt, "
    "which the paper's recipe decays and that of the digits does not.",
    expected=(
        "at each depth, layers of the residual net deviate less than those of the plain "
        "one, on average over layers",
        "layers of the deepest residual net deviate less than those of the shallowest, on "
        "average over layers",
    ),
    jobs=plain_and_residual,
    measure=measure,
    draw=draw,
    judge=judge,
    defaults=Options(depths=(8, 20, 44)),
    least_depths=2,
    deepest=362,
)


if __name__ == "__main__":
    from keras_resnet.studies.lib import run_study

    run_study(STUDY)
