"""Whether an artifact agrees with its Keras model."""

import dataclasses
import math

import numpy as np

from keras_resnet.support import InputError


@dataclasses.dataclass(frozen=True)
class Limit:
    """What an artifact may differ by from its Keras model.

    Attributes:
        agreement: share of the images on which it must name the same class.
        logits: largest difference of a logit, over the largest logit.
        loss_points: accuracy that it may be shown to lose, in points: the lower end
            of the 95 % interval may not lie above it.
    """

    agreement: float
    logits: float | None = None
    loss_points: float | None = None


# By the precision in which an artifact computes.
LIMITS = {
    "float32": Limit(1.0, logits=1e-4),
    "float16": Limit(0.995),
    "int8": Limit(0.95, loss_points=0.5),
}


# Where there are images enough to tell: int8 of nets that were trained as the paper
# has it, and as is done since.
MANY = 5000


LOSS_POINTS = {"paper": 0.3, "modern": 0.6}


# An artifact's answers to the images of check.npz on another machine, whose kernels
# round otherwise: share of them that may differ from those at export, by precision.
DRIFT = {"float32": 0.01, "float16": 0.01, "int8": 0.05}


def limit_of(precision, images, modern):
    """Returns the `Limit` of an artifact.

    Args:
        precision: a key of `LIMITS`.
        images: the number that it is judged on.
        modern: whether the network was trained by more than the paper's recipe.
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
    """An artifact beside its Keras model on the same images.

    Attributes:
        images: their number.
        right: how many the artifact names rightly.
        keras_right: how many the Keras model does.
        agreement: share on which both name the same class.
        loss_points: accuracy lost by the artifact, in points.
        loss_interval: its 95 % interval, in points.
        difference: the largest difference of any probability.
        logit_difference: the largest difference of any logit, over the largest
            logit; infinite where a probability is 0, as in int8.
    """

    images: int
    right: int
    keras_right: int
    agreement: float
    loss_points: float
    loss_interval: tuple[float, float]
    difference: float
    logit_difference: float


def compare(probabilities, logits, labels):
    """Compares an artifact's probabilities with a Keras model's logits.

    Args:
        probabilities: of the artifact, (n, classes).
        logits: of the Keras model, (n, classes).
        labels: whole numbers (n,).

    Returns:
        A `Comparison`.
    """
    expected_shares = softmax(logits)
    named, expected = probabilities.argmax(axis=1), logits.argmax(axis=1)
    right, keras_right = named == labels, expected == labels
    lost, won = int((keras_right & ~right).sum()), int((right & ~keras_right).sum())
    return Comparison(
        images=len(labels),
        right=int(right.sum()),
        keras_right=int(keras_right.sum()),
        agreement=float((named == expected).mean()),
        loss_points=100 * (lost - won) / len(labels),
        loss_interval=paired_interval(lost, won, len(labels)),
        difference=float(np.abs(probabilities - expected_shares).max()),
        logit_difference=_logit_difference(
            probabilities, expected_shares, np.abs(logits).max()
        ),
    )


def softmax(logits):
    """Probabilities of logits, (n, classes), in float64."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def paired_interval(lost, won, images):
    """95 % interval of a difference of paired proportions, in points.

    Agresti and Min 2005, "Simple improved confidence intervals for comparing
    matched proportions": Wald's interval after adding half an image to each of
    the four outcomes, which keeps it honest where few images differ.

    Args:
        lost: images that only the first has right.
        won: images that only the second has right.
        images: their number.
    """
    lost, won, images = lost + 0.5, won + 0.5, images + 2
    middle = (lost - won) / images
    half = 1.96 * math.sqrt(lost + won - (lost - won) ** 2 / images) / images
    return 100 * (middle - half), 100 * (middle + half)


def _logit_difference(probabilities, expected, largest):
    """Largest difference of any logit, over the largest logit.

    The logarithm of a softmax is its logits less a number for each image; where
    a probability is below 1e-30, too little of it is left to tell.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        differences = np.abs(np.log(np.float64(probabilities)) - np.log(expected))
    return float(differences[expected > 1e-30].max() / largest)


def judge(name, comparison, limit):
    """Refuses an artifact that disagrees beyond the limit.

    Args:
        name: of the artifact.
        comparison: a `Comparison`.
        limit: a `Limit`.

    Raises:
        Disagreement: naming the limit.
    """
    found = comparison.logit_difference
    if limit.logits is not None and not found <= limit.logits:  # NaN included.
        raise Disagreement(
            f"{name} differs from its Keras model by {found:.1e} of the largest logit; "
            f"the limit is {limit.logits:.0e}"
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


def check_answers(answers, check):
    """Holds probabilities against those of a bundle's `check.npz`.

    Args:
        answers: (n, classes).
        check: with `probability` (n, classes), Keras's, `largest_logit`, the largest of
            its logits, and, of real images, `label` (n,).

    Returns:
        A dict with `agreement`, `logit_difference` and, of real images, `right`.
    """
    expected = np.float64(check["probability"])
    named = answers.argmax(axis=1)
    found = {
        "agreement": float((named == expected.argmax(axis=1)).mean()),
        "logit_difference": _logit_difference(
            answers, expected, check["largest_logit"]
        ),
    }
    if "label" in check:
        found["right"] = int((named == check["label"]).sum())
    return found
