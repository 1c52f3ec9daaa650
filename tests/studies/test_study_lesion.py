import keras
import numpy as np
import pytest

from keras_resnet.studies.lesion import SPARSITY, STUDY
from keras_resnet.studies.lib.study import Options


def make_rows(**changes):
    """Returns rows of a plain and a residual network with known percentages.

    `changes` replaces percentages. For example, `res_removed=7` sets the error of the
    residual network without one block to 7 %.
    """
    percentages = {
        "plain": {"removed": 80, "swapped": 70, "first": 80, "pruned": 20, "rank": 60},
        "res": {"removed": 3, "swapped": 2, "first": 4, "pruned": 4, "rank": 60},
    }
    for changed_name, value in changes.items():
        kind, series = changed_name.split("_")
        percentages[kind][series] = value
    return [
        {"kind": kind, "depth": 14, "seed": 0, "what": series, "at": x, "percent": percent,
         "chance": 90}
        for kind, values in percentages.items()
        for series, percent in {"intact": 1, "untrained": 80, **values}.items()
        for x in (SPARSITY if series == "pruned" else (0,) if series == "intact" else (1, 2))
    ]  # fmt: skip


def get_verdicts(**changes):
    return [holds for _, holds in STUDY.check_expectations(make_rows(**changes))]


def test_each_expectation_can_fail():
    assert all(get_verdicts())
    failing_changes = {
        0: {"res_removed": 7}, 1: {"plain_removed": 40}, 2: {"res_swapped": 70},
        3: {"res_first": 7}, 4: {"res_pruned": 7}, 5: {"res_rank": 80},
    }  # fmt: skip
    for index, changes in failing_changes.items():
        assert get_verdicts(**changes) == [i != index for i in range(6)]


def test_the_figure_shows_the_errors_after_each_lesion():
    axes_by_series = zip(
        ("removed", "first", "pruned", "rank"),
        STUDY.draw(make_rows()).axes,
        strict=True,
    )
    # Values of the plain and the residual network.
    expected = {
        "removed": (80, 3),
        "first": (80, 4),
        "pruned": (20, 4),
        "rank": (60, 60),
    }
    for series, axes in axes_by_series:
        for line, percent in zip(axes.lines, expected[series], strict=False):
            x = SPARSITY if series == "pruned" else (1, 2)
            assert line.get_xydata().tolist() == [[position, percent] for position in x]


def test_effective_depth_counts_two_layers_for_each_block():
    # Two blocks of two layers can be removed, so 10 of 14 layers (71.4 %) remain.
    result, _ = STUDY.check_expectations(make_rows())[3]
    assert "plain, 14 layers: 100 % of the layers" in result
    assert "residual, 14 layers: 71.4 % of the layers" in result


def test_a_measured_network_has_rows_for_each_lesion(trained_run, monkeypatch):
    monkeypatch.setattr(Options, "train", lambda self, model, seed: str(trained_run))
    options, job = Options(images=500), {"kind": "res", "depth": 8, "seed": 0}
    rows = STUDY.measure(options, job)
    assert {row["chance"] for row in rows} == {90}  # There are ten classes.
    network = keras.models.load_model(trained_run / "final.keras")
    test = options.load().test
    wrong = np.argmax(network(test.images), axis=1) != test.labels
    values = {(row["what"], row["at"]): row["percent"] for row in rows}
    assert values["intact", 0] == pytest.approx(100 * wrong.mean())
    # Only the first of three blocks can be removed, because the others change the shape.
    assert values["removed", 1] == values["first", 1] > values["intact", 0]
    assert [at for what, at in values if what == "removed"] == [1]
    assert [at for what, at in values if what == "pruned"] == list(SPARSITY)
    assert values["pruned", 30] < values["pruned", 90]
    for series in ("rank", "untrained"):
        assert [at for what, at in values if what == series] == [1, 2, 3, 4, 5, 6, 7]
