"""The networks as `keras.Model`s.

Deviations from the paper are none in its own networks. Two things that it leaves
open are chosen so that published weights fit: padding is symmetric, and shortcut
A puts half of the new channels in front and half behind. What the later
variations change stands with the fields of `keras_resnet.variants.Variant`.
"""

import contextlib
import dataclasses
import numbers
import re

import keras
from keras import layers

from keras_resnet.blocks import (
    BLOCKS,
    bn,
    channel_axis,
    conv,
    conv_bn,
    relu,
    without_random_kernels,
)
from keras_resnet.errors import InputError
from keras_resnet.variants import find_variant

# A functional graph is walked recursively when a model is made or loaded, and
# Python allows 1,000 frames: nets with more blocks than this get them in
# sub-models of this many. ResNet-152, with 50 blocks, stays flat.
_BLOCKS_PER_GRAPH = 60


def ResNet(
    variant,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=None,
    classifier_activation="softmax",
    name=None,
    *,
    output_stride=None,
    **variation,
):
    """Builds any architecture by its name.

    The named constructors, such as `keras_resnet.ResNet50`, take the same
    arguments and document them.

    Args:
        variant: a name that `keras_resnet.list_models()` gives, in any case, or
            `cifar_resnet{6n+2}` or `cifar_plainnet{6n+2}`.
        include_top: see `keras_resnet.ResNet50`, as for all that follow. `None`
            for `classes` means the weights' or else the architecture's.
        **variation: `shortcut`, `stride_on` and other fields of
            `keras_resnet.variants.Variant`; `None` means the architecture's.

    Returns:
        A functional `keras.Model`.

    Raises:
        InputError: an argument is not one of those accepted.
    """
    row = find_variant(variant)
    name = name or str(variant).lower()
    checkpoint = None
    if weights is not None:
        from keras_resnet.weights import assign, open_checkpoint

        checkpoint = open_checkpoint(weights, str(variant).lower())
    row = row.changed(**variation)
    if checkpoint:
        stride_on = _follow(checkpoint.origin, row, variation.get("stride_on"))
        row = row.changed(stride_on=stride_on)
    if classes is None:
        classes = (checkpoint and checkpoint.classes) or row.classes
    if pooling not in (None, "avg", "max"):
        raise InputError(
            f"pooling must be None, 'avg' or 'max'. Received: pooling={pooling!r}"
        )
    if include_top and (not isinstance(classes, numbers.Integral) or classes < 1):
        raise InputError(
            f"classes must be a whole number of at least 1. Received: classes={classes!r}"
        )
    if output_stride is None:
        output_stride = row.stride
    elif output_stride not in (8, 16, 32) or output_stride > row.stride:
        raise InputError(
            "output_stride must be 8, 16 or 32, and no more than the net's own "
            f"{row.stride}. Received: output_stride={output_stride!r}"
        )

    if input_shape is None and checkpoint and row.stem == "cifar":
        input_shape = _shape_of(checkpoint.origin.pixels)
    image, x = _input(row, input_tensor, input_shape)
    if checkpoint and checkpoint.origin.pixels:
        x = _normalise(x, checkpoint.origin)
    with without_random_kernels() if checkpoint else contextlib.nullcontext():
        x = _features(x, row, output_stride)
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(
            classes,
            activation=classifier_activation,
            kernel_initializer="he_normal",
            name="predictions",
        )(x)
    elif pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)

    model = keras.Model(image, x, name=name)
    if checkpoint:
        assign(model, checkpoint)
        model.origin = checkpoint.origin
    return model


_ENDPOINT = re.compile(r"(conv1)_(?:conv|relu)|(conv\d+)_block\d+_out")


def endpoints(model):
    """The output of each stage, for dense prediction and feature extraction.

    Args:
        model: a model built by this package, or one loaded from its file.

    Returns:
        A dict from `"conv1"`, `"conv2"`, ... to the symbolic output of that
        stage after its last ReLU, shaped (batch, height, width, channels); of a
        pre-activation net, the sum before the next normalisation. For ImageNet
        nets the strides are 2, 4, 8, 16 and 32 pixels, for CIFAR nets 1, 1, 2
        and 4, and none is above the net's `output_stride`. A pre-activation
        net's are 2, 8, 16, 32 and 32, since a stage ends by subsampling. Use as
        `keras.Model(model.input, endpoints(model))`.

    Raises:
        InputError: the model has no such layers.
    """
    found = {}
    for layer in model.layers:
        if match := _ENDPOINT.fullmatch(layer.name):
            found[match[1] or match[2]] = layer.output  # The last of a stage stays.
    if not found:
        raise InputError(
            "endpoints() needs a model of this package, with layers conv1_relu, "
            f"conv2_block1_out and so on. Received: model={model.name!r}"
        )
    return found


