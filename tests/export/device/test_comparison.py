"""Comparisons, limits and confidence intervals, against hand calculations."""

import math

import numpy as np
import pytest

from export.device import comparison


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


LOGITS = np.array([[4.0, 1.0, -2.0], [0.0, 3.0, 1.0], [1.0, 2.0, 5.0], [2.0, 1.9, 0.0]])
LABELS = np.array([0, 1, 2, 1])
FLOAT32, FLOAT16, INT8 = (
    comparison.find_limit(precision, 360, modern=True)
    for precision in ("float32", "float16", "int8")
)


def test_equal_outputs():
    result = comparison.compare(softmax(LOGITS), LOGITS, LABELS)
    assert (result.images, result.right, result.keras_right) == (4, 3, 3)
    assert result.agreement == 1
    assert result.loss_points == 0
    assert result.difference < 1e-12
    assert result.logit_difference < 1e-12


def test_difference_of_one_logit():
    """One logit is 0.01 higher, and the largest logit is 5."""
    other = LOGITS.copy()
    other[2, 0] += 0.01
    result = comparison.compare(softmax(other), LOGITS, LABELS)
    # Logarithms of the softmax are logits minus log(sum(exp(logits))), which rises too.
    probability = softmax(LOGITS)[2, 0]
    shift = math.log(1 + probability * (math.exp(0.01) - 1))
    assert result.logit_difference == pytest.approx((0.01 - shift) / 5, rel=1e-6)
    with pytest.raises(
        comparison.Disagreement, match=r"differ by 2\.0e-03 .* limit is 1e-04"
    ):
        comparison.check_limit("float32", result, FLOAT32)


def test_paired_counts():
    """Keras alone is correct on the first image, the artifact alone on the last."""
    probabilities = softmax(LOGITS)[:, [1, 0, 2]][:, [0, 1, 2]]
    probabilities[1] = softmax(LOGITS)[1]
    result = comparison.compare(probabilities, LOGITS, LABELS)
    assert (result.right, result.keras_right) == (3, 3)
    assert result.agreement == 0.5
    assert result.loss_points == 0


@pytest.mark.parametrize(
    ("lost", "won", "images", "low", "high"),
    [
        # With b lost and c won images out of n:
        # ((b - c) -+ 1.96 sqrt(b + c + 1 - (b - c)^2 / (n + 2))) / (n + 2)
        (0, 0, 98, -1.96, 1.96),
        (8, 0, 198, 4 - 0.98 * math.sqrt(9 - 0.32), 4 + 0.98 * math.sqrt(9 - 0.32)),
        (3, 3, 348, -0.56 * math.sqrt(7), 0.56 * math.sqrt(7)),
    ],
)
def test_paired_interval(lost, won, images, low, high):
    assert comparison.paired_interval(lost, won, images) == pytest.approx(
        (low, high), abs=1e-9
    )


def compare_outcomes(lost, won, images):
    """Returns a two-class comparison with given numbers of lost and won images."""
    labels = np.zeros(images, int)
    logits = np.tile([1.0, 0.0], (images, 1))
    logits[:won] = [0.0, 1.0]
    probabilities = np.tile([0.9, 0.1], (images, 1))
    probabilities[won : won + lost] = [0.1, 0.9]
    return comparison.compare(probabilities, logits, labels)


def test_loss_within_the_interval_is_accepted():
    comparison.check_limit("int8", compare_outcomes(3, 0, 360), INT8)
    comparison.check_limit("int8", compare_outcomes(20, 15, 1000), INT8)


def test_significant_loss_is_rejected():
    """Losing 12 of 360 images costs 3.3 percentage points, at least 1.5."""
    with pytest.raises(
        comparison.Disagreement,
        match=r"int8 loses 3\.3 percentage points .* limit is 0\.5",
    ):
        comparison.check_limit("int8", compare_outcomes(12, 0, 360), INT8)


def test_low_agreement_is_rejected_even_without_a_loss():
    with pytest.raises(
        comparison.Disagreement, match=r"94\.00% of 100 images; the limit is 95\.0%"
    ):
        comparison.check_limit("int8", compare_outcomes(3, 3, 100), INT8)
    comparison.check_limit("int8", compare_outcomes(2, 2, 100), INT8)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_invalid_probabilities_are_rejected(value):
    result = comparison.compare(np.full_like(LOGITS, value), LOGITS, LABELS)
    with pytest.raises(comparison.Disagreement):
        comparison.check_limit("float32", result, FLOAT32)


def test_float32_artifacts_predict_the_same_classes():
    """If two logits are almost equal, a tiny difference changes the class."""
    logits = np.array([[1.0, 1.0 - 1e-5, -2.0]] * 2)
    other = logits.copy()
    other[1, :2] = logits[1, 1::-1]
    result = comparison.compare(softmax(other), logits, np.array([0, 0]))
    assert result.logit_difference < 1e-4
    with pytest.raises(
        comparison.Disagreement, match=r"50\.00% of 2 .* limit is 100\.0%"
    ):
        comparison.check_limit("float32", result, FLOAT32)


def test_float16_may_differ_on_one_image_of_200():
    comparison.check_limit("float16", compare_outcomes(1, 0, 200), FLOAT16)
    with pytest.raises(comparison.Disagreement, match=r"limit is 99\.5%"):
        comparison.check_limit("float16", compare_outcomes(2, 0, 200), FLOAT16)


def test_limits_are_narrower_with_many_images():
    """Losing 32 or 50 of 5,000 images costs 0.64 or 1 point, at least 0.41 or 0.71."""
    paper, modern = (comparison.find_limit("int8", 5000, m) for m in (False, True))
    assert comparison.find_limit("int8", 4999, False) == INT8
    comparison.check_limit("int8", compare_outcomes(32, 0, 5000), modern)
    with pytest.raises(comparison.Disagreement, match=r"limit is 0\.3"):
        comparison.check_limit("int8", compare_outcomes(32, 0, 5000), paper)
    with pytest.raises(comparison.Disagreement, match=r"limit is 0\.6"):
        comparison.check_limit("int8", compare_outcomes(50, 0, 5000), modern)


def test_wilson_interval():
    """Wilson's interval by hand, for 90 of 100 correct images and z = 1.96."""
    low, high = comparison.wilson_interval(90, 100)
    z2 = 1.96**2
    half = 1.96 * np.sqrt(0.9 * 0.1 / 100 + z2 / 40000)
    middle = 0.9 + z2 / 200
    assert low == pytest.approx((middle - half) / (1 + z2 / 100))
    assert high == pytest.approx((middle + half) / (1 + z2 / 100))
