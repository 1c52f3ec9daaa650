"""Weights of a file or a network as arrays under the names of this package."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_resnet.nets import flat_layers
from keras_resnet.weights.dialects import transpose_kernel
from keras_resnet.weights.origin import Origin


class Tensor(NamedTuple):
    """An array of a file, read on demand.

    Attributes:
        key: Name of the array in the file.
        shape: Shape of the array that `read` returns.
        dtype: Name of the data type in the library that reads the file.
        read: Function without arguments that returns the array.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @classmethod
    def from_array(cls, key: str, array: np.ndarray) -> "Tensor":
        """Wraps an array in memory."""
        return cls(key, array.shape, str(array.dtype), lambda: array)

    def to_keras(self) -> "Tensor":
        """Returns this PyTorch tensor with the axis order of Keras."""
        shape = transpose_kernel(np.broadcast_to(0, self.shape), to_torch=False).shape
        return self._replace(
            shape=shape, read=lambda: transpose_kernel(self.read(), to_torch=False)
        )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights that can be assigned to a network.

    Attributes:
        origin: Origin of the weights.
        tensors: Arrays in the axis order of Keras, by their names in this package (see
            `keras_resnet.weights.dialects`). `None` for a `.weights.h5` file, which
            Keras can only load into a model with the same layers.
        classes: Number of classes of the head; `None` without a head.
    """

    origin: Origin
    tensors: Mapping[str, Tensor] | None
    classes: int | None

    @classmethod
    def from_tensors(
        cls, origin: Origin, tensors: Mapping[str, Tensor]
    ) -> "Checkpoint":
        """Makes a checkpoint whose number of classes is the size of the head."""
        head = tensors.get("predictions/bias")
        return cls(origin, tensors, head.shape[0] if head else None)


def variables_of(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the variables of a model by their names in this package."""
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in flat_layers(model)
        if layer.name != "normalization"
        for variable in layer.weights
    }


def tensors_of(model: keras.Model) -> dict[str, Tensor]:
    """Returns the weights of a model as if they had been read from a file."""
    return {
        name: Tensor(
            name,
            tuple(variable.shape),
            str(variable.dtype),
            functools.partial(keras.ops.convert_to_numpy, variable),
        )
        for name, variable in variables_of(model).items()
    }
