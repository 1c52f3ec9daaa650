import dataclasses

import numpy as np
import pytest

from keras_resnet.studies.lib.study import Options
from keras_resnet.studies.schedule import PATIENCE, STUDY


def test_drops_of_an_error_that_never_falls(monkeypatch, tmp_path, digits):
    patience = 2
    # Held-out labels of a class that no net ever names: an error of 100 % throughout.
    train = digits.train.take(np.flatnonzero(digits.train.labels < 2)[:64])
    test = dataclasses.replace(
        digits.test.take(slice(8)), labels=np.full(8, 9, np.int32)
    )
    never = dataclasses.replace(digits, train=train, test=test)
    monkeypatch.setattr(Options, "load", lambda self: never)
    options = Options(output=str(tmp_path), epochs=5)
    rows = STUDY.measure(options, {"depth": 8, "patience": patience, "seed": 0})
    late = [row for row in rows if row["epoch"] > 1]
    assert [row["test_error"] for row in late] == [100] * len(late)
    # The first epoch's error is the best; then every `patience` epochs it drops.
    expected = [max(0, (epoch - 2) // patience) for epoch in range(1, 6)]
    assert [row["drops"] for row in rows] == expected
    for row in rows:
        assert row["learning_rate"] == pytest.approx(
            0.1 * 0.1 ** row["drops"], rel=1e-4
        )


def rows(errors, seeds=2):
    """Rows of runs with known errors: one for each patience, after two epochs."""
    return [
        {
            "depth": 20,
            "patience": patience,
            "seed": seed,
            "epoch": epoch,
            "training_error": error / epoch,
            "test_error": 2 * error / epoch,
            "drops": 8 // patience,
        }
        for seed in range(seeds)
        for patience, error in zip(PATIENCE, errors, strict=True)
        for epoch in (1, 2)
    ]


def test_findings_of_known_tables():
    found = STUDY.judge(rows([4, 3, 2, 1]))
    assert [holds for _, holds in found] == [True, True]
    assert "4 ± 0 % (n = 2) with patience 1" in found[0][0]
    assert "8.0 with patience 1" in found[1][0]
    assert [holds for _, holds in STUDY.judge(rows([1, 1, 1, 1]))] == [False, False]
    assert len(STUDY.draw(rows([4, 3, 2, 0], seeds=1)).axes) == 2
