"""Lesions: only residual networks work without some of their blocks.

Networks are not trained after a lesion (Veit et al., arXiv:1605.06431, section 4).
The next block reads the input of a removed block, in plain networks as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_resnet.studies import lib

SPARSITY = (30, 50, 70, 80, 90)  # Percentages of weights that pruning sets to zero.

MAX_IMAGES = 2000  # Maximum number of test images, to limit the time.

MAX_RISE = 5  # Largest increase in error, in points, that counts as harmless.


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Trains a network and tests lesions. `chance` is the error of guessing in %."""
    from keras_resnet.weights import load_model

    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    network = load_model(f"{folder}/final.keras")
    test = options.load().test.take(slice(MAX_IMAGES))
    chance = 100 - 100 / network.output_shape[-1]
    rows = lib.measure_lesions(network, test.images, test.labels, SPARSITY, job["seed"])
    return [{**row, "chance": chance} for row in rows]


# Title and x label of the panel for each value of the column `what`.
PANELS = {
    "removed": ("one block removed", "number of the block"),
    "first": ("blocks removed, least harmful first", "number of blocks"),
    "pruned": ("smallest weights set to zero", "percentage of weights"),
    "rank": ("directions with 90 % of the energy", "number of the layer"),
}


def draw(rows: lib.Rows) -> Figure:
    titles, x_labels = zip(*PANELS.values(), strict=True)
    figure, panels = lib.new_figure(*titles, width=3.6)
    depth = max(lib.distinct_values(rows, "depth"))

    def plot(axes: Axes, series: str, kind: str, label: str, colour: str) -> None:
        where: dict[str, Any] = {"what": series, "kind": kind, "depth": depth}
        x = sorted(set(lib.select_column(rows, "at", **where)))
        runs = [lib.select_column(rows, "percent", at=p, **where) for p in x]
        lib.draw_curves(axes, x, list(zip(*runs, strict=True)), label, colour)

    for axes, series, x_label in zip(panels, PANELS, x_labels, strict=True):
        for kind, (title, colour) in lib.KINDS.items():
            plot(axes, series, kind, title, colour)
        if series == "rank":
            plot(axes, "untrained", "res", "untrained", "grey")
        axes.set(xlabel=x_label, ylabel="rank (%)" if series == "rank" else "error (%)")
        axes.set_ylim(0, 102)
    panels[0].axhline(rows[0]["chance"], color="grey", ls=":", label="chance")
    lib.add_legends(panels[0], title=f"{depth} layers")
    lib.add_legends(panels[3])
    return figure


class _Network(NamedTuple):
    """Depth of a network, and the network's measured values."""

    depth: int  # Number of layers.
    values: dict[str, list[float]]  # Values of column `percent`, by column `what`.

    def compute_increase(self, series: str, positions: slice = slice(None)) -> float:
        """Returns the mean error after lesions minus the intact network's error."""
        return float(np.mean(self.values[series][positions]) - self.values["intact"][0])

    def compute_effective_depth(self) -> float:
        """Returns the % of layers left after as many removals as MAX_RISE allows."""
        max_error = self.values["intact"][0] + MAX_RISE
        curve = enumerate(self.values["first"], 1)
        num_removable = max((n for n, error in curve if error <= max_error), default=0)
        return 100 * (self.depth - 2 * num_removable) / self.depth


class _Summary(NamedTuple):
    """Values of one quantity, such as the increase in error, for all networks."""

    plain: list[float]  # Values of the plain networks.
    residual: list[float]  # Values of the residual networks.
    text: str  # Mean and deviation at each depth, for both kinds of networks.


def _group_rows(rows: lib.Rows, kind: str) -> list[_Network]:
    networks: dict[tuple[int, int], _Network] = {}
    for row in rows:
        if row["kind"] == kind:
            key = row["depth"], row["seed"]
            values = networks.setdefault(key, _Network(row["depth"], {})).values
            values.setdefault(row["what"], []).append(row["percent"])
    return list(networks.values())


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    groups = {title: _group_rows(rows, kind) for kind, (title, _) in lib.KINDS.items()}

    def summarise(get: Callable[[_Network], float], unit: str = " points") -> _Summary:
        texts = []
        for depth in lib.distinct_values(rows, "depth"):
            for title, group in groups.items():
                values = [get(n) for n in group if n.depth == depth]
                mean = lib.format_mean(values, unit)
                texts.append(f"{title}, {depth} layers: {mean}")
        plain, residual = (list(map(get, group)) for group in groups.values())
        return _Summary(plain, residual, "; ".join(texts))

    def all_below(values: list[float], bounds: list[float]) -> bool:
        return all(a < b for a, b in zip(values, bounds, strict=True))

    half_sparsity = slice(SPARSITY.index(50), SPARSITY.index(50) + 1)
    removal = summarise(lambda n: n.compute_increase("removed"))
    swap = summarise(lambda n: n.compute_increase("swapped"))
    pruning = summarise(lambda n: n.compute_increase("pruned", half_sparsity))
    baseline = summarise(lambda n: n.values["intact"][0], " %")
    median = summarise(lambda n: float(np.median(n.values["removed"])), " %")
    depths = summarise(_Network.compute_effective_depth, " % of the layers")
    ranks = summarise(lambda n: float(np.mean(n.values["rank"])), " %")
    untrained = summarise(lambda n: float(np.mean(n.values["untrained"]))).residual
    chance_gaps = [rows[0]["chance"] - error for error in median.plain]
    baseline_gaps = [a - b for a, b in zip(median.plain, baseline.plain, strict=True)]
    return [
        (f"increase: {removal.text}", max(removal.residual) <= MAX_RISE),
        (
            f"error without a block: {median.text}; intact: {baseline.text}",
            all_below(chance_gaps, baseline_gaps),
        ),
        (f"increase: {swap.text}", all_below(swap.residual, swap.plain)),
        (f"effective depth: {depths.text}", all_below(depths.residual, depths.plain)),
        (f"increase: {pruning.text}", max(pruning.residual) <= MAX_RISE),
        (
            f"{ranks.text}; {lib.format_mean(untrained)} untrained",
            all_below(ranks.residual, untrained),
        ),
    ]


STUDY = lib.Study(
    name="lesion", title="Lesions",
    claim="In a residual network, a block adds little to its input, and less in deeper networks "
    "(section 4.2, figure 7). A residual network should thus work with blocks removed "
    "or swapped, and a plain network should not (Veit et al., arXiv:1605.06431). The effective "
    f"depth is the percentage of layers left after removing as many blocks as {MAX_RISE} points of "
    "additional error allow. An expectation is confirmed if it holds at each depth.",
    expectations=(
        f"Removing one block raises the error of a residual network by at most {MAX_RISE} points, "
        "on average over blocks.",
        "The error of a plain network without one block is closer to chance than to the intact "
        "network's error, in the median over blocks.",
        "Swapping two neighbouring blocks raises the error of a residual network less than that "
        "of a plain network.",
        "A residual network has a smaller effective depth than a plain network.",
        "Setting half of its weights to zero raises the error of a residual network by at most "
        f"{MAX_RISE} points.",
        "The kernels of a residual network hold 90 % of their energy in fewer directions than "
        "untrained kernels, on average over layers.",
    ),
    list_jobs=lib.list_plain_and_residual_jobs, measure=measure, draw=draw, min_depth=14,
    check_expectations=check_expectations, defaults=lib.Options(depths=(20, 44)), max_depth=362,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
