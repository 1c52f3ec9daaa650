"""Convolutions, shortcuts and residual blocks as functions over Keras tensors.

Layers are named as the paper's Table 1 in keras.applications' spelling. Every
function serves both data formats of `keras.config.image_data_format()`.
"""

import keras
from keras import layers


def channel_axis() -> int:
    """Returns the axis of the channels in a batch of images: -1 or 1."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def relu(x, name):
    """Returns the rectified `x`."""
    return layers.Activation("relu", name=name)(x)


def conv_bn(x, filters, size, stride, name):
    """Convolution without bias, then batch normalisation.

    Padding is symmetric at every stride, as in the original and in torchvision
    (TensorFlow's `"same"` is not at stride 2): zeros are added explicitly and
    the convolution is `"valid"`. At stride 1 `"same"` is the same thing.

    Args:
        x: batch of images.
        filters: number of output channels.
        size: height and width of the kernel, odd.
        stride: of the convolution, in both directions.
        name: prefix of the layers' names.

    Returns:
        Height and width divided by `stride`, rounded up; `filters` channels.
    """
    padding = "same"
    if stride > 1 and size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    x = layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding=padding,
        use_bias=False,
        # Section 3.4 of the paper: "as in [13]", He et al. 2015.
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(
        axis=channel_axis(), momentum=0.9, epsilon=1e-5, name=f"{name}_bn"
    )(x)


def shortcut(x, filters, stride, kind, name):
    """The shortcut of a residual block; the one place that decides which.

    Args:
        x: input of the block.
        filters: number of channels that the block gives.
        stride: of the block.
        kind: the paper's option (section 4.1). `"A"`: identity, with zeros for
            new channels; no parameters. `"B"`: a 1x1 convolution where the
            shape changes, else identity. `"C"`: a 1x1 convolution always.
        name: prefix of the layers' names.

    Returns:
        A tensor of the same shape as the block's residual branch.
    """
    new_channels = filters - x.shape[channel_axis()]
    changes = stride > 1 or new_channels != 0
    if kind == "C" or (kind == "B" and changes):
        return conv_bn(x, filters, 1, stride, f"{name}_0")
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


def basic_block(x, width, stride, kind, stride_on, name):
    """Two 3x3 convolutions beside a shortcut (Figure 5, left).

    Args:
        x: batch of images.
        width: channels of the convolutions and of the output.
        stride: of the first convolution.
        kind: of the shortcut: `"A"`, `"B"`, `"C"`, or `"none"` for a plain net.
        stride_on: has no effect here; a basic block has only 3x3 convolutions.
        name: prefix of the layers' names.

    Returns:
        The sum before its nonlinearity, which the caller applies.
    """
    del stride_on
    y = relu(conv_bn(x, width, 3, stride, f"{name}_1"), f"{name}_1_relu")
    y = conv_bn(y, width, 3, 1, f"{name}_2")
    return _add(x, y, width, stride, kind, name)


def bottleneck_block(x, width, stride, kind, stride_on, name):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (Figure 5, right).

    Args:
        x: batch of images.
        width: channels of the first two convolutions; the output has four times
            as many.
        stride: of the block.
        kind: of the shortcut: `"A"`, `"B"`, `"C"`, or `"none"` for a plain net.
        stride_on: the convolution that has the stride: `"1x1"`, the first, as in
            the paper, or `"3x3"`, as in torchvision and timm ("v1.5").
        name: prefix of the layers' names.

    Returns:
        The sum before its nonlinearity, which the caller applies.
    """
    on_1x1, on_3x3 = (stride, 1) if stride_on == "1x1" else (1, stride)
    y = relu(conv_bn(x, width, 1, on_1x1, f"{name}_1"), f"{name}_1_relu")
    y = relu(conv_bn(y, width, 3, on_3x3, f"{name}_2"), f"{name}_2_relu")
    y = conv_bn(y, 4 * width, 1, 1, f"{name}_3")
    return _add(x, y, 4 * width, stride, kind, name)


BLOCKS = {"basic": basic_block, "bottleneck": bottleneck_block}


def _add(x, branch, filters, stride, kind, name):
    """Adds the shortcut of `x` to the residual branch; a plain net has none."""
    if kind == "none":
        return branch
    return layers.Add(name=f"{name}_add")(
        [shortcut(x, filters, stride, kind, name), branch]
    )


def flat_layers(model):
    """Returns every layer of a model, those of its sub-models in their place.

    Args:
        model: a built `keras.Model`. Only the deepest nets have sub-models
            (see `keras_resnet.resnet`).
    """
    found = []
    for layer in model.layers:
        found += flat_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return found
