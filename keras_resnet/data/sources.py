"""Loading of datasets by name.

Small images are loaded into memory as pixels. Larger images stay in image files or
TFRecord files, and are read when a batch needs them.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from keras_resnet.data import records
from keras_resnet.data.decoding import IMAGE_FORMATS
from keras_resnet.data.record_index import read_records
from keras_resnet.data.splits import Dataset, Split, check_labels, default_class_names
from keras_resnet.data.tfds_sets import load_tfds
from keras_resnet.support import InputError

IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


def resolve_dataset_name(name: str) -> str:
    """Returns a dataset's name. A path in the name is replaced by the absolute path."""
    kind, _, path = name.partition(":")
    if kind not in ("folder", "tfrecord") or "://" in path:
        return name
    return f"{kind}:{os.path.abspath(os.path.expanduser(path))}"


def load_dataset(
    name: str, data_dir: str | None = None, only_test: bool = False
) -> Dataset:
    """Loads a dataset with a training split and a test split.

    Args:
        name: `"digits"` selects scikit-learn's 1,797 handwritten digits of 8x8 pixels.
            A fifth of the digits is the test split. `"folder:PATH"` selects image files
            in one folder for each class. The class folders are in PATH/train and
            PATH/test (or PATH/val), or directly in PATH, where a fifth of each class is
            the test split. `"tfrecord:PATH"` selects a folder of TFRecord files (see
            `records.find_record_files`). Any other name selects an image classification
            dataset of TFDS, such as `"cifar10"` or `"imagenet2012"`.
        data_dir: Folder of the TFDS datasets. Default: TFDS's default folder.
        only_test: Whether only the test split is needed. If so, TFDS's training images
            are not read, and all images of an undivided folder are test images.

    Returns:
        The dataset. With `only_test`, its training split may be empty.

    Raises:
        InputError: If the dataset does not exist or cannot be used.
    """
    name = resolve_dataset_name(name)
    if name == "digits":
        dataset = _load_digits()
    elif name.startswith("folder:"):
        dataset = _load_folder(name, only_test)
    elif name.startswith("tfrecord:"):
        dataset = _load_tfrecord(name, only_test)
    else:
        dataset = load_tfds(name, data_dir, only_test)
    for split in (dataset.train, dataset.test):
        check_labels(name, split, dataset.classes)
    return dataset


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    indices = np.arange(len(labels))
    parts = train_test_split(indices, test_size=0.2, random_state=0, stratify=labels)
    train, test = (Split(images[part], labels[part]) for part in parts)
    classes = tuple(map(str, digits.target_names))
    return Dataset("digits", classes, train, test, (8, 8, 1), own_split=False)


def _load_folder(name: str, only_test: bool) -> Dataset:
    path = name.removeprefix("folder:")
    if not os.path.isdir(path):
        raise InputError(
            f"The folder does not exist. Accepted: folder:PATH. Received: {name}"
        )
    folders = {p: os.path.join(path, p) for p in ("train", *records.HELD_OUT_NAMES)}
    folders = {part: path for part, path in folders.items() if os.path.isdir(path)}
    held_out = [part for part in folders if part != "train"]
    own_split = "train" in folders and bool(held_out)
    if own_split:
        classes = _find_classes(folders["train"])
        train, test = (_make_split(folders[p], classes) for p in ("train", held_out[0]))
    else:
        classes = _find_classes(path)
        files = _make_split(path, classes)
        # Every fifth file of each class, sorted by name, is held out.
        positions = np.concatenate([np.arange(n) for n in np.bincount(files.labels)])
        is_held_out = (positions % 5 == 4) | only_test
        train, test = files.take(~is_held_out), files.take(is_held_out)
    num_held_out = np.bincount(test.labels, minlength=len(classes))
    if not only_test and (not len(train) or not num_held_out.all()):
        raise InputError(
            "Each class needs at least five images, or there must be folders train and "
            f"test with images of each class. Received: {name} with {len(train)} "
            f"training images, and test images by class: {num_held_out.tolist()}"
        )
    return Dataset(name, tuple(classes), train, test, None, own_split)


def _find_classes(path: str) -> list[str]:
    names = (entry.name for entry in os.scandir(path) if entry.is_dir())
    classes = sorted(name for name in names if not name.startswith("."))
    for name in classes:
        if any("\ud800" <= c <= "\udfff" for c in name):  # Invalid UTF-8.
            raise InputError(
                "The name of each class folder must be valid UTF-8. "
                f"Received: {os.fsencode(name)!r} in {path}"
            )
    if len(classes) < 2:
        raise InputError(
            "Images must be in at least two folders, one for each class. "
            f"Received: {path} with {len(classes)} folder(s)"
        )
    return classes


def _make_split(path: str, classes: Sequence[str]) -> Split:
    """Returns the image files in the class folders of `path`, sorted by class."""
    if unknown_classes := set(_find_classes(path)) - set(classes):
        raise InputError(
            "The test images have classes that the training images lack: "
            f"{', '.join(sorted(unknown_classes))}. Received: {path}"
        )
    images: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for entry in _find_files(os.path.join(path, name)):
            if not entry.is_file(follow_symlinks=False) and not os.path.isfile(entry):
                raise InputError(
                    "Images must be regular files. Received: a pipe, a device or a "
                    f"broken link: {entry.path}"
                )
            images.append(entry.path)
            labels.append(label)
    if not images:
        raise InputError(
            f"There are no images. Accepted: {' '.join(IMAGE_FILES)} in one folder "
            f"for each class. Received: {path}"
        )
    return Split(np.array(images, object), np.array(labels, np.int32), True)


def _find_files(path: str) -> Iterator[os.DirEntry[str]]:
    """Yields the image files in a folder and its subfolders, sorted by name.

    Links to folders are not followed. The entries know their types without system calls.
    """
    folders = [path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            sorted_entries = sorted(entries, key=lambda entry: entry.name)
        subfolders = []
        for entry in sorted_entries:
            if entry.is_dir(follow_symlinks=False):
                subfolders.append(entry.path)
            elif entry.name.lower().endswith(IMAGE_FILES):
                yield entry
        folders += reversed(subfolders)


def find_images(paths: Sequence[str]) -> list[str]:
    """Returns the files in `paths`; a folder gives its image files, sorted by path."""
    if not paths:
        message = f"Pass at least one image or folder of images: {IMAGE_FORMATS}"
        raise InputError(message)
    images: list[str] = []
    for path in paths:
        entries = _find_files(path) if os.path.isdir(path) else ()
        images += sorted(entry.path for entry in entries) or [path]
    return images


def _load_tfrecord(name: str, only_test: bool) -> Dataset:
    files = records.find_record_files(name, only_test)
    # The test split may lack class 0, so the training split determines `first_label`.
    train = read_records(files["train"]) if files["train"] else None
    first_label = train.records.first_label if train and train.records else None
    test = read_records(files["test"], first_label)
    train = train or test.take([])
    classes = records.read_class_names(name)
    num_classes = 1 + max(int(s.labels.max(initial=-1)) for s in (train, test))
    if max(num_classes, len(classes or ())) > records.MAX_CLASSES:
        raise InputError(
            f"A dataset may have at most {records.MAX_CLASSES:,} classes. Received: "
            f"{name} with labels up to {num_classes - 1:,}"
        )
    return Dataset(name, classes or default_class_names(num_classes), train, test, None)
