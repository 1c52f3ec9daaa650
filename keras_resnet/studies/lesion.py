"""Lesions: only residual networks work without some of their blocks.

Networks are not trained after a lesion (Veit et al., arXiv:1605.06431, section 4). If a
block is removed, its input passes on unchanged, also in plain networks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_resnet.studies import lib

PRUNED = (30, 50, 70, 80, 90)  # Percentages of the weights that are set to zero.

IMAGES = 2000  # Maximum number of test images.

POINTS = 5  # Increase in error, in percentage points, with which a network still works.


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Returns the rows of `measure_lesions` and, as `chance`, the error of guessing."""
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
    titles, x_labels = zip(*PANELS.values(), strict=True)
    figure, axes = lib.new_figure(*titles, width=3.6)
    depth = max(lib.distinct_values(rows, "depth"))

    def draw_curve(panel: Axes, what: str, kind: str, label: str, colour: str) -> None:
        where: dict[str, Any] = {"what": what, "kind": kind, "depth": depth}
        x = sorted(set(lib.select_column(rows, "at", **where)))
        runs = [lib.select_column(rows, "percent", at=at, **where) for at in x]
        lib.draw_curves(panel, x, list(zip(*runs, strict=True)), label, colour)

    for panel, what, x_label in zip(axes, PANELS, x_labels, strict=True):
        for kind, (title, colour) in lib.KINDS.items():
            draw_curve(panel, what, kind, title, colour)
        if what == "rank":
            draw_curve(panel, "untrained", "res", "untrained", "grey")
        panel.set(xlabel=x_label, ylabel="rank (%)" if what == "rank" else "error (%)")
        panel.set_ylim(0, 102)
    axes[0].axhline(rows[0]["chance"], color="grey", ls=":", label="chance")
    lib.add_legends(axes[0], title=f"{depth} layers")
    lib.add_legends(axes[3])
    return figure


class _Net(NamedTuple):
    """A network and its values in the column `percent`."""

    depth: int  # Number of layers.
    percent: dict[str, list[float]]  # From the column `what` to values ordered by `at`.

    def increase(self, what: str, at: slice = slice(None)) -> float:
        """Returns the mean increase in error after lesions of a kind, in points."""
        return float(np.mean(self.percent[what][at]) - self.percent["intact"][0])

    def effective_depth(self) -> float:
        """Returns the percentage of layers left without as many blocks as possible."""
        limit = self.percent["intact"][0] + POINTS
        counts = enumerate(self.percent["first"], 1)
        num_removable = max((n for n, error in counts if error <= limit), default=0)
        return 100 * (self.depth - 2 * num_removable) / self.depth


class _Summary(NamedTuple):
    """A value that was computed for each network."""

    plain: list[float]  # Values of the plain networks.
    residual: list[float]  # Values of the residual networks.
    text: str  # Mean and deviation at each depth, for both kinds of networks.


def _group_rows(rows: lib.Rows, kind: str) -> list[_Net]:
    networks: dict[tuple[int, int], _Net] = {}
    for row in rows:
        if row["kind"] == kind:
            key = row["depth"], row["seed"]
            percent = networks.setdefault(key, _Net(row["depth"], {})).percent
            percent.setdefault(row["what"], []).append(row["percent"])
    return list(networks.values())


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    groups = {title: _group_rows(rows, kind) for kind, (title, _) in lib.KINDS.items()}

    def summarise(compute: Callable[[_Net], float], unit: str = " points") -> _Summary:
        texts = []
        for depth in lib.distinct_values(rows, "depth"):
            for title, group in groups.items():
                values = [compute(net) for net in group if net.depth == depth]
                texts.append(
                    f"{title}, {depth} layers: {lib.format_mean(values, unit)}"
                )
        plain, residual = (list(map(compute, group)) for group in groups.values())
        return _Summary(plain, residual, "; ".join(texts))

    def all_below(values: list[float], bounds: list[float]) -> bool:
        return all(a < b for a, b in zip(values, bounds, strict=True))

    at_half = slice(PRUNED.index(50), PRUNED.index(50) + 1)
    removed = summarise(lambda net: net.increase("removed"))
    swapped = summarise(lambda net: net.increase("swapped"))
    pruned = summarise(lambda net: net.increase("pruned", at_half))
    intact = summarise(lambda net: net.percent["intact"][0], " %")
    median = summarise(lambda net: float(np.median(net.percent["removed"])), " %")
    depths = summarise(_Net.effective_depth, " % of the layers")
    ranks = summarise(lambda net: float(np.mean(net.percent["rank"])), " %")
    baseline = summarise(lambda net: float(np.mean(net.percent["untrained"]))).residual
    to_chance = [rows[0]["chance"] - error for error in median.plain]
    to_intact = [a - b for a, b in zip(median.plain, intact.plain, strict=True)]
    return [
        (f"increase: {removed.text}", max(removed.residual) <= POINTS),
        (
            f"error without a block: {median.text}; intact: {intact.text}",
            all_below(to_chance, to_intact),
        ),
        (f"increase: {swapped.text}", all_below(swapped.residual, swapped.plain)),
        (f"effective depth: {depths.text}", all_below(depths.residual, depths.plain)),
        (f"increase: {pruned.text}", max(pruned.residual) <= POINTS),
        (
            f"{ranks.text}; {lib.format_mean(baseline)} untrained",
            all_below(ranks.residual, baseline),
        ),
    ]


STUDY = lib.Study(
    name="lesion", title="Lesions",
    claim="In a residual network, a block adds little to its input, and less in deeper networks "
    "(section 4.2, figure 7). A residual network should thus work with blocks removed "
    "or swapped, and a plain network should not (Veit et al., arXiv:1605.06431). The effective "
    f"depth is the percentage of layers left after removing as many blocks as {POINTS} points of "
    "additional error allow. An expectation is confirmed if it holds at each depth.",
    expectations=(
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
    list_jobs=lib.list_plain_and_residual_jobs, measure=measure, draw=draw, min_depth=14,
    check_expectations=check_expectations, defaults=lib.Options(depths=(20, 44)), max_depth=362,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
