"""Names and shapes of weights elsewhere, as data, both ways.

Here a weight is called LAYER/VARIABLE, such as `conv2_block1_1_conv/kernel`, in
keras.applications' spelling. A dialect says what torchvision, timm or a CIFAR
repository calls the same.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Pixels(NamedTuple):
    """What a network was trained to see; it belongs to the weights.

    Attributes:
        mean: of red, green and blue, subtracted from pixels of 0 to 255.
        variance: of the same; what is left is divided by its root.
        crop: share of the resized image, along each side, that the central crop
            keeps, as in `keras_resnet.preprocessing.Preprocessing`.
        interpolation: `"bilinear"` or `"bicubic"`, of the resizing.
        size: height and width of the input, in pixels, at which the weights were
            measured; `None` if that is unknown.
    """

    mean: tuple[float, ...]
    variance: tuple[float, ...]
    crop: float = 0.875
    interpolation: str = "bilinear"
    size: int | None = None


# The three habits that users of peers mix up, all for RGB here (the network's
# first kernel is turned round where the original takes BGR).
PIXELS = {
    "torch": Pixels(
        tuple(255 * m for m in (0.485, 0.456, 0.406)),
        tuple((255 * s) ** 2 for s in (0.229, 0.224, 0.225)),
    ),
    "caffe": Pixels((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    "tf": Pixels((127.5,) * 3, (127.5**2,) * 3),
}

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
# What is otherwise in timm's ResNet-D, and in CIFAR repositories.
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

_VARIABLES = {
    "bn": {
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    },
    "other": {"kernel": "weight", "bias": "bias"},
}
_BLOCK_KEY = re.compile(r"layer(\d+)\.(\d+)\.(.+)")
_BLOCK_NAME = re.compile(r"conv(\d+)_block(\d+)_(.+)")


class Dialect(NamedTuple):
    """Names of layers in one torch repository, by ours.

    Attributes:
        outside: of layers outside of blocks.
        inside: of those in a block.
    """

    outside: Mapping[str, str]
    inside: Mapping[str, str]

    @classmethod
    def choose(cls, deep_stem=False, avg_down=False, cifar=False, shortcut=False):
        """Returns the dialect of a network of that kind.

        Args:
            deep_stem: three 3x3 convolutions in the stem.
            avg_down: an average before the convolution of a shortcut.
            cifar: whether the head is called `linear`.
            shortcut: whether a shortcut is called `shortcut`.
        """
        return cls(
            _OUTSIDE | (_DEEP_STEM if deep_stem else {}) | (_LINEAR if cifar else {}),
            _INSIDE | (_AVG_DOWN if avg_down else {}) | (_SHORTCUT if shortcut else {}),
        )

    @classmethod
    def of_keys(cls, shapes):
        """Returns the dialect of a state dict; `None` if it is no ResNet's.

        Args:
            shapes: dict from each key to its shape.
        """
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

    @classmethod
    def of_names(cls, names, avg_down):
        """Returns the dialect in which a network of ours is written.

        Args:
            names: of its layers.
            avg_down: see `keras_resnet.variants.Variant`.
        """
        cifar = not has_imagenet_stem(names)
        return cls.choose("conv1_1_conv" in names, avg_down, cifar, cifar)

    def ours(self, key):
        """Returns our name of a state dict's key; `None` if it has none."""
        module, _, leaf = key.rpartition(".")
        if match := _BLOCK_KEY.fullmatch(module):
            parts = {theirs: ours for ours, theirs in self.inside.items()}
            prefix = f"conv{int(match[1]) + 1}_block{int(match[2]) + 1}_"
            part = parts.get(match[3])
        else:
            prefix = ""
            part = {theirs: ours for ours, theirs in self.outside.items()}.get(module)
        if part is None:
            return None
        kind = "bn" if part.endswith("_bn") else "other"
        for variable, name in _VARIABLES[kind].items():
            if name == leaf:
                return f"{prefix}{part}/{variable}"
        return None

    def theirs(self, name):
        """Returns the key of one of our weights; `None` if there is none."""
        layer, _, variable = name.partition("/")
        if match := _BLOCK_NAME.fullmatch(layer):
            prefix = f"layer{int(match[1]) - 1}.{int(match[2]) - 1}."
            part = self.inside.get(match[3])
        else:
            prefix, part = "", self.outside.get(layer)
        kind = "bn" if layer.endswith("_bn") else "other"
        leaf = _VARIABLES[kind].get(variable)
        return None if part is None or leaf is None else f"{prefix}{part}.{leaf}"


