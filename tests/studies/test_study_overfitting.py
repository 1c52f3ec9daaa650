import numpy as np
import pytest

from keras_resnet.studies.lib.study import Options
from keras_resnet.studies.overfitting import (
    STUDY,
    VARIANTS,
    compute_errors,
    corrupt_labels,
)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.2, 1.0])
def test_exactly_the_given_fraction_of_labels_is_wrong(fraction):
    labels = np.arange(1000, dtype=np.int32) % 10
    corrupted = corrupt_labels(labels, 10, fraction, (0, 0))
    assert np.mean(corrupted != labels) == fraction
    assert corrupted.dtype == labels.dtype
    assert set(corrupted) == set(range(10))
    again = corrupt_labels(labels, 10, fraction, (0, 0))
    np.testing.assert_array_equal(corrupted, again)
    if fraction == 1:  # The other classes are about equally frequent.
        counts = np.bincount((corrupted - labels) % 10)
        assert counts[0] == 0
        assert counts[1:].min() > 111 - 40


def test_errors_of_known_predictions():
    truth = np.zeros(300, int)
    training = np.arange(300) < 200
    labels = np.where(np.arange(300) % 10 == 0, 1, 0)  # A tenth is wrong.
    zeros = dict.fromkeys(compute_errors(truth, truth, labels, training), 0.0)
    all_correct = {"training_error": 10.0, "measured_error": 10.0, "corrected": 100.0}
    assert compute_errors(truth, truth, labels, training) == (
        zeros | all_correct | {"test_wrong": 10.0}
    )
    # These predictions memorise the training labels and are correct on test images.
    memorised = np.where(training, labels, truth)
    assert compute_errors(memorised, truth, labels, training) == (
        zeros | {"measured_error": 10.0, "memorised": 100.0, "test_wrong": 10.0}
    )
    assert compute_errors(truth, truth, truth, training) == zeros


def make_rows(gap=0.1, augmentation=1.0, rise=0.5, offset=0.0):
    """Returns rows of networks with known errors.

    Args:
        gap: Increase of the gap between test and training error for each layer.
        augmentation: Increase of this gap without augmentation.
        rise: Increase in test error for each percentage point of wrong labels.
        offset: Difference of the measured error from its expected value.
    """
    return [
        {
            "depth": depth,
            "augmented": augmented,
            "wrong": fraction,
            "seed": seed,
            "training_error": 100 * fraction
            + 1
            + rise * 100 * fraction
            - gap * depth
            - augmentation * (augmented == "no"),
            "test_error": 1 + rise * 100 * fraction,
            "measured_error": 100 * fraction + 1 + rise * 100 * fraction + offset,
            "test_wrong": 100 * fraction,
            "memorised": 0.0,
            "corrected": 99.0,
        }
        for seed in (0, 1)
        for depth in (8, 20)
        for augmented, fraction in VARIANTS
    ]


def test_verdicts_of_known_tables():
    verdicts = STUDY.check_expectations(make_rows())
    assert [holds for _, holds in verdicts] == [True] * 4
    assert "0.8 ± 0 points (n = 2) with 8" in verdicts[0][0]
    assert "10 ± 0 points (n = 4) with 20%" in verdicts[2][0]
    table = make_rows(gap=-0.1, augmentation=-1.0, rise=1.5, offset=1.5)
    assert [holds for _, holds in STUDY.check_expectations(table)] == [False] * 4
    assert len(STUDY.draw(make_rows()).axes) == 2
    one_run = [row for row in make_rows() if row["depth"] == 8 and row["seed"] == 0]
    assert len(STUDY.check_expectations(one_run)) == 4


def test_a_small_run(monkeypatch, tmp_path):
    options = Options(images=128, epochs=1, output=str(tmp_path))
    job = {"depth": 8, "augmented": "yes", "wrong": 0.25, "seed": 0}
    (row,) = STUDY.measure(options, job)
    assert row["test_wrong"] == 24.0  # That is 6 of 25 images.
    assert 0 <= row["memorised"] + row["corrected"] <= 100
    (folder,) = (tmp_path / "digits-images-128" / "runs").iterdir()
    assert folder.name == "cifar_resnet8-epochs-1-wrong-0.25-seed-0"
