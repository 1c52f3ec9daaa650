"""Functions that add convolutions, shortcuts and residual blocks to a Keras graph.

Layer names follow the paper's Table 1, in the spelling of keras.applications.
All functions support both data formats of `keras.config.image_data_format()`.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import keras
from keras import KerasTensor, layers

from keras_resnet.spec import Variant

# He initialisation, to which section 3.4 of the paper refers.
_KERNEL_INITIALIZER = "he_normal"
_initializer = contextvars.ContextVar("kernel_initializer", default=_KERNEL_INITIALIZER)


class Block(NamedTuple):
    """Parameters of one residual block.

    Attributes:
        name: Prefix of the layer names, such as `"conv2_block1"`.
        variant: Architecture of the network.
        width: Number of channels of the 3x3 convolutions in the networks of the paper.
        stride: Ratio of the input size to the output size, 1 or 2.
        dilations: Dilation of the 3x3 convolutions up to and including the strided
            convolution, and dilation of the 3x3 convolutions after it.
        drop_rate: Probability that training skips the residual branch for an image.
    """

    name: str
    variant: Variant
    width: int
    stride: int
    dilations: tuple[int, int] = (1, 1)
    drop_rate: float = 0.0


@contextlib.contextmanager
def skip_random_kernels() -> Iterator[None]:
    """Makes `conv` initialise kernels with zeros inside the context.

    This is for networks whose kernels a checkpoint replaces immediately. Drawing the
    random numbers of `he_normal` takes longer than everything else in building a
    network. After the kernel is created, `conv` sets the initializer of the layer to
    `he_normal`, so the saved configuration does not depend on this context.
    """
    token = _initializer.set("zeros")
    try:
        yield
    finally:
        _initializer.reset(token)


def channel_axis() -> int:
    """Returns the channel axis of image batches in the current data format, -1 or 1."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def relu(x: KerasTensor, name: str) -> KerasTensor:
    """Applies a ReLU layer."""
    return layers.Activation("relu", name=name)(x)


