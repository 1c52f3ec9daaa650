"""What every seed bore out, with a margin: all studies as they come, on the digits."""

import dataclasses
import math

import numpy as np
import pytest

from keras_resnet.studies.all import run_all
from keras_resnet.studies.lib.study import Options
from keras_resnet.studies.lib.tables import read_table, select_column


def rows_of(folder, study):
    return read_table(f"{folder}/{study}/{study}.csv")


def difference(rows, column, first, second):
    """Of each seed, a column in the rows that match the first less the second."""
    pair = [select_column(rows, column, **where) for where in (first, second)]
    assert len(pair[0]) == len(pair[1]) == 3
    return np.subtract(*pair)


def check(folder):
    """Asserts it of the tables in a folder, which take some seventeen minutes to make."""
    deep = {"depth": 44, "epoch": 24}
    rows = rows_of(folder, "degradation")
    plain, residual = {**deep, "kind": "plain"}, {**deep, "kind": "res"}
    worse = difference(rows, "training_error", plain, {**plain, "depth": 8})
    assert worse.min() > 15
    assert difference(rows, "test_error", plain, residual).min() > 10

    rows = rows_of(folder, "shortcuts")
    for kind in "ABC":
        pair = {"depth": 44, "shortcut": "none"}, {"depth": 44, "shortcut": kind}
        assert difference(rows, "test_error", *pair).min() > 10

    rows = rows_of(folder, "gradients")
    small = {"batch_norm": "without", "scale": 0.5, "step": 0}
    for kind, holds in (
        # Each of 40 layers halves what it hands back, or less: 2**-40 is 1e-12.
        ("plain", lambda first, last: first < 1e-10 * last),
        ("res", lambda first, last: first > 0.25 * last),
    ):
        ends = [
            select_column(rows, "gradient", kind=kind, block=b, **small)
            for b in (1, 21)
        ]
        assert all(map(holds, *ends)) and len(ends[0]) == 3
    normal = {"batch_norm": "with", "scale": 1.0, "step": 0, "kind": "res"}
    terms = [select_column(rows, term, **normal) for term in ("shortcut", "branch")]
    assert np.log(np.divide(*terms)).reshape(3, 21).mean(axis=1).min() > math.log(1.15)

    rows = rows_of(folder, "responses")
    means = [
        np.reshape(select_column(rows, "deviation", kind=kind, depth=44), (3, 43)).mean(
            axis=1
        )
        for kind in ("plain", "res")
    ]
    assert np.subtract(*means).min() > 0.02

    rows = rows_of(folder, "identity")
    start, further = ({"kind": "res", "net": net} for net in ("start", "further"))
    assert select_column(rows, "difference", **start) == [0, 0, 0]
    assert difference(rows, "training_error", further, start).max() < 0.25
    assert difference(rows, "test_error", further, start).max() < 0.5
    assert min(select_column(rows, "training_error", kind="plain", net="start")) > 85

    rows = rows_of(folder, "lesion")
    for seed in range(3):
        of = {"depth": 44, "seed": seed}
        plain, residual = {**of, "kind": "plain"}, {**of, "kind": "res"}
        assert np.median(select_column(rows, "percent", what="removed", **plain)) > 80
        swapped = [
            np.mean(select_column(rows, "percent", what="swapped", **net))
            for net in (plain, residual)
        ]
        assert swapped[0] > swapped[1] + 30
        (intact,) = select_column(rows, "percent", what="intact", **residual)
        assert (
            select_column(rows, "percent", what="first", at=3, **residual)[0]
            < intact + 5
        )
        assert (
            select_column(rows, "percent", what="pruned", at=50, **residual)[0]
            < intact + 3
        )

    rows = rows_of(folder, "schedule")
    pair = [{"patience": patience, "epoch": 48} for patience in (1, 8)]
    assert difference(rows, "training_error", *pair).min() > 1
    assert difference(rows, "test_error", *pair).mean() > 0.4

    rows = rows_of(folder, "overfitting")
    learnt = {"depth": 44, "wrong": 0.2}
    corrected, memorised = (
        select_column(rows, column, **learnt) for column in ("corrected", "memorised")
    )
    assert min(corrected) > 80 and max(memorised) < 15


@pytest.mark.full  # Some seventeen minutes on two CPUs.
def test_the_claims_hold_with_a_margin(tmp_path):
    run_all({"output": str(tmp_path)})
    check(dataclasses.replace(Options(), output=str(tmp_path)).folder)
