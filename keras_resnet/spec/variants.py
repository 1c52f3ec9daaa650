"""Table of variants, which are network architectures.

The first rows are the networks of "Deep Residual Learning for Image Recognition" (He,
Zhang, Ren, Sun, arXiv:1512.03385): Table 1 for ImageNet, section 4.2 and Table 6 for
CIFAR-10. The other rows are later variations for which weights have been published.
"""

import dataclasses
import numbers
import re
from typing import Any

from keras_resnet.support import InputError, check_choice

SHORTCUTS = ("A", "B", "C", "none")
STEMS = ("imagenet", "deep", "cifar")
STRIDE_ON = ("1x1", "3x3")


@dataclasses.dataclass(frozen=True)
class Variant:
    """An architecture of a residual or plain network.

    Attributes:
        block: `"basic"` (two 3x3 convolutions) or `"bottleneck"` (1x1, 3x3 and 1x1
            convolutions).
        blocks: Number of blocks in each stage. The first of these stages is `conv2`.
        stem: Layers before `conv2`. `"imagenet"`: 7x7 convolution and max pooling, each
            with stride 2. `"deep"`: three 3x3 convolutions instead of the 7x7 one
            (ResNet-D, arXiv:1812.01187). `"cifar"`: 3x3 convolution with stride 1.
        width: Number of channels of the stem and of the 3x3 convolutions in `conv2`. Each
            later stage has twice as many channels as the previous one.
        shortcut: The paper's shortcut option `"A"`, `"B"` or `"C"`. `"none"` is a plain
            network.
        parameters: Number of trainable parameters with the default number of classes.
        stride_on: Convolution of a bottleneck block that applies the stride: `"1x1"`, the
            first one (the paper), or `"3x3"` ("v1.5").
        preact: Whether blocks use full pre-activation ("v2", arXiv:1603.05027) in the
            layout of the weights of keras.applications and TF-slim. In this layout the
            last block of a stage subsamples, not the first as in the paper, and
            convolutions that no normalisation follows have a bias.
        avg_down: Whether a shortcut that subsamples with a convolution averages 2x2
            pixels first (ResNet-D).
        se: Whether residual branches end in squeeze and excitation (arXiv:1709.01507),
            which reduces the channels to 1/16.
        groups: Number of groups of a bottleneck block's 3x3 convolution (the cardinality
            of ResNeXt, arXiv:1611.05431).
        group_width: Number of channels per group in `conv2` for a stem of 64 channels.
            Wide ResNet (arXiv:1605.07146) has a single, wide group.
        zero_gamma: Whether blocks are initially identical to their shortcut, because the
            gamma of a branch's last batch normalisation starts at 0 (arXiv:1706.02677).
            Not available with pre-activation.
        stochastic_depth: Probability that training skips the residual branch of the last
            block, drawn for each image. The probability falls linearly to 0 in the first
            block (arXiv:1603.09382). Branches that are not skipped are scaled up, as dropout
            does, so inference needs no correction. All replicas draw the same numbers,
            but apply them to different images.
    """

    block: str
    blocks: tuple[int, ...]
    stem: str
    width: int
    shortcut: str
    parameters: int | None = None
    stride_on: str = "1x1"
    preact: bool = False
    avg_down: bool = False
    se: bool = False
    groups: int = 1
    group_width: int = 64
    zero_gamma: bool = False
    stochastic_depth: float = 0.0

    @property
    def depth(self) -> int:
        """Number of layers with weights on the main path, as the paper counts them."""
        return {"basic": 2, "bottleneck": 3}[self.block] * sum(self.blocks) + 2

    @property
    def classes(self) -> int:
        """Default number of classes: 1000 for ImageNet, 10 for CIFAR-10."""
        return 10 if self.stem == "cifar" else 1000

    @property
    def size(self) -> int:
        """Default height and width of the input in pixels, as in the paper."""
        return 32 if self.stem == "cifar" else 224

    @property
    def stride(self) -> int:
        """Number of input pixels per output pixel of the last stage, on each axis."""
        return (1 if self.stem == "cifar" else 4) * 2 ** (len(self.blocks) - 1)

    def replace(self, **changes: Any) -> "Variant":
        """Returns this variant with some fields changed.

        Args:
            **changes: New values of fields; `None` keeps the current value.

        Raises:
            InputError: If a value is not accepted or contradicts another field.
        """
        changes = {k: v for k, v in changes.items() if v is not None}
        for field, accepted in _ACCEPTED_VALUES.items():
            check_choice(field, changes.get(field, getattr(self, field)), accepted)
        for field in ("preact", "avg_down", "se", "zero_gamma"):
            if (value := changes.get(field, False)) not in (False, True):
                raise InputError(
                    f"{field} must be True or False. Received: {field}={value!r}"
                )
        for field in ("groups", "group_width"):
            value = changes.get(field, 1)
            if not isinstance(value, numbers.Integral) or value < 1:
                raise InputError(
                    f"{field} must be a whole number of at least 1. "
                    f"Received: {field}={value!r}"
                )
        value = changes.get("stochastic_depth", 0)
        if not isinstance(value, numbers.Real) or value < 0 or not value < 1:
            raise InputError(
                "stochastic_depth must be at least 0 and below 1. "
                f"Received: stochastic_depth={value!r}"
            )
        row = dataclasses.replace(self, **changes)
        if self.shortcut == "none" != row.shortcut:
            raise InputError(
                "A plain network has no shortcuts. Use the ResNet of the same depth. "
                f"Received: shortcut={row.shortcut!r}"
            )
        if row.preact and row.zero_gamma:
            raise InputError(
                "zero_gamma must be False with preact=True, because the branches then do "
                "not end in a batch normalisation. Received: zero_gamma=True"
            )
        if (row.stochastic_depth or row.zero_gamma) and row.shortcut == "none":
            raise InputError(
                "stochastic_depth and zero_gamma require a network with shortcuts. "
                f"Received: stochastic_depth={row.stochastic_depth}, "
                f"zero_gamma={row.zero_gamma}, shortcut='none'"
            )
        if row.block == "basic" and (row.groups, row.group_width) != (1, 64):
            raise InputError(
                "groups and group_width require bottleneck blocks. Received: basic blocks, "
                f"groups={row.groups}, group_width={row.group_width}"
            )
        return row if row == self else dataclasses.replace(row, parameters=None)