def _follow(origin, row, stride_on):
    """Returns `stride_on`, of the weights if it is not given.

    Refuses weights that fit the row's shapes and are of another function.
    """
    differ = {}
    if origin.certain:
        differ["stride_on"] = (stride_on, origin.stride_on)
    if origin.shortcut:
        differ["shortcut"] = (row.shortcut, origin.shortcut)
    if row.shortcut in ("B", "C"):
        differ["avg_down"] = (row.avg_down, origin.avg_down)
    for field, (given, found) in differ.items():
        if found is not None and given not in (None, found):
            raise InputError(
                f"The weights are of a net with {field}={found!r}. "
                f"Received: {field}={given!r} with {origin.source}"
            )
    return stride_on or origin.stride_on


def _normalise(x, origin):
    """Raw pixels to what the weights were trained on."""
    mean = origin.pixels.mean
    channels = x.shape[channel_axis()]
    if channels != len(mean):
        raise InputError(
            f"These weights are of a net for images of {len(mean)} channel(s). "
            f"Received: {channels} channel(s) with {origin.source}"
        )
    return layers.Normalization(
        axis=channel_axis(),
        mean=mean,
        variance=origin.pixels.variance,
        name="normalization",
    )(x)


def _shape_of(pixels):
    """The input that small weights were trained on, such as grey 28x28; or `None`."""
    if pixels is None or pixels.size is None:
        return None
    sides, channels = (pixels.size, pixels.size), len(pixels.mean)
    return (*sides, channels) if channel_axis() == -1 else (channels, *sides)


def _input(row, input_tensor, input_shape):
    """Returns the model's input and the tensor that the stem reads."""
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise InputError(
                "input_tensor must be a Keras tensor, such as keras.Input() gives. "
                f"Received: {type(input_tensor).__name__}"
            )
        _check_shape(row, input_tensor.shape[1:])
        sources = keras.utils.get_source_inputs(input_tensor)
        return sources[0] if len(sources) == 1 else sources, input_tensor
    if input_shape is None:
        input_shape = (row.size, row.size, 3)
        if channel_axis() == 1:
            input_shape = (3, row.size, row.size)
    _check_shape(row, input_shape)
    image = keras.Input(input_shape, name="image")
    return image, image


def _check_shape(row, shape):
    """Refuses shapes that the net's strides would reduce to nothing."""
    shape = tuple(shape)
    fits = len(shape) == 3 and all(
        n is None or (isinstance(n, numbers.Integral) and n > 0) for n in shape
    )
    if fits:
        *sides, channels = shape if channel_axis() == -1 else (*shape[1:], shape[0])
        fits = channels is not None and all(n is None or n >= row.stride for n in sides)
    if not fits:
        order = "(height, width, channels)"
        if channel_axis() == 1:
            order = "(channels, height, width)"
        raise InputError(
            f"The input must be {order} with sides of at least {row.stride} pixels, "
            f"or None for any size. Received: input_shape={shape}"
        )


def _features(x, row, output_stride):
    """Everything before the head."""
    x = _stem(x, row)
    stride = row.stride // 2 ** (len(row.blocks) - 1)
    dilation = 1
    for stage, blocks in enumerate(row.blocks):
        # A pre-activation net's stage subsamples for the next one.
        down = stage + 1 < len(row.blocks) if row.preact else stage > 0
        step = 2 if down else 1
        stride *= step
        after = dilation
        if stride > output_stride:
            step, after, stride = 1, dilation * 2, stride // 2
        x = _stage(x, row, stage, blocks, step, (dilation, after))
        dilation = after
    if row.preact:
        x = relu(bn(x, "post"), "post_relu")
    return x


