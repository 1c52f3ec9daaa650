"""Telling an architecture from its weights."""

from keras_resnet.spec import VARIANTS
from keras_resnet.support import InputError
from keras_resnet.weights.dialects import _BLOCK_NAME, is_preactivated


def describe_architecture(shapes):
    """Tells a network's architecture from the shapes of its weights.

    Args:
        shapes: dict from our names to shapes in our order of axes.

    Returns:
        A dict of fields of `keras_resnet.variants.Variant` without `avg_down` and
        `stride_on`, which cannot be told; a plain net is taken for one with
        shortcut A, whose weights are the same. `None` if it is no ResNet.
    """
    found = [_BLOCK_NAME.fullmatch(name.split("/")[0]) for name in shapes]
    places = {(int(m[1]), int(m[2])) for m in found if m}
    if not places or "conv1_conv/kernel" not in shapes:
        return None
    stages = range(2, max(stage for stage, _ in places) + 1)
    blocks = tuple(sum(s == stage for s, _ in places) for stage in stages)
    bottleneck = "conv2_block1_3_conv/kernel" in shapes
    size, _, _, width = shapes["conv1_conv/kernel"]
    deep = "conv1_1_conv/kernel" in shapes
    fields = {
        "block": "bottleneck" if bottleneck else "basic",
        "blocks": blocks,
        "stem": "deep" if deep else "imagenet" if size == 7 else "cifar",
        "width": width,
        "preact": is_preactivated(shapes),
        "se": "conv2_block1_se_1_conv/kernel" in shapes,
        "shortcut": "A",
    }
    if bottleneck:
        _, _, each, inner = shapes["conv2_block1_2_conv/kernel"]
        fields |= {"groups": inner // each, "group_width": each * 64 // width}
    if "conv3_block1_0_conv/kernel" in shapes:
        # The first block of the first stage changes shapes where it is a bottleneck.
        same = "conv2_block2" if bottleneck else "conv2_block1"
        every = f"{same}_0_conv/kernel" in shapes
        fields["shortcut"] = "C" if every else "B"
    return fields


def recognise(checkpoint):
    """Tells the architecture of weights.

    Args:
        checkpoint: a `keras_resnet.weight_files.Checkpoint` with `tensors`.

    Returns:
        Its name, and the fields of `keras_resnet.variants.Variant` in which the
        weights may differ from it.

    Raises:
        InputError: it is none of ours.
    """
    origin = checkpoint.origin
    fields = describe_architecture({n: t.shape for n, t in checkpoint.tensors.items()})
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
