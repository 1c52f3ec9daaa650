"""Detection and replacement of image files that cannot be decoded."""

import sys
from collections.abc import Iterable, Sequence

import tensorflow as tf

from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.record_index import MAX_DAMAGED
from keras_resnet.data.splits import Split
from keras_resnet.support import InputError, shorten_list


def find_damaged(
    split: Split, preprocessing: Preprocessing, indices: Iterable[int] | None = None
) -> list[int]:
    """Returns the sorted indices of the damaged images among `indices` (default: all).

    Raises:
        InputError: If a TFRecord file has changed since it was indexed.
    """
    read = split.make_reader(preprocessing.decode, lambda image: image)
    damaged_indices = []
    for index in range(len(split)) if indices is None else sorted(set(indices)):
        try:
            read(split.images[index])
        except tf.errors.OpError:
            if split.records:
                _check_record(split, index)
            damaged_indices.append(int(index))
    return damaged_indices


def _check_record(split: Split, index: int) -> None:
    """Raises an InputError if a record can no longer be read from its file."""
    try:
        read = split.make_reader(lambda encoded: encoded, lambda image: image)
        read(split.images[index])
    except tf.errors.OpError as error:
        raise InputError(
            "A TFRecord file has changed or can no longer be read. Run the command "
            f"again to index it anew. Received: {split.names()[index]} "
            f"({type(error).__name__})"
        ) from None


def refuse_damaged(split: Split, preprocessing: Preprocessing) -> None:
    """Raises an InputError that lists the damaged images of a split, if any."""
    if damaged_indices := find_damaged(split, preprocessing):
        raise InputError(_describe_damage(split, damaged_indices))


def replace_damaged(
    split: Split,
    preprocessing: Preprocessing,
    indices: Iterable[int],
    error: Exception | None = None,
) -> Split:
    """Returns a split where the next undamaged image replaces each damaged image.

    Args:
        split: Images and labels. Each image is replaced together with its label.
        preprocessing: Preprocessing that decodes the images.
        indices: Indices of the images to check.
        error: Reading error, which is raised again if no image is damaged.

    Raises:
        InputError: If more than a fraction MAX_DAMAGED of all images is damaged.
    """
    damaged_indices = find_damaged(split, preprocessing, indices)
    if not damaged_indices:
        raise error or InputError("Reading failed although no image is damaged")
    max_damaged = MAX_DAMAGED * len(split) - split.num_replaced
    for index in damaged_indices:  # The next image, a replacement, may be damaged too.
        if len(damaged_indices) <= max_damaged:
            following = {(index + 1) % len(split)}.difference(damaged_indices)
            damaged_indices += find_damaged(split, preprocessing, following)
    num_damaged = split.num_replaced + len(damaged_indices)
    if len(damaged_indices) > max_damaged:
        if len(split) < 10_000:
            refuse_damaged(split, preprocessing)
        raise InputError(_describe_damage(split, damaged_indices, num_damaged))
    message = _describe_damage(split, damaged_indices, num_damaged)
    print(f"{message}. Until then, other images replace them", file=sys.stderr)
    return split.substitute(damaged_indices)


def _describe_damage(split: Split, indices: Sequence[int], num_damaged: int = 0) -> str:
    all_names = split.names()
    names = [all_names[index] for index in indices]
    names = [f"number {name}" if name.isdigit() else name for name in names]
    return (
        f"{num_damaged or len(names)} of {len(split)} images cannot be decoded. Repair "
        f"or remove them: {shorten_list(names, 5)}"
    )
