"""Images with labels: a split, and a data set of two."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_resnet.data import records
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
        are_paths: whether `images` are paths.
        records: TFRecord files that hold the images.
        replaced: how many images stand in for a damaged one.
    """

    images: np.ndarray
    labels: np.ndarray
    are_paths: bool = False
    records: Records | None = None
    replaced: int = 0

    def __len__(self):
        return len(self.labels)

    def take(self, places) -> "Split":
        """Returns the images at some places, or where a mask is true."""
        return dataclasses.replace(
            self, images=self.images[places], labels=self.labels[places]
        )

    def __add__(self, other) -> "Split":
        """Returns the images of both."""
        found, more = self.records, other.images
        if found and other.records is not found:
            more = more + len(found)
            found = _joined(found, other.records)
        return dataclasses.replace(
            self,
            images=np.concatenate([self.images, more]),
            labels=np.concatenate([self.labels, other.labels]),
            records=found,
        )

    def names(self) -> list[str]:
        """Returns what to call each image: its path, its record, or its number."""
        if self.are_paths:
            return list(map(str, self.images))
        if self.records:
            return [self.records.name(place) for place in self.images]
        return list(map(str, range(len(self))))

    def without(self, places) -> "Split":
        """Returns this with the next good image in the place of each damaged one.

        Args:
            places: of the damaged images.
        """
        good = np.setdiff1d(np.arange(len(self)), places)
        stand_in = np.arange(len(self))
        stand_in[places] = good[np.searchsorted(good, places) % len(good)]
        return dataclasses.replace(
            self.take(stand_in), replaced=self.replaced + len(places)
        )

    def reader(self, decode: Callable, view: Callable) -> Callable:
        """Returns a function from one entry of `images` to pixels.

        Args:
            decode: from an encoded file to them.
            view: from a uint8 image to them.
        """
        if self.images.dtype == np.uint8:
            return view
        if self.are_paths:
            return lambda path: decode(tf.io.read_file(path))
        if self.records:
            read = records.reader(self.records)
            return lambda place: decode(read(place))
        return decode


def _joined(records, more):
    """The records of two lots of files."""
    if records.image != more.image:
        raise InputError(
            "Files that are read together must call their images alike. Received: "
            f"{records.image} in {records.paths[0]}, {more.image} in {more.paths[0]}"
        )
    columns = {
        name: np.concatenate([getattr(records, name), getattr(more, name)])
        for name in ("number", "offset", "length", "labels")
    }
    return dataclasses.replace(
        records,
        paths=records.paths + more.paths,
        shard=np.concatenate([records.shard, more.shard + len(records.paths)]),
        damaged=records.damaged + more.damaged,
        **columns,
    )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set with the names of its classes.

    Attributes:
        name: as given to `load_dataset`.
        classes: name of each label, in order.
        train: the images to train on.
        test: the images held out.
        shape: (height, width, channels) where all images have one, else None.
        own_split: whether the held-out images came so, not chosen here.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    shape: tuple[int, int, int] | None
    own_split: bool = True


def check_dataset(images):
    """Returns a data set that somebody made, or says what is wrong with it.

    Args:
        images: a `Dataset`. Labels of any whole numbers become int32.

    Raises:
        InputError: images are no uint8 pixels, paths or encoded files, or the labels
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
        _check_labels(
            images.name, dataclasses.replace(split, labels=labels), images.classes
        )
        split = dataclasses.replace(split, labels=labels.astype(np.int32))
        images = dataclasses.replace(images, **{part: split})
    return images


def _check_labels(name, split, classes):
    wrong = np.flatnonzero((split.labels < 0) | (split.labels >= len(classes)))
    if len(wrong):
        first = wrong[0]
        raise InputError(
            f"{len(wrong)} of {len(split)} images have a label that is none of the "
            f"{len(classes)} classes {shorten_list(classes, 5)}. Received: {name}, with the label "
            f"{split.labels[first]} of image {split.names()[first]}"
        )


def unnamed_classes(count):
    """Returns what classes are called that have no names."""
    return tuple(f"class {i}" for i in range(count))


def hold_out(images, share):
    """Holds out a share of the training images in the place of the test images.

    Always the same ones, whatever the seed of a run.

    Args:
        images: a `Dataset`.
        share: from 0 to 1.
    """
    order = np.random.default_rng(0).permutation(len(images.train))
    count = max(1, round(share * len(order)))
    held, left = np.sort(order[:count]), np.sort(order[count:])
    return dataclasses.replace(
        images, train=images.train.take(left), test=images.train.take(held)
    )
