"""The index of TFRecord files: where each image lies, made once.

Our own, because TensorFlow reads such files only from their beginning, and TFDS's random
access needs ArrayRecord files.
"""

import concurrent.futures
import hashlib
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_resnet.data.records import FRAME, Records, record_name, records_from
from keras_resnet.data.splits import Split
from keras_resnet.support import (
    InputError,
    keras_home,
    progress_bar,
    replace_when_whole,
    shorten_list,
)

# By the first that a record has: TensorFlow's ImageNet scripts and TF-slim; TFDS.
IMAGE_FEATURES = ("image/encoded", "image", "image_raw")
LABEL_FEATURES = ("image/class/label", "label")

# Share of the records that may be damaged; they are left out.
MAX_DAMAGED = 0.001

# How JPEG, PNG, GIF, BMP and WebP files begin.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")

# Number of the kept index's format. It is a part of the file's name, so that an index
# of another format is not found, and is made anew.
INDEX_FORMAT = 1

# Columns of the index, and their types; labels as they are in the files.
_COLUMNS = {
    "shard": "i4",
    "number": "i4",
    "offset": "i8",
    "length": "i8",
    "labels": "i4",
}

# The index as it is kept: `_COLUMNS`, "image", "label" and "damaged".
Table = dict[str, np.ndarray]


def index(
    paths: Iterable[str],
    first_label: int | None = None,
    cache_dir: str | None = None,
    on_file: Callable[[], None] = lambda: None,
) -> Records:
    """Finds where each record lies, and its label.

    Every byte is read once and every checksum verified; the result is kept, and
    found again as long as no file changes its path, size or time.

    Args:
        paths: Paths of uncompressed TFRecord files of `tf.train.Example` with an
            encoded image and a label, under any of the known names; see
            `IMAGE_FEATURES` and `LABEL_FEATURES`.
        first_label: What the files call the first class. `None` is 1 for labels
            `image/class/label` of which none is below 1, as in TensorFlow's
            ImageNet files, where 0 is the background; otherwise 0. A held-out
            part, which may lack a class, should be given the training part's.
        cache_dir: Folder where indices are kept; `None` is
            `$KERAS_HOME/records`, or `~/.keras/records`.
        on_file: Called after each file that is read.

    Returns:
        The records. Damaged ones are left out, with a line on standard error.

    Raises:
        InputError: A file cannot be read to its end, or more than `MAX_DAMAGED` of
            the records are damaged: no set of less than 1,000 may have any.
    """
    paths = tuple(p if "://" in p else os.path.abspath(p) for p in map(str, paths))
    try:
        stats = [tf.io.gfile.stat(path) for path in paths]
        times = [(stat.length, stat.mtime_nsec) for stat in stats]
        key = json.dumps([INDEX_FORMAT, paths, times])
        key = hashlib.sha256(key.encode()).hexdigest()[:32]
        cache_dir = cache_dir or os.path.join(keras_home(), "records")
        cached = os.path.join(cache_dir, f"{key}.npz")
        table = _load(cached)
        if table is None:
            table = _make(paths, [stat.length for stat in stats], on_file)
            _save(cached, table)
    except tf.errors.OpError as error:
        raise InputError(f"Could not read records: {error.message}") from None
    labels, damaged = table["labels"], tuple(table["damaged"].tolist())
    if damaged:
        print(_cannot_be_used(damaged, len(labels)), file=sys.stderr)
    if first_label is None:
        first_label = int(table["label"] == "image/class/label" and labels.min() == 1)
    columns = {name: table[name] for name in _COLUMNS}
    columns["labels"] = np.maximum(labels - first_label, -1)
    image = str(table["image"])
    return Records(
        paths, **columns, image=image, first_label=first_label, damaged=damaged
    )


def _make(
    paths: tuple[str, ...], sizes: Sequence[int], on_file: Callable[[], None]
) -> Table:
    image, label = _features(paths)
    parts: list[np.ndarray] = []
    damaged: list[str] = []
    broken = False
    # Threads: all but a little of the work is in TensorFlow's C++.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        scans = pool.map(_Scanner(image, label).scan, paths, sizes)
        for shard, (part, bad, is_whole) in enumerate(scans):
            parts.append(np.vstack([np.full(part.shape[1], shard), part]))
            damaged += bad
            broken |= not is_whole
            on_file()
    columns = np.concatenate(parts, 1)
    whole = columns.shape[1]
    if broken or len(damaged) > MAX_DAMAGED * (whole + len(damaged)):
        raise InputError(f"{_cannot_be_used(damaged, whole)}; copy these files anew")
    kinds = zip(_COLUMNS.items(), columns, strict=True)
    table = {name: column.astype(kind) for (name, kind), column in kinds}
    names = {"image": np.array(image), "label": np.array(label)}
    return table | names | {"damaged": np.array(damaged, str)}


def _features(paths: tuple[str, ...]) -> tuple[str, str]:
    """The names of the image and of the label in the first record with both."""
    seen: set[str] = set()
    # Where a file begins with a damaged record, this goes on with the next file.
    records = tf.data.TFRecordDataset(paths).ignore_errors().take(100)
    for record in records.as_numpy_iterator():
        try:
            names = set(tf.train.Example.FromString(record).features.feature)
        except DecodeError:
            continue
        image = next((name for name in IMAGE_FEATURES if name in names), None)
        label = next((name for name in LABEL_FEATURES if name in names), None)
        if image and label:
            return image, label
        seen |= names
    raise InputError(
        "Files must be whole, uncompressed TFRecord files of tf.train.Example with an "
        f"encoded image ({', '.join(IMAGE_FEATURES)}) and a label "
        f"({', '.join(LABEL_FEATURES)}). Received: {', '.join(paths[:1])} with "
        f"{', '.join(sorted(seen)) or 'nothing that can be read'}"
    )


