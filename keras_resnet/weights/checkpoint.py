"""Weights as arrays under our names, of a file or of a network."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import numpy as np

from keras_resnet.nets import flat_layers
from keras_resnet.weights.dialects import turn
from keras_resnet.weights.origin import Origin


class Tensor(NamedTuple):
    """One array of a file.

    Attributes:
        key: Name in the file.
        shape: Shape of the array that `read` returns.
        dtype: Name of the type, as the library of the file calls it.
        read: Function without arguments that returns the array.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    @classmethod
    def of_array(cls, key: str, array: np.ndarray) -> "Tensor":
        """Makes one of an array in memory."""
        return cls(key, array.shape, str(array.dtype), lambda: array)

    def from_torch(self) -> "Tensor":
        """Returns this tensor of torch with our order of axes."""
        shape = turn(np.broadcast_to(0, self.shape), to_torch=False).shape
        return self._replace(
            shape=shape, read=lambda: turn(self.read(), to_torch=False)
        )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights that a network can be given.

    Attributes:
        origin: Where they came from.
        tensors: The arrays by our names of weights (see
            `keras_resnet.weights.dialects`), with our order of axes; `None` for a
            `.weights.h5` file, which only Keras can read, into a model of the same
            layers.
        classes: Number of classes of the head; `None` without a head.
    """

    origin: Origin
    tensors: Mapping[str, Tensor] | None
    classes: int | None

    @classmethod
    def of_tensors(cls, origin: Origin, tensors: Mapping[str, Tensor]) -> "Checkpoint":
        """Makes a checkpoint of arrays, whose head tells the number of classes."""
        head = tensors.get("predictions/bias")
        return cls(origin, tensors, head.shape[0] if head else None)


def variables_of(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the weights of a model by our names."""
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in flat_layers(model)
        if layer.name != "normalization"
        for variable in layer.weights
    }


def tensors_of(model: keras.Model) -> dict[str, Tensor]:
    """Returns the weights of a model as those of a file are given."""
    return {
        name: Tensor(
            name,
            tuple(variable.shape),
            str(variable.dtype),
            functools.partial(keras.ops.convert_to_numpy, variable),
        )
        for name, variable in variables_of(model).items()
    }
