"""Runs all studies. Every seed must confirm the paper's claims with a margin."""

import dataclasses
import math

import numpy as np
import pytest

from keras_resnet.studies.all import run_all
from keras_resnet.studies.lib.study import Options
from keras_resnet.studies.lib.tables import read_table, select_column


def read_rows(folder, study):
    return read_table(f"{folder}/{study}/{study}.csv")


def subtract_runs(rows, column, minuend, subtrahend):
    """Subtracts values of `column` selected by `subtrahend` from those by `minuend`."""
    values = [select_column(rows, column, **where) for where in (minuend, subtrahend)]
    assert len(values[0]) == len(values[1]) == 3
    return np.subtract(*values)


def check_tables(folder):
    """Asserts that all tables in a folder confirm the claims with a margin."""
    last_epoch = {"depth": 44, "epoch": 24}
    rows = read_rows(folder, "degradation")
    plain, residual = {**last_epoch, "kind": "plain"}, {**last_epoch, "kind": "res"}
    increases = subtract_runs(rows, "training_error", plain, {**plain, "depth": 8})
    assert increases.min() > 15
    assert subtract_runs(rows, "test_error", plain, residual).min() > 10

    rows = read_rows(folder, "shortcuts")
    for shortcut in "ABC":
        conditions = (
            {"depth": 44, "shortcut": "none"},
            {"depth": 44, "shortcut": shortcut},
        )
        assert subtract_runs(rows, "test_error", *conditions).min() > 10

    rows = read_rows(folder, "gradients")
    half_scale = {"batch_norm": "without", "scale": 0.5, "step": 0}
    for kind, expectation in (
        # If each of 40 layers halves the gradient, first / last is 2**-40, about 1e-12.
        ("plain", lambda first, last: first < 1e-10 * last),
        ("res", lambda first, last: first > 0.25 * last),
    ):
        gradients = [
            select_column(rows, "gradient", kind=kind, block=block, **half_scale)
            for block in (1, 21)
        ]
        assert all(map(expectation, *gradients)) and len(gradients[0]) == 3
    he_norm = {"batch_norm": "with", "scale": 1.0, "step": 0, "kind": "res"}
    norms = [select_column(rows, term, **he_norm) for term in ("shortcut", "branch")]
    assert np.log(np.divide(*norms)).reshape(3, 21).mean(axis=1).min() > math.log(1.15)

    rows = read_rows(folder, "responses")
    means = [
        np.reshape(select_column(rows, "deviation", kind=kind, depth=44), (3, 43)).mean(
            axis=1
        )
        for kind in ("plain", "res")
    ]
    assert np.subtract(*means).min() > 0.02

    rows = read_rows(folder, "identity")
    start_net, further_net = (
        {"kind": "res", "net": net} for net in ("start", "further")
    )
    assert select_column(rows, "difference", **start_net) == [0, 0, 0]
    assert subtract_runs(rows, "training_error", further_net, start_net).max() < 0.25
    assert subtract_runs(rows, "test_error", further_net, start_net).max() < 0.5
    assert min(select_column(rows, "training_error", kind="plain", net="start")) > 85

    rows = read_rows(folder, "lesion")
    for seed in range(3):
        conditions = {"depth": 44, "seed": seed}
        plain, residual = {**conditions, "kind": "plain"}, {**conditions, "kind": "res"}
        assert np.median(select_column(rows, "percent", what="removed", **plain)) > 80
        swapped_errors = [
            np.mean(select_column(rows, "percent", what="swapped", **net))
            for net in (plain, residual)
        ]
        assert swapped_errors[0] > swapped_errors[1] + 30
        (intact_error,) = select_column(rows, "percent", what="intact", **residual)
        assert (
            select_column(rows, "percent", what="first", at=3, **residual)[0]
            < intact_error + 5
        )
        assert (
            select_column(rows, "percent", what="pruned", at=50, **residual)[0]
            < intact_error + 3
        )

    rows = read_rows(folder, "schedule")
    conditions = [{"patience": patience, "epoch": 48} for patience in (1, 8)]
    assert subtract_runs(rows, "training_error", *conditions).min() > 1
    assert subtract_runs(rows, "test_error", *conditions).mean() > 0.4

    rows = read_rows(folder, "overfitting")
    conditions = {"depth": 44, "wrong": 0.2}
    corrected, memorised = (
        select_column(rows, column, **conditions)
        for column in ("corrected", "memorised")
    )
    assert min(corrected) > 80 and max(memorised) < 15


@pytest.mark.full  # Takes about 17 minutes on two CPU cores.
def test_the_claims_hold_with_a_margin(tmp_path):
    run_all({"output": str(tmp_path)})
    check_tables(dataclasses.replace(Options(), output=str(tmp_path)).folder)
