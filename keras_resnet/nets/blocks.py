"""Convolutions, shortcuts and residual blocks as functions over Keras tensors.

Layers are named as the paper's Table 1 in keras.applications' spelling. Every
function serves both data formats of `keras.config.image_data_format()`.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, layers

from keras_resnet.spec import Variant

# Section 3.4 of the paper: "as in [13]", He et al. 2015.
_KERNELS = "he_normal"
_initializer = contextvars.ContextVar("kernel_initializer", default=_KERNELS)

Dilations = tuple[int, int]


class Place(NamedTuple):
    """Where a block stands in its network.

    Attributes:
        name: Prefix of the layers' names, such as `"conv2_block1"`.
        width: Channels of the paper's 3x3 convolutions in this stage.
        stride: Stride of the block.
        dilations: Dilation of 3x3 convolutions up to the one that has the stride,
            and after it.
    """

    name: str
    width: int
    stride: int
    dilations: Dilations


# From a batch of images to the sum of shortcut and branch, before its nonlinearity,
# which the caller applies.
Block = Callable[[KerasTensor, Variant, Place], KerasTensor]


@contextlib.contextmanager
def without_random_kernels() -> Iterator[None]:
    """Initialises kernels with zeros, for a network that is then given its weights.

    Drawing random numbers takes longer than everything else in building a network.
    The configuration of the layers says `he_normal`, as in any other network.
    """
    token = _initializer.set("zeros")
    try:
        yield
    finally:
        _initializer.reset(token)


def channel_axis() -> int:
    """Returns the axis of the channels in a batch of images: -1 or 1."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def relu(x: KerasTensor, name: str) -> KerasTensor:
    """Returns the rectified `x`."""
    return layers.Activation("relu", name=name)(x)


def bn(x: KerasTensor, name: str, gamma: str = "ones") -> KerasTensor:
    """Batch normalisation; the one place that sets its momentum and epsilon."""
    return layers.BatchNormalization(
        axis=channel_axis(),
        momentum=0.9,
        epsilon=1e-5,
        gamma_initializer=gamma,
        name=f"{name}_bn",
    )(x)


def conv(
    x: KerasTensor,
    filters: int,
    size: int,
    stride: int,
    name: str,
    *,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> KerasTensor:
    """Convolution whose padding is symmetric at every stride.

    As in the original and in torchvision; TensorFlow's `"same"` is not at stride
    2: zeros are added explicitly and the convolution is `"valid"`. At stride 1
    `"same"` is the same thing.

    Args:
        x: Batch of images.
        filters: Number of output channels.
        size: Height and width of the kernel, odd.
        stride: Stride in both directions; 1 if the convolution is dilated.
        name: Prefix of the layers' names.
        dilation: Pixels from one tap of the kernel to the next.
        groups: Number of groups of channels that are convolved separately.
        bias: Whether a number is added to each output channel.

    Returns:
        Height and width divided by `stride`, rounded up; `filters` channels.
    """
    padding = "same"
    if stride > 1 and size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    layer = layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation if size > 1 else 1,
        groups=groups,
        use_bias=bias,
        kernel_initializer=_initializer.get(),
        name=f"{name}_conv",
    )
    x = layer(x)
    if _initializer.get() != _KERNELS:
        layer.kernel_initializer = keras.initializers.get(_KERNELS)
    return x


def conv_bn(
    x: KerasTensor,
    filters: int,
    size: int,
    stride: int,
    name: str,
    *,
    gamma: str = "ones",
    **options: Any,
) -> KerasTensor:
    """Convolution without bias, then batch normalisation; see `conv`."""
    return bn(conv(x, filters, size, stride, name, **options), name, gamma)


def shortcut(
    x: KerasTensor,
    activated: KerasTensor,
    variant: Variant,
    filters: int,
    stride: int,
    name: str,
) -> KerasTensor:
    """The shortcut of a residual block; the one place that decides which.

    Args:
        x: Input of the block.
        activated: The same after the block's pre-activation, which a projection
            reads; `x` in a network without it.
        variant: The architecture, whose `shortcut` is the paper's option (section
            4.1). `"A"`: identity, with zeros for new channels; no parameters.
            `"B"`: a 1x1 convolution where the shape changes, else identity.
            `"C"`: a 1x1 convolution always.
        filters: Number of output channels of the block.
        stride: Stride of the block.
        name: Prefix of the layers' names.

    Returns:
        A tensor of the same shape as the block's residual branch.
    """
    new_channels = filters - x.shape[channel_axis()]
    # Published pre-activation nets subsample without a convolution.
    changes = new_channels != 0 or (stride > 1 and not variant.preact)
    if variant.shortcut == "C" or (variant.shortcut == "B" and changes):
        if variant.avg_down and stride > 1:
            activated = layers.AveragePooling2D(
                2, stride, padding="same", name=f"{name}_0_pool"
            )(activated)
            stride = 1
        if variant.preact:
            return conv(activated, filters, 1, stride, f"{name}_0", bias=True)
        return conv_bn(activated, filters, 1, stride, f"{name}_0")
    if stride > 1:
        x = layers.AveragePooling2D(1, stride, name=f"{name}_0_pool")(x)
    if new_channels:
        # The paper says only "extra zero entries padded"; half of them stand in
        # front and half behind, as in published CIFAR checkpoints. Read in the
        # other data format, the channels are one of the two axes that
        # ZeroPadding2D pads, which keeps this a standard, named layer.
        front, behind = new_channels // 2, new_channels - new_channels // 2
        if channel_axis() == -1:
            pad, read_as = ((0, 0), (front, behind)), "channels_first"
        else:
            pad, read_as = ((front, behind), (0, 0)), "channels_last"
        x = layers.ZeroPadding2D(pad, data_format=read_as, name=f"{name}_0_pad")(x)
    return x


