"""Comparison of an artifact with its Keras model, and limits for the difference.

There are two kinds of limit. A float32 artifact must compute the logits of the Keras
model, up to rounding. An artifact of lower precision must predict the same classes
and lose little accuracy. Its loss is estimated from the test images that only one of
the two classifies correctly.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from keras_resnet.support import InputError


@dataclasses.dataclass(frozen=True)
class Limit:
    """Largest accepted difference between an artifact and its Keras model."""

    agreement: float  # Smallest `Comparison.agreement`.
    logits: float | None = None  # Largest `Comparison.logit_difference`.
    loss_points: float | None = None  # Largest lower end of `Comparison.loss_interval`.


# Limits by the precision in which an artifact computes.
LIMITS = {
    "float32": Limit(1.0, logits=1e-4),
    "float16": Limit(0.995),
    "int8": Limit(0.95, loss_points=0.5),
}

# With at least this many test images, the int8 limit of `loss_points` depends on the
# recipe: one value is for the paper's recipe, the other one for newer recipes.
MANY_IMAGES = 5000
LOSS_POINTS = {"paper": 0.3, "modern": 0.6}

# Fraction of the images in check.npz whose prediction may differ from the one at
# export, by precision. Kernels of another machine round differently.
DRIFT_LIMITS = {"float32": 0.01, "float16": 0.01, "int8": 0.05}


def find_limit(precision: str, images: int, modern: bool) -> Limit:
    """Returns the limit for an artifact of a precision, a key of `LIMITS`.

    `images` is the number of test images. `modern` says whether the recipe that trained
    the network is newer than the paper's.
    """
    limit = LIMITS[precision]
    if limit.loss_points is None or images < MANY_IMAGES:
        return limit
    points = LOSS_POINTS["modern" if modern else "paper"]
    return dataclasses.replace(limit, loss_points=points)


class Disagreement(InputError):
    """An artifact differs from its Keras model by more than the limit."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results of an artifact and its Keras model on the same images."""

    images: int  # Number of images.
    right: int  # Number of images that the artifact classifies correctly.
    keras_right: int  # Number of images that the Keras model classifies correctly.
    agreement: float  # Fraction of the images for which both predict the same class.
    loss_points: float  # Accuracy lost by the artifact, in percentage points.
    loss_interval: tuple[float, float]  # 95 % confidence interval of `loss_points`.
    difference: float  # Largest absolute difference of a probability.
    # Largest absolute difference of a logit, as a fraction of the largest logit. It is
    # infinite if a probability is 0, as happens in int8.
    logit_difference: float


def compare(
    probabilities: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> Comparison:
    """Compares an artifact's probabilities with its Keras model's logits.

    Both have the shape (n, classes). `labels` are the integer classes, (n,).
    """
    expected, largest_logit = softmax(logits), float(np.abs(logits).max())
    predicted, keras_predicted = probabilities.argmax(axis=1), logits.argmax(axis=1)
    correct, keras_correct = predicted == labels, keras_predicted == labels
    lost = int((keras_correct & ~correct).sum())
    won = int((correct & ~keras_correct).sum())
    return Comparison(
        images=len(labels),
        right=int(correct.sum()),
        keras_right=int(keras_correct.sum()),
        agreement=float((predicted == keras_predicted).mean()),
        loss_points=100 * (lost - won) / len(labels),
        loss_interval=paired_interval(lost, won, len(labels)),
        difference=float(np.abs(probabilities - expected).max()),
        logit_difference=_logit_difference(probabilities, expected, largest_logit),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax of logits, (n, classes), in the dtype of the logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def paired_interval(lost: float, won: float, images: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of an accuracy loss, in percentage points.

    `lost` and `won` are the numbers of images that only the Keras model and only the
    artifact classify correctly. Half an image is added to each of the four outcomes
    before Wald's interval is computed. This keeps the coverage at 95 % even if few
    images differ. Source: Agresti and Min 2005, "Simple improved confidence intervals
    for comparing matched proportions".
    """
    lost, won, images = lost + 0.5, won + 0.5, images + 2
    middle = (lost - won) / images
    half = 1.96 * math.sqrt(lost + won - (lost - won) ** 2 / images) / images
    return 100 * (middle - half), 100 * (middle + half)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns Wilson's 95 % confidence interval (1927) of a proportion, from 0 to 1."""
    fraction, z = correct / total, 1.96
    middle = (fraction + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(fraction * (1 - fraction) / total + z**2 / (4 * total**2))
    half /= 1 + z**2 / total
    return middle - half, middle + half


def _logit_difference(
    probabilities: np.ndarray, expected: np.ndarray, largest_logit: float
) -> float:
    """Returns the largest difference of a logit, as a fraction of the largest logit.

    An artifact does not output logits. The logarithms of its probabilities are compared
    instead, which differ from the logits by one constant for each image. Probabilities
    below 1e-30 are skipped, because their logarithms are too inexact.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        differences = np.abs(np.log(np.float64(probabilities)) - np.log(expected))
    return float(differences[expected > 1e-30].max() / largest_logit)


def check_limit(name: str, comparison: Comparison, limit: Limit) -> None:
    """Raises `Disagreement` if the comparison of an artifact exceeds its limit."""
    difference = comparison.logit_difference
    if limit.logits is not None and not difference <= limit.logits:  # NaN included.
        raise Disagreement(
            f"The logits of {name} and the Keras model differ by {difference:.1e} of "
            f"the largest logit; the limit is {limit.logits:.0e}"
        )
    if comparison.agreement < limit.agreement:
        raise Disagreement(
            f"{name} predicts the Keras model's class for {comparison.agreement:.2%} "
            f"of {comparison.images} images; the limit is {limit.agreement:.1%}"
        )
    lost = comparison.loss_interval[0]
    if limit.loss_points is not None and lost > limit.loss_points:
        raise Disagreement(
            f"{name} loses {comparison.loss_points:.1f} percentage points of accuracy "
            f"(95 % confidence: at least {lost:.1f}); the limit is {limit.loss_points}"
        )


def compare_with_check(
    probabilities: np.ndarray, check: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Compares an artifact's probabilities with the Keras model's in check.npz.

    Args:
        probabilities: Artifact's outputs for `check["image"]`, (n, classes).
        check: Arrays of check.npz: `probability`, (n, classes), and `largest_logit` of
            the Keras model. Test images also have `label`, (n,).

    Returns:
        `agreement`, `logit_difference` and, if there are labels, `right`, the number of
        images that the artifact classifies correctly.
    """
    expected = check["probability"].astype(np.float64)
    predicted = probabilities.argmax(axis=1)
    largest_logit = float(check["largest_logit"])
    results = {
        "agreement": float((predicted == expected.argmax(axis=1)).mean()),
        "logit_difference": _logit_difference(probabilities, expected, largest_logit),
    }
    if "label" in check:
        results["right"] = int((predicted == check["label"]).sum())
    return results
