"""Names and shapes of weights in torchvision, timm, CIFAR repositories and Keras.

This package names weights like `conv2_block1_1_conv/kernel` (layer, variable), with the
layer names of keras.applications. PyTorch repositories use keys such as
`layer1.0.conv1.weight`. A dialect is the naming scheme of one repository.
"""

import re
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Layer names of this package, and torchvision's names for the same layers. Names in
# `_BLOCK_LAYERS` lack the prefix of the block (`conv2_block1_` or `layer1.0.`).
_OUTER_LAYERS = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}
_BLOCK_LAYERS = {
    "0_conv": "downsample.0",
    "0_bn": "downsample.1",
    **{f"{i}_conv": f"conv{i}" for i in (1, 2, 3)},
    **{f"{i}_bn": f"bn{i}" for i in (1, 2, 3)},
    "se_1_conv": "se.fc1",
    "se_2_conv": "se.fc2",
}
# Entries that replace those above in timm's ResNet-D and in CIFAR repositories.
_DEEP_STEM_LAYERS = {
    "conv1_1_conv": "conv1.0",
    "conv1_1_bn": "conv1.1",
    "conv1_2_conv": "conv1.3",
    "conv1_2_bn": "conv1.4",
    "conv1_conv": "conv1.6",
}
_AVG_DOWN_LAYERS = {"0_conv": "downsample.1", "0_bn": "downsample.2"}
_SHORTCUT_LAYERS = {"0_conv": "shortcut.0", "0_bn": "shortcut.1"}
_LINEAR_LAYERS = {"predictions": "linear"}

# Variable names of Keras, and PyTorch's names for the same variables.
_NORM_VARIABLES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_OTHER_VARIABLES = {"kernel": "weight", "bias": "bias"}

_BLOCK_KEY = re.compile(r"layer(\d+)\.(\d+)\.(.+)")
BLOCK_NAME = re.compile(r"conv(\d+)_block(\d+)_(.+)")


class Dialect(NamedTuple):
    """Layer names of a PyTorch repository, by the layer names of this package."""

    outer_layers: Mapping[str, str]  # Layers outside blocks.
    block_layers: Mapping[str, str]  # Layers in blocks, without the block's prefix.

    @classmethod
    def make(
        cls, deep_stem: bool, avg_down: bool, linear_head: bool, shortcut: bool
    ) -> "Dialect":
        """Makes the dialect of a network.

        Args:
            deep_stem: Whether the stem has three 3x3 convolutions.
            avg_down: Whether shortcuts average; see `keras_resnet.spec.Variant`.
            linear_head: Whether the head is named `linear` instead of `fc`.
            shortcut: Whether a projection is named `shortcut`, not `downsample`.
        """
        outer = _OUTER_LAYERS | (_DEEP_STEM_LAYERS if deep_stem else {})
        outer |= _LINEAR_LAYERS if linear_head else {}
        block = _BLOCK_LAYERS | (_AVG_DOWN_LAYERS if avg_down else {})
        return cls(outer, block | (_SHORTCUT_LAYERS if shortcut else {}))

    @classmethod
    def recognise(cls, shapes: Mapping[str, Sequence[int]]) -> "Dialect | None":
        """Recognises the dialect of a state dict from its keys and their shapes.

        Returns `None` if no key is like `layer1.0.conv1.weight`, as in all ResNets.
        `conv1.0` is the first layer of a deep stem. CIFAR repositories use the names
        `linear` and `shortcut`. `downsample.1` is a convolution, with a 4D kernel, if
        `downsample.0` is an average pooling, or else a batch normalisation.
        """
        if not any(_BLOCK_KEY.match(key) for key in shapes):
            return None
        return cls.make(
            deep_stem="conv1.0.weight" in shapes,
            avg_down=any(
                key.endswith("downsample.1.weight") and len(shape) == 4
                for key, shape in shapes.items()
            ),
            linear_head="linear.weight" in shapes,
            shortcut=any(".shortcut.0." in key for key in shapes),
        )

    def to_keras_name(self, key: str) -> str | None:
        """Returns this package's name for a key of a state dict; `None` if unknown."""
        torch_layer, _, torch_variable = key.rpartition(".")
        prefix, layers = "", self.outer_layers
        if match := _BLOCK_KEY.fullmatch(torch_layer):
            prefix = f"conv{int(match[1]) + 1}_block{int(match[2]) + 1}_"
            layers, torch_layer = self.block_layers, match[3]
        for layer, torch_name in layers.items():
            for variable, torch_leaf in _variable_names(layer).items():
                if (torch_name, torch_leaf) == (torch_layer, torch_variable):
                    return f"{prefix}{layer}/{variable}"
        return None

    def to_torch_key(self, name: str) -> str | None:
        """Returns the key of a state dict for this package's name; `None` if unknown."""
        layer, _, variable = name.partition("/")
        prefix, torch_layer = "", self.outer_layers.get(layer)
        if match := BLOCK_NAME.fullmatch(layer):
            prefix = f"layer{int(match[1]) - 1}.{int(match[2]) - 1}."
            torch_layer = self.block_layers.get(match[3])
        leaf = _variable_names(layer).get(variable)
        return f"{prefix}{torch_layer}.{leaf}" if torch_layer and leaf else None


def _variable_names(layer: str) -> dict[str, str]:
    return _NORM_VARIABLES if layer.endswith("_bn") else _OTHER_VARIABLES


def transpose_kernel(array: np.ndarray, to_torch: bool) -> np.ndarray:
    """Converts a kernel between the axis orders of Keras and PyTorch.

    Args:
        array: Kernel of a convolution, (height, width, in, out) in Keras and (out,
            in, height, width) in PyTorch, or of a dense layer, (in, out) in Keras and
            (out, in) in PyTorch. Other arrays are returned unchanged.
        to_torch: `True` for Keras to PyTorch, `False` for PyTorch to Keras.
    """
    if array.ndim == 4:
        return array.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))
    return array.T if array.ndim == 2 else array


def convert_keras_applications(arrays: dict[str, np.ndarray]) -> None:
    """Converts weights of keras.applications for networks of this package, in place.

    The bias of a convolution before a batch normalisation is subtracted from the moving
    mean. The difference of epsilon, 1.001e-5 in keras.applications and 1e-5 here, is
    added to the moving variance. ResNet v1 expects BGR images, so the input channels of
    its first kernel are reversed. All three changes are exact except for rounding.
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
