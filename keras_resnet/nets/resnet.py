"""Complete networks as `keras.Model`s, built from a `Variant`.

The networks of the paper are built as the paper describes them. The paper leaves two
details open, which follow published weights: padding is symmetric, and shortcut A adds
half of the zero channels before the old channels and half after the old channels. The
fields of `keras_resnet.spec.Variant` document variations that were published later.
"""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import KerasTensor, layers

from keras_resnet.nets import blocks
from keras_resnet.nets.blocks import Block, add_block, bn, channel_axis, conv, relu
from keras_resnet.spec import Variant
from keras_resnet.support import MAX_SIDE, InputError

Shape = Sequence[int | None]
Dilations = tuple[int, int]  # `Block.dilations` documents the two values.

# Maximum number of blocks in one functional model. Keras visits the layers of such a
# model recursively when it creates or loads the model. A long chain of layers exceeds
# Python's limit of 1,000 nested calls. In networks with more than 60 blocks,
# `_add_stage` puts at most 60 blocks into a sub-model, which is one layer of the outer
# model. In ResNet-1202, each of the three stages has 200 blocks and four sub-models.
# ResNet-152 has 50 blocks and no sub-models.
_MAX_BLOCKS_PER_MODEL = 60


@dataclasses.dataclass(frozen=True)
class Head:
    """Layers after the last stage, with parameter names of keras.applications.

    Attributes:
        include_top: Whether to add global average pooling and a dense layer.
        classes: Number of classes. Default: `variant.classes`.
        activation: Activation of the dense layer; `None` for logits.
        pooling: Global pooling if `include_top` is `False`: `"avg"`, `"max"` or `None`
            (4D output of the last stage).

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
        is_positive_integer = isinstance(classes, numbers.Integral) and classes >= 1
        if self.include_top and not is_positive_integer:
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
        normalise: Function that adds normalisation layers to the input tensor.

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
            "input_tensor must be a Keras tensor, such as the output of keras.Input(). "
            f"Received: {type(input_tensor).__name__}"
        )
    x = _add_features(normalise(x) if normalise else x, variant, output_stride)
    return keras.Model(inputs, _add_head(x, variant, head), name=name)


def image_shape(size: int, channels: int = 3) -> Shape:
    """Returns the shape of a square image in the data format that Keras uses."""
    shape = (size, size, channels)
    return shape if channel_axis() == -1 else shape[::-1]


def _add_head(x: KerasTensor, variant: Variant, head: Head) -> KerasTensor:
    if head.include_top or head.pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif head.pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    if head.include_top:
        dense = layers.Dense(
            variant.classes if head.classes is None else head.classes,
            head.activation,
            kernel_initializer=blocks.current_initializer.get(),
            name="predictions",
        )
        x = dense(x)
        dense.kernel_initializer = blocks.HE_NORMAL
    return x


def _check_shape(variant: Variant, shape: Shape) -> None:
    shape, channels_last = tuple(shape), channel_axis() == -1
    min_size = (variant.stride, variant.stride)
    min_shape = (*min_size, 1) if channels_last else (1, *min_size)
    if not (
        len(shape) == 3
        and shape[-1 if channels_last else 0] is not None
        and all(
            n is None or (isinstance(n, numbers.Integral) and min_n <= n <= MAX_SIDE)
            for n, min_n in zip(shape, min_shape, strict=True)
        )
    ):
        axis_order = (
            "height, width, channels" if channels_last else "channels, height, width"
        )
        raise InputError(
            f"The input must be ({axis_order}) with sides of {variant.stride} to "
            f"{MAX_SIDE} pixels, or None for any size. Received: input_shape={shape}"
        )


def _add_features(x: KerasTensor, variant: Variant, output_stride: int) -> KerasTensor:
    x = _add_stem(x, variant)
    num_stages = len(variant.blocks)
    stride, dilation = variant.stride // 2 ** (num_stages - 1), 1
    # All stages except the first subsample at their start. In pre-activation networks,
    # all stages except the last subsample at their end.
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
    gamma_init = None if variant.preact else "ones"
    x = conv(x, variant.width, size, stride, "conv1", gamma_init=gamma_init)
    x = relu(x, "conv1_relu") if gamma_init else x
    if variant.stem == "cifar":
        return x
    # After a ReLU, zero padding does not change a maximum. In pre-activation networks,
    # no ReLU precedes this padding. Zeros are used there to match keras.applications.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def _add_stage(
    x: KerasTensor, variant: Variant, stage: int, stride: int, dilations: Dilations
) -> KerasTensor:
    """Adds the blocks of one stage; stage 0 is the paper's conv2.

    One block applies the stride or, if dilation replaces the stride, changes the
    dilation from `dilations[0]` to `dilations[1]`. The block is the last one of the
    stage in pre-activation networks, and the first one in other networks.
    """
    num_blocks, total_blocks = variant.blocks[stage], sum(variant.blocks)
    strided_block = num_blocks if variant.preact else 1
    prefix = f"conv{stage + 2}_block"
    is_nested = total_blocks > _MAX_BLOCKS_PER_MODEL
    blocks_per_model = _MAX_BLOCKS_PER_MODEL if is_nested else num_blocks
    nonlinearity = "linear" if variant.preact else "relu"

    def add_blocks(x: KerasTensor, first_block: int, last_block: int) -> KerasTensor:
        """Adds a range of blocks, without the nonlinearity after `last_block`."""
        for block_number in range(first_block, last_block + 1):
            # Later blocks get a linearly higher drop rate (arXiv:1603.09382).
            block_index = sum(variant.blocks[:stage]) + block_number - 1
            is_strided = block_number == strided_block
            dilation = dilations[block_number > strided_block]
            block = Block(
                f"{prefix}{block_number}",
                variant,
                variant.width * 2**stage,
                stride if is_strided else 1,
                dilations if is_strided else (dilation, dilation),
                variant.stochastic_depth * (block_index / max(1, total_blocks - 1)),
            )
            x = add_block(x, block)
            if block_number < last_block:
                x = layers.Activation(nonlinearity, name=f"{block.name}_out")(x)
        return x

    for first_block in range(1, num_blocks + 1, blocks_per_model):
        last_block = min(first_block + blocks_per_model - 1, num_blocks)
        if is_nested:
            inputs = keras.Input(x.shape[1:])
            name = f"{prefix}{first_block}_to_{last_block}"
            outputs = add_blocks(inputs, first_block, last_block)
            x = keras.Model(inputs, outputs, name=name)(x)
        else:
            x = add_blocks(x, first_block, last_block)
        # `endpoints` finds this layer, because the layer is not in a sub-model.
        x = layers.Activation(nonlinearity, name=f"{prefix}{last_block}_out")(x)
    return x
