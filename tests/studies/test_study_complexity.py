import time

import pytest

from keras_resnet.nets import cost
from keras_resnet.studies.complexity import STUDY, rank_correlation, time_in_turn
from keras_resnet.studies.lib.study import Options

# Values printed in the paper: multiply-adds in 1e9 (Table 1), parameters in 1e6 (Table 6).
PRINTED = [
    *((1, "resnet18", kind, 18, 1.8) for kind in "AB"),
    *((1, "resnet34", kind, 34, 3.6) for kind in "AB"),
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


def make_rows(rate=lambda table: table, ours=lambda printed: printed):
    """Returns rows of networks with a known time for each multiply-add."""
    return [
        {
            **dict(zip(("table", "network", "shortcut", "layers"), row, strict=False)),
            "paper": row[-1],
            "ours": ours(row[-1]),
            "multiply_adds": (1 + number) * 10**8,
            "ms": (1 + number) * rate(row[0]),
            "ms_low": (1 + number) * rate(row[0]) * 0.9,
            "ms_high": (1 + number) * rate(row[0]) * 1.2,
        }
        for number, row in enumerate(PRINTED)
    ]


def test_times_of_known_pauses(monkeypatch):
    pauses, calls, now = [0.25, 0.5], [], [0.0]

    def pause(seconds):
        calls.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    seconds = time_in_turn([lambda s=s: pause(s) for s in pauses], rounds=3)
    assert seconds.tolist() == [pauses] * 3
    assert calls == pauses * 4  # Each is called in turn, with one untimed round before.


def test_rank_correlation_of_known_orders():
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # By Spearman's formula, swapping two neighbours gives 1 - 6 * (1 + 1) / (4 * 15).
    assert rank_correlation([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(0.8)


def check(table):
    """Returns for each expectation whether it holds."""
    return [holds for _, holds in STUDY.check_expectations(table)]


def test_verdicts_of_known_tables():
    assert check(make_rows()) == [True] * 3
    fast_cifar = make_rows(rate=lambda table: 1 / table)
    assert check(fast_cifar) == [True, True, False]
    reversed_times = [{**row, "ms": 1 / row["ms"]} for row in make_rows()]
    assert not check(reversed_times)[1]
    assert not check(make_rows(ours=lambda printed: 1.03 * printed))[0]
    assert len(STUDY.draw(make_rows()).axes) == 2


def test_one_network_is_measured(monkeypatch):
    monkeypatch.setattr(cost, "PAPER_TABLE_1", {})
    monkeypatch.setattr(cost, "PAPER_TABLE_6", {"resnet20": 0.27})
    (row,) = STUDY.measure(Options(), {"rounds": 2})
    assert row["parameters"] == 269_722
    assert row["multiply_adds"] == 40_551_040
    assert row["ours"] == 0.269722
    assert 0 < row["ms_low"] <= row["ms"] <= row["ms_high"]


@pytest.mark.full  # Builds every network, including ResNet-1202.
def test_rows_contain_the_values_of_the_paper():
    keys = ("table", "network", "shortcut", "layers", "paper")
    values = [
        tuple(row[key] for key in keys) for row, _ in cost.profile_paper_networks()
    ]
    assert values == PRINTED
