"""Convolutions, shortcuts and residual blocks as functions over Keras tensors.

Layers are named as the paper's Table 1 in keras.applications' spelling. Every
function serves both data formats of `keras.config.image_data_format()`.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import keras
from keras import KerasTensor, layers

from keras_resnet.spec import Variant

# Section 3.4 of the paper: "as in [13]", He et al. 2015.
_KERNELS = "he_normal"
_initializer = contextvars.ContextVar("kernel_initializer", default=_KERNELS)


class Place(NamedTuple):
    """Where a block stands in its network.

    Attributes:
        name: Prefix of the layers' names, such as `"conv2_block1"`.
        variant: The architecture.
        width: Channels of the paper's 3x3 convolutions in this stage.
        stride: Stride of the block.
        dilations: Dilation of 3x3 convolutions up to the one that has the stride,
            and after it.
        drop: Probability that a training step leaves out the residual branch.
    """

    name: str
    variant: Variant
    width: int
    stride: int
    dilations: tuple[int, int] = (1, 1)
    drop: float = 0.0


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
        channel_axis(), 0.9, 1e-5, gamma_initializer=gamma, name=f"{name}_bn"
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
    gamma: str | None = "ones",
) -> KerasTensor:
    """Convolution whose padding is symmetric at every stride, then batch normalisation.

    As in the original and in torchvision; TensorFlow's `"same"` is not at stride
    2: zeros are added explicitly and the convolution is `"valid"`. At stride 1
    `"same"` is the same thing.

    Args:
        x: Batch of images.
        filters: Number of output channels.
        size: Height and width of the kernel, odd.
        stride: Stride in both directions; 1 if the convolution is dilated. Height and
            width are divided by it and rounded up.
        name: Prefix of the layers' names.
        dilation: Pixels from one tap of the kernel to the next.
        groups: Number of groups of channels that are convolved separately.
        gamma: Initial scale of the batch normalisation. `None`: a convolution with a
            bias that nothing normalises.
    """
    padding = "same"
    if stride > 1 and size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    layer = layers.Conv2D(
        filters,
        size,
        stride,
        padding,
        dilation_rate=dilation,
        groups=groups,
        use_bias=gamma is None,
        kernel_initializer=_initializer.get(),
        name=f"{name}_conv",
    )
    x = layer(x)
    if _initializer.get() != _KERNELS:  # Each new initializer draws a seed.
        layer.kernel_initializer = keras.initializers.get(_KERNELS)
    return bn(x, name, gamma) if gamma else x


def shortcut(
    x: KerasTensor, activated: KerasTensor, place: Place, filters: int
) -> KerasTensor:
    """The shortcut of a residual block; the one place that decides which.

    The variant's `shortcut` is the paper's option (section 4.1). `"A"`: identity,
    with zeros for new channels; no parameters. `"B"`: a 1x1 convolution where the
    shape changes, else identity. `"C"`: a 1x1 convolution always.

    Args:
        x: Input of the block.
        activated: The same after the block's pre-activation, which a projection
            reads; `x` in a network without it.
        place: The block.
        filters: Number of output channels of the block.

    Returns:
        A tensor of the same shape as the block's residual branch.
    """
    variant, stride, name = place.variant, place.stride, f"{place.name}_0"
    new_channels = filters - x.shape[channel_axis()]
    # Published pre-activation nets subsample without a convolution.
    changes = new_channels != 0 or (stride > 1 and not variant.preact)
    if variant.shortcut == "C" or (variant.shortcut == "B" and changes):
        if variant.avg_down and stride > 1:
            pool = layers.AveragePooling2D(2, stride, "same", name=f"{name}_pool")
            activated, stride = pool(activated), 1
        gamma = None if variant.preact else "ones"
        return conv(activated, filters, 1, stride, name, gamma=gamma)
    if stride > 1:
        x = layers.AveragePooling2D(1, stride, name=f"{name}_pool")(x)
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
        x = layers.ZeroPadding2D(pad, read_as, name=f"{name}_pad")(x)
    return x


def squeeze_excite(x: KerasTensor, name: str) -> KerasTensor:
    """Scales each channel by a share from 0 to 1 that all channels' means decide.

    Hu et al., arXiv:1709.01507, with timm's width: a sixteenth of the channels,
    rounded to a multiple of 8.
    """
    channels = x.shape[channel_axis()]
    between = max(8, (channels // 16 + 4) // 8 * 8)
    share = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_pool")(x)
    share = conv(share, between, 1, 1, f"{name}_se_1", gamma=None)
    share = relu(share, f"{name}_se_1_relu")
    share = conv(share, channels, 1, 1, f"{name}_se_2", gamma=None)
    share = layers.Activation("sigmoid", name=f"{name}_se_sigmoid")(share)
    return layers.Multiply(name=f"{name}_se_scale")([x, share])


def residual_block(x: KerasTensor, place: Place) -> KerasTensor:
    """Returns the sum of shortcut and branch (Figure 5), before its nonlinearity.

    A basic block's branch has two 3x3 convolutions. A bottleneck's has 1x1, 3x3 and
    1x1; its `stride_on` says which one has the stride, it gives four times the
    place's width, and groups may widen its first two convolutions.
    """
    name, variant, width, stride, (before, after), drop = place
    preact, groups = variant.preact, 1
    if variant.block == "basic":
        convolutions = [(width, 3, stride, before), (width, 3, 1, after)]
    else:
        groups = variant.groups
        inner = width * variant.group_width // 64 * groups
        if variant.stride_on == "1x1":
            convolutions = [(inner, 1, stride, 1), (inner, 3, 1, after)]
        else:
            convolutions = [(inner, 1, 1, 1), (inner, 3, stride, before)]
        convolutions.append((4 * width, 1, 1, 1))
    start = relu(bn(x, f"{name}_preact"), f"{name}_preact_relu") if preact else x
    # Nothing normalises the end of a pre-activated branch.
    gamma = None if preact else "zeros" if variant.zero_gamma else "ones"
    y, last = start, len(convolutions)
    for i, (filters, size, step, dilation) in enumerate(convolutions, 1):
        y = conv(
            y,
            filters,
            size,
            step,
            f"{name}_{i}",
            dilation=dilation,
            groups=groups if size == 3 else 1,
            gamma="ones" if i < last else gamma,
        )
        if i < last:
            y = relu(y, f"{name}_{i}_relu")
    if variant.se:
        y = squeeze_excite(y, name)
    if variant.shortcut == "none":
        return y
    if drop:
        y = layers.Dropout(drop, (None, 1, 1, 1), name=f"{name}_drop")(y)
    beside = shortcut(x, start, place, y.shape[channel_axis()])
    return layers.Add(name=f"{name}_add")([beside, y])
