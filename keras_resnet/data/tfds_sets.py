"""Loading of image classification datasets from TFDS (TensorFlow Datasets)."""

import os
from typing import TYPE_CHECKING

import numpy as np

from keras_resnet.data import records
from keras_resnet.data.record_index import read_records
from keras_resnet.data.splits import Dataset, Split
from keras_resnet.support import InputError, first_line

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Largest fraction of memory that a dataset may use. Larger datasets stay in files.
MAX_MEMORY_FRACTION = 0.25


def load_tfds(name: str, data_dir: str | None, only_test: bool) -> Dataset:
    """Loads an image classification dataset of TFDS; see `load_dataset`."""
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise InputError(
            "TFDS datasets need a package: pip install 'keras-resnet-zoo[datasets]'. "
            "Accepted without it: digits, folder:PATH, tfrecord:PATH. "
            f"Received: dataset={name!r} ({error})"
        ) from None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise InputError(
            "The dataset does not exist. Accepted: digits, folder:PATH, tfrecord:PATH, "
            "the name of a TFDS image dataset such as cifar10. "
            f"Received: dataset={name!r} ({first_line(error)})"
        ) from None
    _prepare(builder)
    info, splits = builder.info, builder.info.splits
    test_split_name = next((s for s in records.HELD_OUT_NAMES if s in splits), None)
    has_feature_names = isinstance(info.features, tfds.features.FeaturesDict)
    features = dict(info.features) if has_feature_names else {}
    if not (
        "train" in splits
        and test_split_name
        and isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise InputError(
            "A TFDS dataset must have the features image and label, and splits train "
            f"and test (or validation). Received: dataset={name!r} with splits "
            f"{', '.join(splits)}"
        )
    shape = features["image"].shape
    shape = None if None in shape else tuple(shape)
    classes = tuple(features["label"].names)
    size = splits[test_split_name].num_bytes if only_test else info.dataset_size
    if shape and size < MAX_MEMORY_FRACTION * _find_memory_size():
        test = _load_split(builder, test_split_name)
        train = test.take([]) if only_test else _load_split(builder, "train")
        return Dataset(name, classes, train, test, shape)
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise InputError(
            "If images differ in size or do not fit into memory, TFDS must prepare the "
            f"dataset in the format tfrecord. Received: dataset={name!r} in format "
            f"{builder.info.file_format.value}"
        )
    test = read_records(splits[test_split_name].filepaths, 0)
    train = test.take([]) if only_test else read_records(splits["train"].filepaths, 0)
    return Dataset(name, classes, train, test, None)


def _find_memory_size() -> int:
    """Returns the size of the main memory in bytes. On Windows, 8 GiB are assumed."""
    if not hasattr(os, "sysconf"):
        return 2**33
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _prepare(builder: "tfds.core.DatasetBuilder") -> None:
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS and its downloads raise many error types.
        raise InputError(
            f"Could not prepare {builder.name} in {builder.data_dir}. If there is no "
            "network, set data_dir to a folder where TFDS has prepared the dataset. "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None


def _load_split(builder: "tfds.core.DatasetBuilder", split: str) -> Split:
    examples = builder.as_dataset(split=split, shuffle_files=False)
    examples = examples.map(lambda e: (e["image"], e["label"])).as_numpy_iterator()
    images, labels = zip(*examples, strict=True)
    return Split(np.stack(images), np.array(labels, np.int32))
