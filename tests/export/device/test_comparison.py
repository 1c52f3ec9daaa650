"""Comparisons, limits and confidence intervals, against hand calculations."""

import math

import numpy as np
import pytest

from export.device import comparison


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


LOGITS = np.array([[4.0, 1.0, -2.0], [0.0, 3.0, 1.0], [1.0, 2.0, 5.0], [2.0, 1.9, 0.0]])
LABELS = np.array([0, 1, 2, 1])
FLOAT32_LIMIT, FLOAT16_LIMIT, INT8_LIMIT = (
    comparison.find_limit(precision, 360, is_modern=True)
    for precision in ("float32", "float16", "int8")
)


def test_equal_outputs_have_no_difference():
    actual = comparison.compare(softmax(LOGITS), LOGITS, LABELS)
    assert (actual.images, actual.right, actual.keras_right) == (4, 3, 3)
    assert actual.agreement == 1
    assert actual.loss_points == 0
    assert actual.difference < 1e-12
    assert actual.logit_difference < 1e-12


def test_difference_of_one_logit_exceeds_the_float32_limit():
    """One logit is 0.01 higher, and the largest logit is 5."""
    changed_logits = LOGITS.copy()
    changed_logits[2, 0] += 0.01
    actual = comparison.compare(softmax(changed_logits), LOGITS, LABELS)
    # log(softmax) subtracts log(sum(exp(logits))), which the higher logit also raises.
    probability = softmax(LOGITS)[2, 0]
    shift = math.log(1 + probability * (math.exp(0.01) - 1))
    assert actual.logit_difference == pytest.approx((0.01 - shift) / 5, rel=1e-6)
    with pytest.raises(
        comparison.Disagreement, match=r"differ by 2\.0e-03 .* limit is 1e-04"
    ):
        comparison.check_limit("float32", actual, FLOAT32_LIMIT)


def test_lost_and_won_images_compensate_each_other():
    """Only Keras is correct on the first image, and only the artifact on the last."""
    probabilities = softmax(LOGITS)[:, [1, 0, 2]][:, [0, 1, 2]]
    probabilities[1] = softmax(LOGITS)[1]
    actual = comparison.compare(probabilities, LOGITS, LABELS)
    assert (actual.right, actual.keras_right) == (3, 3)
    assert actual.agreement == 0.5
    assert actual.loss_points == 0


@pytest.mark.parametrize(
    ("lost", "won", "total", "low", "high"),
    [
        # Interval for b lost and c won images out of n:
        # ((b - c) -+ 1.96 sqrt(b + c + 1 - (b - c)^2 / (n + 2))) / (n + 2)
        (0, 0, 98, -1.96, 1.96),
        (8, 0, 198, 4 - 0.98 * math.sqrt(9 - 0.32), 4 + 0.98 * math.sqrt(9 - 0.32)),
        (3, 3, 348, -0.56 * math.sqrt(7), 0.56 * math.sqrt(7)),
    ],
)
def test_paired_interval_equals_the_hand_calculation(lost, won, total, low, high):
    assert comparison.paired_interval(lost, won, total) == pytest.approx(
        (low, high), abs=1e-9
    )


def compare_outcomes(lost, won, total):
    """Compares an artifact with Keras on `total` images of two classes.

    Only Keras classifies `lost` images correctly, and only the artifact `won` images.
    """
    labels = np.zeros(total, int)
    logits = np.tile([1.0, 0.0], (total, 1))
    logits[:won] = [0.0, 1.0]
    probabilities = np.tile([0.9, 0.1], (total, 1))
    probabilities[won : won + lost] = [0.1, 0.9]
    return comparison.compare(probabilities, logits, labels)


def test_loss_within_the_interval_is_accepted():
    comparison.check_limit("int8", compare_outcomes(3, 0, 360), INT8_LIMIT)
    comparison.check_limit("int8", compare_outcomes(20, 15, 1000), INT8_LIMIT)


def test_significant_loss_is_rejected():
    """The loss is 3.3 percentage points. Its 95 % interval begins at 1.5 points."""
    with pytest.raises(
        comparison.Disagreement,
        match=r"int8 loses 3\.3 percentage points .* limit is 0\.5",
    ):
        comparison.check_limit("int8", compare_outcomes(12, 0, 360), INT8_LIMIT)


def test_low_agreement_is_rejected_even_without_a_loss():
    with pytest.raises(
        comparison.Disagreement, match=r"94\.00% of 100 images; the limit is 95\.0%"
    ):
        comparison.check_limit("int8", compare_outcomes(3, 3, 100), INT8_LIMIT)
    comparison.check_limit("int8", compare_outcomes(2, 2, 100), INT8_LIMIT)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_invalid_probabilities_are_rejected(value):
    actual = comparison.compare(np.full_like(LOGITS, value), LOGITS, LABELS)
    with pytest.raises(comparison.Disagreement):
        comparison.check_limit("float32", actual, FLOAT32_LIMIT)


def test_float32_artifacts_predict_the_same_classes():
    """A changed class is rejected, even if the logits differ by less than the limit."""
    logits = np.array([[1.0, 1.0 - 1e-5, -2.0]] * 2)
    changed_logits = logits.copy()
    changed_logits[1, :2] = logits[1, 1::-1]
    actual = comparison.compare(softmax(changed_logits), logits, np.array([0, 0]))
    assert actual.logit_difference < 1e-4
    with pytest.raises(
        comparison.Disagreement, match=r"50\.00% of 2 .* limit is 100\.0%"
    ):
        comparison.check_limit("float32", actual, FLOAT32_LIMIT)


def test_float16_may_differ_on_one_image_of_200():
    comparison.check_limit("float16", compare_outcomes(1, 0, 200), FLOAT16_LIMIT)
    with pytest.raises(comparison.Disagreement, match=r"limit is 99\.5%"):
        comparison.check_limit("float16", compare_outcomes(2, 0, 200), FLOAT16_LIMIT)


def test_limits_are_narrower_with_many_images():
    """With 95 % confidence, 32 or 50 lost images cost at least 0.41 or 0.71 points."""
    paper_limit, modern_limit = (
        comparison.find_limit("int8", 5000, m) for m in (False, True)
    )
    assert comparison.find_limit("int8", 4999, False) == INT8_LIMIT
    comparison.check_limit("int8", compare_outcomes(32, 0, 5000), modern_limit)
    with pytest.raises(comparison.Disagreement, match=r"limit is 0\.3"):
        comparison.check_limit("int8", compare_outcomes(32, 0, 5000), paper_limit)
    with pytest.raises(comparison.Disagreement, match=r"limit is 0\.6"):
        comparison.check_limit("int8", compare_outcomes(50, 0, 5000), modern_limit)


def test_wilson_interval_equals_the_hand_calculation():
    """90 of 100 images are correct, and z is 1.96."""
    low, high = comparison.wilson_interval(90, 100)
    z2 = 1.96**2
    half_width = 1.96 * np.sqrt(0.9 * 0.1 / 100 + z2 / 40000)
    middle = 0.9 + z2 / 200
    assert low == pytest.approx((middle - half_width) / (1 + z2 / 100))
    assert high == pytest.approx((middle + half_width) / (1 + z2 / 100))
