import numpy as np
import pytest

from keras_resnet.studies.lib.study import Options
from keras_resnet.studies.overfitting import STUDY, VARIANTS, errors, with_wrong_labels


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 1.0])
def test_exactly_that_share_is_wrong(share):
    labels = np.arange(1000, dtype=np.int32) % 10
    found = with_wrong_labels(labels, 10, share, (0, 0))
    assert np.mean(found != labels) == share
    assert found.dtype == labels.dtype
    assert set(found) == set(range(10))
    np.testing.assert_array_equal(found, with_wrong_labels(labels, 10, share, (0, 0)))
    if share == 1:  # Each of the other classes about as often.
        away = np.bincount((found - labels) % 10)
        assert away[0] == 0
        assert away[1:].min() > 111 - 40


def test_errors_of_known_nets():
    truth = np.zeros(300, int)
    training = np.arange(300) < 200
    given = np.where(np.arange(300) % 10 == 0, 1, 0)  # A tenth is wrong.
    zeros = dict.fromkeys(errors(truth, truth, given, training), 0.0)
    knows_all = {"training_error": 10.0, "measured_error": 10.0, "corrected": 100.0}
    assert errors(truth, truth, given, training) == (
        zeros | knows_all | {"test_wrong": 10.0}
    )
    # It has learnt all labels by heart, and knows the right ones of other images.
    by_heart = np.where(training, given, truth)
    assert errors(by_heart, truth, given, training) == (
        zeros | {"measured_error": 10.0, "memorised": 100.0, "test_wrong": 10.0}
    )
    assert errors(truth, truth, truth, training) == zeros


def rows(gap=0.1, bare=1.0, rise=0.5, apart=0.0):
    """Rows of nets whose errors follow known rules."""
    return [
        {
            "depth": depth,
            "augmented": augmented,
            "wrong": share,
            "seed": seed,
            "training_error": 100 * share
            + 1
            + rise * 100 * share
            - gap * depth
            - bare * (augmented == "no"),
            "test_error": 1 + rise * 100 * share,
            "measured_error": 100 * share + 1 + rise * 100 * share + apart,
            "test_wrong": 100 * share,
            "memorised": 0.0,
            "corrected": 99.0,
        }
        for seed in (0, 1)
        for depth in (8, 20)
        for augmented, share in VARIANTS
    ]


def test_findings_of_known_tables():
    found = STUDY.judge(rows())
    assert [holds for _, holds in found] == [True] * 4
    assert "0.8 ± 0 points (n = 2) with 8" in found[0][0]
    assert "10 ± 0 points (n = 4) with 20%" in found[2][0]
    flat = STUDY.judge(rows(gap=-0.1, bare=-1.0, rise=1.5, apart=1.5))
    assert [holds for _, holds in flat] == [False] * 4
    assert len(STUDY.draw(rows()).axes) == 2
    one = [row for row in rows() if row["depth"] == 8 and row["seed"] == 0]
    assert len(STUDY.judge(one)) == 4


def test_a_small_run(monkeypatch, tmp_path):
    options = Options(images=128, epochs=1, output=str(tmp_path))
    job = {"depth": 8, "augmented": "yes", "wrong": 0.25, "seed": 0}
    (row,) = STUDY.measure(options, job)
    assert row["test_wrong"] == 24.0  # 6 of 25.
    assert 0 <= row["memorised"] + row["corrected"] <= 100
    (folder,) = (tmp_path / "digits-images-128" / "runs").iterdir()
    assert folder.name == "cifar_resnet8-epochs-1-wrong-0.25-seed-0"
