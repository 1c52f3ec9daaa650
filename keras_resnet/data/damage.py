"""Detection and replacement of image files that cannot be decoded."""

import sys
from collections.abc import Iterable

import tensorflow as tf

from keras_resnet.data.decoding import describe_size
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.record_index import MAX_DAMAGED
from keras_resnet.data.splits import Split
from keras_resnet.support import InputError, shorten_list, to_printable


def find_damaged(
    split: Split, preprocessing: Preprocessing, indices: Iterable[int] | None = None
) -> dict[int, str]:
    """Finds the damaged and the too large images among `indices` (default: all).

    Returns:
        A dict from the sorted indices of the images to the sizes of too large images, or
        to `""`.

    Raises:
        InputError: If a TFRecord file has changed since it was indexed.
    """
    read = split.make_reader(preprocessing.decode, lambda image: image)
    damaged_images = {}
    for index in range(len(split)) if indices is None else sorted(set(indices)):
        try:
            read(split.images[index])
        except tf.errors.OpError as error:
            if split.records:
                _check_record(split, index)
            damaged_images[int(index)] = describe_size(error)
    return damaged_images


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
    if damaged_images := find_damaged(split, preprocessing):
        raise InputError(_describe_damage(split, damaged_images))


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
    damaged_images = find_damaged(split, preprocessing, indices)
    if not damaged_images:
        raise error or InputError("Reading failed although no image is damaged")
    max_damaged = MAX_DAMAGED * len(split) - len(split.damaged)
    queue = list(damaged_images)
    for index in queue:  # The next image, a replacement, may be damaged too.
        if len(damaged_images) <= max_damaged:
            following = {(index + 1) % len(split)}.difference(damaged_images)
            damaged_images |= find_damaged(split, preprocessing, following)
            queue += following.intersection(damaged_images)
    total = len(split.damaged) + len(damaged_images)
    message = _describe_damage(split, damaged_images, total)
    if len(damaged_images) > max_damaged:
        if len(split) < 10_000:
            refuse_damaged(split, preprocessing)
        raise InputError(message)
    message += ". In this run, other images replace them"
    print(to_printable(message), file=sys.stderr)
    return split.substitute(list(damaged_images))


def _describe_damage(split: Split, damaged: dict[int, str], total: int = 0) -> str:
    all_names, names = split.names(), []
    for index, size in damaged.items():
        name = all_names[index]
        name = f"number {name}" if name.isdigit() else name
        names.append(f"{name} ({size})" if size else name)
    return (
        f"{total or len(names)} of {len(split)} images cannot be decoded. Repair "
        f"or remove them: {shorten_list(names, 5)}"
    )
