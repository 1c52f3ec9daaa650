import keras
import numpy as np
import pytest

from keras_resnet.studies.lib.study import Options
from keras_resnet.studies.overfitting import (
    CONDITIONS,
    STUDY,
    compute_errors,
    corrupt_labels,
)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.2, 1.0])
def test_exactly_the_given_fraction_of_labels_is_wrong(fraction):
    labels = np.arange(1000, dtype=np.int32) % 10
    corrupted_labels = corrupt_labels(labels, 10, fraction, (0, 0))
    assert np.mean(corrupted_labels != labels) == fraction
    assert corrupted_labels.dtype == labels.dtype
    assert set(corrupted_labels) == set(range(10))
    repeated_labels = corrupt_labels(labels, 10, fraction, (0, 0))
    np.testing.assert_array_equal(corrupted_labels, repeated_labels)
    if fraction == 1:  # The nine wrong classes are about equally frequent.
        counts = np.bincount((corrupted_labels - labels) % 10)
        assert counts[0] == 0
        assert counts[1:].min() > 111 - 40


def test_errors_of_known_predictions_are_exact():
    truth = np.zeros(300, int)
    is_training = np.arange(300) < 200
    labels = np.where(np.arange(300) % 10 == 0, 1, 0)  # A tenth of the labels is wrong.
    zeros = dict.fromkeys(compute_errors(truth, truth, labels, is_training), 0.0)
    all_correct = {"training_error": 10.0, "measured_error": 10.0, "corrected": 100.0}
    assert compute_errors(truth, truth, labels, is_training) == (
        zeros | all_correct | {"test_wrong": 10.0}
    )
    # Predictions of a network that memorised all wrong training labels, and predicts
    # all test images correctly.
    memorised_labels = np.where(is_training, labels, truth)
    assert compute_errors(memorised_labels, truth, labels, is_training) == (
        zeros | {"measured_error": 10.0, "memorised": 100.0, "test_wrong": 10.0}
    )
    assert compute_errors(truth, truth, truth, is_training) == zeros


def make_rows(
    gap_per_layer=0.1, augmentation_effect=1.0, rise_per_percent=0.5, offset=0.0
):
    """Returns rows of networks with known errors in %.

    Args:
        gap_per_layer: Points by which each layer increases the gap, which is the
            measured minus the training error.
        augmentation_effect: Points by which the gap is larger without augmentation.
        rise_per_percent: Points by which each percent of wrong labels increases the
            test error.
        offset: Points by which the measured error exceeds the sum of the percentage of
            wrong labels and the test error.
    """
    return [
        {
            "depth": depth,
            "augmented": augmented,
            "wrong": fraction,
            "seed": seed,
            "training_error": 100 * fraction
            + 1
            + rise_per_percent * 100 * fraction
            - gap_per_layer * depth
            - augmentation_effect * (augmented == "no"),
            "test_error": 1 + rise_per_percent * 100 * fraction,
            "measured_error": 100 * fraction
            + 1
            + rise_per_percent * 100 * fraction
            + offset,
            "test_wrong": 100 * fraction,
            "memorised": 0.0,
            "corrected": 99.0,
        }
        for seed in (0, 1)
        for depth in (8, 20)
        for augmented, fraction in CONDITIONS
    ]


def test_verdicts_follow_from_the_table():
    verdicts = STUDY.check_expectations(make_rows())
    assert [holds for _, holds in verdicts] == [True] * 4
    assert "0.8 ± 0 points (n = 2) with 8" in verdicts[0][0]
    assert "10 ± 0 points (n = 4) with 20%" in verdicts[2][0]
    rows = make_rows(
        gap_per_layer=-0.1, augmentation_effect=-1.0, rise_per_percent=1.5, offset=1.5
    )
    assert [holds for _, holds in STUDY.check_expectations(rows)] == [False] * 4
    single_run_rows = [
        row for row in make_rows() if row["depth"] == 8 and row["seed"] == 0
    ]
    assert len(STUDY.check_expectations(single_run_rows)) == 4


def test_the_figure_shows_gaps_and_errors():
    gap_axes, error_axes = STUDY.draw(make_rows()).axes
    # The gap is 0.1 points per layer, and 1 point more without augmentation.
    gaps = {line.get_label(): [*line.get_ydata()] for line in gap_axes.lines}
    for label, values in {
        "augmented": [0.8, 2],
        "not augmented": [1.8, 3],
        "20% wrong labels": [0.8, 2],
    }.items():
        assert gaps[label] == pytest.approx(values)
    lines = {line.get_label(): [*line.get_ydata()] for line in error_axes.lines}
    assert lines["test"] == pytest.approx([1, 1.5, 3.5, 11])
    assert lines["measured"] == pytest.approx([1, 2.5, 8.5, 31])
    assert lines["percentage of wrong labels"] == [0, 1, 5, 20]


def test_a_network_is_trained_and_tested_with_wrong_labels(
    trained_run, monkeypatch, tmp_path
):
    calls = []

    def train(self, *args, **changes):
        calls.append((*args, changes))
        return str(trained_run)

    monkeypatch.setattr(Options, "train", train)
    options = Options(images=128, epochs=1, output=str(tmp_path))
    job = {"depth": 8, "augmented": "yes", "wrong": 0.25, "seed": 0}
    (row,) = STUDY.measure(options, job)
    ((model, seed, changes),) = calls
    assert (model, seed) == ("cifar_resnet8", 0)
    name = "cifar_resnet8-epochs-1-wrong-0.25-seed-0"
    assert changes["folder"] == f"{tmp_path}/digits-images-128/runs/{name}"
    # 32 of 128 training labels and 6 of 25 test labels are wrong.
    digits, noisy_digits = options.load(), changes["dataset"]
    is_wrong = noisy_digits.train.labels != digits.train.labels
    assert is_wrong.sum() == 32
    np.testing.assert_array_equal(noisy_digits.test.labels, digits.test.labels)
    assert row["test_wrong"] == 24.0
    network = keras.models.load_model(trained_run / "final.keras")
    predicted = np.argmax(network(digits.train.images), axis=1)
    for column, errors in (
        ("training_error", predicted != noisy_digits.train.labels),
        ("corrected", (predicted == digits.train.labels)[is_wrong]),
        ("memorised", (predicted == noisy_digits.train.labels)[is_wrong]),
    ):
        assert row[column] == pytest.approx(100 * errors.mean(), abs=1e-4)
    assert row["corrected"] > 80  # The network was trained with correct labels.
    calls.clear()
    STUDY.measure(options, {**job, "augmented": "no", "wrong": 0.0})
    assert calls == [("cifar_resnet8", 0, {"pad": 0.0, "flip": False})]
