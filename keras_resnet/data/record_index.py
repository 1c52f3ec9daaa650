"""Index of the records in TFRecord files, for random access.

TensorFlow reads TFRecord files only sequentially, and TFDS offers random access only
to ArrayRecord files. The index holds the positions of all records, and is cached.
"""

import concurrent.futures
import hashlib
import json
import os
import struct
import sys
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_resnet import support
from keras_resnet.data.records import FRAME, Records, describe_record, stream_records
from keras_resnet.data.splits import Split
from keras_resnet.support import InputError, progress_bar, shorten_list, to_printable

# Accepted feature names, in order of preference. TensorFlow's ImageNet scripts and
# TF-slim use the first name of each tuple, and TFDS uses the second name.
IMAGE_FEATURES = ("image/encoded", "image", "image_raw")
LABEL_FEATURES = ("image/class/label", "label")

# Largest accepted fraction of damaged records, which are left out of the index.
MAX_DAMAGED = 0.001

# First bytes of JPEG, PNG, GIF, BMP and WebP files.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")

# Version of the index format. It is part of the cache key, so that an index in an older
# format is ignored and a new index is built.
INDEX_FORMAT = 1

# Columns of the index and their dtypes. Labels are stored as they are in the files.
_COLUMNS = {
    "shard": "i4", "number": "i4", "offset": "i8", "length": "i8", "labels": "i4",
}  # fmt: skip

# The cached index. Its keys are "image", "label", "damaged" and the keys of `_COLUMNS`.
Table = dict[str, np.ndarray]


def index_records(
    paths: Iterable[str],
    first_label: int | None = None,
    on_file: Callable[[], None] = lambda: None,
) -> Records:
    """Finds the position and the label of each record.

    Every byte is read once and every checksum is verified. The index is cached in
    `$KERAS_HOME/records` or `~/.keras/records`. The cached index is used until the path,
    size or modification time of a file changes.

    Args:
        paths: Paths of uncompressed TFRecord files of `tf.train.Example` with an
            encoded image and a label. See `IMAGE_FEATURES` and `LABEL_FEATURES` for
            the accepted feature names.
        first_label: Label of the first class in the files. Default: 1 if the feature
            is `image/class/label` and the lowest label is 1, as in TensorFlow's
            ImageNet files, where 0 is the background. In all other cases, 0. For a test
            split, which may lack a class, pass the value of the training split.
        on_file: Function called after each file is read.

    Returns:
        The undamaged records. Damaged records are reported on standard error.

    Raises:
        InputError: If a file cannot be read to its end, or if more than `MAX_DAMAGED`
            of the records are damaged, or any of fewer than 1,000 records.
    """
    paths = tuple(p if "://" in p else os.path.abspath(p) for p in map(str, paths))
    if odd := [p for p in paths if os.path.exists(p) and not os.path.isfile(p)]:
        raise InputError(f"A TFRecord file must be a regular file. Received: {odd[0]}")
    try:
        stats = [tf.io.gfile.stat(path) for path in paths]
        file_versions = [(stat.length, stat.mtime_nsec) for stat in stats]
        key = json.dumps([INDEX_FORMAT, paths, file_versions])
        key = hashlib.sha256(key.encode()).hexdigest()[:32]
        cache_path = os.path.join(support.keras_home(), "records", f"{key}.npz")
        sizes = [stat.length for stat in stats]
        table = _load_table(cache_path, sizes)
        if table is None:
            table = _build_table(paths, sizes, on_file)
            _save_table(cache_path, table)
    except tf.errors.OpError as error:
        raise InputError(f"Could not read the records: {error.message}") from None
    labels, damaged = table["labels"], tuple(table["damaged"].ravel().tolist())
    if damaged:
        print(to_printable(_format_damage(damaged, len(labels))), file=sys.stderr)
    if first_label is None:
        first_label = int(table["label"] == "image/class/label" and labels.min() == 1)
    columns = {name: table[name] for name in _COLUMNS}
    columns["labels"] = np.maximum(labels - first_label, -1)
    image_feature = str(table["image"])
    return Records(
        paths, **columns, image=image_feature, first_label=first_label, damaged=damaged
    )


