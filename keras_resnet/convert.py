"""Carries weights from one file format to another, both ways.

python -m keras_resnet.convert runs/photos/final.keras photos.safetensors

python -m keras_resnet.convert resnet50/torchvision_v2 resnet50.keras

A .safetensors file has torchvision's names (timm's for ResNet-D and squeeze
and excitation), so that torchvision and timm open it; a .keras file is a
network that takes raw pixels. Arrays keep every bit.
"""

import dataclasses
import os
import sys
import urllib.parse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_resnet.support import (
    InputError,
    define_flags,
    option,
    read_flags,
    run_command,
)

if TYPE_CHECKING:
    import keras

    from keras_resnet.weights import Checkpoint, Origin

TARGETS = (".safetensors", ".keras", ".weights.h5")


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """What is known of the weights beside their file."""

    model: str | None = option(None, "Network; told from the weights if not given.")
    sha256: str | None = option(None, "Of a file at an address, as published.")
    mean: tuple[str, ...] | None = option(
        None, "Subtracted from RGB, 0 to 255; the file's."
    )
    std: tuple[str, ...] | None = option(None, "RGB is divided by it; the file's.")


def convert(
    source: str,
    target: str,
    model: str | None = None,
    sha256: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> "keras.Model":
    """Converts weights.

    Args:
        source: File that `weights=` accepts; published weights, such as
            `"resnet50/torchvision_v2"`; or the address of such a file.
        target: File to write: `.safetensors`, `.keras` or `.weights.h5`.
        model: Name of the architecture; `None` reads it from the weights. A plain
            network's weights are those of the residual network with shortcut A.
        sha256: Hash of the file at an address, in hex digits, as its publisher states.
        mean: Mean of red, green and blue, from 0 to 255, that the network was trained
            to subtract; `None` is what the file says or its origin's habit.
        std: Standard deviation of red, green and blue, to divide by.

    Returns:
        The network that was written.

    Raises:
        InputError: The source cannot be used, or the target's kind is unknown.
        OSError: The target cannot be written.
    """
    from keras_resnet.weights import PIXELS, save_model, save_state_dict, save_weights
    from keras_resnet.zoo import build_from_checkpoint

    savers = dict(
        zip(TARGETS, (save_state_dict, save_model, save_weights), strict=True)
    )
    save = next((savers[end] for end in TARGETS if target.endswith(end)), None)
    if save is None or not os.path.isdir(os.path.dirname(target) or "."):
        raise InputError(
            f"The target must be a file {', '.join(TARGETS)} in a folder that is there. "
            f"Received: {target!r}"
        )
    _check_pixels(mean, std)
    checkpoint = open_source(source, sha256)
    if mean and std:
        pixels = checkpoint.origin.pixels or PIXELS["torch"]
        pixels = pixels._replace(mean=tuple(mean), variance=tuple(s * s for s in std))
        origin = dataclasses.replace(checkpoint.origin, pixels=pixels)
        checkpoint = dataclasses.replace(checkpoint, origin=origin)
    network = build_from_checkpoint(checkpoint, model)
    save(network, target)
    return network


def _check_pixels(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Refuses a mean without a standard deviation, and numbers that are neither."""
    if mean is None and std is None:
        return
    for values, low in ((mean, 0), (std, 1e-3)):
        if values and len(values) == 3 and all(low <= v <= 255 for v in values):
            continue
        raise InputError(
            "mean and std go together, three numbers each, from 0 to 255. "
            f"Received: mean={mean}, std={std}"
        )


def open_source(source: str, sha256: str | None = None) -> "Checkpoint":
    """Opens a file, published weights, or a file at an address.

    Raises:
        InputError: There is none, or an address comes without its hash.
    """
    from keras_resnet.weights import (
        ENDINGS,
        cache_folder,
        fetch_file,
        open_checkpoint,
        read_file,
    )

    if "://" in source:
        digest = (sha256 or "").lower()
        if len(digest) < 8 or set(digest) - set("0123456789abcdef"):
            raise InputError(
                "A file at an address needs --sha256, as its publisher states it: 64 "
                f"hex digits, or at least the first 8. Received: sha256={sha256!r}"
            )
        name = os.path.basename(urllib.parse.urlsplit(source).path)
        path = os.path.join(cache_folder(), name)
        return read_file(fetch_file(source, path, "sha256", digest))
    if "/" in source or source.lower().endswith(ENDINGS):
        return open_checkpoint(source)
    raise InputError(
        "The source must be a file, published weights such as resnet50/torchvision_v2, "
        f"or an address. Received: {source!r}"
    )


def main(argv: list[str]) -> None:
    """Reads the flags, converts and says what was written."""
    from keras_resnet.weights import origin_of

    if len(argv) != 2:
        raise InputError(
            "Name the weights to read and the file to write: convert SOURCE TARGET. "
            f"Received: {' '.join(argv) or 'nothing'}"
        )
    options = read_flags(ConversionOptions)
    try:
        mean = [float(value) for value in options.mean] if options.mean else None
        std = [float(value) for value in options.std] if options.std else None
    except ValueError:
        raise InputError(
            "mean and std must be three numbers each, such as 123.7,116.3,103.5. "
            f"Received: mean={options.mean}, std={options.std}"
        ) from None
    source, target = argv
    model = convert(source, target, options.model, options.sha256, mean, std)
    size = os.path.getsize(target) / 1e6
    origin = origin_of(model, "")
    if origin and target.endswith(".safetensors"):
        print(_for_torch(origin), file=sys.stderr)
    print(f"{model.name}, {model.count_params():,} numbers, {size:.1f} MB: {target}")


def _for_torch(origin: "Origin") -> str:
    """Returns what somebody must know who opens the weights in torch."""
    text = "In torch, take pixels from 0 to 1"
    if origin.pixels:
        mean = ", ".join(f"{value / 255:.4g}" for value in origin.pixels.mean)
        std = ", ".join(f"{value**0.5 / 255:.4g}" for value in origin.pixels.variance)
        text += f", less ({mean}), over ({std})"
    differ = []
    if origin.stride_on == "1x1":
        differ.append("its stride on the 1x1 convolution")
    if origin.shortcut != "B":
        differ.append(f"shortcut {origin.shortcut}")
    if differ:
        text += f". This net has {' and '.join(differ)}; torchvision's has not"
    return text


if __name__ == "__main__":
    define_flags(ConversionOptions)
    run_command(main, positional=True)
