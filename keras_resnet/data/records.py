"""Data sets too large for memory: TFRecord files of `tf.train.Example`, read anywhere.

An index of where each record begins is made once. A batch of a shuffled epoch is then
read without what came before it, as with the sets held in memory.
"""

import dataclasses
import os
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_resnet.support import InputError

# Parts that are held out, the first of them counts: test images are for the end, and
# ImageNet's have no labels.
HELD_OUT = ("validation", "val", "test")

# Bytes around each record: its length and that number's checksum before it, its own
# checksum after it.
FRAME = 8 + 4 + 4


@dataclasses.dataclass(frozen=True)
class Records:
    """Where each record lies, and its label.

    Attributes:
        paths: Paths of the files.
        shard: Index in `paths` of each record's file, int32 (number,).
        number: Number of each record in its file, from 0, int32 (number,).
        offset: Where in its file each record's frame begins, in bytes, int64 (number,).
        length: Length of each record without its frame, in bytes, int64 (number,).
        labels: Labels counted from 0, -1 where there is none, int32 (number,).
        image: Name of the feature that is the encoded image.
        first_label: What the files call the class 0.
        damaged: What to call each record that was left out.
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

    def name(self, place: int) -> str:
        """Returns what to call a record: its file and its number in that."""
        return record_name(self.paths[self.shard[place]], self.number[place])


def find(name: str, only_test: bool = False) -> dict[str, tuple[str, ...]]:
    """Finds the files of a data set.

    Args:
        name: `"tfrecord:PATH"`, or just PATH: a folder with the files of each part,
            such as `train-00000-of-01024`, `validation-00000-of-00128` or TFDS's
            `mnist-test.tfrecord-00000-of-00001`; or with folders train and
            validation (or val, test) of such files or of `*.tfrecord`. Of several
            parts held out the first in that order counts.
        only_test: Whether training files may be missing.

    Returns:
        A dict of sorted tuples of paths: `"train"` and `"test"`.

    Raises:
        InputError: There are no such files, or some are missing.
    """
    folder = os.path.expanduser(name.removeprefix("tfrecord:"))
    if not tf.io.gfile.isdir(folder):
        raise InputError(
            f"There is no such folder. Accepted: tfrecord:PATH. Received: {name}"
        )
    train, *held_out = (_part(folder, part) for part in ("train", *HELD_OUT))
    test = next(filter(None, held_out), ())
    if not test or not (train or only_test):
        raise InputError(
            "There must be TFRecord files to train on and held out, such as "
            "train-00000-of-01024 and validation-00000-of-00128, or in folders train "
            f"and validation. Received: {name} with {len(train)} and {len(test)} files"
        )
    return {"train": train, "test": test}


_FILE = re.compile(r"(?s)(.*?)(?:[-_.]?(\d+)-of-(\d+))?(\.\w*rec\w*)?")


def _part(folder: str, part: str) -> tuple[str, ...]:
    """The paths of one part of a data set, none of them missing."""
    inner = os.path.join(folder, part)
    named = rf"(?:.*[-_])?{part}(?:[-_.].*)?"
    if tf.io.gfile.isdir(inner):
        folder, named = inner, ".*"
    names: list[str] = []
    # From (stem, count, ending) of a set of files to its files by their numbers.
    shards: dict[tuple[str, int, str], dict[int, str]] = {}
    for name in sorted(tf.io.gfile.listdir(folder)):
        parsed = _FILE.fullmatch(name)
        assert parsed is not None  # It matches every text.
        stem, number, count, ending = parsed.groups()
        if (number or ending) and name[0] != "." and re.fullmatch(named, name):
            names.append(name)
            if number:
                shards.setdefault((stem, int(count), ending), {})[int(number)] = name
    for (_, count, _), files in shards.items():
        if missing := sorted(set(range(count)) - set(files)):
            raise InputError(
                f"{len(missing)} of {count} files are missing, the first of them number "
                f"{missing[0]}. Received: {os.path.join(folder, min(files.values()))}"
            )
    if len({stem for stem, _, _ in shards}) < len(shards):
        examples = ", ".join(min(files.values()) for files in shards.values())
        raise InputError(f"There is more than one set in {folder}: {examples}")
    return tuple(os.path.join(folder, name) for name in names)


def read_class_names(folder: str) -> tuple[str, ...] | None:
    """Reads the names of the classes beside the files, if they are there.

    `folder` is as `name` in `find`. Of its `labels.txt` (or TFDS's `label.labels.txt`)
    each line names a class. TF-slim's, such as `0:daisy`, may be numbered; its
    ImageNet's first name, background, is no class here.
    """
    folder = os.path.expanduser(folder.removeprefix("tfrecord:"))
    paths = [os.path.join(folder, n) for n in ("labels.txt", "label.labels.txt")]
    path = next(filter(tf.io.gfile.exists, paths), None)
    if path is None:
        return None
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            names = file.read().decode().strip().splitlines()
    except UnicodeDecodeError:
        message = f"{path} must be text in UTF-8, a class on each line"
        raise InputError(message) from None
    if all(name.startswith(f"{i}:") for i, name in enumerate(names)):
        names = [name.partition(":")[2] for name in names]
    names = tuple(name.strip() for name in names)
    return names[1:] if len(names) == 1001 and names[0] == "background" else names


def reader(records: Records) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from the place of a record to its encoded image, for tf.data.

    It is TensorFlow's ops alone and may be sent to another process, which must see
    the files under the same paths. It reads that record only, and verifies its
    checksum: a file that has changed since is a `tf.errors.DataLossError`.
    """
    with tf.device("CPU:0"):
        paths, shard = tf.constant(records.paths), tf.constant(records.shard)
        offset, length = tf.constant(records.offset), tf.constant(records.length)
    features = {records.image: tf.io.FixedLenFeature([], tf.string)}

    def read(place: tf.Tensor) -> tf.Tensor:
        path = tf.gather(paths, tf.gather(shard, place))
        start, size = tf.gather(offset, place), tf.gather(length, place)
        record = records_from(path, start, size + FRAME).take(1).get_single_element()
        return tf.io.parse_single_example(record, features)[records.image]

    return read


def records_from(
    path: tf.Tensor, offset: tf.Tensor, buffer: tf.Tensor | int
) -> tf.data.Dataset:
    """The records of a file from the frame at `offset` on; all numbers in bytes."""
    # tf.data.TFRecordDataset has no argument for its op's byte_offsets, and
    # FixedLengthRecordDataset reads all of the header that it is told to skip.
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=[path], compression_type="", buffer_size=buffer, byte_offsets=[offset]
    )
    return tf.data.experimental.from_variant(records, tf.TensorSpec([], tf.string))


def record_name(path: str, number: int) -> str:
    """Returns what to call a record, in messages."""
    return f"{path} record {number}"
