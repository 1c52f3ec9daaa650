"""Functions that add convolutions, shortcuts and residual blocks to a Keras graph.

Layer names follow the paper's Table 1, in the spelling of keras.applications.
All functions support both data formats of `keras.config.image_data_format()`.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
from keras import KerasTensor, layers

from keras_resnet.spec import Variant


def draw_kernel(shape: tuple[int, ...], dtype: str = "float32") -> KerasTensor:
    """Draws the kernel of a convolution or dense layer from a normal distribution.

    The variance is 2 / n, where n is the number of inputs of one output value: height
    times width times input channels per group, all axes of `shape` but the last (He et
    al., arXiv:1502.01852, section 2.2, to which section 3.4 of the paper refers).
    Keras's `he_normal`, the initializer that saved configurations name, has the same
    variance. It also truncates the distribution, which He et al. do not do, and takes
    several times as long as the method of Box and Muller in NumPy. NumPy's global
    generator, which `keras.utils.set_random_seed` seeds, provides the seed.
    """
    rng = np.random.default_rng(np.random.randint(2**32, size=4, dtype=np.uint32))
    size, factor = math.prod(shape), np.float32(-4 / math.prod(shape[:-1]))
    pairs = np.empty((2, -(-size // 2)), np.float32)
    for x, y in np.array_split(pairs, size // 2**16 + 1, axis=1):  # Fits into caches.
        radii = np.sqrt(np.log(1 - rng.random(x.size, np.float32)) * factor)
        angles = rng.random(x.size, np.float32) * np.float32(2 * math.pi)
        x[:], y[:] = radii * np.cos(angles), radii * np.sin(angles)
    return keras.ops.convert_to_tensor(pairs.ravel()[:size].reshape(shape), dtype)


# Initializer in saved configurations. All layers share one object, because each new one
# would draw a seed from Python's global generator.
HE_NORMAL = keras.initializers.HeNormal()
current_initializer: contextvars.ContextVar[str | Callable[..., KerasTensor]] = (
    contextvars.ContextVar("kernel_initializer", default=draw_kernel)
)


class Block(NamedTuple):
    """Parameters of one residual block.

    Attributes:
        name: Prefix of the layer names, such as `"conv2_block1"`.
        variant: Architecture of the network.
        width: Number of channels of the 3x3 convolutions in the networks of the paper.
        stride: Ratio of input size to output size, 1 or 2.
        dilations: Two dilations of 3x3 convolutions. The first one applies up to and
            including the strided convolution, the second one after it.
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
    """Makes layers initialise kernels with zeros inside the context.

    Drawing random numbers takes time, and a checkpoint replaces the kernels anyway.
    """
    token = current_initializer.set("zeros")
    try:
        yield
    finally:
        current_initializer.reset(token)


