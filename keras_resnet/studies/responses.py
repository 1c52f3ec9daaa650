"""Layer responses: standard deviations after batch normalisation, before the ReLU."""

import statistics

from matplotlib.figure import Figure

from keras_resnet.studies import lib


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Trains a network and returns the deviation of the response of each 3x3 layer."""
    from keras_resnet.evaluation import load_classifier

    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    network, images = load_classifier(folder).model, options.load().train.images[:1000]
    deviations = lib.measure_responses(network, images)
    return [{"layer": n, "deviation": value} for n, value in enumerate(deviations, 1)]


def draw(rows: lib.Rows) -> Figure:
    titles = ("in network order", "sorted by magnitude")
    figure, (left, right) = lib.new_figure(*titles, width=6, share_y=True)
    for depth, colour in lib.pair_with_colours(lib.distinct_values(rows, "depth")):
        for kind, (title, _) in lib.KINDS.items():
            runs = lib.select_runs(rows, "deviation", depth=depth, kind=kind)
            sorted_runs = [sorted(run, reverse=True) for run in runs]
            for axes, curves in ((left, runs), (right, sorted_runs)):
                label, dashed = f"{title}, {depth} layers", kind == "plain"
                lib.draw_curves(axes, None, curves, label, colour, dashed)
    for axes in (left, right):
        axes.set_xlabel("3x3 layer")
    left.set_ylabel("standard deviation of the response")
    lib.add_legends(right)
    return figure


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    depths = lib.distinct_values(rows, "depth")

    def get_means(kind: str, depth: int) -> list[float]:
        runs = lib.select_runs(rows, "deviation", kind=kind, depth=depth)
        return list(map(statistics.mean, runs))

    def to_text(values: list[float]) -> str:
        return lib.format_mean(values, "")

    plain, residual = ({d: get_means(kind, d) for d in depths} for kind in lib.KINDS)
    is_low = [a < b for d in depths for a, b in zip(residual[d], plain[d], strict=True)]
    shallow, deep = residual[depths[0]], residual[depths[-1]]
    pairs = "; ".join(
        f"{d} layers {to_text(residual[d])} and {to_text(plain[d])}" for d in depths
    )
    return [
        (f"mean over layers, residual and plain: {pairs}", all(is_low)),
        (
            f"mean over layers, residual: {to_text(shallow)} with {depths[0]} layers, "
            f"{to_text(deep)} with {depths[-1]} layers",
            all(b < a for a, b in zip(shallow, deep, strict=True)),
        ),
    ]


STUDY = lib.Study(
    name="responses", title="Layer responses",
    claim="Residual functions are closer to zero than other functions. After batch normalisation, "
    "the outputs of 3x3 layers deviate less in residual networks than in plain ones, and least in "
    "deep residual networks, where each layer changes the signal less (section 4.2, figure 7). The "
    "deviation after batch normalisation is mostly the learnt scale, which the paper's recipe "
    "decays and the digits recipe does not.",
    expectations=(
        "At each depth, the layers of the residual network deviate less than those of the "
        "plain network, on average over layers.",
        "The layers of the deepest residual network deviate less than those of the shallowest "
        "one, on average over layers.",
    ),
    list_jobs=lib.list_plain_and_residual_jobs, measure=measure, draw=draw, min_depth_count=2,
    check_expectations=check_expectations, defaults=lib.Options(depths=(8, 20, 44)), max_depth=362,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
