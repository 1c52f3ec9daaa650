"""Degradation: the training error of plain networks rises when layers are added."""

from matplotlib.figure import Figure

from keras_resnet.studies import lib


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Trains a network and returns its errors after each epoch, in %."""
    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    return lib.read_errors(folder)


def draw(rows: lib.Rows) -> Figure:
    figure, axes = lib.new_figure("plain networks", "residual networks", share_y=True)
    epochs = lib.distinct_values(rows, "epoch")
    for panel, kind in zip(axes, lib.KINDS, strict=True):
        for depth, colour in lib.pair_with_colours(lib.distinct_values(rows, "depth")):
            for column, dashed in (("training_error", True), ("test_error", False)):
                runs = lib.select_runs(rows, column, kind=kind, depth=depth)
                label = None if dashed else f"{depth} layers"
                lib.draw_curves(panel, epochs, runs, label, colour, dashed)
        panel.set_xlabel("epoch")
        lib.add_legends(panel, title="dashed: training, solid: test")
    axes[0].set_ylabel("error (%)")
    axes[0].set_ylim(bottom=0)
    return figure


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    depths = lib.distinct_values(rows, "depth")
    last_epoch = max(lib.distinct_values(rows, "epoch"))

    def get_final(kind: str, depth: int, column: str = "training_error") -> list[float]:
        return lib.select_column(rows, column, kind=kind, depth=depth, epoch=last_epoch)

    verdicts = []
    for kind, (title, _) in lib.KINDS.items():
        shallow_errors = get_final(kind, depths[0])
        deep_errors = get_final(kind, depths[-1])
        increases = [b - a for a, b in zip(shallow_errors, deep_errors, strict=True)]
        result = (
            f"{title} networks: training error {lib.format_mean(shallow_errors)} with "
            f"{depths[0]} layers, {lib.format_mean(deep_errors)} with {depths[-1]}"
        )
        holds = min(increases) > 0 if kind == "plain" else max(increases) <= 0.5
        verdicts.append((result, holds))
    test_errors = [get_final(kind, depths[-1], "test_error") for kind in lib.KINDS]
    plain_errors, residual_errors = test_errors
    result = (
        f"test error with {depths[-1]} layers: {lib.format_mean(plain_errors)} plain, "
        f"{lib.format_mean(residual_errors)} residual"
    )
    holds = min(a - b for a, b in zip(*test_errors, strict=True)) > 0
    return [*verdicts, (result, holds)]


STUDY = lib.Study(
    name="degradation", title="Degradation",
    claim="The training error of a plain network rises when more layers are added, so the cause "
    "is not overfitting. With shortcuts it does not rise (figures 1, 4 and 6, tables 2 and 6).",
    expectations=(
        "The deepest plain network has a higher training error than the shallowest one.",
        "The training error of the deepest residual network is at most 0.5 points above "
        "that of the shallowest one.",
        "At the greatest depth, the residual network has a lower test error than the plain one.",
    ),
    list_jobs=lib.list_plain_and_residual_jobs, measure=measure, draw=draw,
    check_expectations=check_expectations, min_depth_count=2,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