def channel_axis() -> int:
    """Returns the channel axis of image batches: -1, or 1 if channels come first."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def relu(x: KerasTensor, name: str) -> KerasTensor:
    """Applies a ReLU layer."""
    return layers.Activation("relu", name=name)(x)


def bn(x: KerasTensor, name: str, gamma_init: str = "ones") -> KerasTensor:
    """Applies batch normalisation. `gamma_init` is the initializer of the scale."""
    return layers.BatchNormalization(
        channel_axis(), 0.9, 1e-5, gamma_initializer=gamma_init, name=f"{name}_bn"
    )(x)


def conv(
    x: KerasTensor,
    filters: int,
    kernel_size: int,
    stride: int,
    name: str,
    *,
    dilation: int = 1,
    groups: int = 1,
    gamma_init: str | None = "ones",
) -> KerasTensor:
    """Applies a convolution with symmetric padding, then batch normalisation.

    As in the original implementation and in torchvision, padding is equal on all sides.
    TensorFlow's `"same"` padding is asymmetric at stride 2. A strided convolution is
    therefore `"valid"`, and a separate layer before it adds the zeros.

    Args:
        x: Batch of feature maps.
        filters: Number of output channels.
        kernel_size: Height and width of the kernel, an odd number.
        stride: Stride in both directions; 1 if `dilation` is not 1. The input height
            and width are divided by the stride and rounded up.
        name: Prefix of the layer names.
        dilation: Distance between neighbouring kernel taps, in pixels.
        groups: Number of channel groups that are convolved separately.
        gamma_init: Initializer of the batch normalisation's scale. `None` adds a bias
            to the convolution instead of a batch normalisation.
    """
    padding = "same"
    if stride > 1 and kernel_size > 1:
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    layer = layers.Conv2D(
        filters,
        kernel_size,
        stride,
        padding,
        dilation_rate=dilation,
        groups=groups,
        use_bias=gamma_init is None,
        kernel_initializer=current_initializer.get(),
        name=f"{name}_conv",
    )
    x = layer(x)
    layer.kernel_initializer = HE_NORMAL
    return bn(x, name, gamma_init) if gamma_init else x


def add_shortcut(
    x: KerasTensor, projection_input: KerasTensor, block: Block, filters: int
) -> KerasTensor:
    """Adds the shortcut of a residual block.

    The variant's `shortcut` is one of the paper's options (section 4.1). `"A"` is the
    identity without parameters, with zeros in new channels. `"B"` is a 1x1 convolution
    if the shape changes, and the identity if not. `"C"` is always a 1x1 convolution.

    Args:
        x: Input of the block.
        projection_input: Input of a 1x1 convolution on the shortcut: `x`, or in
            pre-activation networks `x` after the block's first ReLU.
        block: Parameters of the block.
        filters: Number of output channels of the block.

    Returns:
        A tensor with the shape of the residual branch's output.
    """
    variant, stride, name = block.variant, block.stride, f"{block.name}_0"
    num_new_channels = filters - x.shape[channel_axis()]
    # Like published ones, pre-activation networks subsample without a projection.
    needs_projection = num_new_channels != 0 or (stride > 1 and not variant.preact)
    if variant.shortcut == "C" or (variant.shortcut == "B" and needs_projection):
        if variant.avg_down and stride > 1:
            pool = layers.AveragePooling2D(2, stride, "same", name=f"{name}_pool")
            projection_input, stride = pool(projection_input), 1
        gamma_init = None if variant.preact else "ones"
        return conv(projection_input, filters, 1, stride, name, gamma_init=gamma_init)
    if stride > 1:
        x = layers.AveragePooling2D(1, stride, name=f"{name}_pool")(x)
    if num_new_channels:
        # The paper says only "extra zero entries padded". Published CIFAR checkpoints
        # put half of the zero channels before the old channels and half after them.
        # ZeroPadding2D pads the axes that `data_format` calls height and width. With
        # the opposite data format, one of these two axes is the channel axis.
        num_before = num_new_channels // 2
        num_after = num_new_channels - num_before
        if channel_axis() == -1:
            padding, data_format = ((0, 0), (num_before, num_after)), "channels_first"
        else:
            padding, data_format = ((num_before, num_after), (0, 0)), "channels_last"
        x = layers.ZeroPadding2D(padding, data_format, name=f"{name}_pad")(x)
    return x


def squeeze_excite(x: KerasTensor, name: str) -> KerasTensor:
    """Adds squeeze and excitation, which scales each channel by a factor from 0 to 1.

    Two 1x1 convolutions compute the factors from the mean of each channel (Hu et al.,
    arXiv:1709.01507). As in timm, the output of the first convolution has one sixteenth
    of the channels, rounded to a multiple of 8.
    """
    channels = x.shape[channel_axis()]
    hidden_channels = max(8, (channels // 16 + 4) // 8 * 8)
    factors = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_pool")(x)
    factors = conv(factors, hidden_channels, 1, 1, f"{name}_se_1", gamma_init=None)
    factors = relu(factors, f"{name}_se_1_relu")
    factors = conv(factors, channels, 1, 1, f"{name}_se_2", gamma_init=None)
    factors = layers.Activation("sigmoid", name=f"{name}_se_sigmoid")(factors)
    return layers.Multiply(name=f"{name}_se_scale")([x, factors])


def add_block(x: KerasTensor, block: Block) -> KerasTensor:
    """Adds a residual branch and a shortcut, and returns their sum before the ReLU.

    The branch of a basic block has two 3x3 convolutions. The branch of a bottleneck
    block has 1x1, 3x3 and 1x1 convolutions and outputs four times `block.width`
    channels (Figure 5 of the paper). In a bottleneck block, the variant's `stride_on`
    selects the strided convolution. `groups` and `group_width` determine the width of
    the first two convolutions.
    """
    name, variant, width, stride, dilations, drop_rate = block
    preact, groups = variant.preact, 1
    if variant.block == "basic":
        conv_args = [(width, 3, stride, dilations[0]), (width, 3, 1, dilations[1])]
    else:
        groups = variant.groups
        inner_width = width * variant.group_width // 64 * groups
        if variant.stride_on == "1x1":
            conv_args = [(inner_width, 1, stride, 1), (inner_width, 3, 1, dilations[1])]
        else:
            conv_args = [(inner_width, 1, 1, 1), (inner_width, 3, stride, dilations[0])]
        conv_args.append((4 * width, 1, 1, 1))
    branch_input = relu(bn(x, f"{name}_preact"), f"{name}_preact_relu") if preact else x
    # Pre-activation blocks have no batch normalisation after the last convolution.
    gamma_init = None if preact else "zeros" if variant.zero_gamma else "ones"
    y, num_convs = branch_input, len(conv_args)
    for i, (filters, kernel_size, conv_stride, dilation) in enumerate(conv_args, 1):
        y = conv(
            y,
            filters,
            kernel_size,
            conv_stride,
            f"{name}_{i}",
            dilation=dilation,
            groups=groups if kernel_size == 3 else 1,
            gamma_init="ones" if i < num_convs else gamma_init,
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
