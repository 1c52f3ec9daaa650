"""Data sets by name.

Small images are held in memory, as pixels; larger ones lie in files, one each or
many as the records of one, and are read where they are, in any order.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from keras_resnet.data import records
from keras_resnet.data.decoding import IMAGE_FORMATS
from keras_resnet.data.record_index import read_records
from keras_resnet.data.splits import Dataset, Split, check_labels, unnamed_classes
from keras_resnet.data.tfds_sets import load_tfds
from keras_resnet.support import InputError

IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


def resolve_dataset_name(name: str) -> str:
    """Returns the name of a data set with the whole path of a folder in it."""
    kind, _, path = name.partition(":")
    if kind not in ("folder", "tfrecord") or "://" in path:
        return name
    return f"{kind}:{os.path.abspath(os.path.expanduser(path))}"


def load_dataset(
    name: str, data_dir: str | None = None, only_test: bool = False
) -> Dataset:
    """Loads a data set.

    Args:
        name: `"digits"`, scikit-learn's 1,797 handwritten digits of 8x8 pixels, of
            which a fifth is held out; `"folder:PATH"`, image files in one folder for
            each class, below PATH/train and PATH/test (or PATH/val) or right below
            PATH, where a fifth of each class is held out; `"tfrecord:PATH"`, a folder
            of TFRecord files (see `keras_resnet.data.records.find`); or any image
            classification set of TFDS, such as `"cifar10"` or `"imagenet2012"`.
        data_dir: Folder where TFDS keeps its sets; `None` is its own default.
        only_test: Whether no training images are wanted: those of a TFDS set are
            not read, and a folder without a part held out is one, whole.

    Returns:
        The data set; with `only_test` its `train` may be empty.

    Raises:
        InputError: There is no such data set, or it cannot be used.
    """
    name = resolve_dataset_name(name)
    if name == "digits":
        dataset = _digits()
    elif name.startswith("folder:"):
        dataset = _folder(name, only_test)
    elif name.startswith("tfrecord:"):
        dataset = _tfrecord(name, only_test)
    else:
        dataset = load_tfds(name, data_dir, only_test)
    for split in (dataset.train, dataset.test):
        check_labels(name, split, dataset.classes)
    return dataset


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    places = np.arange(len(labels))
    parts = train_test_split(places, test_size=0.2, random_state=0, stratify=labels)
    train, test = (Split(images[part], labels[part]) for part in parts)
    classes = tuple(map(str, digits.target_names))
    return Dataset("digits", classes, train, test, (8, 8, 1), own_split=False)


def _folder(name: str, only_test: bool) -> Dataset:
    path = name.removeprefix("folder:")
    if not os.path.isdir(path):
        raise InputError(
            f"There is no such folder. Accepted: folder:PATH. Received: {name}"
        )
    parts = {part: os.path.join(path, part) for part in ("train", *records.HELD_OUT)}
    parts = {part: where for part, where in parts.items() if os.path.isdir(where)}
    held_out = [part for part in parts if part != "train"]
    own_split = "train" in parts and bool(held_out)
    if own_split:
        classes = _class_folders(parts["train"])
        train, test = (_files(parts[p], classes) for p in ("train", held_out[0]))
    else:
        classes = _class_folders(path)
        files = _files(path, classes)
        # Every fifth file of each class, in the order of their names.
        place = np.concatenate([np.arange(n) for n in np.bincount(files.labels)])
        out = (place % 5 == 4) | only_test
        train, test = files.take(~out), files.take(out)
    held = np.bincount(test.labels, minlength=len(classes))
    if not only_test and (not len(train) or not held.all()):
        raise InputError(
            "Each class needs at least five images, or there must be folders train and "
            f"test with images of each. Received: {name} with {len(train)} images to "
            f"train on and, held out of each class, {held.tolist()}"
        )
    return Dataset(name, tuple(classes), train, test, None, own_split)


def _class_folders(path: str) -> list[str]:
    names = (entry.name for entry in os.scandir(path) if entry.is_dir())
    classes = sorted(name for name in names if not name.startswith("."))
    for name in classes:
        if any("\ud800" <= c <= "\udfff" for c in name):  # Bytes that are no text.
            raise InputError(
                "The name of a class, that of its folder, must be valid UTF-8. "
                f"Received: {os.fsencode(name)!r} in {path}"
            )
    if len(classes) < 2:
        raise InputError(
            "Images must lie in at least two folders, one for each class. "
            f"Received: {path} with {len(classes)} folder(s)"
        )
    return classes


def _files(path: str, classes: Sequence[str]) -> Split:
    """The image files below `path`, class by class."""
    if strangers := set(_class_folders(path)) - set(classes):
        raise InputError(
            "The held-out images have classes that the training images lack: "
            f"{', '.join(sorted(strangers))}. Received: {path}"
        )
    images: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images += _image_files(os.path.join(path, name))
        labels += [label] * (len(images) - len(labels))
    if not images:
        raise InputError(
            f"There are no images. Accepted: files {' '.join(IMAGE_FILES)} in one folder "
            f"for each class. Received: {path}"
        )
    return Split(np.array(images, object), np.array(labels, np.int32), True)


def _image_files(path: str) -> Iterator[str]:
    """The image files below a folder, folder by folder in the order of their names."""
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(IMAGE_FILES):
                yield os.path.join(folder, name)


def find_images(paths: Sequence[str]) -> list[str]:
    """Returns the image files among paths, at least one, and in the folders among them."""
    if not paths:
        message = f"Name at least one image or folder of images: {IMAGE_FORMATS}"
        raise InputError(message)
    images: list[str] = []
    for path in paths:
        inside = _image_files(path) if os.path.isdir(path) else ()
        images += sorted(inside) or [path]
    return images


def _tfrecord(name: str, only_test: bool) -> Dataset:
    parts = records.find(name, only_test)
    # A part that is held out may lack the first class.
    train = read_records(parts["train"]) if parts["train"] else None
    first_label = train.records.first_label if train and train.records else None
    test = read_records(parts["test"], first_label)
    train = train or test.take([])
    count = 1 + max(map(int, (*train.labels, *test.labels)))
    classes = records.read_class_names(name)
    return Dataset(name, classes or unnamed_classes(count), train, test, None)
