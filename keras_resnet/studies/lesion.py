"""What a trained net loses with a block: little with shortcuts, all without.

Nothing is trained after a lesion: section 4 of Veit et al., arXiv:1605.06431. A block that
is left out passes on what it reads, in plain nets too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keras_resnet.studies import lib

SHARES = (30, 50, 70, 80, 90)  # Of the smallest weights, in %.

IMAGES = 2000  # Held-out ones that a lesion is judged by, at most.

POINTS = 5  # Of error that a net may lose and still counts as working.


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """What is seen after each lesion, see `surgery.lesions`; and chance's error."""
    from keras_resnet.weights import load_model

    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    network = load_model(f"{folder}/final.keras")
    test = options.load().test.take(slice(IMAGES))
    chance = 100 - 100 / network.output_shape[-1]
    rows = lib.lesions(network, test.images, test.labels, SHARES, job["seed"])
    return [{**row, "chance": chance} for row in rows]


PANELS = {
    "removed": ("one block left out", "number of the block"),
    "first": ("blocks left out, least harm first", "number of blocks"),
    "pruned": ("smallest weights set to zero", "share of weights (%)"),
    "rank": ("directions with 90 % of the energy", "number of the layer"),
}


def draw(rows: lib.Rows) -> Figure:
    titles, names = zip(*PANELS.values(), strict=True)
    figure, axes = lib.new_figure(*titles, width=3.6)
    depth = max(lib.distinct_values(rows, "depth"))

    def curve(panel: Axes, what: str, kind: str, label: str, colour: str) -> None:
        where: dict[str, Any] = {"what": what, "kind": kind, "depth": depth}
        at = sorted(set(lib.select_column(rows, "at", **where)))
        runs = [lib.select_column(rows, "percent", at=place, **where) for place in at]
        lib.draw_curves(panel, at, list(zip(*runs, strict=True)), label, colour)

    for panel, what, name in zip(axes, PANELS, names, strict=True):
        for kind, (title, colour) in lib.KINDS.items():
            curve(panel, what, kind, title, colour)
        if what == "rank":
            curve(panel, "untrained", "res", "untrained", "grey")
        panel.set(xlabel=name, ylabel="share (%)" if what == "rank" else "error (%)")
        panel.set_ylim(0, 102)
    axes[0].axhline(rows[0]["chance"], color="grey", ls=":", label="chance")
    lib.add_legends(axes[0], title=f"{depth} layers")
    lib.add_legends(axes[3])
    return figure


class _Net(NamedTuple):
    """What was measured of one net."""

    depth: int
    percent: dict[str, list[float]]  # In the order of `at`, by `what` was done.

    def lost(self, what: str, at: slice = slice(None)) -> float:
        """Points of error more than the intact net has, in the mean over places."""
        return float(np.mean(self.percent[what][at]) - self.percent["intact"][0])

    def layers_left(self) -> float:
        """Layers with the most blocks left out that the net works without, in %."""
        limit = self.percent["intact"][0] + POINTS
        counts = enumerate(self.percent["first"], 1)
        most = max((count for count, error in counts if error <= limit), default=0)
        return 100 * (self.depth - 2 * most) / self.depth


class _Summary(NamedTuple):
    """A number of each plain net, of each residual net, and both in words by depth."""

    plain: list[float]
    residual: list[float]
    words: str


def _read_nets(rows: lib.Rows, kind: str) -> list[_Net]:
    nets: dict[tuple[int, int], _Net] = {}
    for row in rows:
        if row["kind"] == kind:
            key = row["depth"], row["seed"]
            percent = nets.setdefault(key, _Net(row["depth"], {})).percent
            percent.setdefault(row["what"], []).append(row["percent"])
    return list(nets.values())


def judge(rows: lib.Rows) -> list[lib.Verdict]:
    nets = {title: _read_nets(rows, kind) for kind, (title, _) in lib.KINDS.items()}

    def of(summary: Callable[[_Net], float], unit: str = " points") -> _Summary:
        words = []
        for depth in lib.distinct_values(rows, "depth"):
            for title, of_kind in nets.items():
                values = [summary(net) for net in of_kind if net.depth == depth]
                spread = lib.mean_and_deviation(values, unit)
                words.append(f"{title}, {depth} layers: {spread}")
        plain, residual = (list(map(summary, of_kind)) for of_kind in nets.values())
        return _Summary(plain, residual, "; ".join(words))

    def all_below(residual: list[float], other: list[float]) -> bool:
        return all(a < b for a, b in zip(residual, other, strict=True))

    half = slice(SHARES.index(50), SHARES.index(50) + 1)
    removed, swapped = of(lambda n: n.lost("removed")), of(lambda n: n.lost("swapped"))
    pruned = of(lambda net: net.lost("pruned", half))
    intact = of(lambda net: net.percent["intact"][0], " %")
    broken = of(lambda net: float(np.median(net.percent["removed"])), " %")
    left = of(_Net.layers_left, " % of the layers")
    trained = of(lambda net: float(np.mean(net.percent["rank"])), " %")
    untrained = of(lambda net: float(np.mean(net.percent["untrained"]))).residual
    to_chance = [rows[0]["chance"] - error for error in broken.plain]
    to_intact = [a - b for a, b in zip(broken.plain, intact.plain, strict=True)]
    return [
        (f"more by: {removed.words}", max(removed.residual) <= POINTS),
        (
            f"without a block: {broken.words}; intact: {intact.words}",
            all_below(to_chance, to_intact),
        ),
        (f"more by: {swapped.words}", all_below(swapped.residual, swapped.plain)),
        (f"left: {left.words}", all_below(left.residual, left.plain)),
        (f"more by: {pruned.words}", max(pruned.residual) <= POINTS),
        (
            f"{trained.words}; {lib.mean_and_deviation(untrained)} untrained",
            all_below(trained.residual, untrained),
        ),
    ]


STUDY = lib.Study(
    name="lesion", title="Lesions",
    claim="In a residual net a block adds little to what it reads: the deeper the net, the "
    "less each layer modifies it (section 4.2, figure 7). It should therefore bear to lose or "
    "exchange some, and a plain net none (Veit et al., arXiv:1605.06431). Effective depth: "
    "layers left with the most blocks left out for which the error stays within "
    f"{POINTS} points of the intact net's. A claim holds if it does at each depth.",
    expected=(
        f"a residual net that loses one block errs at most {POINTS} points more, in the mean "
        "over blocks",
        "a plain net that loses one block errs nearer to chance than to the intact net, in the "
        "median over blocks",
        "two neighbours exchanged, a residual net loses less than a plain net",
        "a residual net's effective depth is less than a plain net's",
        f"half of a residual net's weights set to zero, it errs at most {POINTS} points more",
        "a residual net's kernels hold 90 % of their energy in fewer directions than untrained "
        "ones, in the mean over layers",
    ),
    jobs=lib.plain_and_residual, measure=measure, draw=draw, judge=judge,
    defaults=lib.Options(depths=(20, 44)), shallowest=14, deepest=362,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
