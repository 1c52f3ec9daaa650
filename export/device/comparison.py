"""Whether an artifact agrees with its Keras model.

Two kinds of limit. An artifact in float32 must give the same logits, up to
rounding. One in lower precision is judged on held-out images by a paired
comparison: which images the one has right and the other wrong.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from keras_resnet.support import InputError


@dataclasses.dataclass(frozen=True)
class Limit:
    """What an artifact may differ by from its Keras model; see `Comparison`."""

    agreement: float
    logits: float | None = None
    loss_points: float | None = None  # For the lower end of the 95 % interval.


# By the precision in which an artifact computes.
LIMITS = {
    "float32": Limit(1.0, logits=1e-4),
    "float16": Limit(0.995),
    "int8": Limit(0.95, loss_points=0.5),
}

# With at least MANY images, int8 has narrower limits: one for networks that were
# trained by the paper's recipe, one for newer recipes.
MANY = 5000
LOSS_POINTS = {"paper": 0.3, "modern": 0.6}

# Kernels of another machine round differently: fraction of the images in check.npz
# whose answer may differ from that at export, by precision.
DRIFT = {"float32": 0.01, "float16": 0.01, "int8": 0.05}


def limit_of(precision: str, images: int, modern: bool) -> Limit:
    """Returns the limit of an artifact that is judged on so many images.

    `modern` says whether the network was trained by more than the paper's recipe.
    """
    limit = LIMITS[precision]
    if limit.loss_points is None or images < MANY:
        return limit
    points = LOSS_POINTS["modern" if modern else "paper"]
    return dataclasses.replace(limit, loss_points=points)


class Disagreement(InputError):
    """An artifact differs from its Keras model by more than the limit."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An artifact beside its Keras model on the same images."""

    images: int
    right: int  # Images that the artifact classifies correctly.
    keras_right: int  # Images that the Keras model classifies correctly.
    agreement: float  # Fraction of the images on which both name the same class.
    loss_points: float  # Accuracy lost by the artifact, in percentage points.
    loss_interval: tuple[float, float]  # 95 % interval of `loss_points`.
    difference: float  # The largest one of any probability.
    # The largest one of any logit, as a fraction of the largest logit; infinite if a
    # probability is 0, as in int8.
    logit_difference: float


def compare(
    probabilities: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> Comparison:
    """Compares an artifact's probabilities with a Keras model's logits.

    Both are (n, classes); the labels are whole numbers, (n,).
    """
    expected, largest = softmax(logits), float(np.abs(logits).max())
    named, keras_named = probabilities.argmax(axis=1), logits.argmax(axis=1)
    right, keras_right = named == labels, keras_named == labels
    lost, won = int((keras_right & ~right).sum()), int((right & ~keras_right).sum())
    return Comparison(
        images=len(labels),
        right=int(right.sum()),
        keras_right=int(keras_right.sum()),
        agreement=float((named == keras_named).mean()),
        loss_points=100 * (lost - won) / len(labels),
        loss_interval=paired_interval(lost, won, len(labels)),
        difference=float(np.abs(probabilities - expected).max()),
        logit_difference=_logit_difference(probabilities, expected, largest),
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of logits, (n, classes), in the type of the logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def paired_interval(lost: float, won: float, images: int) -> tuple[float, float]:
    """Returns the 95 % interval of a difference of paired proportions, in points.

    Agresti and Min 2005, "Simple improved confidence intervals for comparing
    matched proportions": Wald's interval after half an image is added to each of
    the four outcomes. It holds its level where few images differ. `lost` is the number
    of images that only the first classifies correctly, `won` that of the second.
    """
    lost, won, images = lost + 0.5, won + 0.5, images + 2
    middle = (lost - won) / images
    half = 1.96 * math.sqrt(lost + won - (lost - won) ** 2 / images) / images
    return 100 * (middle - half), 100 * (middle + half)


def wilson(right: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion, from 0 to 1 (Wilson 1927)."""
    share, z = right / total, 1.96
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    half /= 1 + z**2 / total
    return middle - half, middle + half


def _logit_difference(
    probabilities: np.ndarray, expected: np.ndarray, largest: float
) -> float:
    """Largest difference of any logit, as a fraction of the largest logit.

    The logarithm of a softmax is its logits less one number for each image. Of a
    probability below 1e-30 the logarithm is too inexact to compare.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        differences = np.abs(np.log(np.float64(probabilities)) - np.log(expected))
    return float(differences[expected > 1e-30].max() / largest)


def judge(name: str, comparison: Comparison, limit: Limit) -> None:
    """Refuses an artifact of that name by a `Disagreement` that names the limit."""
    difference = comparison.logit_difference
    if limit.logits is not None and not difference <= limit.logits:  # NaN included.
        raise Disagreement(
            f"{name} differs from its Keras model by {difference:.1e} of the largest "
            f"logit; the limit is {limit.logits:.0e}"
        )
    if comparison.agreement < limit.agreement:
        raise Disagreement(
            f"{name} names the same class as its Keras model on {comparison.agreement:.2%} "
            f"of {comparison.images} images; the limit is {limit.agreement:.1%}"
        )
    lost = comparison.loss_interval[0]
    if limit.loss_points is not None and lost > limit.loss_points:
        raise Disagreement(
            f"{name} loses {comparison.loss_points:.1f} points of accuracy, at least "
            f"{lost:.1f} with 95 % confidence; the limit is {limit.loss_points}"
        )


def check_answers(
    answers: np.ndarray, check: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Compares probabilities, (n, classes), with those in a bundle's `check.npz`.

    That has `probability` and `largest_logit` of the Keras model and, if the images are
    real ones, `label`, (n,). Returns `agreement`, `logit_difference` and, then, `right`.
    """
    expected = check["probability"].astype(np.float64)
    named = answers.argmax(axis=1)
    largest = float(check["largest_logit"])
    row = {
        "agreement": float((named == expected.argmax(axis=1)).mean()),
        "logit_difference": _logit_difference(answers, expected, largest),
    }
    if "label" in check:
        row["right"] = int((named == check["label"]).sum())
    return row
