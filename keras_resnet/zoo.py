"""The constructors: networks and their weights together.

`ResNet` builds any variant by its name. `constructor` makes a function with
keras.applications' signature for one variant, such as `keras_resnet.ResNet50`.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, Protocol

import keras
from keras import KerasTensor, layers

from keras_resnet.nets import (
    Head,
    Shape,
    build_network,
    channel_axis,
    image_shape,
    without_random_kernels,
)
from keras_resnet.spec import Variant, find_variant
from keras_resnet.support import InputError
from keras_resnet.weights import (
    Checkpoint,
    Origin,
    Pixels,
    assign_weights,
    open_checkpoint,
    recognise,
)

Weights = str | os.PathLike[str] | Checkpoint
Activation = str | Callable[..., Any] | None


def ResNet(  # noqa: PLR0913, PLR0917 (keras.applications' signature)
    variant: str,
    include_top: bool = True,
    weights: Weights | None = None,
    input_tensor: KerasTensor | None = None,
    input_shape: Shape | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: Activation = "softmax",
    name: str | None = None,
    *,
    output_stride: int | None = None,
    **variation: Any,
) -> keras.Model:
    """Builds any architecture by its name.

    The named constructors, such as `keras_resnet.ResNet50`, take the same
    arguments and document them.

    Args:
        variant: A name that `keras_resnet.list_models()` gives, in any case, or
            `cifar_resnet{6n+2}` or `cifar_plainnet{6n+2}`.
        include_top: See `keras_resnet.ResNet50`, as for all that follow. `None`
            for `classes` means the number of the weights, or else of the
            architecture.
        **variation: `shortcut`, `stride_on` and other fields of
            `keras_resnet.spec.Variant`; `None` means the architecture's.

    Raises:
        InputError: An argument is not one of those accepted.
    """
    row = find_variant(variant).changed(**variation)
    key = str(variant).lower()
    checkpoint = normalise = None
    if weights is not None:
        checkpoint = open_checkpoint(weights, key)
        origin, pixels = checkpoint.origin, checkpoint.origin.pixels
        row = row.changed(stride_on=_follow(origin, row, variation.get("stride_on")))
        if classes is None:
            classes = checkpoint.classes
        if pixels:
            if input_shape is None and row.stem == "cifar" and pixels.size:
                input_shape = image_shape(pixels.size, len(pixels.mean))
            normalise = functools.partial(_normalise, origin.source, pixels)
    with without_random_kernels() if checkpoint else contextlib.nullcontext():
        model = build_network(
            row,
            name or key,
            Head(include_top, classes, classifier_activation, pooling),
            output_stride,
            input_tensor=input_tensor,
            input_shape=input_shape,
            normalise=normalise,
        )
    if checkpoint:
        assign_weights(model, checkpoint)
        model.origin = checkpoint.origin
    return model


def _follow(origin: Origin, row: Variant, stride_on: str | None) -> str | None:
    """Returns the `stride_on` of weights; refuses weights of another function."""
    has_projections = row.shortcut in ("B", "C")
    for field, given, known in (
        ("stride_on", stride_on, origin.stride_on if origin.certain else None),
        ("shortcut", row.shortcut, origin.shortcut),
        ("avg_down", row.avg_down, origin.avg_down if has_projections else None),
    ):
        if known is not None and given not in (None, known):
            raise InputError(
                f"The weights are of a net with {field}={known!r}. "
                f"Received: {field}={given!r} with {origin.source}"
            )
    return stride_on or origin.stride_on


def _normalise(source: str, pixels: Pixels, x: KerasTensor) -> KerasTensor:
    """Maps raw pixels to what the weights were trained on."""
    mean, variance = pixels.mean, pixels.variance
    channels = x.shape[channel_axis()]
    if channels != len(mean):
        raise InputError(
            f"These weights are of a net for images of {len(mean)} channel(s). "
            f"Received: {channels} channel(s) with {source}"
        )
    return layers.Normalization(channel_axis(), mean, variance, name="normalization")(x)


def build_from_checkpoint(
    checkpoint: Checkpoint, name: str | None = None, image_size: int | None = None
) -> keras.Model:
    """Builds the network that weights belong to, and gives it the weights.

    Args:
        checkpoint: The weights.
        name: Name of the architecture. `None` recognises it from the weights.
        image_size: Height and width of the input in pixels. `None` is the size of
            the weights, or else of the architecture.

    Raises:
        InputError: The weights are of no architecture of this package.
    """
    origin, pixels = checkpoint.origin, checkpoint.origin.pixels
    variation: dict[str, Any]
    if checkpoint.tensors is None:
        name = name or origin.model
        if name is None:
            raise InputError(
                "A .weights.h5 file that keras_resnet did not write does not tell its "
                f"architecture; name it by --model. Received: {origin.source}"
            )
        variation = {"shortcut": origin.shortcut, "avg_down": origin.avg_down}
        channels = len(pixels.mean) if pixels else 3
    else:
        recognised, variation = recognise(checkpoint)
        name = name or recognised
        # The weights of a plain net look like those of shortcut A, unless the file
        # says which it is.
        if find_variant(name).shortcut == "none" and not origin.shortcut:
            del variation["shortcut"]
        is_deep = "conv1_1_conv/kernel" in checkpoint.tensors
        stem = "conv1_1_conv/kernel" if is_deep else "conv1_conv/kernel"
        channels = checkpoint.tensors[stem].shape[2]
    size = image_size or (pixels and pixels.size) or find_variant(name).size
    shape = image_shape(size, channels)
    model = ResNet(name, weights=checkpoint, input_shape=shape, **variation)
    model.origin = dataclasses.replace(model.origin, model=name)
    return model


class Constructor(Protocol):
    """A named constructor, such as `keras_resnet.ResNet50`.

    Its parameters are those of keras.applications, in their order, then what may be
    changed of the variant. Defaults given as `...` are the variant's.
    """

    __name__: str

    def __call__(  # noqa: PLR0913 (keras.applications' signature)
        self,
        include_top: bool = True,
        weights: Weights | None = None,
        input_tensor: KerasTensor | None = None,
        input_shape: Shape | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: Activation = "softmax",
        name: str | None = ...,
        *,
        shortcut: str | None = ...,
        stride_on: str | None = None,
        output_stride: int | None = None,
        stem: str | None = ...,
        preact: bool | None = ...,
        avg_down: bool | None = ...,
        se: bool | None = ...,
        groups: int | None = ...,
        group_width: int | None = ...,
        zero_gamma: bool | None = ...,
        stochastic_depth: float | None = ...,
    ) -> keras.Model:
        """Builds the network; see `keras_resnet.ResNet50`."""


@functools.cache
def constructor(title: str) -> Constructor:
    """Makes the constructor of one variant, with keras.applications' signature.

    Args:
        title: Name of the constructor, whose lower case is a key of
            `keras_resnet.spec.VARIANTS`.
    """
    key = title.lower()
    row = find_variant(key)
    defaults = {**dataclasses.asdict(row), "name": key}
    signature = inspect.signature(Constructor.__call__)
    _, *parameters = signature.parameters.values()  # Without `self`.
    signature = signature.replace(
        parameters=[
            p.replace(default=defaults[p.name]) if p.default is ... else p
            for p in parameters
        ]
    )

    def build(*args: Any, **kwargs: Any) -> keras.Model:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{title}() {error}") from None
        given.apply_defaults()
        return ResNet(key, **given.arguments)

    build.__name__ = build.__qualname__ = title
    build.__module__ = __package__
    kind = "plain" if row.shortcut == "none" else "residual"
    data = "CIFAR-10" if row.stem == "cifar" else "ImageNet"
    build.__doc__ = _DOC.format(
        title=title, row=row, kind=kind, data=data, source=_source(row)
    )
    build.__signature__ = signature  # type: ignore[attr-defined]
    return build


def _source(row: Variant) -> str:
    """Where an architecture was published, in Markdown."""
    papers = (
        (row.preact, "Identity Mappings in Deep Residual Networks", "1603.05027"),
        (row.avg_down, "Bag of Tricks for Image Classification", "1812.01187"),
        (row.se, "Squeeze-and-Excitation Networks", "1709.01507"),
        (row.groups > 1, "Aggregated Residual Transformations", "1611.05431"),
        (row.group_width > 64, "Wide Residual Networks", "1605.07146"),
        (True, "Deep Residual Learning for Image Recognition", "1512.03385"),
    )
    title, number = next(paper for applies, *paper in papers if applies)
    return f"[{title}](https://arxiv.org/abs/{number})"


_DOC = """Instantiates the {title} architecture.

    The {row.depth}-layer {kind} net for {data} of
    {source},
    with {row.parameters:,} trainable parameters at its defaults.

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
            "channels_first". Sides are at least {row.stride} pixels, or `None` for
            any size, with or without the top. Defaults to {row.size}x{row.size} with 3
            channels.
        pooling: what to return when `include_top` is `False`. `None`: the 4D
            output of the last stage. `"avg"` or `"max"`: its global average or
            maximum, a 2D tensor. Defaults to `None`.
        classes: number of classes to classify images into, where `include_top`
            is `True`. Defaults to that of the weights, or else to {row.classes}.
        classifier_activation: `str` or callable. The activation of the top
            layer; `None` returns logits. Defaults to `"softmax"`.
        name: the name of the model.
        shortcut: the paper's option. `"A"`: identity, zeros for new channels,
            no parameters. `"B"`: 1x1 convolutions where the shape changes.
            `"C"`: 1x1 convolutions on every shortcut. `"none"`: no shortcut, a
            plain net. Defaults to `"{row.shortcut}"`.
        stride_on: the convolution of a bottleneck block that has the stride.
            `"1x1"` is the paper's and keras.applications', `"3x3"` is
            torchvision's and timm's ("v1.5"). Nets of basic blocks are the same
            either way. Defaults to that of the weights, or else `"{row.stride_on}"`.
        output_stride: 8, 16 or 32 input pixels to one position of the last stage.
            Stages that would go beyond do not subsample, and dilate what follows
            instead: for dense prediction, with the same weights. Every position
            that the net has without it has the same value; exceptions are squeeze
            and excitation, whose averages are over other positions, and with
            `avg_down` the second stage that is dilated. Defaults to {row.stride}.
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
