"""Constructors that build networks and load their weights.

`ResNet` builds any variant by its name. `make_constructor` makes a function for one
variant, such as `keras_resnet.ResNet50`, with the signature of keras.applications.
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

from keras_resnet import nets
from keras_resnet.nets import Head, Shape, build_network, image_shape
from keras_resnet.spec import Variant, find_variant
from keras_resnet.support import InputError
from keras_resnet.weights import (
    Checkpoint,
    Origin,
    PixelFormat,
    assign_weights,
    open_checkpoint,
    recognise_variant,
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
    """Builds a network by the name of its variant.

    `keras_resnet.ResNet50` documents the other arguments.

    Args:
        variant: Name from `keras_resnet.list_models()`, in lower or upper case, or
            `cifar_resnet{6n+2}` or `cifar_plainnet{6n+2}` for any n.
        **variation: Values for fields of `keras_resnet.spec.Variant`, such as
            `shortcut="B"`. A value of `None` keeps the field of the variant.

    Raises:
        InputError: If an argument is invalid.
    """
    architecture = find_variant(variant).replace(**variation)
    variant = str(variant).lower()
    checkpoint = normalise = None
    if weights is not None:
        checkpoint = open_checkpoint(weights, variant)
        origin, pixels = checkpoint.origin, checkpoint.origin.pixels
        stride_on = _pick_stride(origin, architecture, variation.get("stride_on"))
        architecture = architecture.replace(stride_on=stride_on)
        if classes is None:
            classes = checkpoint.num_classes
        if pixels:
            if input_shape is None and architecture.stem == "cifar" and pixels.size:
                input_shape = image_shape(pixels.size, len(pixels.mean))
            normalise = functools.partial(_normalise, origin.source, pixels)
    with nets.skip_random_kernels() if checkpoint else contextlib.nullcontext():
        model = build_network(
            architecture,
            name or variant,
            Head(include_top, classes, classifier_activation, pooling),
            output_stride,
            input_tensor=input_tensor,
            input_shape=input_shape,
            normalise=normalise,
        )
    if checkpoint:
        if include_top and checkpoint.num_classes != classes:
            kernel = model.get_layer("predictions").kernel
            kernel.assign(nets.draw_kernel(kernel.shape))
        assign_weights(model, checkpoint)
        model.origin = checkpoint.origin
    return model


def _pick_stride(origin: Origin, variant: Variant, stride_on: str | None) -> str | None:
    """Checks that weights fit a network, and returns the network's `stride_on`."""
    has_projections = variant.shortcut in ("B", "C")
    for field, value, required_value in (
        ("stride_on", stride_on, origin.stride_on if origin.certain else None),
        ("shortcut", variant.shortcut, origin.shortcut),
        ("avg_down", variant.avg_down, origin.avg_down if has_projections else None),
    ):
        if required_value is not None and value not in (None, required_value):
            raise InputError(
                f"The weights require a network with {field}={required_value!r}. "
                f"Received: {field}={value!r} with {origin.source}"
            )
    return stride_on or origin.stride_on


def _normalise(source: str, pixels: PixelFormat, x: KerasTensor) -> KerasTensor:
    """Adds a layer that normalises raw pixels in the pixel format `pixels`."""
    mean, axis = pixels.mean, nets.channel_axis()
    channels = x.shape[axis]
    if channels != len(mean):
        raise InputError(
            f"The weights require images with {len(mean)} channel(s). "
            f"Received: {channels} channel(s) with {source}"
        )
    return layers.Normalization(axis, mean, pixels.variance, name="normalization")(x)