def _build_table(
    paths: tuple[str, ...], sizes: Sequence[int], on_file: Callable[[], None]
) -> Table:
    image_feature, label_feature = _find_features(paths, sizes)
    file_columns: list[np.ndarray] = []
    damaged: list[str] = []
    is_incomplete = False
    # Threads are as fast as processes here, as TensorFlow's C++ code does most work.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        scans = pool.map(_FileScanner(image_feature, label_feature).scan, paths, sizes)
        for shard, (columns, descriptions, is_complete) in enumerate(scans):
            file_columns.append(np.vstack([np.full(columns.shape[1], shard), columns]))
            damaged += descriptions
            is_incomplete |= not is_complete
            on_file()
    columns = np.concatenate(file_columns, 1)
    num_usable = columns.shape[1]
    if is_incomplete or len(damaged) > MAX_DAMAGED * (num_usable + len(damaged)):
        raise InputError(f"{_format_damage(damaged, num_usable)}. Copy the files again")
    typed_columns = zip(_COLUMNS.items(), columns, strict=True)
    table = {name: column.astype(dtype) for (name, dtype), column in typed_columns}
    names = {"image": np.array(image_feature), "label": np.array(label_feature)}
    return table | names | {"damaged": np.array(damaged, str)}


def _find_features(paths: tuple[str, ...], sizes: Sequence[int]) -> tuple[str, str]:
    """Returns the names of the image and label features in the first valid record."""
    seen_features: set[str] = set()
    for path, size in zip(paths, sizes, strict=True):
        num_records = len(_read_lengths(path, size, 100))
        # If a file is damaged, ignore_errors skips its rest, so later files are read.
        records = tf.data.TFRecordDataset(path).ignore_errors().take(num_records)
        for record in records.as_numpy_iterator():
            try:
                names = set(tf.train.Example.FromString(record).features.feature)
            except DecodeError:
                continue
            image_feature, label_feature = (
                next((name for name in features if name in names), None)
                for features in (IMAGE_FEATURES, LABEL_FEATURES)
            )
            if image_feature and label_feature:
                return image_feature, label_feature
            seen_features |= names
    raise InputError(
        "Files must be complete, uncompressed TFRecord files of tf.train.Example with "
        f"an encoded image ({', '.join(IMAGE_FEATURES)}) and a label "
        f"({', '.join(LABEL_FEATURES)}). Received: {', '.join(paths[:1])} with "
        f"{', '.join(sorted(seen_features)) or 'no readable record'}"
    )


# Codes for unusable records in the column of labels. Valid labels are at least -1.
_NO_IMAGE, _DAMAGED = -2, -3
_PROBLEMS = {_NO_IMAGE: "no encoded image", _DAMAGED: "damaged"}

# Errors for damaged records. Decoding an error message that quotes bytes may fail.
_READ_ERRORS = (tf.errors.OpError, UnicodeDecodeError)


class _FileScanner:
    """Finds the records of files that have the given image and label features."""

    def __init__(self, image_feature: str, label_feature: str) -> None:
        self._image, self._label = image_feature, label_feature
        # Arguments are path, byte offset of the first record, and number of records.
        signature = [tf.TensorSpec([], t) for t in ("string", "int64", "int64")]
        self._scan_range = tf.function(self._scan_records, input_signature=signature)

    def scan(self, path: str, size: int) -> tuple[np.ndarray, list[str], bool]:
        """Finds the records of a file of `size` bytes.

        Returns:
            An int64 array (4, n) with number, offset, length and label of each usable
            record, descriptions of unusable records, and whether the file is complete.
        """
        # TensorFlow would allocate memory for any length that a record claims to have,
        # and ignores up to 11 bytes at the end. Check the lengths first.
        lengths = _read_lengths(path, size)
        is_complete = size == (lengths + FRAME).sum()
        offsets = np.cumsum(lengths + FRAME) - lengths - FRAME
        labels = np.array(self._read_labels(path, offsets), np.int64)
        numbers = np.arange(len(labels))
        bad = numbers[labels < -1]
        damaged = [f"{describe_record(path, n)} ({_PROBLEMS[labels[n]]})" for n in bad]
        if not is_complete:
            first_unread = (numbers[labels != _DAMAGED] + 1).max(initial=0)
            damaged.append(f"{describe_record(path, first_unread)} and all after it")
        columns = np.stack([numbers, offsets, lengths, labels])
        return columns[:, labels >= -1], damaged, bool(is_complete)

    def _scan_records(
        self, path: tf.Tensor, offset: tf.Tensor, count: tf.Tensor
    ) -> tf.Tensor:
        """Returns the labels of `count` consecutive records, int64."""
        records = stream_records(path, offset, 2**20).take(count).batch(32)
        records = records.map(self._parse_batch).unbatch()
        return records.batch(tf.int64.max).get_single_element()

    def _parse_batch(self, records: tf.Tensor) -> tf.Tensor:
        features = {
            self._image: tf.io.FixedLenFeature([], tf.string, ""),
            self._label: tf.io.FixedLenFeature([], tf.int64, -1),
        }
        parsed = tf.io.parse_example(records, features)
        image, label = parsed[self._image], parsed[self._label]
        has_magic = [tf.strings.substr(image, 0, len(m)) == m for m in _MAGIC]
        # The index stores int32 labels. Larger labels are invalid and may be clipped.
        labels = tf.clip_by_value(label, -1, tf.int32.max)
        return tf.where(tf.reduce_any(has_magic, 0), labels, _NO_IMAGE)

    def _read_labels(self, path: str, offsets: np.ndarray) -> np.ndarray | list[int]:
        """Returns the labels of records. Finds damaged records by bisection."""
        if not len(offsets):
            return []
        try:
            return self._scan_range(path, offsets[0], len(offsets)).numpy()
        except _READ_ERRORS:
            if len(offsets) == 1:
                return [_DAMAGED]
            halves = np.array_split(offsets, 2)
            return np.concatenate([self._read_labels(path, half) for half in halves])


