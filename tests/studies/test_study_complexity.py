import time

import pytest

from keras_resnet.nets import cost
from keras_resnet.studies.complexity import STUDY, rank_correlation, times
from keras_resnet.studies.lib.study import Options

# As the paper prints them: Table 1 in 1e9 multiply-adds, Table 6 in 1e6 parameters.
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


def rows(rate=lambda table: table, ours=lambda printed: printed):
    """Rows of networks that take a known time for each multiply-add."""
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


def test_times_are_those_of_known_pauses(monkeypatch):
    pauses, calls, now = [0.25, 0.5], [], [0.0]

    def pause(seconds):
        calls.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    found = times([lambda s=s: pause(s) for s in pauses], rounds=3)
    assert found.tolist() == [pauses] * 3
    assert calls == pauses * 4  # In turn, and once before.


def test_rank_correlation_of_known_orders():
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 * (1 + 1) / (4 * 15): two neighbours change places.
    assert rank_correlation([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(0.8)


def test_findings_of_known_tables():
    assert [holds for _, holds in STUDY.judge(rows())] == [True] * 3
    slow = rows(rate=lambda table: 1 / table)  # The CIFAR nets are the faster ones.
    assert [holds for _, holds in STUDY.judge(slow)] == [True, True, False]
    backwards = [{**row, "ms": 1 / row["ms"]} for row in rows()]
    assert not STUDY.judge(backwards)[1][1]
    assert not STUDY.judge(rows(ours=lambda printed: 1.03 * printed))[0][1]
    assert len(STUDY.draw(rows()).axes) == 2


def test_one_network_is_measured(monkeypatch):
    monkeypatch.setattr(cost, "PAPER_TABLE_1", {})
    monkeypatch.setattr(cost, "PAPER_TABLE_6", {"resnet20": 0.27})
    (row,) = STUDY.measure(Options(), {"rounds": 2})
    assert row["parameters"] == 269_722
    assert row["multiply_adds"] == 40_551_040
    assert row["ours"] == 0.269722
    assert 0 < row["ms_low"] <= row["ms"] <= row["ms_high"]


@pytest.mark.full  # Builds every network, ResNet-1202 too.
def test_the_rows_are_the_papers():
    keys = ("table", "network", "shortcut", "layers", "paper")
    found = [tuple(row[key] for key in keys) for row, _ in cost.beside_paper()]
    assert found == PRINTED