_ACCEPTED_VALUES = {"shortcut": SHORTCUTS, "stride_on": STRIDE_ON, "stem": STEMS}

# fmt: off
VARIANTS = {
    # name                  block         blocks           stem     width shortcut parameters
    "resnet18":     Variant("basic",      (2, 2, 2, 2),    "imagenet", 64, "B", 11_689_512),
    "resnet34":     Variant("basic",      (3, 4, 6, 3),    "imagenet", 64, "B", 21_797_672),
    "resnet50":     Variant("bottleneck", (3, 4, 6, 3),    "imagenet", 64, "B", 25_557_032),
    "resnet101":    Variant("bottleneck", (3, 4, 23, 3),   "imagenet", 64, "B", 44_549_160),
    "resnet152":    Variant("bottleneck", (3, 8, 36, 3),   "imagenet", 64, "B", 60_192_808),
    "plainnet18":   Variant("basic",      (2, 2, 2, 2),    "imagenet", 64, "none", 11_515_688),
    "plainnet34":   Variant("basic",      (3, 4, 6, 3),    "imagenet", 64, "none", 21_623_848),
    "resnet20":     Variant("basic",      (3, 3, 3),       "cifar",    16, "A", 269_722),
    "resnet32":     Variant("basic",      (5, 5, 5),       "cifar",    16, "A", 464_154),
    "resnet44":     Variant("basic",      (7, 7, 7),       "cifar",    16, "A", 658_586),
    "resnet56":     Variant("basic",      (9, 9, 9),       "cifar",    16, "A", 853_018),
    "resnet110":    Variant("basic",      (18, 18, 18),    "cifar",    16, "A", 1_727_962),
    "resnet1202":   Variant("basic",      (200, 200, 200), "cifar",    16, "A", 19_421_274),
    "plainnet20":   Variant("basic",      (3, 3, 3),       "cifar",    16, "none", 269_722),
    "plainnet32":   Variant("basic",      (5, 5, 5),       "cifar",    16, "none", 464_154),
    "plainnet44":   Variant("basic",      (7, 7, 7),       "cifar",    16, "none", 658_586),
    "plainnet56":   Variant("basic",      (9, 9, 9),       "cifar",    16, "none", 853_018),
    "plainnet110":  Variant("basic",      (18, 18, 18),    "cifar",    16, "none", 1_727_962),
    "plainnet1202": Variant("basic",      (200, 200, 200), "cifar",    16, "none", 19_421_274),
    # Later variations, which are not in the paper.
    "resnet50v2":        Variant("bottleneck", (3, 4, 6, 3),  "imagenet", 64, "B", 25_568_360, preact=True, stride_on="3x3"),
    "resnet101v2":       Variant("bottleneck", (3, 4, 23, 3), "imagenet", 64, "B", 44_577_896, preact=True, stride_on="3x3"),
    "resnet152v2":       Variant("bottleneck", (3, 8, 36, 3), "imagenet", 64, "B", 60_236_904, preact=True, stride_on="3x3"),
    "resnet18d":         Variant("basic",      (2, 2, 2, 2),  "deep",     64, "B", 11_708_744, avg_down=True),
    "resnet34d":         Variant("basic",      (3, 4, 6, 3),  "deep",     64, "B", 21_816_904, avg_down=True),
    "resnet50d":         Variant("bottleneck", (3, 4, 6, 3),  "deep",     64, "B", 25_576_264, avg_down=True, stride_on="3x3"),
    "resnet101d":        Variant("bottleneck", (3, 4, 23, 3), "deep",     64, "B", 44_568_392, avg_down=True, stride_on="3x3"),
    "resnet152d":        Variant("bottleneck", (3, 8, 36, 3), "deep",     64, "B", 60_212_040, avg_down=True, stride_on="3x3"),
    "seresnet18":        Variant("basic",      (2, 2, 2, 2),  "imagenet", 64, "B", 11_779_624, se=True),
    "seresnet34":        Variant("basic",      (3, 4, 6, 3),  "imagenet", 64, "B", 21_960_416, se=True),
    "seresnet50":        Variant("bottleneck", (3, 4, 6, 3),  "imagenet", 64, "B", 28_088_024, se=True, stride_on="3x3"),
    "seresnet101":       Variant("bottleneck", (3, 4, 23, 3), "imagenet", 64, "B", 49_326_872, se=True, stride_on="3x3"),
    "seresnet152":       Variant("bottleneck", (3, 8, 36, 3), "imagenet", 64, "B", 66_821_848, se=True, stride_on="3x3"),
    "resnext50_32x4d":   Variant("bottleneck", (3, 4, 6, 3),  "imagenet", 64, "B", 25_028_904, groups=32, group_width=4, stride_on="3x3"),
    "resnext101_32x8d":  Variant("bottleneck", (3, 4, 23, 3), "imagenet", 64, "B", 88_791_336, groups=32, group_width=8, stride_on="3x3"),
    "resnext101_64x4d":  Variant("bottleneck", (3, 4, 23, 3), "imagenet", 64, "B", 83_455_272, groups=64, group_width=4, stride_on="3x3"),
    "wide_resnet50_2":   Variant("bottleneck", (3, 4, 6, 3),  "imagenet", 64, "B", 68_883_240, group_width=128, stride_on="3x3"),
    "wide_resnet101_2":  Variant("bottleneck", (3, 4, 23, 3), "imagenet", 64, "B", 126_886_696, group_width=128, stride_on="3x3"),
}
# fmt: on

