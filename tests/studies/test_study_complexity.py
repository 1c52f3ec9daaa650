import time

import numpy as np
import pytest

from keras_resnet.nets import cost
from keras_resnet.studies import complexity
from keras_resnet.studies.complexity import STUDY, rank_correlation, time_in_turn
from keras_resnet.studies.lib.study import Options

# Rows of the paper's tables: table number, network, shortcut, layers and cost. The unit
# is 1e9 multiply-adds (Table 1) or 1e6 parameters (Table 6).
PAPER_ROWS = [
    *((1, "resnet18", shortcut, 18, 1.8) for shortcut in "AB"),
    *((1, "resnet34", shortcut, 34, 3.6) for shortcut in "AB"),
    (1, "resnet50", "B", 50, 3.8),
    (1, "resnet101", "B", 101, 7.6),
    (1, "resnet152", "B", 152, 11.3),
    (6, "resnet20", "A", 20, 0.27),
    (6, "resnet32", "A", 32, 0.46),
    (6, "resnet44", "A", 44, 0.66),
    (6, "resnet56", "A", 56, 0.85),
    (6, "resnet110", "A", 110, 1.7),
    (6, "resnet1202", "A", 1202, 19.4),
]


def make_rows(get_ms=lambda table: table, get_cost=lambda paper_cost: paper_cost):
    """Returns rows of all networks, in the order of increasing multiply-adds.

    Args:
        get_ms: Function that maps the number of a table to the milliseconds that 1e8
            multiply-adds take.
        get_cost: Function that maps the cost in the paper to the measured cost.
    """
    return [
        {
            **dict(zip(("table", "network", "shortcut", "layers"), row, strict=False)),
            "paper": row[-1],
            "ours": get_cost(row[-1]),
            "multiply_adds": (1 + index) * 10**8,
            "ms": (1 + index) * get_ms(row[0]),
            "ms_low": (1 + index) * get_ms(row[0]) * 0.9,
            "ms_high": (1 + index) * get_ms(row[0]) * 1.2,
        }
        for index, row in enumerate(PAPER_ROWS)
    ]


def test_functions_are_timed_in_turn_after_an_untimed_round(monkeypatch):
    pauses, calls, clock = [0.25, 0.5], [], [0.0]

    def pause(seconds):
        calls.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    seconds = time_in_turn([lambda s=s: pause(s) for s in pauses], rounds=3)
    assert seconds.tolist() == [pauses] * 3
    # Each round calls both functions. One untimed and three timed rounds take place.
    assert calls == pauses * 4


def test_rank_correlation_equals_spearmans_coefficient():
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # Spearman's formula for two swapped neighbours: 1 - 6 * (1 + 1) / (4 * 15) = 0.8.
    assert rank_correlation([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(0.8)


def get_verdicts(rows):
    """Returns whether each expectation holds."""
    return [holds for _, holds in STUDY.check_expectations(rows)]


def test_verdicts_follow_from_the_table():
    assert get_verdicts(make_rows()) == [True] * 3
    rows_with_fast_cifar = make_rows(get_ms=lambda table: 1 / table)
    assert get_verdicts(rows_with_fast_cifar) == [True, True, False]
    rows_with_reversed_times = [{**row, "ms": 1 / row["ms"]} for row in make_rows()]
    assert not get_verdicts(rows_with_reversed_times)[1]
    assert not get_verdicts(make_rows(get_cost=lambda paper_cost: 1.03 * paper_cost))[0]


def test_the_figure_shows_deviations_and_times():
    rows = make_rows(get_cost=lambda paper_cost: 1.01 * paper_cost)
    deviation_axes, time_axes = STUDY.draw(rows).axes
    bars = [bar for container in deviation_axes.containers for bar in container]
    assert [bar.get_width() for bar in bars] == pytest.approx([1] * len(PAPER_ROWS))
    points = [xy for line in time_axes.lines[:1] for xy in line.get_xydata().tolist()]
    assert points == [[(1 + i) * 1e8, 1 + i] for i in range(7)]


def test_measured_costs_of_resnet20_equal_known_counts(monkeypatch):
    def time_known_seconds(functions, rounds):
        (forward,) = functions
        assert forward().shape == (complexity.BATCH_SIZE, 10)
        assert rounds == 3
        return np.array([[0.016], [0.008], [0.024]])

    monkeypatch.setattr(complexity, "time_in_turn", time_known_seconds)
    monkeypatch.setattr(complexity, "BATCH_SIZE", 4)
    monkeypatch.setattr(cost, "PAPER_TABLE_1", {})
    monkeypatch.setattr(cost, "PAPER_TABLE_6", {"resnet20": 0.27})
    (row,) = STUDY.measure(Options(), {"rounds": 3})
    assert row["parameters"] == 269_722
    assert row["multiply_adds"] == 40_551_040
    assert row["ours"] == 0.269722
    assert [row[column] for column in ("ms", "ms_low", "ms_high")] == [4, 2, 6]


@pytest.mark.full  # Takes long, because it builds every network, including ResNet-1202.
def test_rows_contain_the_values_of_the_paper():
    columns = ("table", "network", "shortcut", "layers", "paper")
    values = [
        tuple(row[column] for column in columns)
        for row, _ in cost.profile_paper_networks()
    ]
    assert values == PAPER_ROWS
