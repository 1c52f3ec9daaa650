"""Complete networks as `keras.Model`s, built from a `Variant`.

The networks of the paper are built exactly as described there. The paper leaves two
details open, which follow published weights here: padding is symmetric, and shortcut A
adds half of the zero channels before the old channels and half after them. The fields
of `keras_resnet.spec.Variant` document variations that were published later.
"""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import KerasTensor, layers

from keras_resnet.nets.blocks import Block, add_block, bn, channel_axis, conv, relu
from keras_resnet.spec import Variant
from keras_resnet.support import InputError

Shape = Sequence[int | None]
Dilations = tuple[int, int]  # See `Block.dilations`.

# Maximum number of blocks in one functional model. When Keras creates or loads such a
# model, it visits the layers recursively, so a long chain of layers exceeds Python's
# limit of 1,000 nested calls and raises RecursionError. In networks with more blocks,
# `_add_stage` wraps up to 60 blocks at a time in a sub-model, which is one layer of the
# outer model. ResNet-1202 has three stages of 200 blocks, each with four sub-models.
# ResNet-152 has 50 blocks and no sub-models.
_MAX_BLOCKS_PER_MODEL = 60


@dataclasses.dataclass(frozen=True)
class Head:
    """Layers after the last stage, with parameter names of keras.applications.

    Attributes:
        include_top: Whether to add global average pooling and a dense layer.
        classes: Number of classes. Default: `variant.classes`.
        activation: Activation of the dense layer; `None` for logits.
        pooling: Global pooling if `include_top` is `False`, `"avg"` or `"max"`. `None`
            for the 4D output of the last stage.

    Raises:
        InputError: If `pooling` or `classes` is invalid.
    """

    include_top: bool = True
    classes: int | None = None
    activation: str | Callable[..., Any] | None = "softmax"
    pooling: str | None = None

    def __post_init__(self) -> None:
        if self.pooling not in (None, "avg", "max"):
            raise InputError(
                f"pooling must be None, 'avg' or 'max'. Received: pooling={self.pooling!r}"
            )
        classes = 1 if self.classes is None else self.classes
        is_number = isinstance(classes, numbers.Integral) and classes >= 1
        if self.include_top and not is_number:
            raise InputError(
                f"classes must be a whole number of at least 1. Received: classes={classes!r}"
            )


def build_network(
    variant: Variant,
    name: str,
    head: Head = Head(),
    output_stride: int | None = None,
    *,
    input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None,
    normalise: Callable[[KerasTensor], KerasTensor] | None = None,
) -> keras.Model:
    """Builds the network of a variant.

    Args:
        variant: Architecture of the network.
        name: Name of the model.
        head: Layers after the last stage.
        output_stride: 8, 16 or 32; see `keras_resnet.ResNet50`. Default:
            `variant.stride`.
        input_tensor: Keras tensor to use as input instead of a new `keras.Input`.
        input_shape: Shape of the new input, without the batch axis. Default: height and
            width `variant.size`, and 3 channels.
        normalise: Function that adds layers to the input and returns their output.

    Returns:
        A functional `keras.Model` with random weights.

    Raises:
        InputError: If the output stride or the input is invalid.
    """
    stride = variant.stride
    if output_stride is None:
        output_stride = stride
    elif output_stride not in (8, 16, 32) or output_stride > stride:
        raise InputError(
            f"output_stride must be 8, 16 or 32, and at most {stride} for {name}. "
            f"Received: output_stride={output_stride!r}"
        )
    if input_tensor is None:
        shape = image_shape(variant.size) if input_shape is None else input_shape
        _check_shape(variant, shape)
        inputs = x = keras.Input(shape, name="image")
    elif keras.utils.is_keras_tensor(input_tensor):
        _check_shape(variant, input_tensor.shape[1:])
        inputs, x = keras.utils.get_source_inputs(input_tensor), input_tensor
        inputs = inputs[0] if len(inputs) == 1 else inputs
    else:
        raise InputError(
            "input_tensor must be a Keras tensor, such as keras.Input() returns. "
            f"Received: {type(input_tensor).__name__}"
        )
    x = _add_features(normalise(x) if normalise else x, variant, output_stride)
    return keras.Model(inputs, _add_head(x, variant, head), name=name)


def image_shape(size: int, channels: int = 3) -> Shape:
    """Returns the shape of a square image in the current data format of Keras."""
    shape = (size, size, channels)
    return shape if channel_axis() == -1 else shape[::-1]


def _add_head(x: KerasTensor, variant: Variant, head: Head) -> KerasTensor:
    if head.include_top or head.pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif head.pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    if head.include_top:
        x = layers.Dense(
            variant.classes if head.classes is None else head.classes,
            head.activation,
            kernel_initializer="he_normal",
            name="predictions",
        )(x)
    return x


