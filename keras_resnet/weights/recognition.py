"""Detection of the variant and origin of a network from the weights and layers."""

import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_resnet.nets import has_imagenet_stem, list_layers
from keras_resnet.spec import VARIANTS, find_variant
from keras_resnet.support import InputError
from keras_resnet.weights.checkpoint import Checkpoint, Tensor, get_variables
from keras_resnet.weights.dialects import BLOCK_NAME, is_preactivated
from keras_resnet.weights.origin import Origin, PixelFormat


def describe_variant(
    weights: Mapping[str, Tensor | keras.Variable],
) -> dict[str, Any] | None:
    """Detects a variant from the names and shapes of the weights.

    Returns:
        A dict with fields of `keras_resnet.spec.Variant`, or `None` if the weights are
        not those of a ResNet. `avg_down` and `stride_on` do not affect the weights, so
        the dict lacks these fields. A plain network has the same weights as a network
        with shortcut A, so the dict contains shortcut A for both.
    """
    matches = [BLOCK_NAME.fullmatch(name.split("/")[0]) for name in weights]
    block_ids = {(int(match[1]), int(match[2])) for match in matches if match}
    shapes = {n: w.shape for n, w in weights.items() if len(w.shape) == 4}
    if not (block_ids and all(shapes.get("conv1_conv/kernel", [0]))):
        return None
    stages = range(2, 2 + len({stage for stage, _ in block_ids}))
    blocks_per_stage = tuple(sum(s == stage for s, _ in block_ids) for stage in stages)
    is_bottleneck = "conv2_block1_3_conv/kernel" in weights
    kernel_size, _, _, width = shapes["conv1_conv/kernel"]
    deep_stem = "conv1_1_conv/kernel" in weights
    fields: dict[str, Any] = {
        "block": "bottleneck" if is_bottleneck else "basic",
        "blocks": blocks_per_stage,
        "stem": "deep" if deep_stem else "imagenet" if kernel_size == 7 else "cifar",
        "width": width,
        "preact": is_preactivated(weights),
        "se": "conv2_block1_se_1_conv/kernel" in weights,
        "shortcut": "A",
    }
    if is_bottleneck and all(shapes.get("conv2_block1_2_conv/kernel", [0])):
        channels_per_group, num_channels = shapes["conv2_block1_2_conv/kernel"][2:]
        fields["groups"] = num_channels // channels_per_group
        fields["group_width"] = channels_per_group * 64 // width
    if "conv3_block1_0_conv/kernel" in weights:
        # In a block that keeps the shape, only shortcut C is a convolution.
        prefix = "conv2_block2" if is_bottleneck else "conv2_block1"
        has_projection = f"{prefix}_0_conv/kernel" in weights
        fields["shortcut"] = "C" if has_projection else "B"
    return fields


def recognise_variant(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """Recognises the variant of a checkpoint whose `tensors` are not `None`.

    Returns:
        Name of the variant, and a dict with the fields of the checkpoint's network that
        may differ from the variant: `shortcut`, `stem` and, if known, `avg_down`.

    Raises:
        InputError: If the weights do not fit any variant.
    """
    origin = checkpoint.origin
    fields = describe_variant(checkpoint.tensors or {})
    if fields is None:
        raise InputError(f"{origin.source} does not contain a ResNet")
    variation = {field: fields.pop(field) for field in ("shortcut", "stem")}
    if origin.shortcut:
        variation["shortcut"] = origin.shortcut
    if origin.avg_down is not None:
        variation["avg_down"] = origin.avg_down
    if origin.model and find_variant(origin.model).blocks == fields["blocks"]:
        return origin.model, variation
    blocks_per_stage, is_cifar = fields["blocks"], variation["stem"] == "cifar"
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
    if is_cifar and len(set(blocks_per_stage)) == 1 and fields["width"] == 16:
        return f"cifar_resnet{6 * blocks_per_stage[0] + 2}", variation
    raise InputError(
        f"{origin.source} contains a ResNet that is not a variant of keras_resnet: "
        + ", ".join(f"{field}={value}" for field, value in fields.items())
    )


def find_origin(model: keras.Model, source: str) -> Origin | None:
    """Determines the origin of a model from its layers and its attribute `origin`.

    The argument `source` becomes the field `source` of the origin. Returns `None` if
    the model is not a network of this package.
    """
    layers_by_name = {layer.name: layer for layer in list_layers(model)}
    fields = describe_variant(get_variables(model))
    if fields is None:
        return None
    stride_on = None
    if fields["block"] == "bottleneck":  # Basic blocks ignore `stride_on`.
        convs = [la for la in layers_by_name.values() if isinstance(la, layers.Conv2D)]
        first_convs = [la for la in convs if re.search(r"_block\d+_1_conv$", la.name)]
        stride_on = "1x1" if any(max(la.strides) > 1 for la in first_convs) else "3x3"
    has_sums = any(isinstance(layer, layers.Add) for layer in layers_by_name.values())
    # The shortcuts of ResNet-D (`avg_down`) contain a 2x2 average pooling.
    shortcut_pools = [la for n, la in layers_by_name.items() if n.endswith("_0_pool")]
    avg_down = any(getattr(la, "pool_size", ()) == (2, 2) for la in shortcut_pools)
    shortcut = fields["shortcut"] if has_sums else "none"
    stored = getattr(model, "origin", None)
    classes, name = (stored.classes, stored.model) if stored else (None, None)
    pixels = find_pixel_format(model)
    return Origin(source, pixels, classes, name, stride_on, shortcut, avg_down)


def find_pixel_format(model: keras.Model) -> PixelFormat | None:
    """Returns the pixel format of a model's input.

    The format comes from the attribute `origin` or else from the normalisation layer.
    The layer does not contain `crop`, so `crop` is then 0.875 for ImageNet networks and
    1.0 for CIFAR networks. Returns `None` if the model has neither origin nor layer.
    """
    origin = getattr(model, "origin", None)
    layers_by_name = {layer.name: layer for layer in list_layers(model)}
    if origin and origin.pixels:
        pixels = origin.pixels
    elif getattr(layers_by_name.get("normalization"), "input_mean", None) is not None:
        layer = layers_by_name["normalization"]
        mean, variance = (
            tuple(np.ravel(values).astype(float).tolist())
            for values in (layer.input_mean, layer.input_variance)
        )
        crop = 0.875 if has_imagenet_stem(layers_by_name) else 1.0
        pixels = PixelFormat(mean, variance, crop)
    else:
        return None
    size = model.input_shape[2]  # Width, or height if channels come first.
    return pixels._replace(size=size or pixels.size)
