"""Weights as arrays under our names, of a file or of a network."""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from keras_resnet.nets import flat_layers, has_imagenet_stem
from keras_resnet.weights import origin, recognition
from keras_resnet.weights.origin import Origin


class Tensor(NamedTuple):
    """One array of a file.

    Attributes:
        key: its name in the file.
        shape: in our order of axes.
        dtype: name of its type, as the file's library calls it.
        read: function without arguments that returns it, in that order.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights that a network can be given.

    Attributes:
        origin: an `Origin`.
        tensors: a dict from our names of weights (see `keras_resnet.layouts`);
            `None` for a `.weights.h5` file, which only Keras can read, into a
            model of the same layers.
        classes: number of classes of its head; `None` if it has none.
    """

    origin: Origin
    tensors: dict[str, Tensor] | None
    classes: int | None


def _checkpoint(origin, tensors):
    head = tensors.get("predictions/bias")
    return Checkpoint(origin, tensors, head.shape[0] if head else None)


def origin_of(model, source):
    """What belongs to a model's weights, from its layers and its `origin`.

    Args:
        model: a `keras.Model`.
        source: see `Origin`.

    Returns:
        An `Origin`; `None` if it is no network of this package.
    """
    layers = {layer.name: layer for layer in flat_layers(model)}
    fields = recognition.describe_architecture(
        {name: tuple(v.shape) for name, v in variables_of(model).items()}
    )
    if fields is None:
        return None
    stride_on = None
    if fields["block"] == "bottleneck":  # Basic blocks have nothing to tell.
        first = [la for n, la in layers.items() if re.search(r"_block\d+_1_conv$", n)]
        stride_on = "1x1" if any(max(la.strides) > 1 for la in first) else "3x3"
    adds = any(isinstance(layer, keras.layers.Add) for layer in layers.values())
    known = getattr(model, "origin", None)
    return Origin(
        source,
        pixels_of(model),
        known.classes if known else None,
        known.model if known else None,
        stride_on,
        fields["shortcut"] if adds else "none",
        averages_shortcuts(model),
    )


def averages_shortcuts(model):
    """Whether shortcuts of a model average before they subsample (ResNet-D)."""
    pools = [la for la in flat_layers(model) if la.name.endswith("_0_pool")]
    return any(tuple(pool.pool_size) == (2, 2) for pool in pools)


def tensors_of(model):
    """The weights of a model as a file's are given."""
    return {
        name: Tensor(
            name,
            tuple(v.shape),
            str(v.dtype),
            lambda v=v: keras.ops.convert_to_numpy(v),
        )
        for name, v in variables_of(model).items()
    }


def pixels_of(model):
    """What a model's first layer says of the pixels that it takes.

    Returns:
        A `keras_resnet.layouts.Pixels`, whose crop and interpolation are those
        of the model's origin, or else the usual ones; `None` if the model does
        not normalise its input itself.
    """
    known = getattr(model, "origin", None)
    layers = {layer.name: layer for layer in flat_layers(model)}
    if known and known.pixels:
        pixels = known.pixels
    elif "normalization" in layers:
        layer = layers["normalization"]
        mean, variance = (
            tuple(np.ravel(values).astype(float).tolist())
            for values in (layer.input_mean, layer.input_variance)
        )
        crop = 0.875 if has_imagenet_stem(layers) else 1.0
        pixels = origin.Pixels(mean, variance, crop)
    else:
        return None
    size = model.input_shape[2]  # A width in either data format, or None.
    return pixels._replace(size=size or pixels.size)


def variables_of(model):
    """The weights of a model by our names."""
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in flat_layers(model)
        if layer.name != "normalization"
        for variable in layer.weights
    }
