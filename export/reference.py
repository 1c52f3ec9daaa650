"""Test images with the Keras model's logits, and the calibration set for int8."""

import dataclasses
import hashlib
import io
import os
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet import data
from keras_resnet.data import Dataset, Preprocessing, Split
from keras_resnet.evaluation import Classifier
from keras_resnet.support import InputError, derive_seed, write_file

from .device import softmax, strip_folders
from .formats import compute_reference_logits
from .options import ExportOptions

# Limits of the images in check.npz: uncompressed size in bytes, number of images.
MAX_CHECK_BYTES = 16 << 20
MAX_CHECK_IMAGES = 400

MAX_CALIBRATION_IMAGES = 200

# Datasets whose licences, CC BY 4.0 and MIT, allow redistribution of the images.
SHAREABLE_DATASETS = {"digits", "fashion_mnist"}

# Recipes and published weights that lose little in int8 and thus have stricter limits.
PAPER_RECIPES = {"paper_cifar", "paper_imagenet", "keras", "torchvision_v1"}


@dataclasses.dataclass(frozen=True)
class Reference:
    """Test images and the Keras model's outputs, which artifacts must reproduce."""

    images: np.ndarray  # Test images, uint8, (n, height, width, channels).
    labels: np.ndarray  # Integer classes of the test images, (n,).
    logits: np.ndarray  # Outputs of the Keras model, float64, (n, classes).
    # Arrays of check.npz: `image`, `probability`, `largest_logit`, and `label` if the
    # images are test images.
    check: dict[str, np.ndarray]
    is_modern: bool  # Whether the recipe is not one of `PAPER_RECIPES`.


def get_reference(
    dataset: Dataset, max_images: int, classifier: Classifier, share_images: bool
) -> Reference:
    """Selects evenly spaced test images and computes the Keras model's logits.

    `dataset` has the classes of the model. `share_images` is whether check.npz may
    contain test images of any licence.
    """
    preprocessing = classifier.preprocessing
    indices = _space_evenly(len(dataset.test), min(max_images, len(dataset.test)))
    images, labels = _load_images(dataset.test, indices, preprocessing)
    logits = compute_reference_logits(classifier.model, images)
    size_limit = MAX_CHECK_BYTES // images[0].nbytes
    num_check_images = max(1, min(MAX_CHECK_IMAGES, len(images), size_limit))
    if share_images or dataset.name in SHAREABLE_DATASETS:
        indices = _space_evenly(len(images), num_check_images)
        check = {"image": images[indices], "label": labels[indices]}
        check_logits = logits[indices]
    else:
        patterns = _make_patterns(4 * num_check_images, preprocessing)
        pattern_logits = compute_reference_logits(classifier.model, patterns)
        margins = np.diff(np.sort(pattern_logits, axis=1)[:, -2:])[:, 0]
        # Keep patterns with a large margin: rounding does not change their prediction.
        indices = np.sort(np.argsort(-margins, kind="stable")[:num_check_images])
        check = {"image": patterns[indices]}
        check_logits = pattern_logits[indices]
    check["probability"] = np.float32(softmax(check_logits))
    check["largest_logit"] = np.abs(check_logits).max()
    run, weights = classifier.provenance.run, str(classifier.provenance.weights)
    # The name of published weights ends with their recipe, as in "resnet50/keras".
    recipe = run.recipe_name if run else os.path.basename(weights)
    return Reference(images, labels, logits, check, recipe not in PAPER_RECIPES)


def _space_evenly(length: int, count: int) -> np.ndarray:
    """Returns `count` indices, evenly spaced from the first to the last element."""
    return np.linspace(0, length - 1, count).astype(int)


def _make_patterns(count: int, preprocessing: Preprocessing) -> np.ndarray:
    """Returns copyright-free uint8 images of smooth colour gradients with noise."""
    rng = np.random.default_rng(0)
    colours = rng.uniform(-64, 320, (count, 4, 4, preprocessing.channels))
    gradients = tf.image.resize(colours, preprocessing.shape[:2], "bicubic").numpy()
    images = gradients + rng.normal(0, 8, gradients.shape)
    return np.clip(images, 0, 255).astype(np.uint8)


def _load_images(
    split: Split, indices: np.ndarray, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the preprocessed images at `indices` of a split, and their labels."""
    subset = split.take(indices)
    try:
        return data.load_views(subset, preprocessing), subset.labels
    except tf.errors.OpError:
        data.refuse_damaged(subset, preprocessing)
        raise


def choose_calibration(
    options: ExportOptions,
    dataset: Dataset,
    preprocessing: Preprocessing,
    reference: Reference,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Selects random calibration images that are not among the test images.

    Returns:
        The images, uint8, (n, height, width, channels), and `manifest["calibration"]`.

    Raises:
        InputError: If the calibration split is empty or has only test images.
    """
    split = _load_calibration_split(options, dataset)
    rng = np.random.default_rng(derive_seed(options.seed, "calibration"))
    indices = np.sort(rng.permutation(len(split))[:MAX_CALIBRATION_IMAGES])
    images, _ = _load_images(split, indices, preprocessing)
    digests = {hashlib.sha256(image).digest() for image in reference.images}
    is_unseen = np.array([hashlib.sha256(i).digest() not in digests for i in images])
    if not is_unseen.any():
        raise InputError(
            "All calibration images are test images. Pass --calibration=folder:PATH with "
            "other images"
        )
    return images[is_unseen], {
        "dataset": strip_folders(options.calibration or dataset.name),
        "seed": options.seed,
        "images": indices[is_unseen].tolist(),
        "of": len(split),  # Number of images that the selection is drawn from.
        "left_out_as_evaluated": int((~is_unseen).sum()),  # Number of removed images.
    }


def _load_calibration_split(options: ExportOptions, dataset: Dataset) -> Split:
    name = options.calibration
    if name is None:
        split = dataset.train
    elif name.startswith("folder:"):
        paths = data.find_images([os.path.expanduser(name.removeprefix("folder:"))])
        files = [path for path in paths if os.path.isfile(path)]
        split = Split(np.array(files, object), np.zeros(len(files), np.int32), True)
    else:
        split = data.load_dataset(name, options.data_dir).train
    if not len(split):
        raise InputError(
            "int8 needs calibration images that are not test images. Accepted: "
            f"calibration=folder:PATH. Received: {name or dataset.name}, which has none"
        )
    return split


def write_check(path: str, reference: Reference) -> None:
    """Writes `reference.check` as check.npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **reference.check)  # type: ignore[arg-type] # No key is allow_pickle.
    write_file(path, buffer.getvalue())
