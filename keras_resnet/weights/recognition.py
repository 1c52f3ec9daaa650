"""Telling an architecture, and what belongs to it, from weights and from layers."""

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
from keras_resnet.weights.origin import Origin, Pixels


def describe_architecture(
    weights: Mapping[str, Tensor | keras.Variable],
) -> dict[str, Any] | None:
    """Tells a network's architecture from the shapes of its weights, by our names.

    Returns:
        A dict of fields of `keras_resnet.spec.Variant` without `avg_down` and
        `stride_on`, which cannot be told; a plain net is taken for one with
        shortcut A, whose weights are the same. `None` if it is no ResNet.
    """
    matches = [BLOCK_NAME.fullmatch(name.split("/")[0]) for name in weights]
    places = {(int(match[1]), int(match[2])) for match in matches if match}
    if not places or "conv1_conv/kernel" not in weights:
        return None
    stages = range(2, max(stage for stage, _ in places) + 1)
    blocks = tuple(sum(s == stage for s, _ in places) for stage in stages)
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
        # The first block of the first stage changes shapes where it is a bottleneck.
        same = "conv2_block2" if bottleneck else "conv2_block1"
        every = f"{same}_0_conv/kernel" in weights
        fields["shortcut"] = "C" if every else "B"
    return fields


def recognise(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """Tells the architecture of weights that have `tensors`.

    Returns:
        Its name, and the fields of `keras_resnet.spec.Variant` in which the
        weights may differ from it.

    Raises:
        InputError: It is none of ours.
    """
    origin = checkpoint.origin
    fields = describe_architecture(checkpoint.tensors or {})
    if fields is None:
        raise InputError(f"{origin.source} does not hold a ResNet")
    variation = {field: fields.pop(field) for field in ("shortcut", "stem")}
    if origin.shortcut:
        variation["shortcut"] = origin.shortcut
    if origin.avg_down is not None:
        variation["avg_down"] = origin.avg_down
    if origin.model:
        return origin.model, variation
    like = [
        (name, row)
        for name, row in VARIANTS.items()
        if all(getattr(row, field) == value for field, value in fields.items())
        and (row.stem == "cifar") == (variation["stem"] == "cifar")
    ]
    for name, row in like:
        if all(getattr(row, field) == value for field, value in variation.items()):
            return name, variation
    if like:
        return like[0][0], variation
    blocks, cifar = fields["blocks"], variation["stem"] == "cifar"
    if cifar and len(set(blocks)) == 1 and fields["width"] == 16:
        return f"cifar_resnet{6 * blocks[0] + 2}", variation
    raise InputError(
        f"{origin.source} holds a ResNet that keras_resnet has no name for: "
        + ", ".join(f"{key}={value}" for key, value in fields.items())
    )


def origin_of(model: keras.Model, source: str) -> Origin | None:
    """Returns what belongs to a model's weights, from its layers and its `origin`.

    `None` if the model is no network of this package. `source` is the name or path
    of the weights.
    """
    by_name = {layer.name: layer for layer in flat_layers(model)}
    fields = describe_architecture(variables_of(model))
    if fields is None:
        return None
    stride_on = None
    if fields["block"] == "bottleneck":  # Basic blocks have nothing to tell.
        first = [la for n, la in by_name.items() if re.search(r"_block\d+_1_conv$", n)]
        stride_on = "1x1" if any(max(la.strides) > 1 for la in first) else "3x3"
    adds = any(isinstance(layer, layers.Add) for layer in by_name.values())
    known = getattr(model, "origin", None)
    return Origin(
        source,
        pixels_of(model),
        known.classes if known else None,
        known.model if known else None,
        stride_on,
        fields["shortcut"] if adds else "none",
        # ResNet-D's shortcuts average before they subsample.
        any(
            tuple(p.pool_size) == (2, 2)
            for n, p in by_name.items()
            if n.endswith("_0_pool")
        ),
    )


def pixels_of(model: keras.Model) -> Pixels | None:
    """Returns what a model's first layer says of the pixels that it takes.

    The crop and the interpolation are those of the model's origin, or else the usual
    ones. `None` if the model does not normalise its input itself.
    """
    known = getattr(model, "origin", None)
    by_name = {layer.name: layer for layer in flat_layers(model)}
    if known and known.pixels:
        pixels = known.pixels
    elif "normalization" in by_name:
        layer = by_name["normalization"]
        mean, variance = (
            tuple(np.ravel(values).astype(float).tolist())
            for values in (layer.input_mean, layer.input_variance)
        )
        crop = 0.875 if has_imagenet_stem(by_name) else 1.0
        pixels = Pixels(mean, variance, crop)
    else:
        return None
    size = model.input_shape[2]  # A width in either data format, or None.
    return pixels._replace(size=size or pixels.size)
