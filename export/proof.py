"""What artifacts are judged on: held-out images and the Keras model's answers."""

import dataclasses
import io

import numpy as np
import tensorflow as tf

from keras_resnet.data import Dataset, Preprocessing, Split, load_views, refuse_damaged
from keras_resnet.evaluation import Classifier
from keras_resnet.spec import Provenance
from keras_resnet.support import write_file

from .device import Limit, limit_of, softmax
from .formats import reference_logits

# Largest size of the images in check.npz, uncompressed, and their largest number.
CHECK_BYTES = 16 << 20


CHECK_IMAGES = 400


# Data sets whose licence lets anybody give their images on: CC BY 4.0 and MIT.
SHAREABLE = {"digits", "fashion_mnist"}


# Recipes and weights of which int8 is known to lose little accuracy.
AS_THE_PAPER = {"paper_cifar", "paper_imagenet", "keras", "torchvision_v1"}


@dataclasses.dataclass(frozen=True)
class Proof:
    """What artifacts are judged on.

    Attributes:
        images: Held-out images, uint8, (n, height, width, channels).
        labels: Whole numbers, (n,).
        logits: The Keras model's logits, float64, (n, classes).
        check: The content of check.npz: `image`, `probability`, `largest_logit` and,
            if the images are real ones, `label`.
        modern: Whether the network was trained by more than the paper's recipe.
    """

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    check: dict[str, np.ndarray]
    modern: bool

    def limit(self, precision: str) -> Limit:
        """Returns what an artifact of a precision may differ by."""
        return limit_of(precision, len(self.labels), self.modern)


def prove_on(
    dataset: Dataset, count: int, classifier: Classifier, share_images: bool
) -> Proof:
    """Chooses held-out images, evenly, and computes the Keras model's answers.

    Args:
        dataset: The data set, whose classes are the model's.
        count: Number of held-out images, at most.
        classifier: The network.
        share_images: Whether held-out images may be put into check.npz whatever
            their licence.
    """
    preprocessing = classifier.preprocessing
    chosen = _evenly(len(dataset.test), min(count, len(dataset.test)))
    images, labels = load_chosen(dataset.test, chosen, preprocessing)
    logits = reference_logits(classifier.model, images)
    size = max(1, min(CHECK_IMAGES, len(images), CHECK_BYTES // images[0].nbytes))
    if share_images or dataset.name in SHAREABLE:
        shared = _evenly(len(images), size)
        check = {"image": images[shared], "label": labels[shared]}
        check_logits = logits[shared]
    else:
        patterns = _make_patterns(4 * size, preprocessing)
        pattern_logits = reference_logits(classifier.model, patterns)
        second, first = np.sort(pattern_logits, axis=1)[:, -2:].T
        # The clearest answers, so that rounding does not change the class.
        clearest = np.sort(np.argsort(second - first, kind="stable")[:size])
        check = {"image": patterns[clearest]}
        check_logits = pattern_logits[clearest]
    check["probability"] = np.float32(softmax(check_logits))
    check["largest_logit"] = np.abs(check_logits).max()
    modern = _origin(classifier.provenance) not in AS_THE_PAPER
    return Proof(images, labels, logits, check, modern)


def _evenly(length: int, count: int) -> np.ndarray:
    """Indices of `count` elements, evenly spaced from the first to the last."""
    return np.linspace(0, length - 1, count).astype(int)


def _origin(provenance: Provenance) -> str:
    """Name of the recipe, or of the published weights without their network."""
    if provenance.run:
        return provenance.run.recipe_name
    return str(provenance.weights).split("/")[-1]


def _make_patterns(
    count: int, preprocessing: Preprocessing, seed: int = 0
) -> np.ndarray:
    """Makes images that nobody owns: smooth colour gradients with noise.

    Returns:
        uint8, (count, height, width, channels).
    """
    draws = np.random.default_rng(seed)
    coarse = draws.uniform(-64, 320, (count, 4, 4, preprocessing.channels))
    smooth = tf.image.resize(coarse, preprocessing.shape[:2], "bicubic").numpy()
    noisy = smooth + draws.normal(0, 8, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def load_chosen(
    split: Split, indices: np.ndarray, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Returns chosen images of a split, as the network sees them, and their labels.

    Raises:
        InputError: Some of the images are damaged. The message names them.
    """
    chosen = split.take(indices)
    try:
        return load_views(chosen, preprocessing), chosen.labels
    except tf.errors.OpError:
        refuse_damaged(chosen, preprocessing)
        raise


def write_check(path: str, proof: Proof) -> None:
    """Writes check.npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **proof.check)  # type: ignore[arg-type] # No bool named allow_pickle.
    write_file(path, buffer.getvalue())
