"""Which shortcut: A, B and C against none, at the same depth and budget."""

from matplotlib.figure import Figure

from keras_resnet.studies import lib

KINDS = ("none", "A", "B", "C")


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Errors at the end, in %."""
    kind, depth = job["shortcut"], job["depth"]
    # None and A are the paper's own nets, whose runs other studies have too.
    name = f"cifar_{'plain' if kind == 'none' else 'res'}net{depth}"
    changes = {"shortcut": kind} if kind in "BC" else {}
    return lib.errors_by_epoch(options.train(name, job["seed"], **changes))[-1:]


def _by_kind(rows: lib.Rows, column: str, depth: int) -> list[list[float]]:
    return [
        lib.select_column(rows, column, shortcut=kind, depth=depth) for kind in KINDS
    ]


def draw(rows: lib.Rows) -> Figure:
    figure, axes = lib.new_figure("training", "held out")
    for panel, column in zip(axes, ("training_error", "test_error"), strict=True):
        for depth, colour in lib.with_colours(lib.distinct_values(rows, "depth")):
            runs = _by_kind(rows, column, depth)
            lib.draw_points(panel, KINDS, runs, f"{depth} layers", colour, line="")
        panel.set(xlabel="shortcut", ylabel="error (%)")
        panel.set_yscale("symlog", linthresh=1)  # From no error to chance.
        panel.set_ylim(bottom=0)
        lib.add_legends(panel)
    return figure


def judge(rows: lib.Rows) -> list[lib.Verdict]:
    depth = max(lib.distinct_values(rows, "depth"))
    none, *others = errors = _by_kind(rows, "test_error", depth)
    words = "; ".join(
        f"{kind} {lib.mean_and_deviation(of_seeds)}"
        for kind, of_seeds in zip(KINDS, errors, strict=True)
    )
    by_seed = list(zip(*others, strict=True))
    gains = [a - max(b) for a, b in zip(none, by_seed, strict=True)]
    apart = [max(seed) - min(seed) for seed in by_seed]
    return [
        (f"with {depth} layers, held-out error: {words}", min(gains) > 0),
        (
            f"A, B and C differ by {lib.mean_and_deviation(apart, ' points')}, and the "
            f"worst of them from none by {lib.mean_and_deviation(gains, ' points')}",
            max(apart) < min(gains),
        ),
    ]


STUDY = lib.Study(
    name="shortcuts", title="Shortcuts A, B and C",
    claim="All three shortcuts are much better than none, and differ little: projections "
    "are not essential (table 3).",
    expected=(
        "each of A, B and C has a lower held-out error than none",
        "A, B and C differ by less than the worst of them differs from none",
    ),
    jobs=lib.combine(shortcut=KINDS, depth=None, seed=None),
    measure=measure, draw=draw, judge=judge,
    defaults=lib.Options(depths=(20, 44)),
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