def squeeze_excite(x: KerasTensor, name: str) -> KerasTensor:
    """Scales each channel by a share from 0 to 1 that all channels' means decide.

    Hu et al., arXiv:1709.01507, with timm's width: a sixteenth of the channels,
    rounded to a multiple of 8.
    """
    channels = x.shape[channel_axis()]
    between = max(8, (channels // 16 + 4) // 8 * 8)
    share = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_pool")(x)
    share = conv(share, between, 1, 1, f"{name}_se_1", bias=True)
    share = relu(share, f"{name}_se_1_relu")
    share = conv(share, channels, 1, 1, f"{name}_se_2", bias=True)
    share = layers.Activation("sigmoid", name=f"{name}_se_sigmoid")(share)
    return layers.Multiply(name=f"{name}_se_scale")([x, share])


def basic_block(x: KerasTensor, variant: Variant, place: Place) -> KerasTensor:
    """Two 3x3 convolutions beside a shortcut (Figure 5, left); see `Block`."""
    name, width, stride, (before, after) = place
    start = _activate(x, variant, name)
    y = conv_bn(start, width, 3, stride, f"{name}_1", dilation=before)
    y = relu(y, f"{name}_1_relu")
    y = _last(y, variant, width, 3, f"{name}_2", after)
    return _add(x, start, y, variant, place)


def bottleneck_block(x: KerasTensor, variant: Variant, place: Place) -> KerasTensor:
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (Figure 5, right); see `Block`.

    The variant's `stride_on` says which convolution has the stride. The block gives
    four times the place's width; groups may widen its first two convolutions.
    """
    name, width, stride, dilations = place
    on_1x1, on_3x3 = (stride, 1) if variant.stride_on == "1x1" else (1, stride)
    dilation = dilations[variant.stride_on == "1x1"]
    groups = variant.groups
    inner = width * variant.group_width // 64 * groups
    start = _activate(x, variant, name)
    y = relu(conv_bn(start, inner, 1, on_1x1, f"{name}_1"), f"{name}_1_relu")
    y = conv_bn(y, inner, 3, on_3x3, f"{name}_2", dilation=dilation, groups=groups)
    y = relu(y, f"{name}_2_relu")
    y = _last(y, variant, 4 * width, 1, f"{name}_3")
    return _add(x, start, y, variant, place)


BLOCKS: dict[str, Block] = {"basic": basic_block, "bottleneck": bottleneck_block}


def _activate(x: KerasTensor, variant: Variant, name: str) -> KerasTensor:
    """What a block's branch reads: with pre-activation, normalised and rectified."""
    if not variant.preact:
        return x
    return relu(bn(x, f"{name}_preact"), f"{name}_preact_relu")


def _last(
    y: KerasTensor,
    variant: Variant,
    filters: int,
    size: int,
    name: str,
    dilation: int = 1,
) -> KerasTensor:
    """The last convolution of a branch; nothing normalises a pre-activated one."""
    if variant.preact:
        return conv(y, filters, size, 1, name, bias=True, dilation=dilation)
    gamma = "zeros" if variant.zero_gamma else "ones"
    return conv_bn(y, filters, size, 1, name, gamma=gamma, dilation=dilation)


def _add(
    x: KerasTensor, start: KerasTensor, y: KerasTensor, variant: Variant, place: Place
) -> KerasTensor:
    """Adds the shortcut of `x` to the residual branch `y`; a plain net has none."""
    name = place.name
    if variant.se:
        y = squeeze_excite(y, name)
    if variant.shortcut == "none":
        return y
    if variant.stochastic_depth:
        y = layers.Dropout(
            variant.stochastic_depth, noise_shape=(None, 1, 1, 1), name=f"{name}_drop"
        )(y)
    filters = y.shape[channel_axis()]
    return layers.Add(name=f"{name}_add")(
        [shortcut(x, start, variant, filters, place.stride, name), y]
    )