def turn(array, to_torch):
    """Turns a kernel's axes; other arrays stay as they are.

    Args:
        array: (height, width, in, out) here, (out, in, height, width) in torch;
            of a dense layer (in, out) here, (out, in) in torch.
        to_torch: the direction.
    """
    if array.ndim == 4:
        return array.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))
    return array.T if array.ndim == 2 else array


def turned_shape(shape):
    """The shape that `turn(array, to_torch=False)` gives."""
    if len(shape) == 4:
        return tuple(shape[axis] for axis in (2, 3, 1, 0))
    return tuple(reversed(shape)) if len(shape) == 2 else tuple(shape)


def fold_keras_applications(arrays):
    """Turns weights of keras.applications' ResNets into ours.

    There a convolution that is normalised has a bias too, which is taken from the
    moving mean; epsilon is 1.001e-5, of which what is above our 1e-5 is added to
    the moving variance; and ResNet v1 takes BGR. All three are exact but for
    rounding.

    Args:
        arrays: dict from our names to arrays, changed in place.
    """
    for name in [n for n in arrays if n.endswith("_bn/moving_variance")]:
        arrays[name] = arrays[name] + np.float32(1.001e-5 - 1e-5)
        layer = name.removesuffix("_bn/moving_variance")
        bias = arrays.pop(f"{layer}_conv/bias", None)
        if bias is not None:
            arrays[f"{layer}_bn/moving_mean"] = arrays[f"{layer}_bn/moving_mean"] - bias
    if not is_preactivated(arrays):
        arrays["conv1_conv/kernel"] = arrays["conv1_conv/kernel"][:, :, ::-1]


def has_imagenet_stem(names):
    """Whether a network of layers of these names begins with ImageNet's max pool."""
    return "pool1_pool" in names


def is_preactivated(names):
    """Whether weights of these names are of a pre-activation net."""
    return "conv2_block1_preact_bn/gamma" in names


def describe(shapes):
    """Tells a network's architecture from the shapes of its weights.

    Args:
        shapes: dict from our names to shapes in our order of axes.

    Returns:
        A dict of fields of `keras_resnet.variants.Variant` without `avg_down` and
        `stride_on`, which cannot be told; a plain net is taken for one with
        shortcut A, whose weights are the same. `None` if it is no ResNet.
    """
    found = [_BLOCK_NAME.fullmatch(name.split("/")[0]) for name in shapes]
    places = {(int(m[1]), int(m[2])) for m in found if m}
    if not places or "conv1_conv/kernel" not in shapes:
        return None
    stages = range(2, max(stage for stage, _ in places) + 1)
    blocks = tuple(sum(s == stage for s, _ in places) for stage in stages)
    bottleneck = "conv2_block1_3_conv/kernel" in shapes
    size, _, _, width = shapes["conv1_conv/kernel"]
    deep = "conv1_1_conv/kernel" in shapes
    fields = {
        "block": "bottleneck" if bottleneck else "basic",
        "blocks": blocks,
        "stem": "deep" if deep else "imagenet" if size == 7 else "cifar",
        "width": width,
        "preact": is_preactivated(shapes),
        "se": "conv2_block1_se_1_conv/kernel" in shapes,
        "shortcut": "A",
    }
    if bottleneck:
        _, _, each, inner = shapes["conv2_block1_2_conv/kernel"]
        fields |= {"groups": inner // each, "group_width": each * 64 // width}
    if "conv3_block1_0_conv/kernel" in shapes:
        # The first block of the first stage changes shapes where it is a bottleneck.
        same = "conv2_block2" if bottleneck else "conv2_block1"
        every = f"{same}_0_conv/kernel" in shapes
        fields["shortcut"] = "C" if every else "B"
    return fields
