"""Opening of weights by their name or path, which users pass as `weights=`."""

import dataclasses
import os

from keras_resnet.support import InputError
from keras_resnet.weights.checkpoint import Checkpoint
from keras_resnet.weights.download import fetch_weights, has_digest
from keras_resnet.weights.formats import ENDINGS, import_torch, read_checkpoint
from keras_resnet.weights.origin import Origin
from keras_resnet.weights.registry import (
    PublishedWeights,
    class_names,
    find_weights,
    list_weights,
)

_ACCEPTED = f"a name from keras_resnet.list_weights() or a file {', '.join(ENDINGS)}"


def open_checkpoint(
    weights: str | os.PathLike[str] | Checkpoint, model: str | None = None
) -> Checkpoint:
    """Opens published weights by their name, or a weights file by its path.

    If the file format permits it, each array is read only when it is needed.

    Args:
        weights: Name such as `"imagenet"` or `"resnet50/torchvision_v2"`, or path such
            as `"net.safetensors"`. A `Checkpoint` is returned unchanged.
        model: Name of the variant. Required for a name without it, such as `"imagenet"`.

    Raises:
        InputError: If there are no such weights, or the file is damaged, may contain
            code, or contains weights of a network that is not a ResNet.
    """
    if isinstance(weights, Checkpoint):
        return weights
    if isinstance(weights, os.PathLike):
        weights = os.fspath(weights)
    if not isinstance(weights, str):
        raise InputError(f"weights must be None, {_ACCEPTED}. Received: {weights!r}")
    if "://" in weights:
        raise InputError(
            "weights must be a name or a file. To download weights from a URL, run "
            "python -m keras_resnet.convert URL TARGET --sha256=...  "
            f"Received: {weights!r}"
        )
    row: PublishedWeights | None
    path = os.path.expanduser(weights)
    if path.lower().endswith(ENDINGS):
        row = _find_published(path)
    else:
        prefix, _, name = weights.partition("/")
        if name and prefix and "." not in weights and os.sep not in name:
            model, weights = prefix, name
        elif os.sep in weights or "." in weights:
            raise InputError(f"weights must be {_ACCEPTED}. Received: {weights!r}")
        row = find_weights(model, weights)
        if row.path.endswith(".pth"):
            import_torch(weights)
        path = fetch_weights(row)
    checkpoint = read_checkpoint(path)
    if row is None:
        return checkpoint
    origin, source = checkpoint.origin, f"{row.model}/{row.name}"
    if row.pixels is None:
        origin = dataclasses.replace(origin, source=source)
    else:  # The file does not contain these properties.
        origin = Origin(
            source,
            row.pixels,
            class_names(row.data),
            row.model,
            row.stride_on,
            avg_down=origin.avg_down,
        )
    return dataclasses.replace(checkpoint, origin=origin)


def _find_published(path: str) -> PublishedWeights | None:
    """Returns the row of published weights for a file, or `None` for other files."""
    for row in list_weights() if os.path.isfile(path) else ():
        is_same_name = os.path.basename(row.address) == os.path.basename(path)
        if is_same_name and has_digest(path, row.algorithm, row.digest):
            return row
    return None
