"""Comparison of an artifact with its Keras model, and accepted differences.

There are two kinds of limit. A float32 artifact must compute the logits of the Keras
model, up to rounding. An artifact of lower precision must predict nearly the same
classes and lose little accuracy. The accuracy loss is estimated from the test images
that only the artifact or only the Keras model classifies correctly.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from keras_resnet.support import InputError


@dataclasses.dataclass(frozen=True)
class Limit:
    """Largest accepted difference between an artifact and its Keras model."""

    agreement: float  # Smallest accepted `Comparison.agreement`.
    logits: float | None = None  # Largest accepted `Comparison.logit_difference`.
    loss_points: float | None = None  # Largest accepted `Comparison.loss_interval[0]`.


# Limits by the precision in which an artifact computes.
LIMITS = {
    "float32": Limit(1.0, logits=1e-4),
    "float16": Limit(0.995),
    "int8": Limit(0.95, loss_points=0.5),
}

# With at least `MIN_IMAGES_FOR_LOSS_POINTS` test images, `MAX_LOSS_POINTS` replaces
# `loss_points` of the int8 limit. "paper" is for `PAPER_RECIPES`, "modern" for others.
MIN_IMAGES_FOR_LOSS_POINTS = 5000
MAX_LOSS_POINTS = {"paper": 0.3, "modern": 0.6}

# Largest fraction of the images in check.npz whose predicted class may differ between
# the device and the export, by precision. Kernels of other machines round differently.
DRIFT_LIMITS = {"float32": 0.01, "float16": 0.01, "int8": 0.05}


def find_limit(precision: str, num_images: int, is_modern: bool) -> Limit:
    """Returns the limit for an artifact whose precision is a key of `LIMITS`.

    `is_modern` is whether the network's recipe is newer than the paper's recipes.
    """
    limit = LIMITS[precision]
    if limit.loss_points is None or num_images < MIN_IMAGES_FOR_LOSS_POINTS:
        return limit
    points = MAX_LOSS_POINTS["modern" if is_modern else "paper"]
    return dataclasses.replace(limit, loss_points=points)


class Disagreement(InputError):
    """An artifact differs from its Keras model by more than the limit."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of an artifact and its Keras model on the same images."""

    images: int  # Number of images.
    right: int  # Number of images that the artifact classifies correctly.
    keras_right: int  # Number of images that the Keras model classifies correctly.
    agreement: float  # Fraction of images with equal predicted classes.
    loss_points: float  # Accuracy lost by the artifact, in percentage points.
    loss_interval: tuple[float, float]  # 95 % confidence interval of `loss_points`.
    # Largest absolute difference between probabilities of artifact and Keras model.
    difference: float
    # Largest absolute difference between logits of artifact and Keras model, divided by
    # the largest absolute logit. Infinite if a probability of the artifact is 0.
    logit_difference: float


def compare(
    probabilities: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> Comparison:
    """Compares an artifact's probabilities with its Keras model's logits.

    Both arrays have the shape (n, classes). `labels` has the integer classes, (n,).
    """
    expected, largest_logit = softmax(logits), float(np.abs(logits).max())
    predicted, keras_predicted = probabilities.argmax(axis=1), logits.argmax(axis=1)
    correct, keras_correct = predicted == labels, keras_predicted == labels
    num_lost = int((keras_correct & ~correct).sum())
    num_won = int((correct & ~keras_correct).sum())
    return Comparison(
        images=len(labels),
        right=int(correct.sum()),
        keras_right=int(keras_correct.sum()),
        agreement=float((predicted == keras_predicted).mean()),
        loss_points=100 * (num_lost - num_won) / len(labels),
        loss_interval=paired_interval(num_lost, num_won, len(labels)),
        difference=float(np.abs(probabilities - expected).max()),
        logit_difference=_compare_logits(probabilities, expected, largest_logit),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax of logits, (n, classes), in the dtype of the logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def paired_interval(lost: float, won: float, total: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of an accuracy loss, in percentage points.

    Only the Keras model classifies `lost` of `total` images correctly, and only the
    artifact `won` images. Half an image is added to each of the four outcomes (both
    correct, only one, none) before Wald's interval is computed. This correction keeps
    the coverage at 95 % even if few images differ. Source: Agresti and Min 2005,
    "Simple improved confidence intervals for comparing matched proportions".
    """
    lost, won, total = lost + 0.5, won + 0.5, total + 2
    middle = (lost - won) / total
    margin = 1.96 * math.sqrt(lost + won - (lost - won) ** 2 / total) / total
    return 100 * (middle - margin), 100 * (middle + margin)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns Wilson's (1927) 95 % confidence interval of `correct / total`."""
    fraction, z = correct / total, 1.96
    middle = (fraction + z**2 / (2 * total)) / (1 + z**2 / total)
    margin = z * math.sqrt(fraction * (1 - fraction) / total + z**2 / (4 * total**2))
    margin /= 1 + z**2 / total
    return middle - margin, middle + margin


def _compare_logits(
    probabilities: np.ndarray, expected: np.ndarray, largest_logit: float
) -> float:
    """Returns `Comparison.logit_difference`.

    Artifacts output only probabilities, so the logarithms of the probabilities are
    compared. These are the logits minus a constant for each image. `expected` has the
    Keras model's probabilities; values below 1e-30 are skipped as numerically inexact.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        differences = np.abs(np.log(np.float64(probabilities)) - np.log(expected))
    return float(differences[expected > 1e-30].max() / largest_logit)


def check_limit(name: str, comparison: Comparison, limit: Limit) -> None:
    """Raises `Disagreement` if the comparison of an artifact exceeds its limit."""
    difference = comparison.logit_difference
    if limit.logits is not None and not difference <= limit.logits:  # Rejects NaN.
        raise Disagreement(
            f"The logits of {name} and the Keras model differ by {difference:.1e} of "
            f"the largest logit; the limit is {limit.logits:.0e}"
        )
    if comparison.agreement < limit.agreement:
        raise Disagreement(
            f"{name} predicts the Keras model's class for {comparison.agreement:.2%} "
            f"of {comparison.images} images; the limit is {limit.agreement:.1%}"
        )
    min_loss = comparison.loss_interval[0]
    if limit.loss_points is not None and min_loss > limit.loss_points:
        raise Disagreement(
            f"{name} loses {comparison.loss_points:.1f} percentage points of accuracy "
            f"(95 % confidence: at least {min_loss:.1f}); the limit is {limit.loss_points}"
        )


def compare_with_check(
    probabilities: np.ndarray, check: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Compares an artifact's probabilities with the Keras model's in check.npz.

    Args:
        probabilities: Artifact's outputs for `check["image"]`, (n, classes).
        check: Arrays of check.npz: `probability`, (n, classes), and `largest_logit` of
            the Keras model. If the images are test images, also `label`, (n,).

    Returns:
        A dict with `agreement` and `logit_difference` of `Comparison`. If `check` has
        `label`, also with `right`, the number of correctly classified images.

    Raises:
        ValueError: If the artifact's outputs have another shape.
    """
    expected = check["probability"].astype(np.float64)
    if probabilities.shape != expected.shape:
        raise ValueError(
            f"its outputs have the shape {probabilities.shape}, not {expected.shape}"
        )
    predicted = probabilities.argmax(axis=1)
    largest_logit = float(check["largest_logit"])
    results = {
        "agreement": float((predicted == expected.argmax(axis=1)).mean()),
        "logit_difference": _compare_logits(probabilities, expected, largest_logit),
    }
    if "label" in check:
        results["right"] = int((predicted == check["label"]).sum())
    return results
