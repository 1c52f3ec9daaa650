"""Shortcuts A, B and C against no shortcut, at equal depth and training budget."""

from matplotlib.figure import Figure

from keras_resnet.studies import lib

KINDS = ("none", "A", "B", "C")


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Returns the errors after the last epoch, in %."""
    kind, depth = job["shortcut"], job["depth"]
    # "none" and A are the paper's own networks, whose run folders other studies share.
    name = f"cifar_{'plain' if kind == 'none' else 'res'}net{depth}"
    changes = {"shortcut": kind} if kind in "BC" else {}
    return lib.errors_by_epoch(options.train(name, job["seed"], **changes))[-1:]


def _select_by_kind(rows: lib.Rows, column: str, depth: int) -> list[list[float]]:
    return [
        lib.select_column(rows, column, shortcut=kind, depth=depth) for kind in KINDS
    ]


def draw(rows: lib.Rows) -> Figure:
    figure, axes = lib.new_figure("training", "test")
    for panel, column in zip(axes, ("training_error", "test_error"), strict=True):
        for depth, colour in lib.pair_with_colours(lib.distinct_values(rows, "depth")):
            runs = _select_by_kind(rows, column, depth)
            lib.draw_points(panel, KINDS, runs, f"{depth} layers", colour, line="")
        panel.set(xlabel="shortcut", ylabel="error (%)")
        panel.set_yscale("symlog", linthresh=1)  # The errors range from 0 to chance.
        panel.set_ylim(bottom=0)
        lib.add_legends(panel)
    return figure


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    depth = max(lib.distinct_values(rows, "depth"))
    none, *others = errors = _select_by_kind(rows, "test_error", depth)
    result = "; ".join(
        f"{kind} {lib.mean_and_deviation(seed_errors)}"
        for kind, seed_errors in zip(KINDS, errors, strict=True)
    )
    by_seed = list(zip(*others, strict=True))
    gains = [a - max(b) for a, b in zip(none, by_seed, strict=True)]
    spreads = [max(seed) - min(seed) for seed in by_seed]
    return [
        (f"test error with {depth} layers: {result}", min(gains) > 0),
        (
            f"A, B and C differ by {lib.mean_and_deviation(spreads, ' points')}; the worst "
            f"of them and none differ by {lib.mean_and_deviation(gains, ' points')}",
            max(spreads) < min(gains),
        ),
    ]


STUDY = lib.Study(
    name="shortcuts", title="Shortcuts A, B and C",
    claim="Each of the three shortcuts is much better than none, and they differ little from "
    "each other, so projections are not essential (table 3).",
    expected=(
        "Each of the shortcuts A, B and C has a lower test error than no shortcut.",
        "A, B and C differ from each other by less than the worst of them and none differ.",
    ),
    jobs=lib.make_job_grid(shortcut=KINDS, depth=None, seed=None), measure=measure,
    draw=draw, check_expectations=check_expectations,
    defaults=lib.Options(depths=(20, 44)),
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
