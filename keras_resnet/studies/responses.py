"""Layer responses: standard deviations after batch normalisation, before the ReLU."""

import statistics

from matplotlib.figure import Figure

from keras_resnet.studies import lib


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Trains a network. Returns the standard deviation of each layer's response."""
    from keras_resnet.evaluation import load_classifier

    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    network, images = load_classifier(folder).model, options.load().train.images[:1000]
    deviations = lib.measure_responses(network, images)
    return [{"layer": n, "deviation": value} for n, value in enumerate(deviations, 1)]


def draw(rows: lib.Rows) -> Figure:
    titles = ("in network order", "sorted by magnitude")
    figure, (ordered_axes, sorted_axes) = lib.new_figure(*titles, width=6, share_y=True)
    for depth, colour in lib.pair_with_colours(lib.distinct_values(rows, "depth")):
        for kind, (title, _) in lib.KINDS.items():
            runs = lib.select_runs(rows, "deviation", depth=depth, kind=kind)
            sorted_runs = [sorted(run, reverse=True) for run in runs]
            for axes, curves in ((ordered_axes, runs), (sorted_axes, sorted_runs)):
                label, dashed = f"{title}, {depth} layers", kind == "plain"
                lib.draw_curves(axes, None, curves, label, colour, dashed)
    for axes in (ordered_axes, sorted_axes):
        axes.set_xlabel("3x3 layer")
    ordered_axes.set_ylabel("standard deviation of the response")
    lib.add_legends(sorted_axes)
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
    shallow_means, deep_means = residual[depths[0]], residual[depths[-1]]
    pair_text = "; ".join(
        f"{d} layers {to_text(residual[d])} and {to_text(plain[d])}" for d in depths
    )
    return [
        (f"mean over layers, residual and plain: {pair_text}", all(is_low)),
        (
            f"mean over layers, residual: {to_text(shallow_means)} with {depths[0]} layers, "
            f"{to_text(deep_means)} with {depths[-1]} layers",
            all(b < a for a, b in zip(shallow_means, deep_means, strict=True)),
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
