"""Detection of the variant and origin of a network from its weights and layers."""

import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_resnet.nets import flat_layers, has_imagenet_stem
from keras_resnet.spec import VARIANTS
from keras_resnet.support import InputError
from keras_resnet.weights.checkpoint import Checkpoint, Tensor, variables_of
from keras_resnet.weights.dialects import BLOCK_NAME, is_preactivated
from keras_resnet.weights.origin import Origin, PixelFormat


def describe_architecture(
    weights: Mapping[str, Tensor | keras.Variable],
) -> dict[str, Any] | None:
    """Detects an architecture from the names and shapes of its weights.

    Returns:
        A dict of fields of `keras_resnet.spec.Variant`, or `None` if the weights are
        not those of a ResNet. `avg_down` and `stride_on` are absent, because they do
        not affect the weights. A plain network is described as one with shortcut A,
        which has the same weights.
    """
    matches = [BLOCK_NAME.fullmatch(name.split("/")[0]) for name in weights]
    all_blocks = {(int(match[1]), int(match[2])) for match in matches if match}
    if not all_blocks or "conv1_conv/kernel" not in weights:
        return None
    stages = range(2, max(stage for stage, _ in all_blocks) + 1)
    blocks = tuple(sum(s == stage for s, _ in all_blocks) for stage in stages)
    bottleneck = "conv2_block1_3_conv/kernel" in weights
    size, _, _, width = weights["conv1_conv/kernel"].shape
    deep = "conv1_1_conv/kernel" in weights
    fields: dict[str, Any] = {
        "block": "bottleneck" if bottleneck else "basic",
        "blocks": blocks,
        "stem": "deep" if deep else "imagenet" if size == 7 else "cifar",
        "width": width,
        "preact": is_preactivated(weights),
        "se": "conv2_block1_se_1_conv/kernel" in weights,
        "shortcut": "A",
    }
    if bottleneck:
        _, _, per_group, inner = weights["conv2_block1_2_conv/kernel"].shape
        groups, group_width = inner // per_group, per_group * 64 // width
        fields |= {"groups": groups, "group_width": group_width}
    if "conv3_block1_0_conv/kernel" in weights:
        # This block keeps the shape of its input, so it projects only with option C.
        prefix = "conv2_block2" if bottleneck else "conv2_block1"
        has_projection = f"{prefix}_0_conv/kernel" in weights
        fields["shortcut"] = "C" if has_projection else "B"
    return fields


def recognise_variant(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """Recognises the variant of a checkpoint that has `tensors`.

    Returns:
        Name of the variant, and the fields of `keras_resnet.spec.Variant` that may
        differ from that variant.

    Raises:
        InputError: If no variant has such weights.
    """
    origin = checkpoint.origin
    fields = describe_architecture(checkpoint.tensors or {})
    if fields is None:
        raise InputError(f"{origin.source} does not contain a ResNet")
    variation = {field: fields.pop(field) for field in ("shortcut", "stem")}
    if origin.shortcut:
        variation["shortcut"] = origin.shortcut
    if origin.avg_down is not None:
        variation["avg_down"] = origin.avg_down
    if origin.model:
        return origin.model, variation
    candidates = [
        (name, row)
        for name, row in VARIANTS.items()
        if all(getattr(row, field) == value for field, value in fields.items())
        and (row.stem == "cifar") == (variation["stem"] == "cifar")
    ]
    for name, row in candidates:
        if all(getattr(row, field) == value for field, value in variation.items()):
            return name, variation
    if candidates:
        return candidates[0][0], variation
    blocks, cifar = fields["blocks"], variation["stem"] == "cifar"
    if cifar and len(set(blocks)) == 1 and fields["width"] == 16:
        return f"cifar_resnet{6 * blocks[0] + 2}", variation
    raise InputError(
        f"{origin.source} contains a ResNet that is not a variant of keras_resnet: "
        + ", ".join(f"{key}={value}" for key, value in fields.items())
    )


def find_origin(model: keras.Model, source: str) -> Origin | None:
    """Determines the origin of a model from its layers and its attribute `origin`.

    `source` is the name or path of the weights. Returns `None` if the model is not a
    network of this package.
    """
    by_name = {layer.name: layer for layer in flat_layers(model)}
    fields = describe_architecture(variables_of(model))
    if fields is None:
        return None
    stride_on = None
    if fields["block"] == "bottleneck":  # Basic blocks do not use `stride_on`.
        convs = [la for n, la in by_name.items() if re.search(r"_block\d+_1_conv$", n)]
        stride_on = "1x1" if any(max(la.strides) > 1 for la in convs) else "3x3"
    has_sums = any(isinstance(layer, layers.Add) for layer in by_name.values())
    previous = getattr(model, "origin", None)
    return Origin(
        source,
        find_pixel_format(model),
        previous.classes if previous else None,
        previous.model if previous else None,
        stride_on,
        fields["shortcut"] if has_sums else "none",
        # `avg_down`: the shortcuts of ResNet-D contain a 2x2 average pooling.
        any(
            tuple(p.pool_size) == (2, 2)
            for n, p in by_name.items()
            if n.endswith("_0_pool")
        ),
    )


def find_pixel_format(model: keras.Model) -> PixelFormat | None:
    """Returns the pixel format of a model's input.

    The format is that of the model's `origin`. Otherwise the normalisation layer
    determines the mean and variance, and the other fields have their usual values.
    `None` if the model does not normalise its input itself.
    """
    origin = getattr(model, "origin", None)
    by_name = {layer.name: layer for layer in flat_layers(model)}
    if origin and origin.pixels:
        pixels = origin.pixels
    elif "normalization" in by_name:
        layer = by_name["normalization"]
        mean, variance = (
            tuple(np.ravel(values).astype(float).tolist())
            for values in (layer.input_mean, layer.input_variance)
        )
        crop = 0.875 if has_imagenet_stem(by_name) else 1.0
        pixels = PixelFormat(mean, variance, crop)
    else:
        return None
    size = model.input_shape[2]  # Index 2 is a side of the image in both data formats.
    return pixels._replace(size=size or pixels.size)