def _check_shape(variant: Variant, shape: Shape) -> None:
    shape, channels_last = tuple(shape), channel_axis() == -1
    min_sides = (variant.stride, variant.stride)
    min_shape = (*min_sides, 1) if channels_last else (1, *min_sides)
    if not (
        len(shape) == 3
        and shape[-1 if channels_last else 0] is not None
        and all(
            n is None or (isinstance(n, numbers.Integral) and n >= min_n)
            for n, min_n in zip(shape, min_shape, strict=True)
        )
    ):
        order = (
            "height, width, channels" if channels_last else "channels, height, width"
        )
        raise InputError(
            f"The input must be ({order}) with sides of at least {variant.stride} pixels, "
            f"or None for any size. Received: input_shape={shape}"
        )


def _add_features(x: KerasTensor, variant: Variant, output_stride: int) -> KerasTensor:
    x = _add_stem(x, variant)
    num_stages = len(variant.blocks)
    stride, dilation = variant.stride // 2 ** (num_stages - 1), 1
    # All stages except the first subsample in their first block. In pre-activation
    # networks, all stages except the last subsample in their last block.
    unstrided_stage = num_stages - 1 if variant.preact else 0
    for stage in range(num_stages):
        stage_stride, new_dilation = 1 if stage == unstrided_stage else 2, dilation
        if stride * stage_stride > output_stride:
            stage_stride, new_dilation = 1, dilation * 2
        x = _add_stage(x, variant, stage, stage_stride, (dilation, new_dilation))
        stride, dilation = stride * stage_stride, new_dilation
    if variant.preact:
        x = relu(bn(x, "post"), "post_relu")
    return x


def _add_stem(x: KerasTensor, variant: Variant) -> KerasTensor:
    """Adds the layers before the first block (conv1 and max pool in Table 1)."""
    size, stride = (7, 2) if variant.stem == "imagenet" else (3, 1)
    if variant.stem == "deep":
        for i in (1, 2):
            x = conv(x, variant.width // 2, 3, 3 - i, f"conv1_{i}")
            x = relu(x, f"conv1_{i}_relu")
    gamma = None if variant.preact else "ones"
    x = conv(x, variant.width, size, stride, "conv1", gamma=gamma)
    x = relu(x, "conv1_relu") if gamma else x
    if variant.stem == "cifar":
        return x
    # After a ReLU, padding with zeros does not change a maximum. Before pre-activation
    # blocks there is no ReLU, but keras.applications also pads with zeros there.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def _add_stage(
    x: KerasTensor, variant: Variant, stage: int, stride: int, dilations: Dilations
) -> KerasTensor:
    """Adds the blocks of one stage; stage 0 is the paper's conv2.

    One block applies the stride, or instead of the stride changes the dilation from
    `dilations[0]` to `dilations[1]`. In pre-activation networks it is the last block of
    the stage, in other networks the first block.
    """
    num_blocks, total_blocks = variant.blocks[stage], sum(variant.blocks)
    strided_block = num_blocks if variant.preact else 1
    prefix = f"conv{stage + 2}_block"
    is_nested = total_blocks > _MAX_BLOCKS_PER_MODEL
    blocks_per_model = _MAX_BLOCKS_PER_MODEL if is_nested else num_blocks
    nonlinearity = "linear" if variant.preact else "relu"

    def add_blocks(x: KerasTensor, first: int, last: int) -> KerasTensor:
        """Adds the blocks `first` to `last`, without the nonlinearity after `last`."""
        for number in range(first, last + 1):
            # The drop rate grows linearly over all blocks (arXiv:1603.09382).
            previous_blocks = sum(variant.blocks[:stage]) + number - 1
            is_strided = number == strided_block
            dilation = dilations[number > strided_block]
            block = Block(
                f"{prefix}{number}",
                variant,
                variant.width * 2**stage,
                stride if is_strided else 1,
                dilations if is_strided else (dilation, dilation),
                variant.stochastic_depth * (previous_blocks / max(1, total_blocks - 1)),
            )
            x = add_block(x, block)
            if number < last:
                x = layers.Activation(nonlinearity, name=f"{prefix}{number}_out")(x)
        return x

    for first in range(1, num_blocks + 1, blocks_per_model):
        last = min(first + blocks_per_model - 1, num_blocks)
        if is_nested:
            inputs = keras.Input(x.shape[1:])
            name = f"{prefix}{first}_to_{last}"
            x = keras.Model(inputs, add_blocks(inputs, first, last), name=name)(x)
        else:
            x = add_blocks(x, first, last)
        # This layer is in the outer model, where `endpoints` looks for it.
        x = layers.Activation(nonlinearity, name=f"{prefix}{last}_out")(x)
    return x
