"""Comparison of shortcuts A, B and C, and of networks without shortcuts."""

from matplotlib.figure import Figure

from keras_resnet.studies import lib

SHORTCUTS = ("none", "A", "B", "C")


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Trains a network and returns its errors after the last epoch, in %."""
    shortcut, depth = job["shortcut"], job["depth"]
    # "none" and A are the defaults of these networks, so other studies share the runs.
    name = f"cifar_{'plain' if shortcut == 'none' else 'res'}net{depth}"
    changes = {"shortcut": shortcut} if shortcut in "BC" else {}
    return lib.read_errors(options.train(name, job["seed"], **changes))[-1:]


def _select_errors(rows: lib.Rows, column: str, depth: int) -> list[list[float]]:
    """Returns values of a column: for each of SHORTCUTS, a list over all seeds."""
    return [lib.select_column(rows, column, shortcut=s, depth=depth) for s in SHORTCUTS]


def draw(rows: lib.Rows) -> Figure:
    figure, axes = lib.new_figure("training", "test")
    for panel, column in zip(axes, ("training_error", "test_error"), strict=True):
        for depth, colour in lib.pair_with_colours(lib.distinct_values(rows, "depth")):
            values = _select_errors(rows, column, depth)
            lib.draw_points(panel, SHORTCUTS, values, f"{depth} layers", colour, ls="")
        panel.set(xlabel="shortcut", ylabel="error (%)")
        panel.set_yscale("symlog", linthresh=1)  # Shows errors from 0 to chance level.
        panel.set_ylim(bottom=0)
        lib.add_legends(panel)
    return figure


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    depth = max(lib.distinct_values(rows, "depth"))
    plain_errors, *shortcut_errors = errors = _select_errors(rows, "test_error", depth)
    result = "; ".join(
        f"{shortcut} {lib.format_mean(seed_errors)}"
        for shortcut, seed_errors in zip(SHORTCUTS, errors, strict=True)
    )
    errors_by_seed = list(zip(*shortcut_errors, strict=True))
    gains = [a - max(b) for a, b in zip(plain_errors, errors_by_seed, strict=True)]
    spreads = [max(values) - min(values) for values in errors_by_seed]
    return [
        (f"test error with {depth} layers: {result}", min(gains) > 0),
        (
            f"A, B and C differ by {lib.format_mean(spreads, ' points')}; the worst "
            f"of them and none differ by {lib.format_mean(gains, ' points')}",
            max(spreads) < min(gains),
        ),
    ]


STUDY = lib.Study(
    name="shortcuts", title="Shortcuts A, B and C",
    claim="Each of the three shortcuts is much better than none, and they differ little from "
    "each other, so projections are not essential (table 3).",
    expectations=(
        "Each of the shortcuts A, B and C has a lower test error than no shortcut.",
        "A, B and C differ less from each other than the worst of them differs from none.",
    ),
    list_jobs=lib.make_job_lister(shortcut=SHORTCUTS, depth=None, seed=None), measure=measure,
    draw=draw, check_expectations=check_expectations,
    defaults=lib.Options(depths=(20, 44)),
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
