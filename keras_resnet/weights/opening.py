"""From what `weights=` takes, a name or a path, to a `Checkpoint`."""

import dataclasses
import os

from keras_resnet.support import InputError
from keras_resnet.weights.checkpoint import Checkpoint
from keras_resnet.weights.download import fetch_weights, has_digest
from keras_resnet.weights.formats import ENDINGS, import_torch, read_file
from keras_resnet.weights.origin import Origin
from keras_resnet.weights.registry import (
    PublishedWeights,
    class_names,
    find_weights,
    list_weights,
)

_ACCEPTED = (
    f"a name that keras_resnet.list_weights() gives, or a file {', '.join(ENDINGS)}"
)


def open_checkpoint(
    weights: str | os.PathLike[str] | Checkpoint, model: str | None = None
) -> Checkpoint:
    """Opens weights by a name of the registry or by a path.

    Arrays are read only when they are asked for, where the format allows it.

    Args:
        weights: Such as `"imagenet"`, `"resnet50/torchvision_v2"` or
            `"net.safetensors"`; a `Checkpoint` is returned as it is.
        model: Name of the architecture that a name without one is of.

    Raises:
        InputError: There are no such weights, or the file is damaged, foreign or
            not to be trusted.
    """
    if isinstance(weights, Checkpoint):
        return weights
    if isinstance(weights, os.PathLike):
        weights = os.fspath(weights)
    if not isinstance(weights, str):
        raise InputError(f"weights must be None, {_ACCEPTED}. Received: {weights!r}")
    if "://" in weights:
        raise InputError(
            "weights must be a name or a file; an address is fetched and checked by "
            "python -m keras_resnet.convert ADDRESS TARGET --sha256=...  "
            f"Received: {weights!r}"
        )
    entry: PublishedWeights | None
    path = os.path.expanduser(weights)
    if path.lower().endswith(ENDINGS):
        entry = _find_published(path)
    else:
        first, _, rest = weights.partition("/")
        if rest and first and "." not in weights and os.sep not in rest:
            model, weights = first, rest
        elif os.sep in weights or "." in weights:
            raise InputError(f"weights must be {_ACCEPTED}. Received: {weights!r}")
        entry = find_weights(model, weights)
        if entry.path.endswith(".pth"):
            import_torch(weights)
        path = fetch_weights(entry)
    checkpoint = read_file(path)
    if entry is None:
        return checkpoint
    origin, source = checkpoint.origin, f"{entry.model}/{entry.name}"
    if entry.pixels is None:
        origin = dataclasses.replace(origin, source=source)
    else:  # What the publisher states, and the file does not.
        origin = Origin(
            source,
            entry.pixels,
            class_names(entry.data),
            entry.model,
            entry.stride_on,
            avg_down=origin.avg_down,
        )
    return dataclasses.replace(checkpoint, origin=origin)


def _find_published(path: str) -> PublishedWeights | None:
    """Returns the published weights that a file is; `None` if it is none of them."""
    for row in list_weights() if os.path.isfile(path) else ():
        has_name = os.path.basename(row.address) == os.path.basename(path)
        if has_name and has_digest(path, row.algorithm, row.digest):
            return row
    return None
