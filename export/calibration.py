"""The images that int8 is calibrated on."""

import hashlib
import os

import numpy as np

from keras_resnet.data import Dataset, Preprocessing, Split, find_images, load_dataset
from keras_resnet.support import InputError

from .device import CalibrationRow, without_folders
from .options import ExportOptions
from .proof import load_chosen

CALIBRATION_IMAGES = 200


def choose_calibration(
    options: ExportOptions,
    dataset: Dataset,
    preprocessing: Preprocessing,
    evaluated: np.ndarray,
) -> tuple[np.ndarray, CalibrationRow]:
    """Chooses the calibration set. It has none of the evaluated images.

    Args:
        options: The options; `calibration` names the images to choose from.
        dataset: The data set that artifacts are judged on.
        preprocessing: From an image to the network's input.
        evaluated: Held-out images, uint8, (n, height, width, channels).

    Returns:
        The images, uint8, (n, height, width, channels), and what the manifest says of
        them.

    Raises:
        InputError: There are no images, or only evaluated ones.
    """
    split = _split(options, dataset)
    chosen = np.random.default_rng(options.seed).permutation(len(split))
    chosen = np.sort(chosen[:CALIBRATION_IMAGES])
    images, _ = load_chosen(split, chosen, preprocessing)
    digests = {hashlib.sha256(image).digest() for image in evaluated}
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
    """The images to choose from."""
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
