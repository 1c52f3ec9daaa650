"""Images that cannot be decoded: named, refused or replaced."""

import sys

import tensorflow as tf

from keras_resnet.data import record_index
from keras_resnet.support import InputError


def damaged_images(split, preprocessing, places=None):
    """Returns the places of the images that cannot be decoded, in order.

    Args:
        split: the images.
        preprocessing: that decodes them.
        places: of those that are tried; `None` is all.
    """
    read = split.reader(preprocessing.decode, lambda image: image)
    encoded = split.reader(lambda encoded: encoded, lambda image: image)
    damaged = []
    for place in range(len(split)) if places is None else sorted(set(places)):
        try:
            read(split.images[place])
        except tf.errors.OpError:
            if split.records:
                _check_record(encoded, split, place)
            damaged.append(int(place))
    return damaged


def _check_record(read, split, place):
    """Refuses a file that is not what it was when its records were found."""
    try:
        read(split.images[place])
    except tf.errors.OpError as error:
        raise InputError(
            "A file of records has changed, or cannot be read any more; start again to "
            f"have it read anew. Received: {split.names()[place]} "
            f"({type(error).__name__})"
        ) from None


def refuse_damaged(split, preprocessing):
    """Raises an `InputError` that names the damaged images, if there are any."""
    if damaged := damaged_images(split, preprocessing):
        raise InputError(_describe_damage(split, damaged))


def replace_damaged(split, preprocessing, places, error=None):
    """Lets the next good image stand in for each damaged one.

    Args:
        split: the images.
        preprocessing: that decodes them.
        places: of those that are tried.
        error: with which reading failed; raised if none of them is damaged.

    Returns:
        A `Split` of as many images. A share of MAX_DAMAGED may be replaced in all.

    Raises:
        InputError: there are more, or another fault made reading fail.
    """
    damaged = damaged_images(split, preprocessing, places)
    if not damaged:
        raise error or InputError("Reading failed, though no image is damaged")
    count = split.replaced + len(damaged)
    if count > record_index.MAX_DAMAGED * len(split):
        if len(split) < 10_000:
            refuse_damaged(split, preprocessing)
        raise InputError(_describe_damage(split, damaged, count))
    print(
        f"{_describe_damage(split, damaged, count)}; others stand in", file=sys.stderr
    )
    return split.without(damaged)


def _describe_damage(split, damaged, count=None):
    names = split.names()
    names = [names[place] for place in damaged]
    names = [f"number {name}" if name.isdigit() else name for name in names]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"{count or len(names)} of {len(split)} images cannot be decoded; repair or "
        f"remove them: {', '.join(names[:5])}{more}"
    )
