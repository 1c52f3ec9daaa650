"""What artifacts are judged on: held-out images and the Keras model's answers."""

import dataclasses
import io

import numpy as np
import tensorflow as tf

from keras_resnet.data import load_views, refuse_damaged
from keras_resnet.support import write_file

from .device import limit_of, softmax
from .formats import reference_logits

# Of check.npz, uncompressed, and how many images at most.
CHECK_BYTES = 16 << 20


CHECK_IMAGES = 400


# Data sets whose licence lets anybody give their images on: CC BY 4.0 and MIT.
SHAREABLE = {"digits", "fashion_mnist"}


# Recipes and weights that int8 is known to lose little of.
AS_THE_PAPER = {"paper_cifar", "paper_imagenet", "keras", "torchvision_v1"}


@dataclasses.dataclass(frozen=True)
class Proof:
    """What artifacts are judged on.

    Attributes:
        images: uint8 (n, height, width, channels), held out.
        labels: whole numbers (n,).
        logits: of the Keras model, (n, classes).
        check: of check.npz: `image`, `probability`, `largest_logit` and, of real
            images, `label`.
        modern: whether the network was trained by more than the paper's recipe.
    """

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    check: dict
    modern: bool

    def limit(self, artifact):
        """What an artifact may differ by: a `verify.Limit`."""
        return limit_of(artifact.precision, len(self.labels), self.modern)


def prove_on(dataset, count, classifier, share_images):
    """Chooses what to judge on, evenly over the held-out images, and asks Keras."""
    held_out = dataset.test
    places = np.linspace(0, len(held_out) - 1, min(count, len(held_out))).astype(int)
    images, labels = load_chosen(held_out, places, classifier.preprocessing)
    logits = reference_logits(classifier.model, images)
    size = max(1, min(CHECK_IMAGES, len(images), CHECK_BYTES // images[0].nbytes))
    if share_images or dataset.name in SHAREABLE:
        some = np.linspace(0, len(images) - 1, size).astype(int)
        check = {"image": images[some], "label": labels[some]}
        asked = logits[some]
    else:
        patterns = _patterns(4 * size, classifier.preprocessing)
        answers = reference_logits(classifier.model, patterns)
        second, first = np.sort(answers, axis=1)[:, -2:].T
        # The surest, so that rounding does not decide.
        surest = np.sort(np.argsort(second - first, kind="stable")[:size])
        check = {"image": patterns[surest]}
        asked = answers[surest]
    check["probability"] = np.float32(softmax(asked))
    check["largest_logit"] = np.abs(asked).max()
    settings = classifier.settings
    origin = settings.get("recipe", str(settings.get("weights")).split("/")[-1])
    return Proof(images, labels, logits, check, origin not in AS_THE_PAPER)


def _patterns(count, preprocessing, seed=0):
    """Images that nobody owns: colours that run into each other, and noise.

    Returns:
        uint8 (count, height, width, channels).
    """
    draws = np.random.default_rng(seed)
    coarse = draws.uniform(-64, 320, (count, 4, 4, preprocessing.channels))
    smooth = tf.image.resize(coarse, preprocessing.shape[:2], "bicubic").numpy()
    noisy = smooth + draws.normal(0, 8, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def load_chosen(split, places, preprocessing):
    """The chosen images of a split, as the network sees them, and their labels."""
    chosen = split.take(places)
    try:
        return load_views(chosen, preprocessing), chosen.labels
    except tf.errors.OpError:
        refuse_damaged(chosen, preprocessing)
        raise


def write_check(path, proof):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **proof.check)
    write_file(path, buffer.getvalue())
