"""The index of TFRecord files: where each image lies, made once."""

import concurrent.futures
import hashlib
import json
import os
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_resnet.data.records import _FRAME, Records, _following, record_name
from keras_resnet.data.splits import Split
from keras_resnet.support import InputError, progress_bar

# By the first that a record has: TensorFlow's ImageNet scripts and TF-slim; TFDS.
IMAGE_FEATURES = ("image/encoded", "image", "image_raw")


LABEL_FEATURES = ("image/class/label", "label")


# Share of the records that may be damaged; they are left out.
MAX_DAMAGED = 0.001


# How JPEG, PNG, GIF, BMP and WebP files begin.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")


_VERSION = 1  # Of the kept index: another one makes old ones be made anew.


def check_labels(records, classes):
    """Refuses records whose labels are none of a number of classes."""
    wrong = np.flatnonzero((records.labels < 0) | (records.labels >= classes))
    if len(wrong):
        first = records.first_label
        raise InputError(
            f"{len(wrong)} of {len(records)} records have another label than those of "
            f"the {classes} classes, {first} to {classes - 1 + first}. Received: "
            f"{records.labels[wrong[0]] + first} in {records.name(wrong[0])}"
        )


def cache_folder():
    """Where indices are kept: `$KERAS_HOME/records`, or `~/.keras/records`."""
    home = os.environ.get("KERAS_HOME") or os.path.join(
        os.path.expanduser("~"), ".keras"
    )
    return os.path.join(home, "records")


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
        paths: of uncompressed TFRecord files of `tf.train.Example` with an encoded
            image and a label, under any of the known names; see `IMAGE_FEATURES`
            and `LABEL_FEATURES`.
        first_label: what the files call the first class. `None` is 1 for labels
            `image/class/label` of which none is below 1, as in TensorFlow's
            ImageNet files, where 0 is the background; otherwise 0. A held-out
            part, which may lack a class, should be given the training part's.
        cache_dir: where indices are kept; `None` is `cache_folder()`.
        on_file: called after each file that is read.

    Returns:
        The `Records`. Damaged ones are left out, with a line on standard error.

    Raises:
        InputError: a file cannot be read to its end, or more than `MAX_DAMAGED` of
            the records are damaged: no set of less than 1,000 may have any.
    """
    paths = tuple(p if "://" in p else os.path.abspath(p) for p in map(str, paths))
    try:
        found = [tf.io.gfile.stat(path) for path in paths]
        key = json.dumps([_VERSION, paths, [(f.length, f.mtime_nsec) for f in found]])
        key = hashlib.sha256(key.encode()).hexdigest()[:32]
        cached = os.path.join(cache_dir or cache_folder(), f"{key}.npz")
        table = _load(cached)
        if table is None:
            table = _make(paths, [f.length for f in found], on_file)
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
    return Records(
        paths,
        **columns,
        image=str(table["image"]),
        first_label=first_label,
        damaged=damaged,
    )


# Of the index, and their types; labels as they are in the files.
_COLUMNS = {
    "shard": np.int32,
    "number": np.int32,
    "offset": np.int64,
    "length": np.int64,
    "labels": np.int32,
}


def _make(paths, sizes, on_file):
    """Returns the index of files: a dict of arrays."""
    image, label = _features(paths)
    parts, damaged, broken = [], [], False
    # Threads: all but a little of the work is in TensorFlow's C++.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(_scanner(image, label), paths, sizes)
        for shard, (columns, problems, ends) in enumerate(found):
            parts.append(np.vstack([np.full(columns.shape[1], shard), columns]))
            damaged += problems
            broken |= not ends
            on_file()
    columns = np.concatenate(parts, 1)
    whole = columns.shape[1]
    if broken or len(damaged) > MAX_DAMAGED * (whole + len(damaged)):
        raise InputError(f"{_cannot_be_used(damaged, whole)}; copy these files anew")
    table = {
        name: column.astype(kind)
        for (name, kind), column in zip(_COLUMNS.items(), columns, strict=True)
    }
    return table | {
        "image": np.array(image),
        "label": np.array(label),
        "damaged": np.array(damaged, str),
    }


def _features(paths):
    """The names of the image and of the label in the first record with both."""
    seen = set()
    # Where a file begins with a damaged record, this goes on with the next file.
    records = tf.data.TFRecordDataset(paths).ignore_errors().take(100)
    for record in records.as_numpy_iterator():
        try:
            found = set(tf.train.Example.FromString(record).features.feature)
        except DecodeError:
            continue
        image = next((name for name in IMAGE_FEATURES if name in found), None)
        label = next((name for name in LABEL_FEATURES if name in found), None)
        if image and label:
            return image, label
        seen |= found
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


def _scanner(image, label):
    """Returns a function from a file's path and size to all that is in it.

    It returns the records' numbers, offsets, lengths and labels, int64 (4, number);
    what to call the damaged ones; and whether the file could be read to its end.
    """
    features = {
        image: tf.io.FixedLenFeature([], tf.string, ""),
        label: tf.io.FixedLenFeature([], tf.int64, -1),
    }

    def look(records):
        found = tf.io.parse_example(records, features)
        begins = [tf.strings.substr(found[image], 0, len(m)) == m for m in _MAGIC]
        # What is beyond int32 is in no class either.
        labels = tf.clip_by_value(found[label], -1, tf.int32.max)
        labels = tf.where(tf.reduce_any(begins, 0), labels, _NO_IMAGE)
        return tf.cast(tf.strings.length(records), tf.int64), labels

    @tf.function(
        input_signature=[tf.TensorSpec([], t) for t in ("string", "int64", "int64")]
    )
    def look_at(path, offset, count):
        found = _following(path, offset, 2**20).take(count).batch(32).map(look)
        return found.unbatch().batch(tf.int64.max).get_single_element()

    def look_in_parts(path, offsets):
        """The labels of records, the damaged ones found by halving."""
        try:
            return look_at(path, offsets[0], len(offsets))[1]
        except _FAILURES:
            if len(offsets) == 1:
                return [_DAMAGED]
            halves = np.array_split(offsets, 2)
            return np.concatenate([look_in_parts(path, half) for half in halves])

    def scan(path, size):
        try:
            lengths, labels = (x.numpy() for x in look_at(path, 0, -1))
        except _FAILURES:
            lengths = labels = np.zeros(0, np.int64)
        # Compared, since TensorFlow takes up to 11 odd bytes for the end of a file.
        ends = size == (lengths + _FRAME).sum()
        if not ends:
            lengths = _lengths(path, size)
            ends = size == (lengths + _FRAME).sum()
        offsets = np.cumsum(lengths + _FRAME) - lengths - _FRAME
        if len(lengths) > len(labels):
            labels = np.array(look_in_parts(path, offsets))
        numbers = np.arange(len(labels))
        damaged = [
            f"{record_name(path, n)} ({_PROBLEMS[labels[n]]})"
            for n in numbers[labels < -1]
        ]
        if not ends:
            known = numbers[labels != _DAMAGED] + 1
            damaged.append(
                f"{record_name(path, known.max(initial=0))} and all after it"
            )
        columns = np.stack([numbers, offsets, lengths, labels])
        return columns[:, labels >= -1], damaged, ends

    return scan


def _lengths(path, size):
    """The lengths of a file's records, as far as they make sense."""
    lengths, offset = [], 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while offset + _FRAME <= size:
            file.seek(offset)
            (length,) = struct.unpack("<Q", file.read(8))
            # A file that did not arrive whole may be filled up with zeros.
            if length == 0 or offset + length + _FRAME > size:
                break
            lengths.append(length)
            offset += length + _FRAME
    return np.array(lengths, np.int64)


