"""Classes for images with labels (`Split`) and for datasets of two splits."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.data import records
from keras_resnet.data.decoding import PixelFunction
from keras_resnet.data.records import Records
from keras_resnet.support import InputError, shorten_list


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: Pixels, uint8 (n, height, width, channels), or an array with one entry
            for each image. An entry is the content of an image file (bytes), the path
            of a file (if `are_paths`), or the index of a record (if `records`).
        labels: int32 (n,).
        are_paths: Whether `images` are paths.
        records: Records that contain the images, if they are in TFRecord files.
        damaged: Sorted indices of damaged images, in whose place are other images.
    """

    images: np.ndarray
    labels: np.ndarray
    are_paths: bool = False
    records: Records | None = None
    damaged: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray | Sequence[int] | slice) -> "Split":
        """Returns the part of the split at `indices`, which may be a boolean mask."""
        images, labels = self.images[indices], self.labels[indices]
        return dataclasses.replace(self, images=images, labels=labels, damaged=())

    def __add__(self, other: "Split") -> "Split":
        """Returns a split with the images of both splits."""
        joined, other_images = self.records, other.images
        if joined and other.records is not joined:
            assert other.records is not None  # Both splits are TFRecord files.
            other_images = other_images + len(joined)
            joined = _join_records(joined, other.records)
        images = np.concatenate([self.images, other_images])
        labels = np.concatenate([self.labels, other.labels])
        return dataclasses.replace(self, images=images, labels=labels, records=joined)

    def names(self) -> list[str]:
        """Returns a name for each image: its path, its record or its index."""
        if self.are_paths:
            return list(map(str, self.images))
        if self.records:
            return [self.records.name(index) for index in self.images]
        return list(map(str, range(len(self))))

    def substitute(self, indices: Sequence[int]) -> "Split":
        """Returns a split with replacements for the damaged images at `indices`.

        Each replacement is the next undamaged image of the split.
        """
        damaged = sorted({*self.damaged, *indices})
        intact = np.setdiff1d(np.arange(len(self)), damaged)
        new_indices = np.arange(len(self))
        new_indices[damaged] = intact[np.searchsorted(intact, damaged) % len(intact)]
        return dataclasses.replace(self.take(new_indices), damaged=tuple(damaged))

    def entries(self) -> tf.Tensor:
        """Returns `images` as a tensor in main memory."""
        with tf.device("CPU:0"):  # GPU memory may be too small for all images.
            return tf.constant(self.images)

    def is_unchanged_by(self, view: PixelFunction) -> bool:
        """Returns whether the images are pixels that `view` returns unchanged."""
        if self.images.dtype != np.uint8:
            return False
        blank_image = tf.zeros(self.images.shape[1:], tf.uint8)
        return view(blank_image) is blank_image

    def make_reader(self, decode: PixelFunction, view: PixelFunction) -> PixelFunction:
        """Returns a function from an entry of `images` to pixels.

        The function applies `decode` to encoded files and `view` to uint8 images.
        """
        if self.images.dtype == np.uint8:
            return view
        if self.are_paths:
            return lambda path: decode(tf.io.read_file(path))
        if self.records:
            read = records.make_record_reader(self.records)
            return lambda index: decode(read(index))
        return decode


def _join_records(records: Records, other: Records) -> Records:
    """Returns the records of two splits of a dataset as one object."""
    if records.image != other.image:
        raise InputError(
            "Files of one dataset must have the same image feature. Received: "
            f"{records.image} in {records.paths[0]}, {other.image} in {other.paths[0]}"
        )
    other = dataclasses.replace(other, shard=other.shard + len(records.paths))
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(records, name), getattr(other, name)])
        for name in ("shard", "number", "offset", "length", "labels")
    }
    paths, damaged = records.paths + other.paths, records.damaged + other.damaged
    return dataclasses.replace(records, paths=paths, damaged=damaged, **columns)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset with a training split and a test split.

    Attributes:
        name: Name of the dataset; see `load_dataset`.
        classes: Class names in the order of the labels.
        train: Images to train on.
        test: Validation split while training, test split in `evaluate`.
        shape: Shape (height, width, channels) of all images, or `None` if it varies.
        own_split: Whether the dataset itself defines the split into `train` and `test`.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    shape: tuple[int, int, int] | None
    own_split: bool = True


def check_dataset(dataset: Dataset) -> Dataset:
    """Checks a dataset created by a user and returns it with int32 labels.

    Raises:
        InputError: If the images are not uint8 pixels, paths or encoded files, or if
            the labels do not match the images or the classes.
    """
    for part in ("train", "test"):
        split = getattr(dataset, part)
        labels = np.asarray(split.labels)
        is_pixels = split.images.dtype == np.uint8 and split.images.ndim == 4
        dtype_kinds = "i" if split.records else "OSU"
        if not is_pixels and split.images.dtype.kind not in dtype_kinds:
            raise InputError(
                "Images must be a uint8 array (n, height, width, channels) with values "
                "from 0 to 255, or an array of file paths or encoded files. Received: "
                f"{dataset.name}'s {part} images of "
                f"dtype {split.images.dtype} and shape {split.images.shape}"
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(split.images),):
            raise InputError(
                "Labels must be whole numbers, one for each image. Received: "
                f"{dataset.name}'s {part} labels of dtype {labels.dtype} and shape "
                f"{labels.shape} for {len(split.images)} images"
            )
        # Labels are checked before the conversion to int32, which may cause overflow.
        split = dataclasses.replace(split, labels=labels)
        check_labels(dataset.name, split, dataset.classes)
        split = dataclasses.replace(split, labels=labels.astype(np.int32))
        dataset = dataclasses.replace(dataset, **{part: split})
    return dataset


def check_labels(name: str, split: Split, classes: Sequence[str]) -> None:
    """Raises an InputError if a label is not the index of a class in `classes`."""
    invalid = np.flatnonzero((split.labels < 0) | (split.labels >= len(classes)))
    if len(invalid):
        first = invalid[0]
        raise InputError(
            f"{len(invalid)} of {len(split)} images have a label that is none of the "
            f"{len(classes)} classes {shorten_list(classes, 5)}. Received: {name} with "
            f"label {split.labels[first]} of image {split.names()[first]}"
        )


def default_class_names(count: int) -> tuple[str, ...]:
    """Returns the names "class 0", "class 1" and so on."""
    return tuple(f"class {i}" for i in range(count))


def hold_out(dataset: Dataset, fraction: float) -> Dataset:
    """Returns the dataset with a fraction of its training images as the test split.

    The selection does not depend on the seed of a run. `fraction` is from 0 to 1.
    """
    shuffled_indices = np.random.default_rng(0).permutation(len(dataset.train))
    num_test = max(1, round(fraction * len(shuffled_indices)))
    train = dataset.train.take(np.sort(shuffled_indices[num_test:]))
    test = dataset.train.take(np.sort(shuffled_indices[:num_test]))
    return dataclasses.replace(dataset, train=train, test=test)
