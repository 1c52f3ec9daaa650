"""Every architecture of "Deep Residual Learning for Image Recognition".

Imports nothing of ours but the errors: this is the table that the rest reads.
Source: He, Zhang, Ren, Sun, arXiv:1512.03385, Table 1 (ImageNet) and section
4.2 with Table 6 (CIFAR-10). Below them stand the later variations that
published weights need, each a few fields of a row.
"""

import dataclasses
import numbers
import re
from typing import Any

from keras_resnet.support import InputError, choose

SHORTCUTS = ("A", "B", "C", "none")

STEMS = ("imagenet", "deep", "cifar")

STRIDE_ON = ("1x1", "3x3")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One architecture.

    Attributes:
        block: `"basic"` (two 3x3 convolutions) or `"bottleneck"` (1x1, 3x3,
            1x1).
        blocks: number of blocks in each stage; the first stage is `conv2`.
        stem: `"imagenet"` (7x7 convolution and max pool, each with stride 2),
            `"deep"` (ResNet-D, arXiv:1812.01187: three 3x3 convolutions in the
            place of the 7x7) or `"cifar"` (3x3 convolution with stride 1).
        width: channels of the stem and of the first stage's 3x3 convolutions;
            each later stage doubles them.
        shortcut: the paper's option `"A"`, `"B"` or `"C"`; `"none"` is a plain
            net.
        parameters: trainable parameters with the default number of classes.
        stride_on: the convolution of a bottleneck block that has the stride:
            `"1x1"`, the first (the paper), or `"3x3"` ("v1.5").
        preact: full pre-activation ("v2", arXiv:1603.05027) in the layout of
            keras.applications' and TF-slim's weights: a stage subsamples in its
            last block, where that paper does in its first, and convolutions
            that no normalisation follows have a bias.
        avg_down: a shortcut that is convolved averages 2x2 pixels first, where
            it subsamples (ResNet-D).
        se: squeeze and excitation at the end of each residual branch
            (arXiv:1709.01507), with a sixteenth of the channels in between.
        groups: of a bottleneck block's 3x3 convolution (ResNeXt's cardinality,
            arXiv:1611.05431).
        group_width: channels of each group in the first stage, where the stem
            has 64 (ResNeXt; Wide ResNet, arXiv:1605.07146, has one wide group).
        zero_gamma: whether a block begins as its shortcut: the last scale of its
            branch is 0 (arXiv:1706.02677). For nets without pre-activation.
        stochastic_depth: probability that training leaves the last block's branch
            out for an image; of earlier ones in proportion (arXiv:1603.09382). What
            is left is scaled up, as by dropout, so that nothing changes afterwards.
            Replicas draw the same numbers, each for images of its own.
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
        """Weighted layers on the main path, as the paper counts them."""
        return {"basic": 2, "bottleneck": 3}[self.block] * sum(self.blocks) + 2

    @property
    def classes(self) -> int:
        """Number of classes of the data set that the paper trained it on."""
        return 10 if self.stem == "cifar" else 1000

    @property
    def size(self) -> int:
        """Height and width of the paper's input, in pixels."""
        return 32 if self.stem == "cifar" else 224

    @property
    def stride(self) -> int:
        """Input pixels to one position of the last stage, along each side."""
        return (1 if self.stem == "cifar" else 4) * 2 ** (len(self.blocks) - 1)

    def changed(self, **changes: Any) -> "Variant":
        """Returns this architecture with some fields changed.

        Args:
            **changes: fields and their values; `None` keeps the row's.

        Raises:
            InputError: no such value, or one that does not fit the others.
        """
        changes = {k: v for k, v in changes.items() if v is not None}
        for field, accepted in _ACCEPTED.items():
            choose(field, changes.get(field, getattr(self, field)), accepted)
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
        if not 0 <= (rate := changes.get("stochastic_depth", 0)) < 1:
            raise InputError(
                "stochastic_depth must be from 0 to below 1. "
                f"Received: stochastic_depth={rate!r}"
            )
        row = dataclasses.replace(self, **changes)
        if self.shortcut == "none" != row.shortcut:
            raise InputError(
                "A plain net has no shortcuts; take the ResNet of the same depth. "
                f"Received: shortcut={row.shortcut!r}"
            )
        if row.preact and row.zero_gamma:
            raise InputError(
                "A pre-activation net's branches do not end in a normalisation, whose "
                "scale could be 0. Received: zero_gamma=True"
            )
        if (row.stochastic_depth or row.zero_gamma) and row.shortcut == "none":
            raise InputError(
                "Without shortcuts no branch can be left out, or begin as zeros. "
                f"Received: stochastic_depth={row.stochastic_depth}, "
                f"zero_gamma={row.zero_gamma}, shortcut='none'"
            )
        if row.block == "basic" and (row.groups, row.group_width) != (1, 64):
            raise InputError(
                "groups and group_width are those of bottleneck blocks, and this net has "
                f"basic ones. Received: groups={row.groups}, group_width={row.group_width}"
            )
        return row if row == self else dataclasses.replace(row, parameters=None)


_ACCEPTED = {"shortcut": SHORTCUTS, "stride_on": STRIDE_ON, "stem": STEMS}

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
    # Not of the paper.
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

_CIFAR_NAME = re.compile(r"cifar_(resnet|plainnet)(\d+)")


def find_variant(name: str) -> Variant:
    """Returns the architecture of that name.

    Args:
        name: a key of `VARIANTS` in any case, or `cifar_resnet{6n+2}` or
            `cifar_plainnet{6n+2}` for a CIFAR net of another depth (`resnet50`
            and `resnet152` are ImageNet's).

    Raises:
        InputError: there is no such architecture.
    """
    key = str(name).lower()
    if match := _CIFAR_NAME.fullmatch(key):
        kind, depth = match[1], int(match[2])
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            below = max(8, depth - rest)
            raise InputError(
                "A CIFAR net's depth must be 6n+2 with n of at least 1, such as "
                f"{below} or {below + 6}. Received: model={name!r}"
            )
        return dataclasses.replace(
            VARIANTS[f"{kind}20"], blocks=(blocks,) * 3, parameters=None
        )
    return VARIANTS[choose("model", key, VARIANTS)]


def list_models() -> list[str]:
    """Returns the name of every architecture, those of the paper first.

    `cifar_resnet{6n+2}` and `cifar_plainnet{6n+2}` are accepted beside them.
    """
    return list(VARIANTS)
