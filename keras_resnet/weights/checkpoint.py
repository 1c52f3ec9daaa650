"""Weights of a file or a network, as a dict from names of this package to arrays."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import keras
import numpy as np

from keras_resnet.nets import list_layers
from keras_resnet.support import InputError
from keras_resnet.weights.dialects import transpose_kernel
from keras_resnet.weights.origin import Origin


class Tensor(NamedTuple):
    """Description of an array in a weights file or network. `read` returns the array.

    Attributes:
        key: Name of the array in the file or network.
        shape: Shape of the array that `read` returns.
        dtype: Name of the data type, such as `"float32"`, or `"F32"` in safetensors.
        read: Function without arguments that reads and returns the array.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @classmethod
    def from_array(cls, key: str, array: np.ndarray) -> "Tensor":
        """Returns a tensor whose `read` returns an array that is already in memory."""
        return cls(key, array.shape, str(array.dtype), lambda: array)

    def to_keras(self) -> "Tensor":
        """Returns the tensor with the axis order of Keras instead of PyTorch's."""
        shape = transpose_kernel(np.broadcast_to(0, self.shape), to_torch=False).shape
        return self._replace(
            shape=shape, read=lambda: transpose_kernel(self.read(), to_torch=False)
        )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights that can be assigned to a network.

    Attributes:
        origin: Origin of the weights.
        tensors: Maps names such as `conv1_conv/kernel` to arrays in the axis order of
            Keras. `None` for a `.weights.h5` file, which only Keras can read, by
            loading it into a model with the same layers.
        num_classes: Number of classes of the head; `None` without a head.
    """

    origin: Origin
    tensors: Mapping[str, Tensor] | None
    num_classes: int | None

    def __post_init__(self) -> None:
        names, num_classes = self.origin.classes, self.num_classes or 0
        if num_classes > 2**17 or (num_classes and names and len(names) != num_classes):
            raise InputError(
                f"{self.origin.source} must have at most {2**17:,} classes, each with one "
                f"name. It has {num_classes:,} classes and {len(names or ()):,} names"
            )

    @classmethod
    def from_tensors(cls, origin: Origin, tensors: Mapping[str, Tensor]) -> Self:
        """Makes a checkpoint. The bias of the head determines `num_classes`."""
        head_bias = tensors.get("predictions/bias")
        shape = head_bias.shape if head_bias else ()
        return cls(origin, tensors, shape[0] if shape else None)


def get_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the variables of a model by name, such as `conv1_conv/kernel`."""
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in list_layers(model)
        if layer.name != "normalization"
        for variable in layer.weights
    }


def to_tensors(model: keras.Model) -> dict[str, Tensor]:
    """Returns the weights of a model in the form of `Checkpoint.tensors`."""
    read = keras.ops.convert_to_numpy
    return {
        n: Tensor(n, tuple(v.shape), str(v.dtype), functools.partial(read, v))
        for n, v in get_variables(model).items()
    }
