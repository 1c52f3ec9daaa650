"""Lesions: removing blocks from trained networks costs little with shortcuts only.

Networks are not trained after a lesion (Veit et al., arXiv:1605.06431, section 4). A
removed block passes its input on unchanged, in plain networks too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_resnet.studies import lib

PRUNED = (30, 50, 70, 80, 90)  # Percentages of weights that are set to zero.

IMAGES = 2000  # Maximum number of test images.

POINTS = 5  # Increase in error, in points, up to which a network counts as working.


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Returns the rows of `measure_lesions`, with the error at chance level."""
    from keras_resnet.weights import load_model

    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    network = load_model(f"{folder}/final.keras")
    test = options.load().test.take(slice(IMAGES))
    chance = 100 - 100 / network.output_shape[-1]
    rows = lib.measure_lesions(network, test.images, test.labels, PRUNED, job["seed"])
    return [{**row, "chance": chance} for row in rows]


# Title and x axis of the panel for each value of the column `what`.
PANELS = {
    "removed": ("one block removed", "number of the block"),
    "first": ("blocks removed, least harmful first", "number of blocks"),
    "pruned": ("smallest weights set to zero", "percentage of weights"),
    "rank": ("directions with 90 % of the energy", "number of the layer"),
}


def draw(rows: lib.Rows) -> Figure:
    titles, names = zip(*PANELS.values(), strict=True)
    figure, axes = lib.new_figure(*titles, width=3.6)
    depth = max(lib.distinct_values(rows, "depth"))

    def curve(panel: Axes, what: str, kind: str, label: str, colour: str) -> None:
        where: dict[str, Any] = {"what": what, "kind": kind, "depth": depth}
        x = sorted(set(lib.select_column(rows, "at", **where)))
        runs = [lib.select_column(rows, "percent", at=at, **where) for at in x]
        lib.draw_curves(panel, x, list(zip(*runs, strict=True)), label, colour)

    for panel, what, name in zip(axes, PANELS, names, strict=True):
        for kind, (title, colour) in lib.KINDS.items():
            curve(panel, what, kind, title, colour)
        if what == "rank":
            curve(panel, "untrained", "res", "untrained", "grey")
        panel.set(xlabel=name, ylabel="rank (%)" if what == "rank" else "error (%)")
        panel.set_ylim(0, 102)
    axes[0].axhline(rows[0]["chance"], color="grey", ls=":", label="chance")
    lib.add_legends(axes[0], title=f"{depth} layers")
    lib.add_legends(axes[3])
    return figure


class _Net(NamedTuple):
    """Depth of a network and the percentages that were measured on it."""

    depth: int
    percent: dict[str, list[float]]  # Lists in the order of `at`, by `what`.

    def increase(self, what: str, at: slice = slice(None)) -> float:
        """Returns the mean increase in error over the intact network, in points."""
        return float(np.mean(self.percent[what][at]) - self.percent["intact"][0])

    def effective_depth(self) -> float:
        """Returns the percentage of layers that a working network needs."""
        limit = self.percent["intact"][0] + POINTS
        counts = enumerate(self.percent["first"], 1)
        removable = max((count for count, error in counts if error <= limit), default=0)
        return 100 * (self.depth - 2 * removable) / self.depth


class _Summary(NamedTuple):
    """Values of all plain and of all residual networks, and a text with both."""

    plain: list[float]
    residual: list[float]
    text: str


def _group_rows(rows: lib.Rows, kind: str) -> list[_Net]:
    networks: dict[tuple[int, int], _Net] = {}
    for row in rows:
        if row["kind"] == kind:
            key = row["depth"], row["seed"]
            percent = networks.setdefault(key, _Net(row["depth"], {})).percent
            percent.setdefault(row["what"], []).append(row["percent"])
    return list(networks.values())


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    networks = {
        title: _group_rows(rows, kind) for kind, (title, _) in lib.KINDS.items()
    }

    def summarise(value: Callable[[_Net], float], unit: str = " points") -> _Summary:
        texts = []
        for depth in lib.distinct_values(rows, "depth"):
            for title, group in networks.items():
                values = [value(net) for net in group if net.depth == depth]
                text = lib.mean_and_deviation(values, unit)
                texts.append(f"{title}, {depth} layers: {text}")
        plain, residual = (list(map(value, group)) for group in networks.values())
        return _Summary(plain, residual, "; ".join(texts))

    def all_below(residual: list[float], other: list[float]) -> bool:
        return all(a < b for a, b in zip(residual, other, strict=True))

    half = slice(PRUNED.index(50), PRUNED.index(50) + 1)
    removed = summarise(lambda net: net.increase("removed"))
    swapped = summarise(lambda net: net.increase("swapped"))
    pruned = summarise(lambda net: net.increase("pruned", half))
    intact = summarise(lambda net: net.percent["intact"][0], " %")
    broken = summarise(lambda net: float(np.median(net.percent["removed"])), " %")
    depth = summarise(_Net.effective_depth, " % of the layers")
    trained = summarise(lambda net: float(np.mean(net.percent["rank"])), " %")
    untrained = summarise(lambda net: float(np.mean(net.percent["untrained"]))).residual
    to_chance = [rows[0]["chance"] - error for error in broken.plain]
    to_intact = [a - b for a, b in zip(broken.plain, intact.plain, strict=True)]
    return [
        (f"increase: {removed.text}", max(removed.residual) <= POINTS),
        (
            f"error without a block: {broken.text}; intact: {intact.text}",
            all_below(to_chance, to_intact),
        ),
        (f"increase: {swapped.text}", all_below(swapped.residual, swapped.plain)),
        (f"effective depth: {depth.text}", all_below(depth.residual, depth.plain)),
        (f"increase: {pruned.text}", max(pruned.residual) <= POINTS),
        (
            f"{trained.text}; {lib.mean_and_deviation(untrained)} untrained",
            all_below(trained.residual, untrained),
        ),
    ]


STUDY = lib.Study(
    name="lesion", title="Lesions",
    claim="In a residual network, a block adds little to its input, and the less the deeper the "
    "network is (section 4.2, figure 7). A residual network should thus work with blocks removed "
    "or swapped, and a plain network should not (Veit et al., arXiv:1605.06431). The effective "
    f"depth is the percentage of layers left after removing as many blocks as {POINTS} points of "
    "additional error allow. An expectation is confirmed if it holds at each depth.",
    expected=(
        f"Removing one block raises the error of a residual network by at most {POINTS} points, "
        "on average over blocks.",
        "The error of a plain network without one block is closer to chance than to the intact "
        "network's error, in the median over blocks.",
        "Swapping two neighbouring blocks raises the error of a residual network less than that "
        "of a plain network.",
        "A residual network has a smaller effective depth than a plain network.",
        "Setting half of its weights to zero raises the error of a residual network by at most "
        f"{POINTS} points.",
        "The kernels of a residual network hold 90 % of their energy in fewer directions than "
        "untrained kernels, on average over layers.",
    ),
    jobs=lib.plain_and_residual_jobs, measure=measure, draw=draw, shallowest=14, deepest=362,
    check_expectations=check_expectations, defaults=lib.Options(depths=(20, 44)),
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
