"""How strongly layers respond: deviations after batch norm, before the nonlinearity."""

import statistics

from matplotlib.figure import Figure

from keras_resnet.studies import lib


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Standard deviation of each 3x3 layer of a trained net, on training images."""
    from keras_resnet.evaluation import load_classifier

    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    network, images = load_classifier(folder).model, options.load().train.images[:1000]
    deviations = lib.responses(network, images)
    return [{"layer": n, "deviation": value} for n, value in enumerate(deviations, 1)]


def draw(rows: lib.Rows) -> Figure:
    titles = ("in order", "sorted by magnitude")
    figure, (left, right) = lib.new_figure(*titles, width=6, share_y=True)
    for depth, colour in lib.with_colours(lib.distinct_values(rows, "depth")):
        for kind, (title, _) in lib.KINDS.items():
            runs = lib.select_runs(rows, "deviation", depth=depth, kind=kind)
            by_size = [sorted(run, reverse=True) for run in runs]
            for axes, curves in ((left, runs), (right, by_size)):
                label, dashed = f"{title}, {depth}", kind == "plain"
                lib.draw_curves(axes, None, curves, label, colour, dashed)
    for axes in (left, right):
        axes.set_xlabel("3x3 layer")
    left.set_ylabel("standard deviation of the response")
    lib.add_legends(right)
    return figure


def judge(rows: lib.Rows) -> list[lib.Verdict]:
    depths = lib.distinct_values(rows, "depth")

    def means(kind: str, depth: int) -> list[float]:
        runs = lib.select_runs(rows, "deviation", kind=kind, depth=depth)
        return list(map(statistics.mean, runs))

    def words(values: list[float]) -> str:
        return lib.mean_and_deviation(values, "")

    plain, residual = ({d: means(kind, d) for d in depths} for kind in lib.KINDS)
    smaller = [
        a < b for d in depths for a, b in zip(residual[d], plain[d], strict=True)
    ]
    shallow, deep = residual[depths[0]], residual[depths[-1]]
    pairs = "; ".join(
        f"{d} layers {words(residual[d])} against {words(plain[d])}" for d in depths
    )
    return [
        (f"mean over layers, residual against plain: {pairs}", all(smaller)),
        (
            f"mean over layers, residual: {words(shallow)} with {depths[0]}, "
            f"{words(deep)} with {depths[-1]}",
            all(b < a for a, b in zip(shallow, deep, strict=True)),
        ),
    ]


STUDY = lib.Study(
    name="responses", title="Layer responses",
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
    jobs=lib.plain_and_residual, measure=measure, draw=draw, judge=judge,
    defaults=lib.Options(depths=(8, 20, 44)), least_depths=2, deepest=362,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
