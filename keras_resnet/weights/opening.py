"""Opening of the weights that users pass as `weights=`, a name or a path."""

import dataclasses
import os

from keras_resnet.support import InputError
from keras_resnet.weights import registry
from keras_resnet.weights.checkpoint import Checkpoint
from keras_resnet.weights.download import fetch_published_weights, has_digest
from keras_resnet.weights.formats import SUFFIXES, import_torch, read_checkpoint
from keras_resnet.weights.origin import Origin

_ACCEPTED = f"a name from keras_resnet.list_weights() or a {', '.join(SUFFIXES)} file"


def open_checkpoint(
    weights: str | os.PathLike[str] | Checkpoint, model: str | None = None
) -> Checkpoint:
    """Opens published weights by their name, or a weights file by its path.

    If the file format permits it, each array is read only when it is needed.

    Args:
        weights: Name such as `"imagenet"` or `"resnet50/torchvision_v2"`, or path such
            as `"net.safetensors"`. A `Checkpoint` is returned unchanged.
        model: Name of the variant. Required if `weights` is a name without a variant,
            such as `"imagenet"`.

    Raises:
        InputError: If there are no weights of this name or path, or the file is
            damaged, may contain code, or does not contain a ResNet.
    """
    if isinstance(weights, Checkpoint):
        return weights
    if isinstance(weights, os.PathLike):
        weights = os.fspath(weights)
    if not isinstance(weights, str):
        raise InputError(f"weights must be None, {_ACCEPTED}. Received: {weights!r}")
    if "://" in weights:
        raise InputError(
            "weights must be a name or a file, not a URL. Download the weights with "
            "python -m keras_resnet.convert URL TARGET --sha256=HASH. "
            f"Received: {weights!r}"
        )
    row: registry.PublishedWeights | None
    path = os.path.expanduser(weights)
    if path.lower().endswith(SUFFIXES):
        row = _identify_published(path)
    else:
        prefix, _, name = weights.partition("/")
        if name and prefix and "." not in weights and os.sep not in name:
            model, weights = prefix, name
        elif os.sep in weights or "." in weights:
            raise InputError(f"weights must be {_ACCEPTED}. Received: {weights!r}")
        row = registry.find_published_weights(model, weights)
        if row.path.endswith(".pth"):
            import_torch(weights)
        path = fetch_published_weights(row)
    checkpoint = read_checkpoint(path)
    if row is None:
        return checkpoint
    origin, source = checkpoint.origin, f"{row.model}/{row.name}"
    if row.pixels is None:
        origin = dataclasses.replace(origin, source=source)
    else:  # The file lacks these values, so they come from the registry row.
        classes, avg_down = registry.class_names(row.data), origin.avg_down
        origin = Origin(
            source, row.pixels, classes, row.model, row.stride_on, avg_down=avg_down
        )
    return dataclasses.replace(checkpoint, origin=origin)


def _identify_published(path: str) -> registry.PublishedWeights | None:
    """Returns the registry row whose file is at `path`, or `None` if there is none."""
    for row in registry.list_weights() if os.path.isfile(path) else ():
        is_same_name = os.path.basename(row.address) == os.path.basename(path)
        if is_same_name and has_digest(path, row.algorithm, row.digest):
            return row
    return None
