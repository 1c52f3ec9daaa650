"""The images of an export: those that artifacts are judged on, and int8's calibration set."""

import dataclasses
import hashlib
import io
import os
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.data import (
    Dataset,
    Preprocessing,
    Split,
    find_images,
    load_dataset,
    load_views,
    refuse_damaged,
)
from keras_resnet.evaluation import Classifier
from keras_resnet.support import InputError, write_file

from .device import softmax, without_folders
from .formats import reference_logits
from .options import ExportOptions

# Largest size of the images in check.npz, uncompressed, and their largest number.
CHECK_BYTES = 16 << 20
CHECK_IMAGES = 400

CALIBRATION_IMAGES = 200

# Data sets whose licence lets anybody give their images on: CC BY 4.0 and MIT.
SHAREABLE = {"digits", "fashion_mnist"}

# Recipes and weights of which int8 is known to lose little accuracy.
AS_THE_PAPER = {"paper_cifar", "paper_imagenet", "keras", "torchvision_v1"}


@dataclasses.dataclass(frozen=True)
class Proof:
    """What artifacts are judged on."""

    images: np.ndarray  # Held-out ones, uint8, (n, height, width, channels).
    labels: np.ndarray  # Whole numbers, (n,).
    logits: np.ndarray  # The Keras model's, float64, (n, classes).
    # The content of check.npz: `image`, `probability`, `largest_logit` and, if the
    # images are real ones, `label`.
    check: dict[str, np.ndarray]
    modern: bool  # Whether the network was trained by more than the paper's recipe.


def prove_on(
    dataset: Dataset, count: int, classifier: Classifier, share_images: bool
) -> Proof:
    """Chooses held-out images, evenly, and computes the Keras model's answers.

    Args:
        dataset: The data set, whose classes are the model's.
        count: Number of held-out images, at most.
        classifier: The network.
        share_images: Whether check.npz may have held-out images whatever their licence.
    """
    preprocessing = classifier.preprocessing
    chosen = _evenly(len(dataset.test), min(count, len(dataset.test)))
    images, labels = _load_chosen(dataset.test, chosen, preprocessing)
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
    run, weights = classifier.provenance.run, str(classifier.provenance.weights)
    origin = run.recipe_name if run else os.path.basename(weights)  # No network's name.
    return Proof(images, labels, logits, check, origin not in AS_THE_PAPER)


def _evenly(length: int, count: int) -> np.ndarray:
    """Indices of `count` elements, evenly spaced from the first to the last."""
    return np.linspace(0, length - 1, count).astype(int)


def _make_patterns(count: int, preprocessing: Preprocessing) -> np.ndarray:
    """Makes uint8 images that nobody owns: smooth colour gradients with noise."""
    draws = np.random.default_rng(0)
    coarse = draws.uniform(-64, 320, (count, 4, 4, preprocessing.channels))
    smooth = tf.image.resize(coarse, preprocessing.shape[:2], "bicubic").numpy()
    noisy = smooth + draws.normal(0, 8, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _load_chosen(
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


def choose_calibration(
    options: ExportOptions, dataset: Dataset, preprocessing: Preprocessing, proof: Proof
) -> tuple[np.ndarray, dict[str, Any]]:
    """Chooses the calibration set, without images of the proof.

    Returns:
        The images, uint8, (n, height, width, channels), and what the manifest says of
        them.

    Raises:
        InputError: There are no images, or only evaluated ones.
    """
    split = _split(options, dataset)
    chosen = np.random.default_rng(options.seed).permutation(len(split))
    chosen = np.sort(chosen[:CALIBRATION_IMAGES])
    images, _ = _load_chosen(split, chosen, preprocessing)
    digests = {hashlib.sha256(image).digest() for image in proof.images}
    is_new = np.array([hashlib.sha256(i).digest() not in digests for i in images])
    if not is_new.any():
        raise InputError(
            "Images to calibrate with must not be among the evaluated ones. "
            "Received: the same images for both"
        )
    return images[is_new], {
        "dataset": without_folders(options.calibration or dataset.name),
        "seed": options.seed,
        "images": chosen[is_new].tolist(),
        "of": len(split),
        "left_out_as_evaluated": int((~is_new).sum()),
    }


def _split(options: ExportOptions, dataset: Dataset) -> Split:
    name = options.calibration
    if name is None:
        split = dataset.train
    elif name.startswith("folder:"):
        paths = find_images([os.path.expanduser(name.removeprefix("folder:"))])
        files = [path for path in paths if os.path.isfile(path)]
        split = Split(np.array(files, object), np.zeros(len(files), np.int32), True)
    else:
        split = load_dataset(name, options.data_dir).train
    if not len(split):
        raise InputError(
            "int8 needs images to calibrate with, other than the held-out ones: "
            f"--calibration=folder:PATH. Received: {name or dataset.name}, which has none"
        )
    return split


def write_check(path: str, proof: Proof) -> None:
    """Writes check.npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **proof.check)  # type: ignore[arg-type] # No bool named allow_pickle.
    write_file(path, buffer.getvalue())
