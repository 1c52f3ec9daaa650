"""Every architecture of "Deep Residual Learning for Image Recognition".

Imports nothing of ours but the errors: this is the table that the rest reads.
Source: He, Zhang, Ren, Sun, arXiv:1512.03385, Table 1 (ImageNet) and section
4.2 with Table 6 (CIFAR-10).
"""

import dataclasses
import re

from keras_resnet.errors import InputError, choose

SHORTCUTS = ("A", "B", "C", "none")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One architecture.

    Attributes:
        block: `"basic"` (two 3x3 convolutions) or `"bottleneck"` (1x1, 3x3,
            1x1).
        blocks: number of blocks in each stage; the first stage is `conv2`.
        stem: `"imagenet"` (7x7 convolution and max pool, each with stride 2)
            or `"cifar"` (3x3 convolution with stride 1).
        width: channels of the stem and of the first stage's 3x3 convolutions;
            each later stage doubles them.
        shortcut: the paper's option `"A"`, `"B"` or `"C"`; `"none"` is a plain
            net.
        parameters: trainable parameters with the default number of classes.
    """

    block: str
    blocks: tuple[int, ...]
    stem: str
    width: int
    shortcut: str
    parameters: int | None = None

    @property
    def depth(self) -> int:
        """Weighted layers on the main path, as the paper counts them."""
        return {"basic": 2, "bottleneck": 3}[self.block] * sum(self.blocks) + 2

    @property
    def classes(self) -> int:
        """Number of classes of the data set that the paper trained it on."""
        return {"imagenet": 1000, "cifar": 10}[self.stem]

    @property
    def size(self) -> int:
        """Height and width of the paper's input, in pixels."""
        return {"imagenet": 224, "cifar": 32}[self.stem]

    @property
    def stride(self) -> int:
        """Input pixels to one position of the last stage, along each side."""
        return {"imagenet": 4, "cifar": 1}[self.stem] * 2 ** (len(self.blocks) - 1)


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
    """Returns the name of every architecture of the paper.

    `cifar_resnet{6n+2}` and `cifar_plainnet{6n+2}` are accepted beside them.
    """
    return list(VARIANTS)