# In place of the label of a record that cannot be used; labels are -1 at least.
_NO_IMAGE, _DAMAGED = -2, -3
_PROBLEMS = {_NO_IMAGE: "no encoded image", _DAMAGED: "damaged"}

# TensorFlow quotes what it cannot parse in an error that cannot be text then.
_FAILURES = (tf.errors.OpError, UnicodeDecodeError)


class _Scanner:
    """Reads whole files, whose image and label are the features of these names."""

    def __init__(self, image: str, label: str) -> None:
        self._image, self._label = image, label
        # Of a path, an offset and a number of records; -1 is all.
        signature = [tf.TensorSpec([], t) for t in ("string", "int64", "int64")]
        self._look_at = tf.function(self._look_at_records, input_signature=signature)

    def scan(self, path: str, size: int) -> tuple[np.ndarray, list[str], bool]:
        """Finds the records of a file of that size in bytes.

        Returns:
            Numbers, offsets, lengths and labels of the records, int64 (4, number); what
            to call the damaged ones; and whether the file could be read to its end.
        """
        try:
            lengths, labels = (x.numpy() for x in self._look_at(path, 0, -1))
        except _FAILURES:
            lengths = labels = np.zeros(0, np.int64)
        # Compared, since TensorFlow takes up to 11 odd bytes for the end of a file.
        is_whole = size == (lengths + FRAME).sum()
        if not is_whole:
            lengths = _lengths(path, size)
            is_whole = size == (lengths + FRAME).sum()
        offsets = np.cumsum(lengths + FRAME) - lengths - FRAME
        if len(lengths) > len(labels):
            labels = np.array(self._look_in_parts(path, offsets))
        numbers = np.arange(len(labels))
        bad = numbers[labels < -1]
        damaged = [f"{record_name(path, n)} ({_PROBLEMS[labels[n]]})" for n in bad]
        if not is_whole:
            first = (numbers[labels != _DAMAGED] + 1).max(initial=0)
            damaged.append(f"{record_name(path, first)} and all after it")
        columns = np.stack([numbers, offsets, lengths, labels])
        return columns[:, labels >= -1], damaged, bool(is_whole)

    def _look_at_records(
        self, path: tf.Tensor, offset: tf.Tensor, count: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Lengths and labels of records that follow each other, int64 each."""
        records = records_from(path, offset, 2**20).take(count).batch(32)
        records = records.map(self._parse).unbatch()
        return records.batch(tf.int64.max).get_single_element()

    def _parse(self, records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = {
            self._image: tf.io.FixedLenFeature([], tf.string, ""),
            self._label: tf.io.FixedLenFeature([], tf.int64, -1),
        }
        parsed = tf.io.parse_example(records, features)
        image, label = parsed[self._image], parsed[self._label]
        begins = [tf.strings.substr(image, 0, len(m)) == m for m in _MAGIC]
        # What is beyond int32 is in no class either.
        labels = tf.clip_by_value(label, -1, tf.int32.max)
        labels = tf.where(tf.reduce_any(begins, 0), labels, _NO_IMAGE)
        return tf.cast(tf.strings.length(records), tf.int64), labels

    def _look_in_parts(self, path: str, offsets: np.ndarray) -> np.ndarray | list[int]:
        """The labels of records, the damaged ones found by halving."""
        try:
            return self._look_at(path, offsets[0], len(offsets))[1]
        except _FAILURES:
            if len(offsets) == 1:
                return [_DAMAGED]
            halves = np.array_split(offsets, 2)
            return np.concatenate([self._look_in_parts(path, half) for half in halves])


def _lengths(path: str, size: int) -> np.ndarray:
    """The lengths of a file's records, as far as they make sense."""
    lengths, offset = [], 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while offset + FRAME <= size:
            file.seek(offset)
            (length,) = struct.unpack("<Q", file.read(8))
            # A file that did not arrive whole may be filled up with zeros.
            if length == 0 or offset + length + FRAME > size:
                break
            lengths.append(length)
            offset += length + FRAME
    return np.array(lengths, np.int64)


def _cannot_be_used(damaged: Sequence[str], whole: int) -> str:
    return (
        f"{len(damaged)} of {len(damaged) + whole} records cannot be used: "
        f"{shorten_list(damaged, 5)}"
    )


def _load(path: str) -> Table | None:
    """A kept index; `None` where there is none, or a damaged one."""
    try:
        with np.load(path) as file:
            names = (*_COLUMNS, "image", "label", "damaged")
            return {name: file[name] for name in names}
    # zipfile raises RuntimeError where it is encrypted, or of a newer kind.
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile):
        return None


def _save(path: str, table: Table) -> None:
    """Keeps an index if that is possible; several workers may do so at once."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with replace_when_whole(path) as beside, open(beside, "xb") as file:
            np.savez(file, **table)  # type: ignore[arg-type] # NumPy has a flag too.
    except OSError as error:
        print(f"The index of the records is not kept: {error}", file=sys.stderr)


def read_records(
    paths: Iterable[os.PathLike[str] | str], first_label: int | None = None
) -> Split:
    """The images and labels in TFRecord files; `first_label` stands for class 0."""
    files = [os.fspath(path) for path in paths]
    with progress_bar("indexing", len(files)) as advance:
        records = index(files, first_label, on_file=advance)
    return Split(np.arange(len(records)), records.labels, records=records)
