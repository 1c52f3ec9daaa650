"""Deeper plain nets are worse, on the training images too; residual nets are not."""

from keras_resnet.studies.lib import (
    KINDS,
    Study,
    add_legends,
    distinct_values,
    draw_curves,
    errors_by_epoch,
    mean_and_deviation,
    new_figure,
    plain_and_residual,
    select_column,
    with_colours,
)


def measure(options, job):
    """Errors after each epoch, in %."""
    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    return errors_by_epoch(folder)


def draw(rows):
    figure, axes = new_figure("plain", "residual", share_y=True)
    seeds, epochs = distinct_values(rows, "seed"), distinct_values(rows, "epoch")
    for each, kind in zip(axes, KINDS, strict=True):
        for depth, colour in with_colours(distinct_values(rows, "depth")):
            for column, training in (("training_error", True), ("test_error", False)):
                runs = [
                    select_column(rows, column, kind=kind, depth=depth, seed=seed)
                    for seed in seeds
                ]
                label = None if training else f"{depth} layers"
                draw_curves(each, epochs, runs, label, colour, training)
        each.set_xlabel("epoch")
        add_legends(each, title="dashed: training, bold: held out")
    axes[0].set_ylabel("error (%)")
    axes[0].set_ylim(bottom=0)
    return figure


def judge(rows):
    last, depths = max(distinct_values(rows, "epoch")), distinct_values(rows, "depth")

    def final(kind, depth, column="training_error"):
        return select_column(rows, column, kind=kind, depth=depth, epoch=last)

    found = []
    for kind, (title, _) in KINDS.items():
        shallow, deep = final(kind, depths[0]), final(kind, depths[-1])
        worse = [b - a for a, b in zip(shallow, deep, strict=True)]
        found.append(
            (
                f"{title} nets: training error {mean_and_deviation(shallow)} with {depths[0]} "
                f"layers, {mean_and_deviation(deep)} with {depths[-1]}",
                min(worse) > 0 if kind == "plain" else max(worse) <= 0.5,
            )
        )
    plain, residual = (final(kind, depths[-1], "test_error") for kind in KINDS)
    found.append(
        (
            f"with {depths[-1]} layers: held-out error {mean_and_deviation(plain)} plain, "
            f"{mean_and_deviation(residual)} residual",
            min(a - b for a, b in zip(plain, residual, strict=True)) > 0,
        )
    )
    return found


STUDY = Study(
    name="degradation",
    title="Degradation",
    claim="Stacking more layers on a plain net makes its training error higher, so this "
    "is no overfitting; with shortcuts it does not (figures 1, 4 and 6, tables 2 and 6).",
    expected=(
        "the deepest plain net has a higher training error than the shallowest",
        "the deepest residual net has a training error at most 0.5 points above the "
        "shallowest's",
        "at the greatest depth the residual net has the lower held-out error",
    ),
    jobs=plain_and_residual,
    measure=measure,
    draw=draw,
    judge=judge,
    least_depths=2,
)


if __name__ == "__main__":
    from keras_resnet.studies.lib import run_study

    run_study(STUDY)