def _cannot_be_used(damaged, whole):
    more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
    return (
        f"{len(damaged)} of {len(damaged) + whole} records cannot be used: "
        f"{', '.join(damaged[:5])}{more}"
    )


def _load(path):
    """A kept index; `None` where there is none, or a damaged one."""
    try:
        with np.load(path) as found:
            return {
                name: found[name] for name in (*_COLUMNS, "image", "label", "damaged")
            }
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    except RuntimeError:  # By zipfile: encrypted, or of a newer kind.
        return None


def _save(path, table):
    """Keeps an index, which appears whole or not at all, if that is possible."""
    folder, beside = os.path.dirname(path), None
    try:
        os.makedirs(folder, exist_ok=True)
        # Several workers may make the same one at once.
        handle, beside = tempfile.mkstemp(suffix=".part", dir=folder)
        with open(handle, "wb") as file:
            np.savez(file, **table)
        os.replace(beside, path)
    except OSError as error:
        print(f"The index of the records is not kept: {error}", file=sys.stderr)
        if beside is not None and os.path.exists(beside):
            os.remove(beside)


def read_records(paths, first_label=None):
    """The images and labels in TFRecord files; `first_label` stands for class 0."""
    paths = list(map(os.fspath, paths))
    with progress_bar("indexing", len(paths)) as advance:
        found = index(paths, first_label, on_file=advance)
    return Split(np.arange(len(found)), found.labels, records=found)
