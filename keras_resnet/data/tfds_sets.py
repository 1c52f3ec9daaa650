"""Image classification sets of TFDS."""

import os
from typing import TYPE_CHECKING

import numpy as np

from keras_resnet.data import records
from keras_resnet.data.record_index import read_records
from keras_resnet.data.splits import Dataset, Split
from keras_resnet.support import InputError, first_line

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Largest share of the memory that a set of small images may take; a larger set is
# read from its files.
MAX_SHARE = 0.25


def load_tfds(name: str, data_dir: str | None, only_test: bool) -> Dataset:
    """Loads an image classification set of TFDS; see `load_dataset`."""
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise InputError(
            "TFDS sets need its package: pip install 'keras-resnet-zoo[datasets]'. "
            "Accepted without it: digits, folder:PATH, tfrecord:PATH. "
            f"Received: dataset={name!r} ({error})"
        ) from None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise InputError(
            "There is no such data set. Accepted: digits, folder:PATH, tfrecord:PATH, "
            "the name of a TFDS image set such as cifar10. "
            f"Received: dataset={name!r} ({first_line(error)})"
        ) from None
    _prepare(builder)
    info, splits = builder.info, builder.info.splits
    held_out = next((s for s in records.HELD_OUT if s in splits), None)
    is_dict = isinstance(info.features, tfds.features.FeaturesDict)
    features = dict(info.features) if is_dict else {}
    if not (
        "train" in splits
        and held_out
        and isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise InputError(
            "A TFDS set must have the features image and label, and the splits train "
            f"and test (or validation). Received: dataset={name!r} with splits "
            f"{', '.join(splits)}"
        )
    shape = features["image"].shape
    shape = None if None in shape else tuple(shape)
    classes = tuple(features["label"].names)
    size = splits[held_out].num_bytes if only_test else info.dataset_size
    if shape and size < MAX_SHARE * _memory():
        test = _tfds_split(builder, held_out)
        train = test.take([]) if only_test else _tfds_split(builder, "train")
        return Dataset(name, classes, train, test, shape)
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise InputError(
            "A TFDS set of images that differ in size, or too large for memory, must be "
            f"prepared as tfrecord files. Received: dataset={name!r} in the format "
            f"{builder.info.file_format.value}"
        )
    test = read_records(splits[held_out].filepaths, 0)
    train = test.take([]) if only_test else read_records(splits["train"].filepaths, 0)
    return Dataset(name, classes, train, test, None)


def _memory() -> int:
    """Memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _prepare(builder: "tfds.core.DatasetBuilder") -> None:
    """Downloads a TFDS set, unless it lies there."""
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS and its download library raise many kinds.
        raise InputError(
            f"Could not prepare {builder.name} in {builder.data_dir}. Where there is no "
            "network, point data_dir at a folder in which TFDS has prepared it. "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None


def _tfds_split(builder: "tfds.core.DatasetBuilder", split: str) -> Split:
    examples = builder.as_dataset(split=split, shuffle_files=False)
    examples = examples.map(lambda e: (e["image"], e["label"])).as_numpy_iterator()
    images, labels = zip(*examples, strict=True)
    return Split(np.stack(images), np.array(labels, np.int32))
