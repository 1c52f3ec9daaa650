"""Whole networks as `keras.Model`s, built from a `Variant`.

The networks of the paper are built without deviations. The paper leaves two
things open, which are chosen so that published weights fit: padding is symmetric,
and shortcut A puts half of the new channels in front and half behind. What the
later variations change is documented with the fields of
`keras_resnet.spec.Variant`.
"""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import KerasTensor, layers

from keras_resnet.nets.blocks import Place, bn, channel_axis, conv, relu, residual_block
from keras_resnet.spec import Variant
from keras_resnet.support import InputError

Shape = Sequence[int | None]

# Keras walks a functional graph recursively when it makes or loads a model, and
# Python allows 1,000 frames. Networks with more blocks than this get sub-models
# of this many blocks. ResNet-152, with 50 blocks, stays flat.
_BLOCKS_PER_GRAPH = 60


@dataclasses.dataclass(frozen=True)
class Head:
    """What follows the last stage, in keras.applications' terms.

    Attributes:
        include_top: Whether global average pooling and a dense layer follow.
        classes: Number of classes. `None` is the variant's own number.
        activation: Activation of the dense layer. `None` gives logits.
        pooling: Without the top: `"avg"`, `"max"`, or `None` for the 4D output.

    Raises:
        InputError: `pooling` or `classes` is not one of those accepted.
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
        variant: The architecture.
        name: Name of the model.
        head: What follows the last stage.
        output_stride: 8, 16 or 32; see `keras_resnet.ResNet50`. Default: the
            variant's.
        input_tensor: Keras tensor to read instead of a new input.
        input_shape: Shape of a new input, without the batch. Default: the
            variant's size with 3 channels.
        normalise: Layers between the input and the stem.

    Returns:
        A functional `keras.Model` with random weights.

    Raises:
        InputError: The output stride or the input is not one of those accepted.
    """
    own = variant.stride
    if output_stride is None:
        output_stride = own
    elif output_stride not in (8, 16, 32) or output_stride > own:
        raise InputError(
            f"output_stride must be 8, 16 or 32, and no more than the net's own {own}. "
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
            "input_tensor must be a Keras tensor, such as keras.Input() gives. "
            f"Received: {type(input_tensor).__name__}"
        )
    x = _features(normalise(x) if normalise else x, variant, output_stride)
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
    """Refuses shapes that the strides of the network would reduce to nothing."""
    shape, last = tuple(shape), channel_axis() == -1
    sides = (variant.stride, variant.stride)
    least = (*sides, 1) if last else (1, *sides)
    if not (
        len(shape) == 3
        and shape[-1 if last else 0] is not None
        and all(
            n is None or (isinstance(n, numbers.Integral) and n >= low)
            for n, low in zip(shape, least, strict=True)
        )
    ):
        order = "height, width, channels" if last else "channels, height, width"
        raise InputError(
            f"The input must be ({order}) with sides of at least {variant.stride} pixels, "
            f"or None for any size. Received: input_shape={shape}"
        )


def _features(x: KerasTensor, variant: Variant, output_stride: int) -> KerasTensor:
    """Builds everything before the head."""
    x = _stem(x, variant)
    stages = len(variant.blocks)
    stride, dilation = variant.stride // 2 ** (stages - 1), 1
    # A stage of a pre-activation network subsamples for the next one.
    same_size = stages - 1 if variant.preact else 0
    for stage in range(stages):
        step, after = 1 if stage == same_size else 2, dilation
        if stride * step > output_stride:
            step, after = 1, dilation * 2
        x = _stage(x, variant, stage, step, (dilation, after))
        stride, dilation = stride * step, after
    if variant.preact:
        x = relu(bn(x, "post"), "post_relu")
    return x


def _stem(x: KerasTensor, variant: Variant) -> KerasTensor:
    """Builds everything before the first block (Table 1's conv1 and max pool)."""
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
    # After a ReLU nothing is below zero, so padding with zeros loses no maximum.
    # Without a ReLU, as in keras.applications, it does at the edge.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def _stage(
    x: KerasTensor,
    variant: Variant,
    stage: int,
    stride: int,
    dilations: tuple[int, int],
) -> KerasTensor:
    """Builds the blocks of one resolution; stage 0 is the paper's conv2.

    The first block, the last one of a pre-activation network, applies the stride or
    the dilation that replaces it: from the first of the dilations to the second.
    """
    blocks, total = variant.blocks[stage], sum(variant.blocks)
    turning = blocks if variant.preact else 1
    prefix = f"conv{stage + 2}_block"
    is_nested = total > _BLOCKS_PER_GRAPH
    per_graph = _BLOCKS_PER_GRAPH if is_nested else blocks
    nonlinearity = "linear" if variant.preact else "relu"

    def chain(x: KerasTensor, first: int, last: int) -> KerasTensor:
        """Builds the blocks `first` to `last`, without the last nonlinearity."""
        for block in range(first, last + 1):
            # The drop probability grows linearly over all blocks (arXiv:1603.09382).
            share = (sum(variant.blocks[:stage]) + block - 1) / max(1, total - 1)
            turns = block == turning
            dilation = dilations[block > turning]
            place = Place(
                f"{prefix}{block}",
                variant,
                variant.width * 2**stage,
                stride if turns else 1,
                dilations if turns else (dilation, dilation),
                variant.stochastic_depth * share,
            )
            x = residual_block(x, place)
            if block < last:
                x = layers.Activation(nonlinearity, name=f"{prefix}{block}_out")(x)
        return x

    for first in range(1, blocks + 1, per_graph):
        last = min(first + per_graph - 1, blocks)
        if is_nested:
            inside = keras.Input(x.shape[1:])
            group = f"{prefix}{first}_to_{last}"
            x = keras.Model(inside, chain(inside, first, last), name=group)(x)
        else:
            x = chain(x, first, last)
        # Outside the sub-model, so that the endpoint of a stage is in every graph.
        x = layers.Activation(nonlinearity, name=f"{prefix}{last}_out")(x)
    return x