def _read_lengths(path: str, size: int, max_records: int = sys.maxsize) -> np.ndarray:
    """Returns the lengths of a file's records up to the first implausible length."""
    lengths: list[int] = []
    offset = 0
    open_file = tf.io.gfile.GFile if "://" in path else open
    with open_file(path, "rb") as file:
        while offset + FRAME <= size and len(lengths) < max_records:
            file.seek(offset)
            length, checksum = struct.unpack("<QI", file.read(12))
            # An incomplete download may be padded with zeros.
            if not (length or checksum) or offset + length + FRAME > size:
                break
            lengths.append(length)
            offset += length + FRAME
    return np.array(lengths, np.int64)


def _format_damage(damaged: Sequence[str], num_usable: int) -> str:
    return (
        f"{len(damaged)} of {len(damaged) + num_usable} records cannot be used: "
        f"{shorten_list(damaged, 5)}"
    )


def _load_table(path: str, sizes: Sequence[int]) -> Table | None:
    """Returns a cached index of files of `sizes` bytes.

    Returns `None` if the index does not exist, is damaged or does not fit the files.
    """
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            is_compressed = any(m.compress_type for m in arrays.zip.infolist())
            if is_compressed:  # Its arrays may be very large.
                return None
            table = {name: arrays[name] for name in ("image", "label", "damaged")}
            for name, dtype in _COLUMNS.items():
                table[name] = arrays[name].astype(dtype, casting="no")
        rows = np.stack([table[name] for name in _COLUMNS])  # int64 (5, n).
        shard, _, offset, length, _ = rows
        ends = np.array(sizes)[shard]
        is_valid = (rows.T >= [0, 0, 0, 0, -1]).all() and bool(rows.size)
        is_valid &= (offset <= ends).all() and (length <= ends - offset - FRAME).all()
        return table if is_valid and str(table["image"]) in IMAGE_FEATURES else None
    except Exception:  # NumPy and zipfile raise many error types for damaged files.
        return None


def _save_table(path: str, table: Table) -> None:
    """Writes an index to the cache. Prints a message to standard error on failure."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with support.replace_atomically(path) as temp, open(temp, "xb") as file:
            np.savez(file, **table)  # type: ignore[arg-type] # Not allow_pickle.
    except OSError as error:
        print(f"The index of the records is not cached: {error}", file=sys.stderr)


def read_records(
    paths: Iterable[os.PathLike[str] | str], first_label: int | None = None
) -> Split:
    """Returns TFRecord files' images and labels as a split; see `index_records`."""
    files = [os.fspath(path) for path in paths]
    with progress_bar("indexing", len(files)) as advance:
        records = index_records(files, first_label, on_file=advance)
    return Split(np.arange(len(records)), records.labels, records=records)
