"""Complete networks as `keras.Model`s, built from a `Variant`.

The networks of the paper are built exactly as described there. The paper leaves two
details open, which follow published weights here: padding is symmetric, and shortcut A
adds half of the zero channels before the old channels and half after them. The fields
of `keras_resnet.spec.Variant` document the later variations.
"""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import KerasTensor, layers

from keras_resnet.nets.blocks import Block, bn, channel_axis, conv, relu, residual_block
from keras_resnet.spec import Variant
from keras_resnet.support import InputError

Shape = Sequence[int | None]

# Very deep networks consist of sub-models. When Keras creates or loads a functional
# model, it visits the layers recursively, so a long chain of layers exceeds Python's
# limit of 1,000 nested calls and raises RecursionError. If a network has more than 60
# blocks, `_add_stage` wraps up to 60 blocks at a time in a `keras.Model`, which the
# outer model contains as one layer. Each of the three stages of ResNet-1202 has 200
# blocks and four sub-models. ResNet-152, with 50 blocks in total, has none.
_BLOCKS_PER_GRAPH = 60


@dataclasses.dataclass(frozen=True)
class Head:
    """Layers after the last stage, described as in keras.applications.

    Attributes:
        include_top: Whether to add global average pooling and a dense layer.
        classes: Number of classes. `None` uses the number of the variant.
        activation: Activation of the dense layer. `None` outputs logits.
        pooling: Global pooling if `include_top` is `False`: `"avg"`, `"max"`, or
            `None` for the 4D output of the last stage.

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
        output_stride: 8, 16 or 32; see `keras_resnet.ResNet50`. Default: the stride
            of the variant.
        input_tensor: Keras tensor to use as input instead of a new `keras.Input`.
        input_shape: Shape of the new input, without the batch axis. Default: the
            image size of the variant, with 3 channels.
        normalise: Function that adds layers between the input and the stem.

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
    """Returns the shape of a square image in the current data format."""
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
    shape, is_last = tuple(shape), channel_axis() == -1
    sides = (variant.stride, variant.stride)
    minimum = (*sides, 1) if is_last else (1, *sides)
    if not (
        len(shape) == 3
        and shape[-1 if is_last else 0] is not None
        and all(
            n is None or (isinstance(n, numbers.Integral) and n >= low)
            for n, low in zip(shape, minimum, strict=True)
        )
    ):
        order = "height, width, channels" if is_last else "channels, height, width"
        raise InputError(
            f"The input must be ({order}) with sides of at least {variant.stride} pixels, "
            f"or None for any size. Received: input_shape={shape}"
        )


def _add_features(x: KerasTensor, variant: Variant, output_stride: int) -> KerasTensor:
    x = _add_stem(x, variant)
    stages = len(variant.blocks)
    stride, dilation = variant.stride // 2 ** (stages - 1), 1
    # All stages except the first begin with subsampling. In pre-activation networks,
    # all stages except the last end with subsampling.
    unstrided_stage = stages - 1 if variant.preact else 0
    for stage in range(stages):
        stage_stride, after = 1 if stage == unstrided_stage else 2, dilation
        if stride * stage_stride > output_stride:
            stage_stride, after = 1, dilation * 2
        x = _add_stage(x, variant, stage, stage_stride, (dilation, after))
        stride, dilation = stride * stage_stride, after
    if variant.preact:
        x = relu(bn(x, "post"), "post_relu")
    return x


def _add_stem(x: KerasTensor, variant: Variant) -> KerasTensor:
    """Builds the layers before the first block (conv1 and max pool in Table 1)."""
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
    # Padding with zeros does not change a maximum after a ReLU. Pre-activation networks
    # have no ReLU here and are padded with zeros too, as in keras.applications.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def _add_stage(
    x: KerasTensor,
    variant: Variant,
    stage: int,
    stride: int,
    dilations: tuple[int, int],
) -> KerasTensor:
    """Builds the blocks of one stage; stage 0 is the paper's conv2.

    One block applies the stride, or the change from the first to the second of
    `dilations` that replaces the stride. This is the first block, or the last one in
    pre-activation networks.
    """
    blocks, total = variant.blocks[stage], sum(variant.blocks)
    strided_block = blocks if variant.preact else 1
    prefix = f"conv{stage + 2}_block"
    is_nested = total > _BLOCKS_PER_GRAPH
    per_graph = _BLOCKS_PER_GRAPH if is_nested else blocks
    nonlinearity = "linear" if variant.preact else "relu"

    def chain(x: KerasTensor, first: int, last: int) -> KerasTensor:
        """Builds the blocks `first` to `last`, without the last nonlinearity."""
        for block in range(first, last + 1):
            # The drop probability grows linearly over all blocks (arXiv:1603.09382).
            fraction = (sum(variant.blocks[:stage]) + block - 1) / max(1, total - 1)
            is_strided = block == strided_block
            dilation = dilations[block > strided_block]
            spec = Block(
                f"{prefix}{block}",
                variant,
                variant.width * 2**stage,
                stride if is_strided else 1,
                dilations if is_strided else (dilation, dilation),
                variant.stochastic_depth * fraction,
            )
            x = residual_block(x, spec)
            if block < last:
                x = layers.Activation(nonlinearity, name=f"{prefix}{block}_out")(x)
        return x

    for first in range(1, blocks + 1, per_graph):
        last = min(first + per_graph - 1, blocks)
        if is_nested:
            inputs = keras.Input(x.shape[1:])
            name = f"{prefix}{first}_to_{last}"
            x = keras.Model(inputs, chain(inputs, first, last), name=name)(x)
        else:
            x = chain(x, first, last)
        # This layer is in the outer model, where `endpoints` looks for it.
        x = layers.Activation(nonlinearity, name=f"{prefix}{last}_out")(x)
    return x
