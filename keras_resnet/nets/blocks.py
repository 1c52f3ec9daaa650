"""Convolutions, shortcuts and residual blocks as functions over Keras tensors.

Layers are named as the paper's Table 1 in keras.applications' spelling. Every
function serves both data formats of `keras.config.image_data_format()`. `net` is
always the row of `keras_resnet.variants` that is being built.
"""

import contextlib
import contextvars

import keras
from keras import layers

# Section 3.4 of the paper: "as in [13]", He et al. 2015.
_KERNELS = "he_normal"


_initializer = contextvars.ContextVar("kernel_initializer", default=_KERNELS)


@contextlib.contextmanager
def without_random_kernels():
    """Kernels begin as zeros within: for a net that is given its weights.

    Random numbers take longer than all else in building one. The layers still say
    `he_normal` of themselves, as in any other net.
    """
    token = _initializer.set("zeros")
    try:
        yield
    finally:
        _initializer.reset(token)


def channel_axis() -> int:
    """Returns the axis of the channels in a batch of images: -1 or 1."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def relu(x, name):
    """Returns the rectified `x`."""
    return layers.Activation("relu", name=name)(x)


def bn(x, name, gamma="ones"):
    """Batch normalisation; the one place that sets its momentum and epsilon."""
    return layers.BatchNormalization(
        axis=channel_axis(),
        momentum=0.9,
        epsilon=1e-5,
        gamma_initializer=gamma,
        name=f"{name}_bn",
    )(x)


def conv(x, filters, size, stride, name, *, dilation=1, groups=1, bias=False):
    """Convolution whose padding is symmetric at every stride.

    As in the original and in torchvision; TensorFlow's `"same"` is not at stride
    2: zeros are added explicitly and the convolution is `"valid"`. At stride 1
    `"same"` is the same thing.

    Args:
        x: batch of images.
        filters: number of output channels.
        size: height and width of the kernel, odd.
        stride: of the convolution, in both directions; 1 where it is dilated.
        name: prefix of the layers' names.
        dilation: pixels from one tap of the kernel to the next.
        groups: in which the channels are convolved apart.
        bias: whether a number is added to each output channel.

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


def conv_bn(x, filters, size, stride, name, *, gamma="ones", **options):
    """Convolution without bias, then batch normalisation; see `conv`."""
    return bn(conv(x, filters, size, stride, name, **options), name, gamma)


def shortcut(x, activated, net, filters, stride, name):
    """The shortcut of a residual block; the one place that decides which.

    Args:
        x: input of the block.
        activated: the same after the block's pre-activation, which a projection
            reads; in a net without it, `x`.
        net: whose `shortcut` is the paper's option (section 4.1). `"A"`:
            identity, with zeros for new channels; no parameters. `"B"`: a 1x1
            convolution where the shape changes, else identity. `"C"`: a 1x1
            convolution always.
        filters: number of channels that the block gives.
        stride: of the block.
        name: prefix of the layers' names.

    Returns:
        A tensor of the same shape as the block's residual branch.
    """
    new_channels = filters - x.shape[channel_axis()]
    # Published pre-activation nets subsample without a convolution.
    changes = new_channels != 0 or (stride > 1 and not net.preact)
    if net.shortcut == "C" or (net.shortcut == "B" and changes):
        if net.avg_down and stride > 1:
            activated = layers.AveragePooling2D(
                2, stride, padding="same", name=f"{name}_0_pool"
            )(activated)
            stride = 1
        if net.preact:
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


def squeeze_excite(x, name):
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


def basic_block(x, net, width, stride, dilations, name):
    """Two 3x3 convolutions beside a shortcut (Figure 5, left).

    Args:
        x: batch of images.
        net: see `keras_resnet.variants.Variant`.
        width: channels of the convolutions and of the output.
        stride: of the first convolution.
        dilations: of 3x3 convolutions, up to the one with the stride and after.
        name: prefix of the layers' names.

    Returns:
        The sum before its nonlinearity, which the caller applies.
    """
    before, after = dilations
    start = _activate(x, net, name)
    y = conv_bn(start, width, 3, stride, f"{name}_1", dilation=before)
    y = relu(y, f"{name}_1_relu")
    y = _last(y, net, width, 3, f"{name}_2", dilation=after)
    return _add(x, start, y, net, stride, name)


def bottleneck_block(x, net, width, stride, dilations, name):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (Figure 5, right).

    Args:
        x: batch of images.
        net: see `keras_resnet.variants.Variant`.
        width: a quarter of the channels that the block gives, and those of its
            first two convolutions, unless the net's groups widen them.
        stride: of the block; `net.stride_on` says of which convolution.
        dilations: as in `basic_block`.
        name: prefix of the layers' names.

    Returns:
        The sum before its nonlinearity, which the caller applies.
    """
    on_1x1, on_3x3 = (stride, 1) if net.stride_on == "1x1" else (1, stride)
    dilation = dilations[net.stride_on == "1x1"]
    inner = width * net.group_width // 64 * net.groups
    start = _activate(x, net, name)
    y = relu(conv_bn(start, inner, 1, on_1x1, f"{name}_1"), f"{name}_1_relu")
    y = conv_bn(y, inner, 3, on_3x3, f"{name}_2", dilation=dilation, groups=net.groups)
    y = relu(y, f"{name}_2_relu")
    y = _last(y, net, 4 * width, 1, f"{name}_3")
    return _add(x, start, y, net, stride, name)


BLOCKS = {"basic": basic_block, "bottleneck": bottleneck_block}


def _activate(x, net, name):
    """What a block's branch reads: with pre-activation, normalised and rectified."""
    return relu(bn(x, f"{name}_preact"), f"{name}_preact_relu") if net.preact else x


def _last(y, net, filters, size, name, **options):
    """The last convolution of a branch; nothing normalises a pre-activated one."""
    if net.preact:
        return conv(y, filters, size, 1, name, bias=True, **options)
    gamma = "zeros" if net.zero_gamma else "ones"
    return conv_bn(y, filters, size, 1, name, gamma=gamma, **options)


def _add(x, start, branch, net, stride, name):
    """Adds the shortcut of `x` to the residual branch; a plain net has none."""
    if net.se:
        branch = squeeze_excite(branch, name)
    if net.shortcut == "none":
        return branch
    if net.stochastic_depth:
        branch = layers.Dropout(
            net.stochastic_depth, noise_shape=(None, 1, 1, 1), name=f"{name}_drop"
        )(branch)
    filters = branch.shape[channel_axis()]
    return layers.Add(name=f"{name}_add")(
        [shortcut(x, start, net, filters, stride, name), branch]
    )
