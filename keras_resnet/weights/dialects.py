"""Names and shapes of weights in torchvision, timm, CIFAR repositories and Keras.

This package names a weight LAYER/VARIABLE, such as `conv2_block1_1_conv/kernel`, in the
spelling of keras.applications. A dialect is the naming scheme of a PyTorch repository,
such as `layer1.0.conv1.weight` for the same weight. It translates in both directions.
"""

import re
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Layer names of this package and of torchvision, without prefixes inside blocks.
_OUTSIDE = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}
_INSIDE = {
    "0_conv": "downsample.0",
    "0_bn": "downsample.1",
    **{f"{i}_conv": f"conv{i}" for i in (1, 2, 3)},
    **{f"{i}_bn": f"bn{i}" for i in (1, 2, 3)},
    "se_1_conv": "se.fc1",
    "se_2_conv": "se.fc2",
}
# Entries that differ in timm's ResNet-D and in CIFAR repositories.
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

# Variable names of Keras and PyTorch, for batch normalisations and other layers.
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
    """Layer names of a PyTorch repository, by the layer names of this package."""

    outside: Mapping[str, str]  # Layers outside blocks.
    inside: Mapping[str, str]  # Layers inside a block, without the block's prefix.

    @classmethod
    def make(
        cls, deep_stem: bool, avg_down: bool, cifar: bool, shortcut: bool
    ) -> "Dialect":
        """Makes the dialect of a network.

        Args:
            deep_stem: Whether the stem has three 3x3 convolutions.
            avg_down: Whether shortcuts average; see `keras_resnet.spec.Variant`.
            cifar: Whether the head is named `linear` instead of `fc`.
            shortcut: Whether a projection is named `shortcut`, not `downsample`.
        """
        return cls(
            _OUTSIDE | (_DEEP_STEM if deep_stem else {}) | (_LINEAR if cifar else {}),
            _INSIDE | (_AVG_DOWN if avg_down else {}) | (_SHORTCUT if shortcut else {}),
        )

    @classmethod
    def recognise(cls, shapes: Mapping[str, Sequence[int]]) -> "Dialect | None":
        """Recognises the dialect of a state dict; returns `None` for other networks.

        All ResNets have keys such as `layer1.0.conv1.weight`. The dialects differ in a
        few keys. `conv1.0` is the first layer of a deep stem, and CIFAR repositories
        use the names `linear` and `shortcut`. `downsample.1` is a convolution, with a
        4D kernel, if an average pooling precedes it as `downsample.0`. Otherwise it is
        a batch normalisation.
        """
        if not any(_BLOCK_KEY.match(key) for key in shapes):
            return None
        return cls.make(
            deep_stem="conv1.0.weight" in shapes,
            avg_down=any(
                key.endswith("downsample.1.weight") and len(shape) == 4
                for key, shape in shapes.items()
            ),
            cifar="linear.weight" in shapes,
            shortcut=any(".shortcut.0." in key for key in shapes),
        )

    def to_keras_name(self, key: str) -> str | None:
        """Returns this package's name for a key of a state dict, if there is one."""
        part, _, leaf = key.rpartition(".")
        prefix, parts = "", self.outside
        if match := _BLOCK_KEY.fullmatch(part):
            prefix = f"conv{int(match[1]) + 1}_block{int(match[2]) + 1}_"
            parts, part = self.inside, match[3]
        for layer, name in parts.items():
            for variable, torch_variable in _variables(layer).items():
                if (name, torch_variable) == (part, leaf):
                    return f"{prefix}{layer}/{variable}"
        return None

    def to_torch_key(self, name: str) -> str | None:
        """Returns the key of the state dict for a name of this package, if any."""
        layer, _, variable = name.partition("/")
        prefix, part = "", self.outside.get(layer)
        if match := BLOCK_NAME.fullmatch(layer):
            prefix = f"layer{int(match[1]) - 1}.{int(match[2]) - 1}."
            part = self.inside.get(match[3])
        leaf = _variables(layer).get(variable)
        return None if part is None or leaf is None else f"{prefix}{part}.{leaf}"


def _variables(layer: str) -> dict[str, str]:
    return _NORM if layer.endswith("_bn") else _OTHER


def transpose_kernel(array: np.ndarray, to_torch: bool) -> np.ndarray:
    """Converts a kernel between the axis orders of Keras and PyTorch.

    Args:
        array: Kernel of a convolution, (height, width, in, out) in Keras and (out,
            in, height, width) in PyTorch, or of a dense layer, (in, out) in Keras and
            (out, in) in PyTorch. Other arrays are returned unchanged.
        to_torch: Whether to convert from Keras to PyTorch; otherwise the reverse.
    """
    if array.ndim == 4:
        return array.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))
    return array.T if array.ndim == 2 else array


def convert_keras_applications(arrays: dict[str, np.ndarray]) -> None:
    """Converts weights of keras.applications' ResNets to this package's, in place.

    There, convolutions before a batch normalisation have a bias, which is subtracted
    from the moving mean here. Epsilon is 1.001e-5 instead of 1e-5; the difference is
    added to the moving variance. ResNet v1 expects BGR images; the input channels of
    the first kernel are reversed. All three changes are exact except for rounding.
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
    """Returns whether weight names are those of a pre-activation network."""
    return "conv2_block1_preact_bn/gamma" in names
