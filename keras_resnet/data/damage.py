"""Images that cannot be decoded: named, refused or replaced."""

import sys
from collections.abc import Iterable, Sequence

import tensorflow as tf

from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.record_index import MAX_DAMAGED
from keras_resnet.data.splits import Split
from keras_resnet.support import InputError, shorten_list


def damaged_images(
    split: Split, preprocessing: Preprocessing, places: Iterable[int] | None = None
) -> list[int]:
    """Returns which of the images at `places` (`None`: all) cannot be decoded, in order.

    Raises:
        InputError: A file of records has changed since its records were found.
    """
    read = split.reader(preprocessing.decode, lambda image: image)
    damaged = []
    for place in range(len(split)) if places is None else sorted(set(places)):
        try:
            read(split.images[place])
        except tf.errors.OpError:
            if split.records:
                _check_record(split, place)
            damaged.append(int(place))
    return damaged


def _check_record(split: Split, place: int) -> None:
    """Refuses a file that is not what it was when its records were found."""
    try:
        split.reader(lambda encoded: encoded, lambda image: image)(split.images[place])
    except tf.errors.OpError as error:
        raise InputError(
            "A file of records has changed, or cannot be read any more; start again to "
            f"have it read anew. Received: {split.names()[place]} "
            f"({type(error).__name__})"
        ) from None


def refuse_damaged(split: Split, preprocessing: Preprocessing) -> None:
    """Raises an `InputError` that names the damaged images, if there are any."""
    if damaged := damaged_images(split, preprocessing):
        raise InputError(_describe_damage(split, damaged))


def replace_damaged(
    split: Split,
    preprocessing: Preprocessing,
    places: Iterable[int],
    error: Exception | None = None,
) -> Split:
    """Lets the next good image stand in for each damaged one.

    A share of MAX_DAMAGED may be replaced in all.

    Args:
        split: The images.
        preprocessing: How they are decoded.
        places: Places of the images that are tried.
        error: Error of the reading, raised if none of them is damaged.

    Raises:
        InputError: There are more, or another fault made reading fail.
    """
    damaged = damaged_images(split, preprocessing, places)
    if not damaged:
        raise error or InputError("Reading failed, though no image is damaged")
    count = split.replaced + len(damaged)
    if count > MAX_DAMAGED * len(split):
        if len(split) < 10_000:
            refuse_damaged(split, preprocessing)
        raise InputError(_describe_damage(split, damaged, count))
    message = _describe_damage(split, damaged, count)
    print(f"{message}; others stand in", file=sys.stderr)
    return split.without(damaged)


def _describe_damage(
    split: Split, damaged: Sequence[int], count: int | None = None
) -> str:
    all_names = split.names()
    names = [all_names[place] for place in damaged]
    names = [f"number {name}" if name.isdigit() else name for name in names]
    return (
        f"{count or len(names)} of {len(split)} images cannot be decoded; repair or "
        f"remove them: {shorten_list(names, 5)}"
    )
