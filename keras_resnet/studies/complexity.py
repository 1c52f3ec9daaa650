"""Costs of networks compared with the paper's Tables 1 and 6, and time per image.

`--seeds` is the number of timing rounds. `--dataset`, `--depths` and `--epochs` have no
effect, because all networks of the paper are timed on random noise.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from keras_resnet.studies import lib

if TYPE_CHECKING:
    import keras

# Families of networks, by number of the paper's table that lists the family.
FAMILIES = {1: "ImageNet networks", 6: "CIFAR networks"}

BATCH_SIZE = 8  # Large enough to make the overhead of a call small.


def list_jobs(options: lib.Options) -> lib.Rows:
    return [{"rounds": options.seeds}]  # One job times all networks in turn.


def time_in_turn(functions: Sequence[Callable[[], object]], rounds: int) -> np.ndarray:
    """Measures how long functions take. Returns seconds, (rounds, functions).

    Every function is called once in each round, so that other load on the machine slows
    all functions alike. An untimed round comes first.
    """
    for function in functions:
        function()
    seconds = np.empty((rounds, len(functions)))
    for round_seconds in seconds:
        for index, function in enumerate(functions):
            start = time.perf_counter()
            function()
            round_seconds[index] = time.perf_counter() - start
    return seconds


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Returns parameters, multiply-adds and times per image, a row for each network."""
    import tensorflow as tf

    from keras_resnet.nets import profile, profile_paper_networks

    def make_forward(network: "keras.Model") -> Callable[[], np.ndarray]:
        images = tf.random.uniform((BATCH_SIZE, *network.input_shape[1:]), seed=0)
        compiled = tf.function(network)
        return lambda: compiled(images).numpy()  # `numpy()` waits for the result.

    networks, rows = list(profile_paper_networks()), []
    seconds = time_in_turn([make_forward(n) for _, n in networks], job["rounds"])
    for (row, network), durations in zip(networks, seconds.T, strict=True):
        counts = profile(network)
        costs = {"parameters": counts.parameters, "multiply_adds": counts.multiply_adds}
        ms = np.quantile(1000 * durations / BATCH_SIZE, (0.5, 0, 1)).round(4).tolist()
        columns = ("ms", "ms_low", "ms_high")
        rows.append({**row, **costs, **dict(zip(columns, ms, strict=True))})
    return rows


def draw(rows: lib.Rows) -> Figure:
    figure, (deviation_panel, time_panel) = lib.new_figure(
        "billions of multiply-adds, millions of parameters", "one thread", height=4.4
    )
    for table, colour, alignment in ((1, "#0072B2", "left"), (6, "#D55E00", "right")):
        table_rows = [row for row in rows if row["table"] == table]
        label_format = "{layers} {shortcut}: {ours:.2f}, paper {paper}"
        labels = [label_format.format(**row) for row in table_rows]
        deviations = [100 * (row["ours"] / row["paper"] - 1) for row in table_rows]
        deviation_panel.barh(labels, deviations, color=colour, label=FAMILIES[table])
        spans = [[r["ms"] - r["ms_low"], r["ms_high"] - r["ms"]] for r in table_rows]
        points = _select_costs(rows, table)
        time_panel.errorbar(*points, np.transpose(spans), fmt="o", ms=4, color=colour)
        for row in table_rows:
            # The points of shortcuts A and B overlap, so only one of them has a label.
            if row["network"] not in ("resnet18", "resnet34") or row["shortcut"] == "B":
                point, label = (row["multiply_adds"], row["ms"]), f"  {row['layers']}  "
                time_panel.text(*point, label, ha=alignment, va="center", fontsize=7)
    deviation_panel.invert_yaxis()
    deviation_panel.set(xlabel="deviation from the paper (%)", xlim=(-4, 2.5))
    time_panel.margins(x=0.1)
    time_panel.loglog()
    time_panel.set(xlabel="multiply-adds per image", ylabel="time per image (ms)")
    lib.add_legends(deviation_panel, loc="lower left")
    return figure


def _select_costs(rows: lib.Rows, table: int) -> list[list[float]]:
    """Returns multiply-adds and ms per image of the networks of one table."""
    return [lib.select_column(rows, c, table=table) for c in ("multiply_adds", "ms")]


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns Spearman's rank correlation coefficient, between -1 and 1."""
    x_ranks, y_ranks = (np.argsort(np.argsort(values)) for values in (x, y))
    return float(np.corrcoef(x_ranks, y_ranks)[0, 1])


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    gaps = {f"{r['network']} {r['shortcut']}": r["ours"] / r["paper"] - 1 for r in rows}
    worst = max(gaps, key=lambda name: abs(gaps[name]))
    rho, times = {}, {}  # By table: Spearman's rho, ms per billion multiply-adds.
    for table in lib.distinct_values(rows, "table"):
        costs, ms = _select_costs(rows, table)
        rho[table] = rank_correlation(costs, ms)
        times[table] = 1e9 * np.divide(ms, costs)
    time_text = "; ".join(
        f"{FAMILIES[table]}: {min(values):.0f} to {max(values):.0f} ms"
        for table, values in times.items()
    )
    rank_text = "; ".join(f"{FAMILIES[t]}: correlation {r:.2f}" for t, r in rho.items())
    gap_text = f"largest deviation of {len(gaps)} counts: {worst}, {gaps[worst]:+.1%}"
    return [
        (gap_text, abs(gaps[worst]) < 0.02),
        (rank_text, min(rho.values()) >= 0.9),
        (f"time per billion multiply-adds, {time_text}", min(times[6]) > max(times[1])),
    ]


STUDY = lib.Study(
    name="complexity", title="What a network costs",
    claim="Multiply-adds and parameters are compared with those in tables 1 and 6, and with the "
    "time per image. A multiply-add does not always take the same time. Layers with 16 to 64 "
    "channels, as in CIFAR networks, do few multiply-adds for each value that they read and write. "
    "Layers with 64 to 2048 channels do many.",
    expectations=(
        "Each count is within 2 % of the count that the paper states.",
        "Within each table, the time grows with the multiply-adds, with a rank correlation of at "
        "least 0.9. (Shortcuts A and B of one depth differ too little to be distinguished.)",
        "The multiply-adds alone do not determine the time. A multiply-add takes longer in every "
        "CIFAR network than in any ImageNet network.",
    ),
    list_jobs=list_jobs, measure=measure, draw=draw, check_expectations=check_expectations,
    defaults=lib.Options(seeds=10), sequential=True, settings="{seeds} rounds on one thread",
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