def bn(x: KerasTensor, name: str, gamma: str = "ones") -> KerasTensor:
    """Applies batch normalisation. `gamma` is the initializer of the scale."""
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
    """Applies a convolution with symmetric padding, then batch normalisation.

    As in the original implementation and in torchvision, both sides are padded equally.
    TensorFlow's `"same"` padding is asymmetric at stride 2. A separate layer therefore
    adds the zeros for a strided convolution, which has `"valid"` padding.

    Args:
        x: Batch of feature maps.
        filters: Number of output channels.
        size: Height and width of the kernel, an odd number.
        stride: Stride in both directions, 1 for a dilated convolution. The input height
            and width are divided by the stride and rounded up.
        name: Prefix of the layer names.
        dilation: Distance between neighbouring kernel taps, in pixels.
        groups: Number of channel groups that are convolved separately.
        gamma: Initializer of the batch normalisation's scale. `None` adds a bias to
            the convolution instead of a batch normalisation.
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
    if _initializer.get() != _KERNEL_INITIALIZER:
        # Creating an initializer draws a random seed, so do it only if necessary.
        layer.kernel_initializer = keras.initializers.get(_KERNEL_INITIALIZER)
    return bn(x, name, gamma) if gamma else x


def add_shortcut(
    x: KerasTensor, projection_input: KerasTensor, block: Block, filters: int
) -> KerasTensor:
    """Adds the shortcut of a residual block.

    The variant's `shortcut` is one of the paper's options (section 4.1). `"A"` is the
    identity with zeros for new channels, without parameters. `"B"` is a 1x1 convolution
    if the shape changes, and the identity if not. `"C"` is always a 1x1 convolution.

    Args:
        x: Input of the block.
        projection_input: Input of a 1x1 convolution on the shortcut. In pre-activation
            networks this is `x` after the block's first ReLU, in other networks `x`.
        block: Parameters of the block.
        filters: Number of output channels of the block.

    Returns:
        A tensor with the shape of the residual branch's output.
    """
    variant, stride, name = block.variant, block.stride, f"{block.name}_0"
    new_channels = filters - x.shape[channel_axis()]
    # Published pre-activation networks subsample without a convolution.
    needs_projection = new_channels != 0 or (stride > 1 and not variant.preact)
    if variant.shortcut == "C" or (variant.shortcut == "B" and needs_projection):
        if variant.avg_down and stride > 1:
            pool = layers.AveragePooling2D(2, stride, "same", name=f"{name}_pool")
            projection_input, stride = pool(projection_input), 1
        gamma = None if variant.preact else "ones"
        return conv(projection_input, filters, 1, stride, name, gamma=gamma)
    if stride > 1:
        x = layers.AveragePooling2D(1, stride, name=f"{name}_pool")(x)
    if new_channels:
        # The paper says only "extra zero entries padded". Published CIFAR checkpoints
        # put half of the zero channels before the old ones and half after them.
        # ZeroPadding2D pads height and width. With the opposite data format, one of the
        # two axes that it pads is the channel axis.
        num_before, num_after = new_channels // 2, new_channels - new_channels // 2
        if channel_axis() == -1:
            padding, data_format = ((0, 0), (num_before, num_after)), "channels_first"
        else:
            padding, data_format = ((num_before, num_after), (0, 0)), "channels_last"
        x = layers.ZeroPadding2D(padding, data_format, name=f"{name}_pad")(x)
    return x


def squeeze_excite(x: KerasTensor, name: str) -> KerasTensor:
    """Adds squeeze and excitation, which scales each channel by a factor from 0 to 1.

    Two 1x1 convolutions compute the factors from the means of all channels (Hu et
    al., arXiv:1709.01507). As in timm, the first convolution outputs one sixteenth of
    the channels, rounded to a multiple of 8.
    """
    channels = x.shape[channel_axis()]
    hidden_channels = max(8, (channels // 16 + 4) // 8 * 8)
    factors = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_pool")(x)
    factors = conv(factors, hidden_channels, 1, 1, f"{name}_se_1", gamma=None)
    factors = relu(factors, f"{name}_se_1_relu")
    factors = conv(factors, channels, 1, 1, f"{name}_se_2", gamma=None)
    factors = layers.Activation("sigmoid", name=f"{name}_se_sigmoid")(factors)
    return layers.Multiply(name=f"{name}_se_scale")([x, factors])


def add_block(x: KerasTensor, block: Block) -> KerasTensor:
    """Adds a residual branch and a shortcut, and returns their sum before the ReLU.

    The branch of a basic block has two 3x3 convolutions. The branch of a bottleneck
    block has 1x1, 3x3 and 1x1 convolutions and outputs four times `block.width`
    channels (Figure 5 of the paper). In a bottleneck block, the variant's `stride_on`
    selects the strided convolution, and `groups` and `group_width` determine the width
    of the first two.
    """
    name, variant, width, stride, dilations, drop_rate = block
    preact, groups = variant.preact, 1
    if variant.block == "basic":
        convolutions = [(width, 3, stride, dilations[0]), (width, 3, 1, dilations[1])]
    else:
        groups = variant.groups
        inner = width * variant.group_width // 64 * groups
        if variant.stride_on == "1x1":
            convolutions = [(inner, 1, stride, 1), (inner, 3, 1, dilations[1])]
        else:
            convolutions = [(inner, 1, 1, 1), (inner, 3, stride, dilations[0])]
        convolutions.append((4 * width, 1, 1, 1))
    branch_input = relu(bn(x, f"{name}_preact"), f"{name}_preact_relu") if preact else x
    # The last convolution of a pre-activated branch has no batch normalisation.
    gamma = None if preact else "zeros" if variant.zero_gamma else "ones"
    y, num_convs = branch_input, len(convolutions)
    for i, (filters, size, conv_stride, dilation) in enumerate(convolutions, 1):
        y = conv(
            y,
            filters,
            size,
            conv_stride,
            f"{name}_{i}",
            dilation=dilation,
            groups=groups if size == 3 else 1,
            gamma="ones" if i < num_convs else gamma,
        )
        if i < num_convs:
            y = relu(y, f"{name}_{i}_relu")
    if variant.se:
        y = squeeze_excite(y, name)
    if variant.shortcut == "none":
        return y
    if drop_rate:
        y = layers.Dropout(drop_rate, (None, 1, 1, 1), name=f"{name}_drop")(y)
    x = add_shortcut(x, branch_input, block, y.shape[channel_axis()])
    return layers.Add(name=f"{name}_add")([x, y])
