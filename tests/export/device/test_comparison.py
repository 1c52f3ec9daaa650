"""Limits of agreement and intervals, against hand calculations."""

import math

import numpy as np
import pytest

from export.device import comparison


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


LOGITS = np.array([[4.0, 1.0, -2.0], [0.0, 3.0, 1.0], [1.0, 2.0, 5.0], [2.0, 1.9, 0.0]])
LABELS = np.array([0, 1, 2, 1])
FLOAT32, FLOAT16, INT8 = (
    comparison.limit_of(precision, 360, modern=True)
    for precision in ("float32", "float16", "int8")
)


def test_the_same_outputs():
    found = comparison.compare(softmax(LOGITS), LOGITS, LABELS)
    assert (found.images, found.right, found.keras_right) == (4, 3, 3)
    assert found.agreement == 1
    assert found.loss_points == 0
    assert found.difference < 1e-12
    assert found.logit_difference < 1e-12


def test_a_difference_of_one_logit():
    """A logit that is 0.01 higher, of logits up to 5."""
    other = LOGITS.copy()
    other[2, 0] += 0.01
    found = comparison.compare(softmax(other), LOGITS, LABELS)
    # The softmax tells logits less the logarithm of their sum, which moves too.
    share = softmax(LOGITS)[2, 0]
    moved = math.log(1 + share * (math.exp(0.01) - 1))
    assert found.logit_difference == pytest.approx((0.01 - moved) / 5, rel=1e-6)
    with pytest.raises(
        comparison.Disagreement, match=r"differs .* by 2\.0e-03 .* limit is 1e-04"
    ):
        comparison.judge("float32", found, FLOAT32)


def test_paired_counts():
    """The artifact has the first wrong and the last right."""
    probabilities = softmax(LOGITS)[:, [1, 0, 2]][:, [0, 1, 2]]
    probabilities[1] = softmax(LOGITS)[1]
    found = comparison.compare(probabilities, LOGITS, LABELS)
    assert (found.right, found.keras_right) == (3, 3)
    assert found.agreement == 0.5
    assert found.loss_points == 0


@pytest.mark.parametrize(
    ("lost", "won", "images", "low", "high"),
    [
        # By hand, with b lost and c won of n:
        # ((b - c) -+ 1.96 sqrt(b + c + 1 - (b - c)^2 / (n + 2))) / (n + 2)
        (0, 0, 98, -1.96, 1.96),
        (8, 0, 198, 4 - 0.98 * math.sqrt(9 - 0.32), 4 + 0.98 * math.sqrt(9 - 0.32)),
        (3, 3, 348, -0.56 * math.sqrt(7), 0.56 * math.sqrt(7)),
    ],
)
def test_interval(lost, won, images, low, high):
    assert comparison.paired_interval(lost, won, images) == pytest.approx(
        (low, high), abs=1e-9
    )


def judged(lost, won, images):
    """Comparison of a classifier of two classes, `lost` and `won` times another."""
    labels = np.zeros(images, int)
    logits = np.tile([1.0, 0.0], (images, 1))
    logits[:won] = [0.0, 1.0]
    probabilities = np.tile([0.9, 0.1], (images, 1))
    probabilities[won : won + lost] = [0.1, 0.9]
    return comparison.compare(probabilities, logits, labels)


def test_lower_precision_may_lose_what_chance_explains():
    comparison.judge("int8", judged(3, 0, 360), INT8)
    comparison.judge("int8", judged(20, 15, 1000), INT8)


def test_a_shown_loss_is_refused():
    """12 of 360 lost is 3.3 points, at least 1.5."""
    with pytest.raises(
        comparison.Disagreement, match=r"int8 loses 3\.3 points .* limit is 0\.5"
    ):
        comparison.judge("int8", judged(12, 0, 360), INT8)


def test_disagreement_is_refused_though_nothing_is_lost():
    with pytest.raises(
        comparison.Disagreement, match=r"on 94\.00% of 100 images; the limit is 95\.0%"
    ):
        comparison.judge("int8", judged(3, 3, 100), INT8)
    comparison.judge("int8", judged(2, 2, 100), INT8)


@pytest.mark.parametrize("broken", [np.nan, 0.0])
def test_no_numbers_are_no_agreement(broken):
    found = comparison.compare(np.full_like(LOGITS, broken), LOGITS, LABELS)
    with pytest.raises(comparison.Disagreement):
        comparison.judge("float32", found, FLOAT32)


def test_float_artifacts_name_the_same_classes():
    """Logits that differ by little may still be another class, in a tie."""
    logits = np.array([[1.0, 1.0 - 1e-5, -2.0]] * 2)
    other = logits.copy()
    other[1, :2] = logits[1, 1::-1]
    found = comparison.compare(softmax(other), logits, np.array([0, 0]))
    assert found.logit_difference < 1e-4
    with pytest.raises(
        comparison.Disagreement, match=r"50\.00% of 2 .* limit is 100\.0%"
    ):
        comparison.judge("float32", found, FLOAT32)


def test_float16_may_differ_on_one_image_of_200():
    comparison.judge("float16", judged(1, 0, 200), FLOAT16)
    with pytest.raises(comparison.Disagreement, match=r"limit is 99\.5%"):
        comparison.judge("float16", judged(2, 0, 200), FLOAT16)


def test_limits_are_narrower_where_there_are_images_enough():
    """32 and 50 of 5,000 lost: 0.64 and 1.0 point, at least 0.41 and 0.71."""
    paper, modern = (comparison.limit_of("int8", 5000, m) for m in (False, True))
    assert comparison.limit_of("int8", 4999, False) == INT8
    comparison.judge("int8", judged(32, 0, 5000), modern)
    with pytest.raises(comparison.Disagreement, match=r"limit is 0\.3"):
        comparison.judge("int8", judged(32, 0, 5000), paper)
    with pytest.raises(comparison.Disagreement, match=r"limit is 0\.6"):
        comparison.judge("int8", judged(50, 0, 5000), modern)


def test_wilson():
    """Wilson's interval by hand: n = 100, 90 right, z = 1.96."""
    low, high = comparison.wilson(90, 100)
    z2 = 1.96**2
    half = 1.96 * np.sqrt(0.9 * 0.1 / 100 + z2 / 40000)
    middle = 0.9 + z2 / 200
    assert low == pytest.approx((middle - half) / (1 + z2 / 100))
    assert high == pytest.approx((middle + half) / (1 + z2 / 100))
