"""The networks of the paper as `keras.Model`s.

Deviations from the paper are none in the networks themselves. Two things that
it leaves open are chosen so that published weights fit: padding is symmetric,
and shortcut A puts half of the new channels in front and half behind.
"""

import numbers
import re

import keras
from keras import layers

from keras_resnet.blocks import BLOCKS, channel_axis, conv_bn, relu
from keras_resnet.errors import InputError, choose
from keras_resnet.variants import SHORTCUTS, find_variant

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
    shortcut=None,
    stride_on="1x1",
):
    """Builds any architecture of the paper by its name.

    The named constructors, such as `keras_resnet.ResNet50`, take the same
    arguments and document them.

    Args:
        variant: a name that `keras_resnet.list_models()` gives, in any case, or
            `cifar_resnet{6n+2}` or `cifar_plainnet{6n+2}`.
        include_top: see `keras_resnet.ResNet50`, as for all that follow. `None`
            for `classes`, `name` and `shortcut` means the paper's.

    Returns:
        A functional `keras.Model`.

    Raises:
        InputError: an argument is not one of those accepted.
    """
    row = find_variant(variant)
    name = name or str(variant).lower()
    shortcut = row.shortcut if shortcut is None else shortcut
    classes = row.classes if classes is None else classes
    choose("shortcut", shortcut, SHORTCUTS)
    if row.shortcut == "none" != shortcut:
        raise InputError(
            "A plain net has no shortcuts; take the ResNet of the same depth. "
            f"Received: model={variant!r}, shortcut={shortcut!r}"
        )
    choose("stride_on", stride_on, ("1x1", "3x3"))
    if pooling not in (None, "avg", "max"):
        raise InputError(
            f"pooling must be None, 'avg' or 'max'. Received: pooling={pooling!r}"
        )
    if include_top and (not isinstance(classes, numbers.Integral) or classes < 1):
        raise InputError(
            f"classes must be a whole number of at least 1. Received: classes={classes!r}"
        )

    image, x = _input(row, input_tensor, input_shape)
    x = _stem(x, row)
    for stage, blocks in enumerate(row.blocks):
        x = _stage(x, row, stage, blocks, shortcut, stride_on)
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
    if weights is not None:
        from keras_resnet.weights import load_weights

        load_weights(model, weights)
    return model


def endpoints(model):
    """The output of each stage, for dense prediction and feature extraction.

    Args:
        model: a model built by this package, or one loaded from its file.

    Returns:
        A dict from `"conv1"`, `"conv2"`, ... to the symbolic output of that
        stage after its last ReLU, shaped (batch, height, width, channels). For
        ImageNet nets the strides are 2, 4, 8, 16 and 32 pixels, for CIFAR nets
        1, 1, 2 and 4. Use as `keras.Model(model.input, endpoints(model))`.

    Raises:
        InputError: the model has no such layers.
    """
    found = {}
    for layer in model.layers:
        if match := re.fullmatch(r"(conv1)_relu|(conv\d+)_block\d+_out", layer.name):
            found[match[1] or match[2]] = layer.output
    if not found:
        raise InputError(
            "endpoints() needs a model of this package, with layers conv1_relu, "
            f"conv2_block1_out and so on. Received: model={model.name!r}"
        )
    return found


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


def _stem(x, row):
    """Everything before the first block (Table 1's conv1 and its max pool)."""
    if row.stem == "cifar":
        return relu(conv_bn(x, row.width, 3, 1, "conv1"), "conv1_relu")
    x = relu(conv_bn(x, row.width, 7, 2, "conv1"), "conv1_relu")
    # After a ReLU nothing is below zero, so padding by zeros loses no maximum.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def _stage(x, row, stage, blocks, shortcut, stride_on):
    """The blocks of one size; `stage` 0 is the paper's conv2."""
    prefix = f"conv{stage + 2}_block"
    nested = sum(row.blocks) > _BLOCKS_PER_GRAPH
    per_graph = _BLOCKS_PER_GRAPH if nested else blocks

    def body(x, first, last):
        """Blocks `first` to `last`, less the last one's ReLU."""
        for block in range(first, last + 1):
            x = BLOCKS[row.block](
                x,
                row.width * 2**stage,
                2 if block == 1 and stage > 0 else 1,
                shortcut,
                stride_on,
                f"{prefix}{block}",
            )
            if block < last:
                x = relu(x, f"{prefix}{block}_out")
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
        x = relu(x, f"{prefix}{last}_out")
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
        classes=row.classes,
        classifier_activation="softmax",
        name=key,
        *,
        shortcut=row.shortcut,
        stride_on="1x1",
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
        )

    build.__name__ = build.__qualname__ = title
    build.__doc__ = _DOC.format(
        title=title,
        kind="plain" if row.shortcut == "none" else "residual",
        layers=row.depth,
        data={"imagenet": "ImageNet", "cifar": "CIFAR-10"}[row.stem],
        table={"imagenet": "Table 1", "cifar": "section 4.2"}[row.stem],
        parameters=f"{row.parameters:,}",
        classes=row.classes,
        size=row.size,
        stride=row.stride,
        shortcut=row.shortcut,
    )
    return build


_DOC = """Instantiates the {title} architecture.

    The {layers}-layer {kind} net for {data} ({table}) of [Deep Residual
    Learning for Image Recognition](https://arxiv.org/abs/1512.03385), with
    {parameters} trainable parameters at its defaults.

    The model takes whatever its weights were trained on: with `weights=None`
    there is no fixed preprocessing. Nets trained by `keras_resnet.train` take
    raw pixels from 0 to 255 and normalise them inside.

    Args:
        include_top: whether to include the fully-connected layer at the top of
            the network. Defaults to `True`.
        weights: `None` (random initialisation) or the path of a weights file,
            `.weights.h5` or `.keras`. Defaults to `None`.
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
            is `True`. Defaults to {classes}.
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
            either way. Defaults to `"1x1"`.

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
