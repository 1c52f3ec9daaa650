"""Names and shapes of weights in torchvision, timm, CIFAR repositories and Keras.

This package names weights like `conv2_block1_1_conv/kernel` (layer, variable), with the
layer names of keras.applications. PyTorch repositories use keys such as
`layer1.0.conv1.weight`. A dialect is the naming scheme of one repository.
"""

import re
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Map layer names of this package to those of torchvision. `_BLOCK_LAYERS` omits the
# prefixes of the blocks, such as `conv2_block1_` (here) and `layer1.0.` (torchvision).
_OUTER_LAYERS = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}
_BLOCK_LAYERS = {
    "0_conv": "downsample.0",
    "0_bn": "downsample.1",
    **{f"{i}_conv": f"conv{i}" for i in (1, 2, 3)},
    **{f"{i}_bn": f"bn{i}" for i in (1, 2, 3)},
    "se_1_conv": "se.fc1",
    "se_2_conv": "se.fc2",
}
# Names that replace those above in timm's ResNet-D or in repositories for CIFAR.
_DEEP_STEM_LAYERS = {
    "conv1_1_conv": "conv1.0", "conv1_1_bn": "conv1.1", "conv1_2_conv": "conv1.3",
    "conv1_2_bn": "conv1.4", "conv1_conv": "conv1.6",
}  # fmt: skip
_AVG_DOWN_LAYERS = {"0_conv": "downsample.1", "0_bn": "downsample.2"}
_SHORTCUT_LAYERS = {"0_conv": "shortcut.0", "0_bn": "shortcut.1"}
_LINEAR_LAYERS = {"predictions": "linear"}

# Map the variable names of Keras to those of PyTorch.
_NORM_VARIABLES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_OTHER_VARIABLES = {"kernel": "weight", "bias": "bias"}

_BLOCK_KEY = re.compile(r"layer(\d{1,4})\.(\d{1,4})\.(.+)")
BLOCK_NAME = re.compile(r"conv(\d{1,4})_block(\d{1,4})_(.+)")


class Dialect(NamedTuple):
    """Maps the layer names of this package to those of one PyTorch repository."""

    outer_layers: Mapping[str, str]  # Layers outside blocks.
    block_layers: Mapping[str, str]  # Layers in blocks, without the block's prefix.

    @classmethod
    def make(
        cls, deep_stem: bool, avg_down: bool, linear_keys: bool, shortcut_keys: bool
    ) -> "Dialect":
        """Makes the dialect of the repository that publishes a network.

        Args:
            deep_stem: Whether the stem has three 3x3 convolutions, as in ResNet-D.
            avg_down: Whether shortcuts contain an average pooling, as in ResNet-D.
            linear_keys: Whether keys name the head `linear` instead of `fc`.
            shortcut_keys: Whether keys name projections `shortcut`, not `downsample`.
        """
        outer_layers = _OUTER_LAYERS | (_DEEP_STEM_LAYERS if deep_stem else {})
        outer_layers |= _LINEAR_LAYERS if linear_keys else {}
        block_layers = _BLOCK_LAYERS | (_AVG_DOWN_LAYERS if avg_down else {})
        block_layers |= _SHORTCUT_LAYERS if shortcut_keys else {}
        return cls(outer_layers, block_layers)

    @classmethod
    def recognise(cls, shapes: Mapping[str, Sequence[int]]) -> "Dialect | None":
        """Recognises the dialect of a state dict from its keys and array shapes.

        Returns `None` if the state dict is not that of a ResNet, because no key looks
        like `layer1.0.conv1.weight`. The key `conv1.0.weight` indicates a deep stem. A
        convolution (4D kernel) at `downsample.1` indicates shortcuts of ResNet-D.
        """
        if not any(_BLOCK_KEY.match(key) for key in shapes):
            return None
        return cls.make(
            deep_stem="conv1.0.weight" in shapes,
            avg_down=any(
                key.endswith("downsample.1.weight") and len(shape) == 4
                for key, shape in shapes.items()
            ),
            linear_keys="linear.weight" in shapes,
            shortcut_keys=any(".shortcut.0." in key for key in shapes),
        )

    def to_keras_name(self, key: str) -> str | None:
        """Converts a state dict key to a name of this package; `None` if unknown."""
        key_layer, _, key_variable = key.rpartition(".")
        prefix, layers = "", self.outer_layers
        if match := _BLOCK_KEY.fullmatch(key_layer):
            prefix = f"conv{int(match[1]) + 1}_block{int(match[2]) + 1}_"
            layers, key_layer = self.block_layers, match[3]
        for layer, torch_layer in layers.items():
            for variable, torch_variable in _variable_names(layer).items():
                if (torch_layer, torch_variable) == (key_layer, key_variable):
                    return f"{prefix}{layer}/{variable}"
        return None

    def to_torch_key(self, name: str) -> str | None:
        """Converts a name of this package to a state dict key; `None` if unknown."""
        layer, _, variable = name.partition("/")
        prefix, torch_layer = "", self.outer_layers.get(layer)
        if match := BLOCK_NAME.fullmatch(layer):
            prefix = f"layer{int(match[1]) - 1}.{int(match[2]) - 1}."
            torch_layer = self.block_layers.get(match[3])
        torch_variable = _variable_names(layer).get(variable)
        is_known = torch_layer and torch_variable
        return f"{prefix}{torch_layer}.{torch_variable}" if is_known else None


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
    """Adapts weights of keras.applications, in place, to networks of this package.

    Biases before batch normalisation, which this package lacks, are subtracted from the
    moving mean. Moving variances grow by 1e-8, because epsilon is 1.001e-5 in
    keras.applications and 1e-5 here. As v1 networks expect BGR images, the input
    channels of their first kernel are reversed. All changes are exact up to rounding.
    """
    for name, array in list(arrays.items()):
        if name.endswith("_bn/moving_variance"):
            arrays[name] = array + np.float32(1.001e-5 - 1e-5)
        bias_name = name.replace("_bn/moving_mean", "_conv/bias")
        bias = arrays.get(bias_name)
        if bias_name != name and bias is not None and bias.shape == array.shape:
            arrays[name] = array - arrays.pop(bias_name)
    if not is_preactivated(arrays):
        arrays["conv1_conv/kernel"] = arrays["conv1_conv/kernel"][:, :, ::-1]


def is_preactivated(names: Container[str]) -> bool:
    """Returns whether weights with these names belong to a pre-activation network."""
    return "conv2_block1_preact_bn/gamma" in names
