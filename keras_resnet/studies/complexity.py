"""The paper's Tables 1 and 6, beside ours; and time per image against multiply-adds.

`--seeds` is the number of rounds in which the networks are timed. They are the paper's
own, on images of noise: data set, `--depths` and `--epochs` change nothing here.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from keras_resnet.studies import lib

if TYPE_CHECKING:
    import keras

FAMILY = {1: "ImageNet nets", 6: "CIFAR nets"}  # By table.

IMAGES = 8  # At once, so that what a call itself takes is little of each image's time.


def jobs(options: lib.Options) -> lib.Rows:
    return [{"rounds": options.seeds}]  # A single one: networks are timed in turn.


def times(functions: Sequence[Callable[[], object]], rounds: int) -> np.ndarray:
    """Times functions in turn, so that a slow minute of the machine slows all of them.

    Each is called once before, untimed. Returns seconds, (rounds, functions).
    """
    for function in functions:
        function()
    seconds = np.empty((rounds, len(functions)))
    for row in seconds:
        for place, function in enumerate(functions):
            begun = time.perf_counter()
            function()
            row[place] = time.perf_counter() - begun
    return seconds


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Counts of each network, and the ms that an image takes."""
    import tensorflow as tf

    from keras_resnet.nets import beside_paper, profile

    def classifies(network: "keras.Model") -> Callable[[], np.ndarray]:
        images = tf.random.uniform((IMAGES, *network.input_shape[1:]), seed=0)
        compiled = tf.function(network)
        return lambda: compiled(images).numpy()  # Waits for the result.

    networks, rows = list(beside_paper()), []
    seconds = times([classifies(network) for _, network in networks], job["rounds"])
    for (row, network), of_network in zip(networks, seconds.T, strict=True):
        counts = profile(network)
        costs = {"parameters": counts.parameters, "multiply_adds": counts.multiply_adds}
        ms = np.quantile(1000 * of_network / IMAGES, (0.5, 0, 1)).round(4).tolist()
        names = ("ms", "ms_low", "ms_high")
        rows.append({**row, **costs, **dict(zip(names, ms, strict=True))})
    return rows


def draw(rows: lib.Rows) -> Figure:
    figure, (left, right) = lib.new_figure(
        "1e9 multiply-adds (table 1), 1e6 parameters (6)", "one thread", height=4.4
    )
    for table, colour, side in ((1, "#0072B2", "left"), (6, "#D55E00", "right")):
        part = [row for row in rows if row["table"] == table]
        form = "{layers} {shortcut}: {ours:.2f} for {paper}"
        names = [form.format(**row) for row in part]
        off = [100 * (row["ours"] / row["paper"] - 1) for row in part]
        left.barh(names, off, color=colour, label=FAMILY[table])
        bars = [[r["ms"] - r["ms_low"], r["ms_high"] - r["ms"]] for r in part]
        points = _costs_and_times(rows, table)
        right.errorbar(*points, np.transpose(bars), fmt="o", ms=4, color=colour)
        for row in part:
            # A and B of one depth are as good as one point.
            if row["network"] not in ("resnet18", "resnet34") or row["shortcut"] == "B":
                place, name = (row["multiply_adds"], row["ms"]), f"  {row['layers']}  "
                right.text(*place, name, ha=side, va="center", fontsize=7)
    left.invert_yaxis()
    left.set(xlabel="ours off by (%)", xlim=(-4, 2.5))
    right.margins(x=0.1)
    right.loglog()
    right.set(xlabel="multiply-adds per image", ylabel="time per image (ms)")
    lib.add_legends(left, loc="lower left")
    return figure


def _costs_and_times(rows: lib.Rows, table: int) -> list[list[float]]:
    """Multiply-adds and ms of the networks of a table."""
    return [lib.select_column(rows, c, table=table) for c in ("multiply_adds", "ms")]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: 1 where two columns have the same order, -1 where the opposite."""
    a, b = (np.argsort(np.argsort(column)) for column in (first, second))
    return float(np.corrcoef(a, b)[0, 1])


def judge(rows: lib.Rows) -> list[lib.Verdict]:
    off = {f"{r['network']} {r['shortcut']}": r["ours"] / r["paper"] - 1 for r in rows}
    worst = max(off, key=lambda name: abs(off[name]))
    ranks, rates = {}, {}
    for table in lib.distinct_values(rows, "table"):
        costs, ms = _costs_and_times(rows, table)
        ranks[table] = rank_correlation(costs, ms)
        rates[table] = 1e9 * np.divide(ms, costs)
    spans = "; ".join(
        f"{FAMILY[table]}: {min(rate):.0f} to {max(rate):.0f} ms"
        for table, rate in rates.items()
    )
    ranked = "; ".join(f"{FAMILY[t]}: {rank:.2f}" for t, rank in ranks.items())
    seen = f"of {len(off)} counts the farthest off is {worst}'s, by {off[worst]:+.1%}"
    return [
        (seen, abs(off[worst]) < 0.02),
        (ranked, min(ranks.values()) >= 0.9),
        (f"for 1e9 multiply-adds, {spans}", min(rates[6]) > max(rates[1])),
    ]


STUDY = lib.Study(
    name="complexity", title="What a network costs",
    claim="Multiply-adds and parameters as tables 1 and 6 print them, and the time that "
    "an image takes. A multiply-add does not always take the same time: the CIFAR nets' "
    "layers of 16 to 64 channels do few of them for each value that they read and write, "
    "those of 64 to 2048 channels many.",
    expected=(
        "each of our counts is within 2 % of the printed one",
        "within each table the time grows with the multiply-adds: rank correlation of at "
        "least 0.9 (A and B of one depth differ too little to be told apart)",
        "multiply-adds alone do not tell the time: each of them takes longer in every "
        "CIFAR net than in any ImageNet net",
    ),
    jobs=jobs, measure=measure, draw=draw, judge=judge,
    defaults=lib.Options(seeds=10), alone=True, budget="{seeds} rounds on one thread",
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
