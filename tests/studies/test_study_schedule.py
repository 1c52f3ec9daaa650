import dataclasses

import numpy as np
import pytest

from keras_resnet.studies.lib.study import Options
from keras_resnet.studies.schedule import PATIENCES, STUDY


def test_the_rate_drops_each_time_that_the_patience_ends(monkeypatch, tmp_path, digits):
    patience = 2
    # The network learns classes 0 and 1. All test labels are 9, so the error is 100 %.
    train = digits.train.take(np.flatnonzero(digits.train.labels < 2)[:64])
    test = dataclasses.replace(
        digits.test.take(slice(8)), labels=np.full(8, 9, np.int32)
    )
    dataset = dataclasses.replace(digits, train=train, test=test)
    monkeypatch.setattr(Options, "load", lambda self: dataset)
    options = Options(output=str(tmp_path), epochs=5)
    rows = STUDY.measure(options, {"depth": 8, "patience": patience, "seed": 0})
    later_rows = [row for row in rows if row["epoch"] > 1]
    assert [row["test_error"] for row in later_rows] == [100] * len(later_rows)
    # The error never falls after the first epoch, so the rate drops every two epochs.
    expected = [max(0, (epoch - 2) // patience) for epoch in range(1, 6)]
    assert [row["drops"] for row in rows] == expected
    for row in rows:
        assert row["learning_rate"] == pytest.approx(
            0.1 * 0.1 ** row["drops"], rel=1e-4
        )


def make_rows(errors, seeds=2):
    """Returns rows of two epochs. `errors` are the training errors of the first epoch.

    `errors` are in % and contain a value for each of PATIENCES.
    """
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
        for patience, error in zip(PATIENCES, errors, strict=True)
        for epoch in (1, 2)
    ]


def test_verdicts_follow_from_the_table():
    verdicts = STUDY.check_expectations(make_rows([4, 3, 2, 1]))
    assert [holds for _, holds in verdicts] == [True, True]
    assert "4 ± 0 % (n = 2) with patience 1" in verdicts[0][0]
    assert "8.0 with patience 1" in verdicts[1][0]
    verdicts = STUDY.check_expectations(make_rows([1, 1, 1, 1]))
    assert [holds for _, holds in verdicts] == [False, False]
    assert len(STUDY.draw(make_rows([4, 3, 2, 0], seeds=1)).axes) == 2
