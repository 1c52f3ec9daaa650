"""Detection of the variant and the origin of a network from its weights and layers."""

import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_resnet.nets import has_imagenet_stem, list_layers
from keras_resnet.spec import VARIANTS
from keras_resnet.support import InputError
from keras_resnet.weights.checkpoint import Checkpoint, Tensor, get_variables
from keras_resnet.weights.dialects import BLOCK_NAME, is_preactivated
from keras_resnet.weights.origin import Origin, PixelFormat

_FIRST_CONV = re.compile(r"_block\d+_1_conv$")  # First convolution of a block.


def describe_architecture(
    weights: Mapping[str, Tensor | keras.Variable],
) -> dict[str, Any] | None:
    """Detects an architecture from the names and shapes of its weights.

    Returns:
        A dict from names of fields of `keras_resnet.spec.Variant` to their values, or
        `None` if the weights are not those of a ResNet. `avg_down` and `stride_on` do
        not affect the weights and are absent. A plain network is described as a network
        with shortcut A, which has the same weights.
    """
    matches = [BLOCK_NAME.fullmatch(name.split("/")[0]) for name in weights]
    block_ids = {(int(match[1]), int(match[2])) for match in matches if match}
    if not block_ids or "conv1_conv/kernel" not in weights:
        return None
    stages = range(2, max(stage for stage, _ in block_ids) + 1)
    blocks = tuple(sum(s == stage for s, _ in block_ids) for stage in stages)
    is_bottleneck = "conv2_block1_3_conv/kernel" in weights
    kernel_size, _, _, width = weights["conv1_conv/kernel"].shape
    is_deep = "conv1_1_conv/kernel" in weights
    fields: dict[str, Any] = {
        "block": "bottleneck" if is_bottleneck else "basic",
        "blocks": blocks,
        "stem": "deep" if is_deep else "imagenet" if kernel_size == 7 else "cifar",
        "width": width,
        "preact": is_preactivated(weights),
        "se": "conv2_block1_se_1_conv/kernel" in weights,
        "shortcut": "A",
    }
    if is_bottleneck:
        _, _, group_channels, all_channels = weights["conv2_block1_2_conv/kernel"].shape
        groups, group_width = (
            all_channels // group_channels,
            group_channels * 64 // width,
        )
        fields |= {"groups": groups, "group_width": group_width}
    if "conv3_block1_0_conv/kernel" in weights:
        # This block does not change the shape, so only shortcut C is a convolution.
        prefix = "conv2_block2" if is_bottleneck else "conv2_block1"
        has_projection = f"{prefix}_0_conv/kernel" in weights
        fields["shortcut"] = "C" if has_projection else "B"
    return fields


def recognise_variant(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """Recognises the variant of a checkpoint that has `tensors`.

    Returns:
        Name of the variant, and a dict with the values of `shortcut`, `stem` and, if
        known, `avg_down`, which may differ from those of the variant.

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
    blocks, is_cifar = fields["blocks"], variation["stem"] == "cifar"
    candidates = [
        (name, variant)
        for name, variant in VARIANTS.items()
        if all(getattr(variant, field) == value for field, value in fields.items())
        and (variant.stem == "cifar") == is_cifar
    ]
    for name, variant in candidates:
        if all(getattr(variant, field) == value for field, value in variation.items()):
            return name, variation
    if candidates:
        return candidates[0][0], variation
    if is_cifar and len(set(blocks)) == 1 and fields["width"] == 16:
        return f"cifar_resnet{6 * blocks[0] + 2}", variation
    raise InputError(
        f"{origin.source} contains a ResNet that is not a variant of keras_resnet: "
        + ", ".join(f"{key}={value}" for key, value in fields.items())
    )


def find_origin(model: keras.Model, source: str) -> Origin | None:
    """Determines the origin of a model from its layers and its attribute `origin`.

    `source` is the field `source` of the result. Returns `None` if the model is not a
    network of this package.
    """
    layers_by_name = {layer.name: layer for layer in list_layers(model)}
    fields = describe_architecture(get_variables(model))
    if fields is None:
        return None
    stride_on = None
    if fields["block"] == "bottleneck":  # Basic blocks do not use `stride_on`.
        convs = [la for n, la in layers_by_name.items() if _FIRST_CONV.search(n)]
        stride_on = "1x1" if any(max(la.strides) > 1 for la in convs) else "3x3"
    has_sums = any(isinstance(layer, layers.Add) for layer in layers_by_name.values())
    # The shortcuts of ResNet-D (`avg_down`) contain a 2x2 average pooling.
    pools = [la for n, la in layers_by_name.items() if n.endswith("_0_pool")]
    old_origin = getattr(model, "origin", None)
    return Origin(
        source,
        find_pixel_format(model),
        old_origin.classes if old_origin else None,
        old_origin.model if old_origin else None,
        stride_on,
        fields["shortcut"] if has_sums else "none",
        any(tuple(pool.pool_size) == (2, 2) for pool in pools),
    )


def find_pixel_format(model: keras.Model) -> PixelFormat | None:
    """Returns the pixel format of a model's input.

    The format is that of the attribute `origin`. If `origin` has none, the mean and the
    variance are those of the normalisation layer, and `crop` is 0.875 for ImageNet and
    1.0 for CIFAR networks. `None` if the model has no normalisation layer either.
    """
    origin = getattr(model, "origin", None)
    layers_by_name = {layer.name: layer for layer in list_layers(model)}
    if origin and origin.pixels:
        pixels = origin.pixels
    elif "normalization" in layers_by_name:
        layer = layers_by_name["normalization"]
        mean, variance = (
            tuple(np.ravel(values).astype(float).tolist())
            for values in (layer.input_mean, layer.input_variance)
        )
        crop = 0.875 if has_imagenet_stem(layers_by_name) else 1.0
        pixels = PixelFormat(mean, variance, crop)
    else:
        return None
    size = model.input_shape[2]  # Index 2 is the width or, if channels first, height.
    return pixels._replace(size=size or pixels.size)
