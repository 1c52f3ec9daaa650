"""Carries weights from one file format to another, both ways.

python -m keras_resnet.convert runs/photos/final.keras photos.safetensors

python -m keras_resnet.convert resnet50/torchvision_v2 resnet50.keras

A .safetensors file has torchvision's names (timm's for ResNet-D and squeeze
and excitation), so that torchvision and timm open it; a .keras file is a
network that takes raw pixels. Arrays keep every bit.
"""

import os
import sys
import urllib.parse

from absl import flags

TARGETS = (".safetensors", ".keras", ".weights.h5")


def convert(source, target, model=None, sha256=None, mean=None, std=None):
    """Converts weights.

    Args:
        source: a file that `weights=` accepts; published weights, as
            `"resnet50/torchvision_v2"`; or the address of such a file.
        target: the file to write: `.safetensors`, `.keras` or `.weights.h5`.
        model: name of the architecture; `None` reads it from the weights. A plain
            net's are those of the residual net with shortcut A.
        sha256: of the file at an address, in hex digits; what its publisher states.
        mean: of red, green and blue, from 0 to 255, that the network was trained
            to subtract; `None` is what the file says or its origin's habit.
        std: the same, to divide by.

    Returns:
        The `keras.Model` that was written.

    Raises:
        InputError: the source cannot be used, or the target's kind is unknown.
        OSError: the target cannot be written.
    """
    import dataclasses

    from keras_resnet.support import InputError
    from keras_resnet.weights import PIXELS, save_model, save_state_dict, save_weights
    from keras_resnet.zoo import build_from_checkpoint

    savers = {
        ".safetensors": save_state_dict,
        ".keras": save_model,
        ".weights.h5": save_weights,
    }
    save = next((savers[end] for end in TARGETS if target.endswith(end)), None)
    if save is None or not os.path.isdir(os.path.dirname(target) or "."):
        raise InputError(
            f"The target must be a file {', '.join(TARGETS)} in a folder that is there. "
            f"Received: {target!r}"
        )
    if (mean is None) != (std is None) or any(
        values is not None
        and not (len(values) == 3 and all(low <= v <= 255 for v in values))
        for values, low in ((mean, 0), (std, 1e-3))
    ):
        raise InputError(
            "mean and std go together, three numbers each, from 0 to 255. "
            f"Received: mean={mean}, std={std}"
        )
    checkpoint = open_source(source, sha256)
    if mean:
        pixels = checkpoint.origin.pixels or PIXELS["torch"]
        pixels = pixels._replace(mean=tuple(mean), variance=tuple(s * s for s in std))
        origin = dataclasses.replace(checkpoint.origin, pixels=pixels)
        checkpoint = dataclasses.replace(checkpoint, origin=origin)
    network = build_from_checkpoint(checkpoint, model)
    save(network, target)
    return network


def open_source(source, sha256=None):
    """Opens a file, published weights, or a file at an address.

    Raises:
        InputError: there is none, or an address comes without its hash.
    """
    from keras_resnet.support import InputError
    from keras_resnet.weights import (
        ENDINGS,
        cache_folder,
        download_file,
        has_digest,
        open_checkpoint,
        read_file,
    )

    if "://" in source:
        if (
            not sha256
            or len(sha256) < 8
            or set(sha256.lower()) - set("0123456789abcdef")
        ):
            raise InputError(
                "A file at an address needs --sha256, as its publisher states it: 64 "
                f"hex digits, or at least the first 8. Received: sha256={sha256!r}"
            )
        path = os.path.join(
            cache_folder(),
            os.path.basename(urllib.parse.urlsplit(source).path),
        )
        digest = sha256.lower()
        if not os.path.exists(path) or not has_digest(path, "sha256", digest):
            download_file(source, path, "sha256", digest)
        return read_file(path)
    if "/" in source or source.lower().endswith(ENDINGS):
        return open_checkpoint(source)
    raise InputError(
        "The source must be a file, published weights such as resnet50/torchvision_v2, "
        f"or an address. Received: {source!r}"
    )


def main(argv):
    """Reads the flags, converts and says what was written."""
    from keras_resnet.support import InputError

    if len(argv) != 2:
        raise InputError(
            "Name the weights to read and the file to write: convert SOURCE TARGET. "
            f"Received: {' '.join(argv) or 'nothing'}"
        )
    values = flags.FLAGS
    try:
        mean, std = (
            [float(v) for v in given] if given else None
            for given in (values.mean, values.std)
        )
    except ValueError:
        raise InputError(
            "mean and std must be three numbers each, such as 123.7,116.3,103.5. "
            f"Received: mean={values.mean}, std={values.std}"
        ) from None
    model = convert(argv[0], argv[1], values.model, values.sha256, mean, std)
    size = os.path.getsize(argv[1]) / 1e6
    if argv[1].endswith(".safetensors"):
        print(_for_torch(model), file=sys.stderr)
    print(f"{model.name}, {model.count_params():,} numbers, {size:.1f} MB: {argv[1]}")


def _for_torch(model):
    """What somebody must know who opens the weights in torch."""
    from keras_resnet.weights import origin_of

    origin = origin_of(model, "")
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
    from keras_resnet.support import run_command

    flags.DEFINE_string("model", None, "Network; told from the weights if not given.")
    flags.DEFINE_string("sha256", None, "Of a file at an address, as published.")
    flags.DEFINE_list("mean", None, "Subtracted from RGB, 0 to 255; the file's.")
    flags.DEFINE_list("std", None, "RGB is divided by it; the file's.")
    run_command(main, positional=True)
