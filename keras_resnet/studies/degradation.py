"""Deeper plain nets are worse, on the training images too; residual nets are not."""

from matplotlib.figure import Figure

from keras_resnet.studies import lib


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Errors after each epoch, in %."""
    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    return lib.errors_by_epoch(folder)


def draw(rows: lib.Rows) -> Figure:
    figure, axes = lib.new_figure("plain", "residual", share_y=True)
    epochs = lib.distinct_values(rows, "epoch")
    for panel, kind in zip(axes, lib.KINDS, strict=True):
        for depth, colour in lib.with_colours(lib.distinct_values(rows, "depth")):
            for column, training in (("training_error", True), ("test_error", False)):
                runs = lib.select_runs(rows, column, kind=kind, depth=depth)
                label = None if training else f"{depth} layers"
                lib.draw_curves(panel, epochs, runs, label, colour, training)
        panel.set_xlabel("epoch")
        lib.add_legends(panel, title="dashed: training, bold: held out")
    axes[0].set_ylabel("error (%)")
    axes[0].set_ylim(bottom=0)
    return figure


def judge(rows: lib.Rows) -> list[lib.Verdict]:
    depths = lib.distinct_values(rows, "depth")
    last = max(lib.distinct_values(rows, "epoch"))

    def final(kind: str, depth: int, column: str = "training_error") -> list[float]:
        return lib.select_column(rows, column, kind=kind, depth=depth, epoch=last)

    verdicts = []
    for kind, (title, _) in lib.KINDS.items():
        shallow, deep = final(kind, depths[0]), final(kind, depths[-1])
        worse = [b - a for a, b in zip(shallow, deep, strict=True)]
        words = (
            f"{title} nets: training error {lib.mean_and_deviation(shallow)} with "
            f"{depths[0]} layers, {lib.mean_and_deviation(deep)} with {depths[-1]}"
        )
        holds = min(worse) > 0 if kind == "plain" else max(worse) <= 0.5
        verdicts.append((words, holds))
    plain, residual = (final(kind, depths[-1], "test_error") for kind in lib.KINDS)
    words = (
        f"with {depths[-1]} layers: held-out error {lib.mean_and_deviation(plain)} plain, "
        f"{lib.mean_and_deviation(residual)} residual"
    )
    holds = min(a - b for a, b in zip(plain, residual, strict=True)) > 0
    return [*verdicts, (words, holds)]


STUDY = lib.Study(
    name="degradation", title="Degradation",
    claim="Stacking more layers on a plain net makes its training error higher, so this "
    "is no overfitting; with shortcuts it does not (figures 1, 4 and 6, tables 2 and 6).",
    expected=(
        "the deepest plain net has a higher training error than the shallowest",
        "the deepest residual net has a training error at most 0.5 points above the "
        "shallowest's",
        "at the greatest depth the residual net has the lower held-out error",
    ),
    jobs=lib.plain_and_residual, measure=measure, draw=draw, judge=judge,
    least_depths=2,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