def build_from_checkpoint(
    checkpoint: Checkpoint, name: str | None = None, image_size: int | None = None
) -> keras.Model:
    """Builds the network of a checkpoint and loads the weights.

    Args:
        checkpoint: Weights to load.
        name: Name of the variant. `None` recognises the variant from the weights.
        image_size: Height and width of the input in pixels. Default: the size in the
            pixel format of the checkpoint, or else the size of the variant.

    Raises:
        InputError: If the weights do not fit any variant.
    """
    origin, pixels = checkpoint.origin, checkpoint.origin.pixels
    variation: dict[str, Any]
    if checkpoint.tensors is None:
        name = name or origin.model
        if name is None:
            raise InputError(
                f"{origin.source} does not name the variant of its network, because "
                "keras_resnet did not write the file. Specify the variant with --model"
            )
        variation = {"shortcut": origin.shortcut, "avg_down": origin.avg_down}
        channels = len(pixels.mean) if pixels else 3
    else:
        recognised_name, variation = recognise_variant(checkpoint)
        name = name or recognised_name
        # Plain networks have the same weights as networks with shortcut A. Without the
        # metadata of keras_resnet, `recognise_variant` returns shortcut A for both.
        if find_variant(name).shortcut == "none" and not origin.shortcut:
            del variation["shortcut"]
        has_deep_stem = "conv1_1_conv/kernel" in checkpoint.tensors
        first_kernel = "conv1_1_conv/kernel" if has_deep_stem else "conv1_conv/kernel"
        channels = checkpoint.tensors[first_kernel].shape[2]
    size = image_size or (pixels and pixels.size) or find_variant(name).size
    shape = image_shape(size, channels)
    model = ResNet(name, weights=checkpoint, input_shape=shape, **variation)
    model.origin = dataclasses.replace(model.origin, model=name)
    return model


