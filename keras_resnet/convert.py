"""Carries weights from one file format to another, both ways.

python -m keras_resnet.convert runs/photos/final.keras photos.safetensors

python -m keras_resnet.convert resnet50/torchvision_v2 resnet50.keras

A .safetensors file has torchvision's names (timm's for ResNet-D and squeeze and
excitation), so that torchvision and timm open it; a .keras file is a network that
takes raw pixels. Arrays keep every bit.
"""

import os

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

    import keras

    from keras_resnet import layouts, weights
    from keras_resnet.errors import InputError
    from keras_resnet.resnet import ResNet

    if not target.endswith(TARGETS):
        raise InputError(
            f"The target must be a file {', '.join(TARGETS)}. Received: {target!r}"
        )
    if (mean is None) != (std is None) or any(
        values is not None and (len(values) != 3 or min(values) < 0)
        for values in (mean, std)
    ):
        raise InputError(
            "mean and std go together, three numbers each, from 0 to 255. "
            f"Received: mean={mean}, std={std}"
        )
    checkpoint = open_source(source, sha256)
    if checkpoint.tensors is None and model is None:
        raise InputError(
            "A .weights.h5 file does not tell its architecture; name it by --model. "
            f"Received: {source}"
        )
    variation = {}
    if checkpoint.tensors is not None:
        found, variation = recognise(checkpoint)
        model = model or found
    if mean:
        pixels = checkpoint.origin.pixels or layouts.PIXELS["torch"]
        pixels = pixels._replace(mean=tuple(mean), variance=tuple(s * s for s in std))
        origin = dataclasses.replace(checkpoint.origin, pixels=pixels)
        checkpoint = dataclasses.replace(checkpoint, origin=origin)
    network = ResNet(model, weights=checkpoint, **variation)
    if target.endswith(".safetensors"):
        origin = checkpoint.origin
        weights.save_state_dict(
            network,
            target,
            {
                "model": model,
                "shortcut": variation.get("shortcut"),
                "stride_on": origin.stride_on,
                "pixels": origin.pixels,
                "classes": origin.classes,
            },
        )
    elif target.endswith(".keras"):
        weights.save_model(network, target)
    else:
        with weights.replacing(target, f"{target[:-11]}.part.weights.h5") as beside:
            network.save_weights(beside)
    keras.backend.clear_session()
    return network


def open_source(source, sha256=None):
    """Opens a file, published weights, or a file at an address.

    Raises:
        InputError: there is none, or an address comes without its hash.
    """
    from keras_resnet import registry
    from keras_resnet.errors import InputError
    from keras_resnet.weight_files import ENDINGS, read_file
    from keras_resnet.weights import open_checkpoint

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
        path = os.path.join(registry.cache_folder(), os.path.basename(source))
        digest = sha256.lower()
        if not os.path.exists(path) or not registry.matches(path, "sha256", digest):
            registry.download(source, path, "sha256", digest)
        return read_file(path)
    if not source.endswith(ENDINGS) and source.count("/") == 1:
        model, _, name = source.partition("/")
        if registry.list_weights(model):
            return open_checkpoint(name, model)
    return read_file(source)


def recognise(checkpoint):
    """Tells the architecture of weights.

    Args:
        checkpoint: a `keras_resnet.weight_files.Checkpoint` whose names are known.

    Returns:
        Its name, and the fields of `keras_resnet.variants.Variant` in which the
        weights differ from it.

    Raises:
        InputError: it is none of ours.
    """
    import dataclasses

    from keras_resnet import layouts
    from keras_resnet.errors import InputError
    from keras_resnet.variants import VARIANTS

    origin = checkpoint.origin
    fields = layouts.describe({n: t.shape for n, t in checkpoint.tensors.items()})
    if fields is None:
        raise InputError(f"{origin.source} does not hold a ResNet")
    shortcut = origin.shortcut or fields.pop("shortcut", None)
    fields.pop("shortcut", None)
    variation = {"shortcut": shortcut} if shortcut else {}
    if origin.model:
        return origin.model, variation
    for name, row in VARIANTS.items():
        known = dataclasses.asdict(row)
        if all(tuple_of(known[key]) == value for key, value in fields.items()):
            return name, variation
    blocks = fields["blocks"]
    if fields["stem"] == "cifar" and len(set(blocks)) == 1 and fields["width"] == 16:
        return f"cifar_resnet{6 * blocks[0] + 2}", variation
    raise InputError(
        f"{origin.source} holds a ResNet that keras_resnet has no name for: "
        + ", ".join(f"{key}={value}" for key, value in fields.items())
    )


def tuple_of(value):
    """Lists, as `dataclasses.asdict` may give, as tuples."""
    return tuple(value) if isinstance(value, list) else value


def main(argv):
    """Reads the flags, converts and says what was written."""
    from keras_resnet.errors import InputError

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
    print(f"{model.name}, {model.count_params():,} numbers, {size:.1f} MB: {argv[1]}")


if __name__ == "__main__":
    from keras_resnet import programs

    flags.DEFINE_string("model", None, "Network; told from the weights if not given.")
    flags.DEFINE_string("sha256", None, "Of a file at an address, as published.")
    flags.DEFINE_list("mean", None, "Subtracted from RGB, 0 to 255; the file's.")
    flags.DEFINE_list("std", None, "RGB is divided by it; the file's.")
    programs.run(main, positional=True)
