"""Random access to images in TFRecord files of `tf.train.Example`.

`record_index` builds an index with the position of each record. With this index, the
images of any batch of a shuffled epoch are read without reading earlier records.
"""

import dataclasses
import os
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_resnet.support import InputError, read_file

# Names of validation splits, in order of preference. "test" is last because test images
# are meant for the final evaluation, and the test images of ImageNet have no labels.
HELD_OUT_NAMES = ("validation", "val", "test")

# Largest accepted number of classes. ImageNet-21k has 21,843.
MAX_CLASSES = 2**17

# Number of bytes around each record: its length (8), the checksum of the length (4) and
# the checksum of the record (4).
FRAME = 8 + 4 + 4


@dataclasses.dataclass(frozen=True)
class Records:
    """Positions and labels of records.

    Attributes:
        paths: Paths of the TFRecord files.
        shard: Index in `paths` of each record's file, int32 (n,).
        number: Number of each record in its file, starting from 0, int32 (n,).
        offset: Byte offset of each record's frame in its file, int64 (n,).
        length: Length of each record in bytes without its frame, int64 (n,).
        labels: Labels starting from 0, or -1 for records without a label, int32 (n,).
        image: Name of the feature with the encoded image.
        first_label: Label of class 0 in the files.
        damaged: Descriptions of the damaged records, which were left out.
    """

    paths: tuple[str, ...]
    shard: np.ndarray
    number: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    labels: np.ndarray
    image: str
    first_label: int
    damaged: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Returns a description of a record for messages: its file and its number."""
        return describe_record(self.paths[self.shard[index]], self.number[index])


def find_record_files(name: str, only_test: bool = False) -> dict[str, tuple[str, ...]]:
    """Finds the files of a dataset.

    Args:
        name: `"tfrecord:PATH"` or `"PATH"`, the path of a folder. The folder contains
            files named like `train-00000-of-01024` and `validation-00000-of-00128` (or
            TFDS's `mnist-test.tfrecord-00000-of-00001`), or two folders "train" and
            "validation" with such files or with `*.tfrecord` files. Instead of
            "validation", files and folders may be named "val" or "test".
        only_test: Whether training files may be missing.

    Returns:
        A dict from `"train"` and `"test"` to the sorted paths of the split's files.

    Raises:
        InputError: If a split has no files, or if one of its numbered files is missing.
    """
    folder = os.path.expanduser(name.removeprefix("tfrecord:"))
    if not tf.io.gfile.isdir(folder):
        raise InputError(
            f"The folder does not exist. Accepted: tfrecord:PATH. Received: {name}"
        )
    train, *held_out = (_find_files(folder, s) for s in ("train", *HELD_OUT_NAMES))
    test = next(filter(None, held_out), ())
    if not test or not (train or only_test):
        raise InputError(
            "There must be TFRecord files for training and validation, such as "
            "train-00000-of-01024 and validation-00000-of-00128, or in folders train "
            f"and validation. Received: {name} with {len(train)} training files and "
            f"{len(test)} validation files"
        )
    return {"train": train, "test": test}


# The groups are the stem, the shard index, the shard count and the file name extension.
_FILE_NAME = re.compile(r"(?s)(.*?)(?:[-_.]?(\d+)-of-(\d+))?(\.\w*rec\w*)?")


def _find_files(folder: str, split: str) -> tuple[str, ...]:
    """Returns the paths of a split's files. Raises an InputError if one is missing."""
    subfolder = os.path.join(folder, split)
    pattern = rf"(?:.*[-_])?{split}(?:[-_.].*)?"
    if tf.io.gfile.isdir(subfolder):
        folder, pattern = subfolder, ".*"
    names: list[str] = []
    # Maps (stem, shard count, extension) to a dict from shard index to file name.
    shards: dict[tuple[str, int, str], dict[int, str]] = {}
    for name in sorted(tf.io.gfile.listdir(folder)):
        match = _FILE_NAME.fullmatch(name)
        assert match is not None  # The pattern matches every string.
        stem, index, count, extension = match.groups()
        if (index or extension) and name[0] != "." and re.fullmatch(pattern, name):
            names.append(name)
            if index:
                shards.setdefault((stem, int(count), extension), {})[int(index)] = name
    for (_, count, _), files in shards.items():
        if num_missing := count - sum(index < count for index in files):
            first_missing = min(set(range(len(files) + 1)) - set(files))
            raise InputError(
                f"{num_missing} of {count} files are missing, starting with number "
                f"{first_missing}. Received: {os.path.join(folder, min(files.values()))}"
            )
    if len({stem for stem, _, _ in shards}) < len(shards):
        examples = ", ".join(min(files.values()) for files in shards.values())
        raise InputError(f"{folder} must not contain several datasets: {examples}")
    return tuple(os.path.join(folder, name) for name in names)


def read_class_names(folder: str) -> tuple[str, ...] | None:
    """Returns the class names in a dataset's folder, or `None` if there is no file.

    The names are the lines of `labels.txt` or TFDS's `label.labels.txt`. They may be
    numbered like `0:daisy`, as in TF-slim. The class "background" of TF-slim's ImageNet
    is left out. `folder` may begin with `tfrecord:`.
    """
    folder = os.path.expanduser(folder.removeprefix("tfrecord:"))
    paths = [os.path.join(folder, n) for n in ("labels.txt", "label.labels.txt")]
    path = next(filter(tf.io.gfile.exists, paths), None)
    if path is None:
        return None
    try:
        is_remote = "://" in path
        content = tf.io.gfile.GFile(path, "rb").read() if is_remote else read_file(path)
        names = content.decode().strip().splitlines()
    except UnicodeDecodeError:
        message = f"{path} must be UTF-8 text with one class on each line"
        raise InputError(message) from None
    if all(name.startswith(f"{i}:") for i, name in enumerate(names)):
        names = [name.partition(":")[2] for name in names]
    names = tuple(name.strip() for name in names)
    return names[1:] if len(names) == 1001 and names[0] == "background" else names


def make_record_reader(records: Records) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from the index of a record to its encoded image, for tf.data.

    The function reads only the requested record and verifies its checksum. A changed
    file raises a `tf.errors.DataLossError`. Since the function consists of TensorFlow
    ops only, data services can run it if they find the files under the same paths.
    """
    with tf.device("CPU:0"):
        paths, shard = tf.constant(records.paths), tf.constant(records.shard)
        offset, length = tf.constant(records.offset), tf.constant(records.length)
    features = {records.image: tf.io.FixedLenFeature([], tf.string)}

    def read(index: tf.Tensor) -> tf.Tensor:
        path = tf.gather(paths, tf.gather(shard, index))
        start, size = tf.gather(offset, index), tf.gather(length, index)
        record = stream_records(path, start, size + FRAME).take(1).get_single_element()
        return tf.io.parse_single_example(record, features)[records.image]

    return read


def stream_records(
    path: tf.Tensor, offset: tf.Tensor, buffer: tf.Tensor | int
) -> tf.data.Dataset:
    """Returns the records of a file from byte `offset` on."""
    # The raw op skips all bytes before the offset. FixedLengthRecordDataset would read
    # them, and tf.data.TFRecordDataset lacks the argument byte_offsets.
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=[path], compression_type="", buffer_size=buffer, byte_offsets=[offset]
    )
    return tf.data.experimental.from_variant(records, tf.TensorSpec([], tf.string))


def describe_record(path: str, number: int) -> str:
    """Returns the description of a record for messages."""
    return f"{path} record {number}"
