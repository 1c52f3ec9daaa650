"""Whether an artifact agrees with its Keras model.

Two kinds of limit. An artifact in float32 must give the same logits, up to
rounding. One in lower precision is judged on held-out images by a paired
comparison: which images the one has right and the other wrong.
"""

import dataclasses
import math

import numpy as np

from keras_resnet.errors import InputError

# Largest difference of a float32 artifact's logits, over the largest logit.
CLOSE = 1e-4
# Of a lower precision: accuracy that it may be shown to lose, in points, and
# the share of images on which it must name the same class.
LOSS_POINTS = 0.5
AGREEMENT = 0.95


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
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
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
        difference=float(np.abs(probabilities - softmax).max()),
        logit_difference=_logit_difference(probabilities, softmax, logits),
    )


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


def _logit_difference(probabilities, softmax, logits):
    """Largest difference of any logit, over the largest logit.

    The logarithm of a softmax is its logits less a number for each image; where
    a probability is below 1e-30, too little of it is left to tell.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        differences = np.abs(np.log(np.float64(probabilities)) - np.log(softmax))
    return float(differences[softmax > 1e-30].max() / np.abs(logits).max())


def judge(name, comparison, exact):
    """Refuses an artifact that disagrees beyond the limit.

    Args:
        name: of the artifact.
        comparison: a `Comparison`.
        exact: whether it computes in float32.

    Raises:
        Disagreement: naming the limit.
    """
    if exact:
        if not comparison.logit_difference <= CLOSE:  # NaN included.
            raise Disagreement(
                f"{name} differs from its Keras model by {comparison.logit_difference:.1e} of the "
                f"largest logit; the limit is {CLOSE:.0e}. Nothing was written"
            )
        return
    if comparison.agreement < AGREEMENT:
        raise Disagreement(
            f"{name} names the same class as its Keras model on {comparison.agreement:.1%} "
            f"of {comparison.images} images; the limit is {AGREEMENT:.0%}. Nothing was written"
        )
    if comparison.loss_interval[0] > LOSS_POINTS:
        raise Disagreement(
            f"{name} loses {comparison.loss_points:.1f} points of accuracy, at least "
            f"{comparison.loss_interval[0]:.1f} with 95 % confidence; the limit is "
            f"{LOSS_POINTS}. Nothing was written"
        )
