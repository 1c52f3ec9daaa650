"""What a trained net loses with a block: little with shortcuts, all without.

Nothing is trained after a lesion: section 4 of Veit et al., arXiv:1605.06431. A block that
is left out passes on what it reads, in plain nets too.
"""

import numpy as np

from keras_resnet.studies.lib import (
    KINDS,
    Options,
    Study,
    add_legends,
    distinct_values,
    draw_curves,
    mean_and_deviation,
    new_figure,
    plain_and_residual,
    select_column,
)

SHARES = (30, 50, 70, 80, 90)  # Of the smallest weights, in %.


IMAGES = 2000  # Held-out ones that a lesion is judged by, at most.


POINTS = 5  # Of error that a net may lose and still counts as working.


def measure(options, job):
    """What is seen after each lesion, see `surgery.lesions`; and chance's error."""
    from keras_resnet.studies.lib import lesions
    from keras_resnet.weights import load_model

    folder = options.train(f"cifar_{job['kind']}net{job['depth']}", job["seed"])
    network = load_model(f"{folder}/final.keras")
    test = options.load().test.take(slice(IMAGES))
    chance = 100 - 100 / network.output_shape[-1]
    found = lesions(network, test.images, test.labels, SHARES, job["seed"])
    return [{**row, "chance": chance} for row in found]


PANELS = {
    "removed": ("one block left out", "number of the block"),
    "first": ("blocks left out, least harm first", "number of blocks"),
    "pruned": ("smallest weights set to zero", "share of weights (%)"),
    "rank": ("directions with 90 % of the energy", "number of the layer"),
}


def draw(rows):
    titles, names = zip(*PANELS.values(), strict=True)
    figure, axes = new_figure(*titles, width=3.6)
    depth = max(distinct_values(rows, "depth"))
    for each, what, name in zip(axes, PANELS, names, strict=True):
        for kind, (title, colour) in KINDS.items():
            _draw(each, rows, what, colour, title, kind=kind, depth=depth)
        if what == "rank":
            _draw(each, rows, "untrained", "grey", "untrained", kind="res", depth=depth)
        each.set(xlabel=name, ylabel="share (%)" if what == "rank" else "error (%)")
        each.set_ylim(0, 102)
    axes[0].axhline(rows[0]["chance"], color="grey", ls=":", label="chance")
    add_legends(axes[0], title=f"{depth} layers")
    add_legends(axes[3])
    return figure


def _draw(axes, rows, what, colour, label, **where):
    at = sorted(set(select_column(rows, "at", what=what, **where)))
    runs = [select_column(rows, "percent", what=what, at=each, **where) for each in at]
    draw_curves(axes, at, list(zip(*runs, strict=True)), label, colour)


def judge(rows):
    by_net = {kind: {} for kind in KINDS}
    for row in rows:
        net = by_net[row["kind"]].setdefault((row["depth"], row["seed"]), {})
        net.setdefault(row["what"], []).append(row["percent"])

    def of(summary, unit=" points"):
        """A summary of each plain net, of each residual one, and in words by depth."""
        found = [
            {key: summary({**net, "depth": key[0]}) for key, net in each.items()}
            for each in by_net.values()
        ]
        words = [
            f"{title}, {depth} layers: "
            + mean_and_deviation([each[net] for net in each if net[0] == depth], unit)
            for depth in distinct_values(rows, "depth")
            for (title, _), each in zip(KINDS.values(), found, strict=True)
        ]
        return *(list(each.values()) for each in found), "; ".join(words)

    def lost(what, at=slice(None)):
        return of(lambda net: np.mean(net[what][at]) - net["intact"][0])

    def layers_left(net):
        """Of the net with the most blocks left out that still works, in %."""
        works = [percent <= net["intact"][0] + POINTS for percent in net["first"]]
        count = max((n for n, each in enumerate(works, 1) if each), default=0)
        return 100 * (net["depth"] - 2 * count) / net["depth"]

    def below(residual, other):
        return all(a < b for a, b in zip(residual, other, strict=True))

    half = slice(SHARES.index(50), SHARES.index(50) + 1)
    removed, swapped, pruned = lost("removed"), lost("swapped"), lost("pruned", half)
    intact = of(lambda net: net["intact"][0], " %")
    broken = of(lambda net: np.median(net["removed"]), " %")
    left = of(layers_left, " % of the layers")
    trained = of(lambda net: np.mean(net["rank"]), " %")
    _, untrained, _ = of(lambda net: np.mean(net["untrained"]))
    return [
        (f"more by: {removed[2]}", max(removed[1]) <= POINTS),
        (
            f"without a block: {broken[2]}; intact: {intact[2]}",
            below(
                np.subtract(rows[0]["chance"], broken[0]),
                np.subtract(broken[0], intact[0]),
            ),
        ),
        (f"more by: {swapped[2]}", below(swapped[1], swapped[0])),
        (f"left: {left[2]}", below(left[1], left[0])),
        (f"more by: {pruned[2]}", max(pruned[1]) <= POINTS),
        (
            f"{trained[2]}; {mean_and_deviation(untrained)} untrained",
            below(trained[1], untrained),
        ),
    ]


STUDY = Study(
    name="lesion",
    title="Lesions",
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
    jobs=plain_and_residual,
    measure=measure,
    draw=draw,
    judge=judge,
    defaults=Options(depths=(20, 44)),
    shallowest=14,
    deepest=362,
)


if __name__ == "__main__":
    from keras_resnet.studies.lib import run_study

    run_study(STUDY)
