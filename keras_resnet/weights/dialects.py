"""Names and shapes of weights in torchvision, timm, CIFAR repositories and Keras.

In this package a weight is called LAYER/VARIABLE, such as `conv2_block1_1_conv/kernel`, in
keras.applications' spelling. A dialect says what torchvision, timm or a CIFAR
repository calls the same; it serves reading and writing.
"""

import re
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Ours to torchvision's: layers outside of blocks, and after `conv2_block1_`.
_OUTSIDE = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}
_INSIDE = {
    "0_conv": "downsample.0",
    "0_bn": "downsample.1",
    **{f"{i}_conv": f"conv{i}" for i in (1, 2, 3)},
    **{f"{i}_bn": f"bn{i}" for i in (1, 2, 3)},
    "se_1_conv": "se.fc1",
    "se_2_conv": "se.fc2",
}
# What differs in timm's ResNet-D, and in CIFAR repositories.
_DEEP_STEM = {
    "conv1_1_conv": "conv1.0",
    "conv1_1_bn": "conv1.1",
    "conv1_2_conv": "conv1.3",
    "conv1_2_bn": "conv1.4",
    "conv1_conv": "conv1.6",
}
_AVG_DOWN = {"0_conv": "downsample.1", "0_bn": "downsample.2"}
_SHORTCUT = {"0_conv": "shortcut.0", "0_bn": "shortcut.1"}
_LINEAR = {"predictions": "linear"}

# Ours to torch's: variables of a batch normalisation, and of other layers.
_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_OTHER = {"kernel": "weight", "bias": "bias"}

_BLOCK_KEY = re.compile(r"layer(\d+)\.(\d+)\.(.+)")
BLOCK_NAME = re.compile(r"conv(\d+)_block(\d+)_(.+)")


class Dialect(NamedTuple):
    """Names of layers in one torch repository, by ours: outside and inside of blocks."""

    outside: Mapping[str, str]
    inside: Mapping[str, str]

    @classmethod
    def choose(
        cls, deep_stem: bool, avg_down: bool, cifar: bool, shortcut: bool
    ) -> "Dialect":
        """Returns the dialect of a network of that kind.

        Args:
            deep_stem: Whether the stem has three 3x3 convolutions.
            avg_down: Whether shortcuts average; see `keras_resnet.spec.Variant`.
            cifar: Whether the head is called `linear`.
            shortcut: Whether a shortcut is called `shortcut`.
        """
        return cls(
            _OUTSIDE | (_DEEP_STEM if deep_stem else {}) | (_LINEAR if cifar else {}),
            _INSIDE | (_AVG_DOWN if avg_down else {}) | (_SHORTCUT if shortcut else {}),
        )

    @classmethod
    def of_keys(cls, shapes: Mapping[str, Sequence[int]]) -> "Dialect | None":
        """Returns the dialect of a state dict's shapes; `None` if it is no ResNet's."""
        if not any(_BLOCK_KEY.match(key) for key in shapes):
            return None
        return cls.choose(
            deep_stem="conv1.0.weight" in shapes,
            avg_down=any(
                key.endswith("downsample.1.weight") and len(shape) == 4
                for key, shape in shapes.items()
            ),
            cifar="linear.weight" in shapes,
            shortcut=any(".shortcut.0." in key for key in shapes),
        )

    def ours(self, key: str) -> str | None:
        """Returns our name of a state dict's key; `None` if it has none."""
        part, _, leaf = key.rpartition(".")
        prefix, parts = "", self.outside
        if match := _BLOCK_KEY.fullmatch(part):
            prefix = f"conv{int(match[1]) + 1}_block{int(match[2]) + 1}_"
            parts, part = self.inside, match[3]
        for layer, name in parts.items():
            for variable, theirs in _variables(layer).items():
                if (name, theirs) == (part, leaf):
                    return f"{prefix}{layer}/{variable}"
        return None

    def theirs(self, name: str) -> str | None:
        """Returns the key of one of our weights; `None` if there is none."""
        layer, _, variable = name.partition("/")
        prefix, part = "", self.outside.get(layer)
        if match := BLOCK_NAME.fullmatch(layer):
            prefix = f"layer{int(match[1]) - 1}.{int(match[2]) - 1}."
            part = self.inside.get(match[3])
        leaf = _variables(layer).get(variable)
        return None if part is None or leaf is None else f"{prefix}{part}.{leaf}"


def _variables(layer: str) -> dict[str, str]:
    return _NORM if layer.endswith("_bn") else _OTHER


def turn(array: np.ndarray, to_torch: bool) -> np.ndarray:
    """Turns a kernel's axes; other arrays stay as they are.

    Args:
        array: Kernel of a convolution, (height, width, in, out) in Keras and (out,
            in, height, width) in torch; or of a dense layer, (in, out) in Keras and
            (out, in) in torch.
        to_torch: Whether the array is Keras's and becomes torch's.
    """
    if array.ndim == 4:
        return array.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))
    return array.T if array.ndim == 2 else array


def fold_keras_applications(arrays: dict[str, np.ndarray]) -> None:
    """Turns weights of keras.applications' ResNets into ours.

    There a convolution that is normalised has a bias too, which is taken from the
    moving mean; epsilon is 1.001e-5, of which what is above our 1e-5 is added to
    the moving variance; and ResNet v1 takes BGR. All three are exact but for
    rounding. The arrays, by our names, are changed in place.
    """
    for name in [n for n in arrays if n.endswith("_bn/moving_variance")]:
        arrays[name] = arrays[name] + np.float32(1.001e-5 - 1e-5)
        layer = name.removesuffix("_bn/moving_variance")
        bias = arrays.pop(f"{layer}_conv/bias", None)
        if bias is not None:
            arrays[f"{layer}_bn/moving_mean"] = arrays[f"{layer}_bn/moving_mean"] - bias
    if not is_preactivated(arrays):
        arrays["conv1_conv/kernel"] = arrays["conv1_conv/kernel"][:, :, ::-1]


def is_preactivated(names: Container[str]) -> bool:
    """Whether weights of these names are of a pre-activation net."""
    return "conv2_block1_preact_bn/gamma" in names