class Constructor(Protocol):
    """Type of a named constructor, such as `keras_resnet.ResNet50`.

    The parameters of keras.applications come first, in the same order. Fields of the
    variant follow. `...` represents a default value that the variant defines.
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
        """Builds the network; `keras_resnet.ResNet50` documents the arguments."""


@functools.cache
def make_constructor(title: str) -> Constructor:
    """Makes a constructor with the signature of keras.applications.

    `title` is the name of the constructor, such as "ResNet50". In lower case, `title`
    is the name of the variant.
    """
    variant = find_variant(title)
    defaults = {**dataclasses.asdict(variant), "name": title.lower()}
    signature = inspect.signature(Constructor.__call__)
    _, *parameters = signature.parameters.values()  # The first parameter is `self`.
    signature = signature.replace(
        parameters=[
            p.replace(default=defaults[p.name]) if p.default is ... else p
            for p in parameters
        ]
    )

    def build(*args: Any, **kwargs: Any) -> keras.Model:
        try:
            bound_arguments = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{title}() {error}") from None
        bound_arguments.apply_defaults()
        return ResNet(title, **bound_arguments.arguments)

    build.__name__ = build.__qualname__ = title
    build.__module__ = __package__
    kind = "plain" if variant.shortcut == "none" else "residual"
    dataset = "CIFAR-10" if variant.stem == "cifar" else "ImageNet"
    source = _paper_link(variant)
    build.__doc__ = _DOC_TEMPLATE.format(
        title=title, variant=variant, kind=kind, dataset=dataset, source=source
    )
    build.__signature__ = signature  # type: ignore[attr-defined]
    return build


def _paper_link(variant: Variant) -> str:
    papers = (
        (variant.preact, "Identity Mappings in Deep Residual Networks", "1603.05027"),
        (variant.avg_down, "Bag of Tricks for Image Classification", "1812.01187"),
        (variant.se, "Squeeze-and-Excitation Networks", "1709.01507"),
        (variant.groups > 1, "Aggregated Residual Transformations", "1611.05431"),
        (variant.group_width > 64, "Wide Residual Networks", "1605.07146"),
        (True, "Deep Residual Learning for Image Recognition", "1512.03385"),
    )
    title, arxiv_id = next(paper for is_match, *paper in papers if is_match)
    return f"[{title}](https://arxiv.org/abs/{arxiv_id})"


_DOC_TEMPLATE = """Builds the {title} network.

    {title} is the {variant.depth}-layer {kind} network for {dataset} of {source}.
    It has {variant.parameters:,} trainable parameters with the default arguments.

    If `weights` are given, the input is raw RGB pixels from 0 to 255, which the first
    layer normalises. `keras_resnet.preprocessing_for(model)` returns the resizing and
    cropping that the weights require. Without weights, the input is not normalised.

    Example:
        model = keras_resnet.{title}(classes=5)
        probabilities = model.predict(images)  # (number of images, 5)

    Args:
        include_top: Whether to add average pooling and a dense layer. Defaults to `True`.
        weights: `None` (random weights), the name of published weights, or the path of
            a weights file. Defaults to `None`.
            - `keras_resnet.list_weights()` lists the names. `"imagenet"` selects the
              first name for this network. The file is downloaded once and verified.
            - A file is `.keras` or `.weights.h5` of this package, `.h5` of
              keras.applications, or `.safetensors`, `.npz`, `.pth` or `.th` with names
              of torchvision, timm or CIFAR repositories. `.pth` and `.th` need PyTorch.
            If `include_top` is `False` or the file has another number of classes than
            `classes`, the weights of the dense layer are not loaded.
        input_tensor: Keras tensor to use as image input. Defaults to a new input.
        input_shape: Shape of the images without the batch axis: (height, width,
            channels) in the data format "channels_last", (channels, height, width) in
            "channels_first". Height and width must be at least {variant.stride} pixels,
            or `None` for any size. Default: 3 channels, {variant.size}x{variant.size} pixels.
        pooling: Global pooling if `include_top` is `False`: `"avg"` or `"max"` for a 2D
            output, `None` for the 4D output of the last stage. Defaults to `None`.
        classes: Number of classes. Default: as in `weights`, or else {variant.classes}.
        classifier_activation: Activation of the dense layer, as a name or function.
            `None` outputs logits. Defaults to `"softmax"`.
        name: Name of the model.
        shortcut: One of the paper's options. Defaults to `"{variant.shortcut}"`.
            - `"A"`: identity, with zeros for new channels and without parameters.
            - `"B"`: 1x1 convolution if the shape changes, identity if not.
            - `"C"`: 1x1 convolution in every block.
            - `"none"`: no shortcuts, which makes a plain network.
        stride_on: Convolution of a bottleneck block that has the stride: `"1x1"` as in
            the paper and keras.applications, or `"3x3"` as in torchvision and timm
            ("v1.5"). Default: as in `weights`, or else `"{variant.stride_on}"`.
        output_stride: Maximum ratio of input size to feature map size: 8, 16 or 32.
            Stages beyond this ratio use dilated convolutions instead of subsampling,
            which yields larger feature maps for dense prediction from the same weights.
            The features at the original positions do not change, except with `se` and,
            in the second dilated stage, with `avg_down`. Defaults to {variant.stride}.
        stem: Layers before the first block: `"imagenet"` (7x7 convolution), `"deep"`
            (the three 3x3 convolutions of ResNet-D) or `"cifar"` (3x3 convolution).
            This argument and all following ones default to the values of {title}.
        preact: Whether to use pre-activation blocks ("v2"), as in keras.applications.
        avg_down: Whether shortcuts apply average pooling to subsample (ResNet-D).
        se: Whether residual branches end with squeeze and excitation.
        groups: Number of groups of a bottleneck block's 3x3 convolution (ResNeXt).
        group_width: Number of channels per group in the first stage, 64 in the paper.
        zero_gamma: Whether the last batch normalisation of each residual branch starts
            with scale 0, so that each block initially outputs only its shortcut.
        stochastic_depth: Probability that training skips the last block's residual
            branch for an image. It decreases linearly to 0 at the first block.

    Returns:
        A `keras.Model` from images to class probabilities, (batch, classes). Without
        the top it outputs features as selected by `pooling`.

    Raises:
        InputError: If an argument is invalid. `InputError` is a `ValueError`.
    """