_CIFAR_PATTERN = re.compile(r"cifar_(resnet|plainnet)(\d{1,4})")


def find_variant(name: str) -> Variant:
    """Returns the variant with a given name.

    Args:
        name: Key of `VARIANTS` in upper or lower case. `cifar_resnet{6n+2}` and
            `cifar_plainnet{6n+2}` are CIFAR networks of any depth. `resnet50`, without
            the prefix `cifar_`, is the ImageNet network.

    Raises:
        InputError: If no variant has this name.
    """
    key = str(name).lower()
    if match := _CIFAR_PATTERN.fullmatch(key):
        kind, depth = match[1], int(match[2])
        num_blocks, remainder = divmod(depth - 2, 6)
        if remainder or num_blocks < 1:
            lower_depth = max(8, depth - remainder)
            raise InputError(
                "The depth of a CIFAR network must be 6n+2 with n of at least 1, such as "
                f"{lower_depth} or {lower_depth + 6}. Received: model={name!r}"
            )
        return dataclasses.replace(
            VARIANTS[f"{kind}20"], blocks=(num_blocks,) * 3, parameters=None
        )
    return VARIANTS[check_choice("model", key, VARIANTS)]


def list_models() -> list[str]:
    """Returns the names of all variants, beginning with the paper's.

    `find_variant` also accepts `cifar_resnet{6n+2}` and `cifar_plainnet{6n+2}`.
    """
    return list(VARIANTS)
