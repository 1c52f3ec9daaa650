"""Converts weights between file formats without changing their values.

python -m keras_resnet.convert runs/photos/final.keras photos.safetensors

python -m keras_resnet.convert resnet50/torchvision_v2 resnet50.keras

A .safetensors file contains a PyTorch state dict with the keys of torchvision,
or of timm for ResNet-D and squeeze-and-excitation networks. A .keras file
contains a complete network whose input is raw pixels.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_resnet.support import InputError, add_flags, option, read_flags, run_command

if TYPE_CHECKING:
    import keras

    from keras_resnet.weights import Checkpoint, Origin

TARGET_SUFFIXES = (".safetensors", ".keras", ".weights.h5")

# URL with the name of a file, which is not hidden: "http://host/folder/name?query".
_URL = r"(?i)(?=[!-~]+\Z)https?://[^/?#]+/(?:[^?#]*/)?([^./?#][^/?#]*)(?:[?#].*)?"


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
    """Options of the command `convert`."""

    model: str | None = option(
        None, "Variant name, such as resnet50. Default: detected from the weights."
    )
    sha256: str | None = option(
        None, "Published SHA-256 hash, 64 hex digits, if the source is a URL."
    )
    mean: tuple[str, ...] | None = option(
        None, "Means of red, green and blue, 0 to 255. Default: read from the source."
    )
    std: tuple[str, ...] | None = option(
        None, "Standard deviations of RGB, 0 to 255. Default: read from the source."
    )


def convert(
    source: str,
    target: str,
    model: str | None = None,
    sha256: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> "keras.Model":
    """Converts weights between file formats.

    Args:
        source: File that `weights=` accepts, published weights such as
            `"resnet50/torchvision_v2"`, or URL of a file.
        target: File to write: `.safetensors`, `.keras` or `.weights.h5`.
        model: Name of the variant. Default: detected from the weights. Required for a
            plain network of other software, whose weights also fit a residual network.
        sha256: Published SHA-256 hash of the file at a URL: 64 hex digits.
        mean: Means of red, green and blue, from 0 to 255, which the network subtracts.
            Default: read from the source, if the source contains the means.
        std: Standard deviations of red, green and blue, from 0.001 to 255, by which the
            network divides. Required with `mean`.

    Returns:
        The network that was written.

    Raises:
        InputError: If the source is invalid or the target's suffix is unknown.
        OSError: If the target cannot be written.
    """
    from keras_resnet import weights
    from keras_resnet.zoo import build_from_checkpoint

    savers = weights.save_state_dict, weights.save_model, weights.save_weights
    pairs = zip(TARGET_SUFFIXES, savers, strict=True)
    save = next((saver for suffix, saver in pairs if target.endswith(suffix)), None)
    if save is None or not os.path.isdir(os.path.dirname(target) or "."):
        raise InputError(
            f"The target must be a {', '.join(TARGET_SUFFIXES)} file in an existing "
            f"folder. Received: {target!r}"
        )
    _check_mean_std(mean, std)
    checkpoint = open_source(source, sha256)
    if mean and std:
        pixels = checkpoint.origin.pixels or weights.PIXEL_FORMATS["torch"]
        pixels = pixels._replace(mean=tuple(mean), variance=tuple(s * s for s in std))
        origin = dataclasses.replace(checkpoint.origin, pixels=pixels)
        checkpoint = dataclasses.replace(checkpoint, origin=origin)
    network = build_from_checkpoint(checkpoint, model)
    save(network, target)
    return network


def _check_mean_std(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Checks that mean and standard deviation are both valid, or both `None`."""
    if mean is None and std is None:
        return
    for values, minimum in ((mean, 0), (std, 1e-3)):
        if values and len(values) == 3 and all(minimum <= v <= 255 for v in values):
            continue
        raise InputError(
            "mean and std must both be given, as three numbers each, from 0 to 255 "
            f"(std: at least 0.001). Received: mean={mean}, std={std}"
        )


def open_source(source: str, sha256: str | None = None) -> "Checkpoint":
    """Opens a file, published weights, or the file at a URL.

    Raises:
        InputError: If the source does not exist, or a URL does not name a weights file
            or is given without its SHA-256.
    """
    from keras_resnet import weights

    if "://" in source:
        match = re.fullmatch(_URL, source)
        if not match or not match[1].lower().endswith(weights.SUFFIXES):
            raise InputError(
                "A URL must begin with http:// or https:// and end with the name of a "
                f"{', '.join(weights.SUFFIXES)} file. Received: {source!r}"
            )
        digest = (sha256 or "").lower()
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise InputError(
                "A URL needs --sha256, the published hash of its file: 64 hex digits. "
                f"Received: sha256={sha256!r}"
            )
        path = os.path.join(weights.cache_folder(), match[1])
        weights.fetch_file(source, path, "sha256", digest)
        return weights.read_checkpoint(path)
    if "/" in source or source.lower().endswith(weights.SUFFIXES):
        return weights.open_checkpoint(source)
    raise InputError(
        "The source must be a file, published weights such as resnet50/torchvision_v2, "
        f"or a URL. Received: {source!r}"
    )


def main(argv: list[str]) -> None:
    """Reads the flags, converts the weights and prints a summary."""
    from keras_resnet.weights import find_origin

    if len(argv) != 2:
        raise InputError(
            "Two arguments are required: convert SOURCE TARGET. "
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
    size_mb = os.path.getsize(target) / 1e6
    origin = find_origin(model, "")
    if origin and target.endswith(".safetensors"):
        print(_describe_torch_use(origin), file=sys.stderr)
    print(f"{model.name}, {model.count_params():,} weights, {size_mb:.1f} MB: {target}")


def _describe_torch_use(origin: "Origin") -> str:
    text = "In PyTorch, use pixels from 0 to 1"
    if origin.pixels:
        mean = ", ".join(f"{value / 255:.4g}" for value in origin.pixels.mean)
        std = ", ".join(f"{value**0.5 / 255:.4g}" for value in origin.pixels.variance)
        text += f", subtract ({mean}) and divide by ({std})"
    differences = []
    if origin.stride_on == "1x1":
        differences.append("the stride on the 1x1 convolution")
    if origin.shortcut != "B":
        differences.append(f"shortcut {origin.shortcut}")
    if differences:
        text += f". Unlike in torchvision, the network has {' and '.join(differences)}"
    return text


if __name__ == "__main__":
    add_flags(ConversionOptions)
    run_command(main, accepts_positional=True)
