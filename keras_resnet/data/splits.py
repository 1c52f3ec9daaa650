"""Images with labels: a split, and a data set of two."""

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
        images: uint8 (number, height, width, channels); or encoded files, or
            with `are_paths` the paths of files, as an array of bytes or strings;
            or with `records` their places there.
        labels: int32 (number,).
        are_paths: Whether `images` are paths.
        records: TFRecord files that hold the images.
        replaced: Number of images that stand in for a damaged one.
    """

    images: np.ndarray
    labels: np.ndarray
    are_paths: bool = False
    records: Records | None = None
    replaced: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: np.ndarray | Sequence[int] | slice) -> "Split":
        """Returns the images at some places, or where a mask is true."""
        images, labels = self.images[places], self.labels[places]
        return dataclasses.replace(self, images=images, labels=labels)

    def __add__(self, other: "Split") -> "Split":
        """Returns the images of both."""
        joined, more = self.records, other.images
        if joined and other.records is not joined:
            assert other.records is not None  # Both are of one data set.
            more = more + len(joined)
            joined = _joined(joined, other.records)
        images = np.concatenate([self.images, more])
        labels = np.concatenate([self.labels, other.labels])
        return dataclasses.replace(self, images=images, labels=labels, records=joined)

    def names(self) -> list[str]:
        """Returns what to call each image: its path, its record, or its number."""
        if self.are_paths:
            return list(map(str, self.images))
        if self.records:
            return [self.records.name(place) for place in self.images]
        return list(map(str, range(len(self))))

    def without(self, places: Sequence[int]) -> "Split":
        """Returns this with the next good image in each of the damaged `places`."""
        good = np.setdiff1d(np.arange(len(self)), places)
        stand_in = np.arange(len(self))
        stand_in[places] = good[np.searchsorted(good, places) % len(good)]
        replaced = self.replaced + len(places)
        return dataclasses.replace(self.take(stand_in), replaced=replaced)

    def entries(self) -> tf.Tensor:
        """Returns `images` as a tensor."""
        with tf.device("CPU:0"):  # Whole sets do not belong in a GPU's memory.
            return tf.constant(self.images)

    def stays_under(self, view: PixelFunction) -> bool:
        """Whether the images are pixels of a size that a view leaves as it is."""
        if self.images.dtype != np.uint8:
            return False
        sample = tf.zeros(self.images.shape[1:], tf.uint8)
        return view(sample) is sample

    def reader(self, decode: PixelFunction, view: PixelFunction) -> PixelFunction:
        """Returns a function from one entry of `images` to pixels.

        `decode` is for encoded files, `view` for uint8 images.
        """
        if self.images.dtype == np.uint8:
            return view
        if self.are_paths:
            return lambda path: decode(tf.io.read_file(path))
        if self.records:
            read = records.reader(self.records)
            return lambda place: decode(read(place))
        return decode


def _joined(records: Records, more: Records) -> Records:
    """The records of two lots of files."""
    if records.image != more.image:
        raise InputError(
            "Files that are read together must call their images alike. Received: "
            f"{records.image} in {records.paths[0]}, {more.image} in {more.paths[0]}"
        )
    more = dataclasses.replace(more, shard=more.shard + len(records.paths))
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(records, name), getattr(more, name)])
        for name in ("shard", "number", "offset", "length", "labels")
    }
    paths, damaged = records.paths + more.paths, records.damaged + more.damaged
    return dataclasses.replace(records, paths=paths, damaged=damaged, **columns)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set with the names of its classes.

    Attributes:
        name: As given to `load_dataset`.
        classes: Name of each label, in order.
        train: Images to train on.
        test: Validation split.
        shape: (height, width, channels) where all images have one, else `None`.
        own_split: Whether the data set came with its validation split.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    shape: tuple[int, int, int] | None
    own_split: bool = True


def check_dataset(images: Dataset) -> Dataset:
    """Returns a data set that somebody made, its labels, any whole numbers, as int32.

    Raises:
        InputError: Images are no uint8 pixels, paths or encoded files, or the labels
            don't belong to them.
    """
    for part in ("train", "test"):
        split = getattr(images, part)
        labels = np.asarray(split.labels)
        pixels = split.images.dtype == np.uint8 and split.images.ndim == 4
        kinds = "i" if split.records else "OSU"
        if not pixels and split.images.dtype.kind not in kinds:
            raise InputError(
                "Images must be uint8 (number, height, width, channels), from 0 to 255, "
                f"or paths or encoded files. Received: {images.name}'s {part} images of "
                f"{split.images.dtype} and shape {split.images.shape}"
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(split.images),):
            raise InputError(
                "Labels must be whole numbers, one for each image. Received: "
                f"{images.name}'s {part} labels of {labels.dtype} and shape "
                f"{labels.shape} for {len(split.images)} images"
            )
        # Before they become 32 bits, in which another label may lie in range.
        split = dataclasses.replace(split, labels=labels)
        check_labels(images.name, split, images.classes)
        split = dataclasses.replace(split, labels=labels.astype(np.int32))
        images = dataclasses.replace(images, **{part: split})
    return images


def check_labels(name: str, split: Split, classes: Sequence[str]) -> None:
    """Refuses a split of the data set `name` whose labels are none of the classes."""
    wrong = np.flatnonzero((split.labels < 0) | (split.labels >= len(classes)))
    if len(wrong):
        first = wrong[0]
        raise InputError(
            f"{len(wrong)} of {len(split)} images have a label that is none of the "
            f"{len(classes)} classes {shorten_list(classes, 5)}. Received: {name}, with the "
            f"label {split.labels[first]} of image {split.names()[first]}"
        )


def unnamed_classes(count: int) -> tuple[str, ...]:
    """Returns what classes are called that have no names."""
    return tuple(f"class {i}" for i in range(count))


def hold_out(images: Dataset, share: float) -> Dataset:
    """Holds out a share, 0 to 1, of the training images in the place of the test images.

    Always the same ones, whatever the seed of a run.
    """
    order = np.random.default_rng(0).permutation(len(images.train))
    count = max(1, round(share * len(order)))
    train = images.train.take(np.sort(order[count:]))
    test = images.train.take(np.sort(order[:count]))
    return dataclasses.replace(images, train=train, test=test)
