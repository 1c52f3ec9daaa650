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

from keras_resnet.nets.blocks import (
    BLOCKS,
    Dilations,
    Place,
    bn,
    channel_axis,
    conv,
    conv_bn,
    relu,
)
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
    """

    include_top: bool = True
    classes: int | None = None
    activation: str | Callable[..., Any] | None = "softmax"
    pooling: str | None = None

    def check(self) -> None:
        """Refuses values that no head can have.

        Raises:
            InputError: `pooling` or `classes` is not one of those accepted.
        """
        if self.pooling not in (None, "avg", "max"):
            raise InputError(
                f"pooling must be None, 'avg' or 'max'. Received: pooling={self.pooling!r}"
            )
        if (
            self.include_top
            and self.classes is not None
            and (not isinstance(self.classes, numbers.Integral) or self.classes < 1)
        ):
            raise InputError(
                "classes must be a whole number of at least 1. "
                f"Received: classes={self.classes!r}"
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
        InputError: The head, the output stride or the input is not one of those
            accepted.
    """
    head.check()
    output_stride = _check_output_stride(variant, output_stride)
    image, x = _make_input(variant, input_tensor, input_shape)
    if normalise:
        x = normalise(x)
    x = _features(x, variant, output_stride)
    return keras.Model(image, _add_head(x, variant, head), name=name)


def _add_head(x: KerasTensor, variant: Variant, head: Head) -> KerasTensor:
    """Adds what follows the last stage."""
    if head.include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(
            variant.classes if head.classes is None else head.classes,
            activation=head.activation,
            kernel_initializer="he_normal",
            name="predictions",
        )(x)
    elif head.pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif head.pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    return x


def _check_output_stride(variant: Variant, output_stride: int | None) -> int:
    if output_stride is None:
        return variant.stride
    if output_stride not in (8, 16, 32) or output_stride > variant.stride:
        raise InputError(
            "output_stride must be 8, 16 or 32, and no more than the net's own "
            f"{variant.stride}. Received: output_stride={output_stride!r}"
        )
    return output_stride


def _make_input(
    variant: Variant, input_tensor: KerasTensor | None, input_shape: Shape | None
) -> tuple[KerasTensor | list[KerasTensor], KerasTensor]:
    """Returns the inputs of the model and the tensor that the stem reads."""
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise InputError(
                "input_tensor must be a Keras tensor, such as keras.Input() gives. "
                f"Received: {type(input_tensor).__name__}"
            )
        _check_shape(variant, input_tensor.shape[1:])
        sources = keras.utils.get_source_inputs(input_tensor)
        return sources[0] if len(sources) == 1 else sources, input_tensor
    if input_shape is None:
        input_shape = (variant.size, variant.size, 3)
        if channel_axis() == 1:
            input_shape = (3, variant.size, variant.size)
    _check_shape(variant, input_shape)
    image = keras.Input(input_shape, name="image")
    return image, image


def _check_shape(variant: Variant, shape: Shape) -> None:
    """Refuses shapes that the strides of the network would reduce to nothing."""
    shape = tuple(shape)
    fits = len(shape) == 3 and all(
        n is None or (isinstance(n, numbers.Integral) and n > 0) for n in shape
    )
    if fits:
        *sides, channels = shape if channel_axis() == -1 else (*shape[1:], shape[0])
        fits = channels is not None and all(
            n is None or n >= variant.stride for n in sides
        )
    if not fits:
        order = "(height, width, channels)"
        if channel_axis() == 1:
            order = "(channels, height, width)"
        raise InputError(
            f"The input must be {order} with sides of at least {variant.stride} pixels, "
            f"or None for any size. Received: input_shape={shape}"
        )


def _features(x: KerasTensor, variant: Variant, output_stride: int) -> KerasTensor:
    """Builds everything before the head."""
    x = _stem(x, variant)
    stride = variant.stride // 2 ** (len(variant.blocks) - 1)
    dilation = 1
    for stage in range(len(variant.blocks)):
        # A stage of a pre-activation network subsamples for the next one.
        same_size = len(variant.blocks) - 1 if variant.preact else 0
        step = 1 if stage == same_size else 2
        stride *= step
        after = dilation
        if stride > output_stride:
            step, after, stride = 1, dilation * 2, stride // 2
        x = _stage(x, variant, stage, step, (dilation, after))
        dilation = after
    if variant.preact:
        x = relu(bn(x, "post"), "post_relu")
    return x


def _stem(x: KerasTensor, variant: Variant) -> KerasTensor:
    """Builds everything before the first block (Table 1's conv1 and max pool)."""
    if variant.stem == "deep":
        for i in (1, 2):
            x = conv_bn(x, variant.width // 2, 3, 3 - i, f"conv1_{i}")
            x = relu(x, f"conv1_{i}_relu")
        size, stride = 3, 1
    else:
        size, stride = (3, 1) if variant.stem == "cifar" else (7, 2)
    if variant.preact:
        x = conv(x, variant.width, size, stride, "conv1", bias=True)
    else:
        x = relu(conv_bn(x, variant.width, size, stride, "conv1"), "conv1_relu")
    if variant.stem == "cifar":
        return x
    # After a ReLU nothing is below zero, so padding with zeros loses no maximum.
    # Without a ReLU, as in keras.applications, it does at the edge.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def _stage(
    x: KerasTensor, variant: Variant, stage: int, stride: int, dilations: Dilations
) -> KerasTensor:
    """Builds the blocks of one resolution.

    Args:
        x: Output of the stage before.
        variant: The architecture.
        stage: Number of the stage; 0 is the paper's conv2.
        stride: Stride of the stage. The first block applies it (the last one of a
            pre-activation network), or the dilation that replaces it.
        dilations: Dilation before and after that block.
    """
    blocks = variant.blocks[stage]
    prefix = f"conv{stage + 2}_block"
    is_nested = sum(variant.blocks) > _BLOCKS_PER_GRAPH
    per_graph = _BLOCKS_PER_GRAPH if is_nested else blocks
    nonlinearity = "linear" if variant.preact else "relu"

    def chain(x: KerasTensor, first: int, last: int) -> KerasTensor:
        """Builds the blocks `first` to `last`, without the last nonlinearity."""
        for block in range(first, last + 1):
            x = _block(x, variant, stage, block, stride, dilations)
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


def _block(
    x: KerasTensor,
    variant: Variant,
    stage: int,
    block: int,
    stride: int,
    dilations: Dilations,
) -> KerasTensor:
    """Builds block number `block`, counted from 1, of a stage; see `_stage`."""
    turning = variant.blocks[stage] if variant.preact else 1
    before, after = dilations
    if block < turning:
        stride, dilations = 1, (before, before)
    elif block > turning:
        stride, dilations = 1, (after, after)
    # The drop probability grows linearly over all blocks (arXiv:1603.09382).
    share = (sum(variant.blocks[:stage]) + block - 1) / max(1, sum(variant.blocks) - 1)
    row = dataclasses.replace(
        variant, stochastic_depth=variant.stochastic_depth * share
    )
    name = f"conv{stage + 2}_block{block}"
    place = Place(name, variant.width * 2**stage, stride, dilations)
    return BLOCKS[variant.block](x, row, place)
