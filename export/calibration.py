"""The images that int8 is calibrated on."""

import hashlib
import os

import numpy as np

from keras_resnet.data import Split, find_images, load_dataset
from keras_resnet.support import InputError

from .proof import load_chosen

CALIBRATION_IMAGES = 200


def calibration_split(name, dataset, data_dir):
    """The images that some are chosen from to calibrate with."""
    if name is None:
        split = dataset.train
    elif name.startswith("folder:"):
        found = find_images([os.path.expanduser(name.removeprefix("folder:"))])
        files = [file for file in found if os.path.isfile(file)]
        split = Split(np.array(files, object), np.zeros(len(files), np.int32), True)
    else:
        split = load_dataset(name, data_dir).train
    if not len(split):
        raise InputError(
            "int8 needs images to calibrate with, other than the held-out ones: "
            f"--calibration=folder:PATH. Received: {name or dataset.name}, which has none"
        )
    return split


def choose_calibration(split, preprocessing, seed, evaluated):
    """Chooses calibration images, none of which is among the evaluated ones.

    Returns:
        uint8 (n, height, width, channels), and what the manifest says of them.
    """
    places = np.random.default_rng(seed).permutation(len(split))
    places = np.sort(places[:CALIBRATION_IMAGES])
    images, _ = load_chosen(split, places, preprocessing)
    seen = {hashlib.sha256(image).digest() for image in evaluated}
    new = np.array([hashlib.sha256(image).digest() not in seen for image in images])
    if not new.any():
        raise InputError(
            "Images to calibrate with must not be among the evaluated ones. "
            "Received: the same images for both"
        )
    return images[new], {
        "seed": seed,
        "images": places[new].tolist(),
        "of": len(split),
        "left_out_as_evaluated": int((~new).sum()),
    }