def _stem(x, row):
    """Everything before the first block (Table 1's conv1 and its max pool)."""
    if row.stem == "deep":
        for i in (1, 2):
            x = conv_bn(x, row.width // 2, 3, 3 - i, f"conv1_{i}")
            x = relu(x, f"conv1_{i}_relu")
        size, stride = 3, 1
    else:
        size, stride = (3, 1) if row.stem == "cifar" else (7, 2)
    if row.preact:
        x = conv(x, row.width, size, stride, "conv1", bias=True)
    else:
        x = relu(conv_bn(x, row.width, size, stride, "conv1"), "conv1_relu")
    if row.stem == "cifar":
        return x
    # After a ReLU nothing is below zero, so padding by zeros loses no maximum.
    # Without one, as in keras.applications, it does at the edge.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def _stage(x, row, stage, blocks, stride, dilations):
    """The blocks of one size; `stage` 0 is the paper's conv2.

    One of them has the stride and, where that was given up for it, the change of
    dilation: the first or, with pre-activation, the last.
    """
    prefix = f"conv{stage + 2}_block"
    nested = sum(row.blocks) > _BLOCKS_PER_GRAPH
    per_graph = _BLOCKS_PER_GRAPH if nested else blocks
    before, after = dilations
    turning = blocks if row.preact else 1
    nonlinearity = "linear" if row.preact else "relu"
    earlier, last_of_all = sum(row.blocks[:stage]), max(1, sum(row.blocks) - 1)

    def body(x, first, last):
        """Blocks `first` to `last`, less the last one's nonlinearity."""
        for block in range(first, last + 1):
            share = (earlier + block - 1) / last_of_all
            x = BLOCKS[row.block](
                x,
                dataclasses.replace(row, stochastic_depth=row.stochastic_depth * share),
                row.width * 2**stage,
                stride if block == turning else 1,
                dilations
                if block == turning
                else (before,) * 2
                if block < turning
                else (after,) * 2,
                f"{prefix}{block}",
            )
            if block < last:
                x = layers.Activation(nonlinearity, name=f"{prefix}{block}_out")(x)
        return x

    for first in range(1, blocks + 1, per_graph):
        last = min(first + per_graph - 1, blocks)
        if nested:
            inside = keras.Input(x.shape[1:])
            group = f"{prefix}{first}_to_{last}"
            x = keras.Model(inside, body(inside, first, last), name=group)(x)
        else:
            x = body(x, first, last)
        # Outside the sub-model, so that a stage's endpoint is in every graph.
        x = layers.Activation(nonlinearity, name=f"{prefix}{last}_out")(x)
    return x


def _constructor(title):
    """Makes the constructor of one row, with keras.applications' signature."""
    key = title.lower()
    row = find_variant(key)

    def build(
        include_top=True,
        weights=None,
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=None,
        classifier_activation="softmax",
        name=key,
        *,
        shortcut=row.shortcut,
        stride_on=None,
        output_stride=None,
        stem=row.stem,
        preact=row.preact,
        avg_down=row.avg_down,
        se=row.se,
        groups=row.groups,
        group_width=row.group_width,
        zero_gamma=False,
        stochastic_depth=0.0,
    ):
        return ResNet(
            key,
            include_top,
            weights,
            input_tensor,
            input_shape,
            pooling,
            classes,
            classifier_activation,
            name,
            shortcut=shortcut,
            stride_on=stride_on,
            output_stride=output_stride,
            stem=stem,
            preact=preact,
            avg_down=avg_down,
            se=se,
            groups=groups,
            group_width=group_width,
            zero_gamma=zero_gamma,
            stochastic_depth=stochastic_depth,
        )

    build.__name__ = build.__qualname__ = title
    build.__doc__ = _DOC.format(
        title=title,
        kind="plain" if row.shortcut == "none" else "residual",
        stride_on=row.stride_on,
        layers=row.depth,
        data="CIFAR-10" if row.stem == "cifar" else "ImageNet",
        source=_source(row),
        parameters=f"{row.parameters:,}",
        classes=row.classes,
        size=row.size,
        stride=row.stride,
        shortcut=row.shortcut,
    )
    return build


def _source(row):
    """Where an architecture was published, in Markdown."""
    title, number = "Deep Residual Learning for Image Recognition", "1512.03385"
    if row.preact:
        title, number = "Identity Mappings in Deep Residual Networks", "1603.05027"
    elif row.avg_down:
        title, number = "Bag of Tricks for Image Classification", "1812.01187"
    elif row.se:
        title, number = "Squeeze-and-Excitation Networks", "1709.01507"
    elif row.groups > 1:
        title, number = "Aggregated Residual Transformations", "1611.05431"
    elif row.group_width > 64:
        title, number = "Wide Residual Networks", "1605.07146"
    return f"[{title}](https://arxiv.org/abs/{number})"


_DOC = """Instantiates the {title} architecture.

    The {layers}-layer {kind} net for {data} of
    {source},
    with {parameters} trainable parameters at its defaults.

    With weights the model takes raw RGB pixels from 0 to 255 and normalises them
    in its first layer as those weights were trained; no client can mix that up.
    `keras_resnet.preprocessing_for(model)` gives the resizing and the crop that
    belong to them. With `weights=None` there is no fixed preprocessing.

    Args:
        include_top: whether to include the fully-connected layer at the top of
            the network. Defaults to `True`.
        weights: `None` (random initialisation); a name that
            `keras_resnet.list_weights()` gives, such as `"torchvision_v2"`, or
            `"imagenet"`, the first of them for this net, which are downloaded
            once and verified; or the path of a file: `.keras`, `.weights.h5`,
            `.safetensors` or `.npz` with torchvision's, timm's or a CIFAR
            repository's names, `.h5` of keras.applications, `.pth` or `.th`
            (which need PyTorch). Where `include_top` is `False` or `classes`
            another number, the file's head is left out. Defaults to `None`.
        input_tensor: optional Keras tensor (the output of `keras.Input()` or of
            other layers) to use as image input for the model.
        input_shape: optional shape tuple, (height, width, channels) in the
            "channels_last" data format and (channels, height, width) in
            "channels_first". Sides are at least {stride} pixels, or `None` for
            any size, with or without the top. Defaults to {size}x{size} with 3
            channels.
        pooling: what to return when `include_top` is `False`. `None`: the 4D
            output of the last stage. `"avg"` or `"max"`: its global average or
            maximum, a 2D tensor. Defaults to `None`.
        classes: number of classes to classify images into, where `include_top`
            is `True`. Defaults to that of the weights, or else to {classes}.
        classifier_activation: `str` or callable. The activation of the top
            layer; `None` returns logits. Defaults to `"softmax"`.
        name: the name of the model.
        shortcut: the paper's option. `"A"`: identity, zeros for new channels,
            no parameters. `"B"`: 1x1 convolutions where the shape changes.
            `"C"`: 1x1 convolutions on every shortcut. `"none"`: no shortcut, a
            plain net. Defaults to `"{shortcut}"`.
        stride_on: the convolution of a bottleneck block that has the stride.
            `"1x1"` is the paper's and keras.applications', `"3x3"` is
            torchvision's and timm's ("v1.5"). Nets of basic blocks are the same
            either way. Defaults to that of the weights, or else `"{stride_on}"`.
        output_stride: 8, 16 or 32 input pixels to one position of the last stage.
            Stages that would go beyond do not subsample, and dilate what follows
            instead: for dense prediction, with the same weights. Every position
            that the net has without it has the same value; exceptions are squeeze
            and excitation, whose averages are over other positions, and with
            `avg_down` the second stage that is dilated. Defaults to {stride}.
        stem: `"imagenet"`, `"deep"` (ResNet-D's three 3x3 convolutions) or
            `"cifar"`. This and all that follow default to the architecture's.
        preact: pre-activation ("v2") in keras.applications' layout, which
            subsamples at the end of a stage.
        avg_down: whether shortcuts average before they subsample (ResNet-D).
        se: whether branches end in squeeze and excitation.
        groups: of a bottleneck block's 3x3 convolution (ResNeXt).
        group_width: channels of a group in the first stage, 64 in the paper's nets.
        zero_gamma: whether blocks begin as their shortcuts: the last scale of each
            branch is 0.
        stochastic_depth: probability that training leaves out the last block's
            branch; earlier ones' in proportion.

    Returns:
        A `keras.Model` from `image` to class probabilities of shape
        (batch, classes), or to features as `include_top` and `pooling` say.

    Raises:
        InputError: a `ValueError`; an argument is not one of those accepted.
    """

ResNet18 = _constructor("ResNet18")
ResNet34 = _constructor("ResNet34")
ResNet50 = _constructor("ResNet50")
ResNet101 = _constructor("ResNet101")
ResNet152 = _constructor("ResNet152")
PlainNet18 = _constructor("PlainNet18")
PlainNet34 = _constructor("PlainNet34")
ResNet20 = _constructor("ResNet20")
ResNet32 = _constructor("ResNet32")
ResNet44 = _constructor("ResNet44")
ResNet56 = _constructor("ResNet56")
ResNet110 = _constructor("ResNet110")
ResNet1202 = _constructor("ResNet1202")
PlainNet20 = _constructor("PlainNet20")
PlainNet32 = _constructor("PlainNet32")
PlainNet44 = _constructor("PlainNet44")
PlainNet56 = _constructor("PlainNet56")
PlainNet110 = _constructor("PlainNet110")
PlainNet1202 = _constructor("PlainNet1202")
ResNet50V2 = _constructor("ResNet50V2")
ResNet101V2 = _constructor("ResNet101V2")
ResNet152V2 = _constructor("ResNet152V2")
ResNet18D = _constructor("ResNet18D")
ResNet34D = _constructor("ResNet34D")
ResNet50D = _constructor("ResNet50D")
ResNet101D = _constructor("ResNet101D")
ResNet152D = _constructor("ResNet152D")
SEResNet18 = _constructor("SEResNet18")
SEResNet34 = _constructor("SEResNet34")
SEResNet50 = _constructor("SEResNet50")
SEResNet101 = _constructor("SEResNet101")
SEResNet152 = _constructor("SEResNet152")
ResNeXt50_32x4d = _constructor("ResNeXt50_32x4d")
ResNeXt101_32x8d = _constructor("ResNeXt101_32x8d")
ResNeXt101_64x4d = _constructor("ResNeXt101_64x4d")
Wide_ResNet50_2 = _constructor("Wide_ResNet50_2")
Wide_ResNet101_2 = _constructor("Wide_ResNet101_2")
