"""Where weights came from, and what belongs to them."""

import dataclasses
import json
from typing import NamedTuple


class Pixels(NamedTuple):
    """What a network was trained to see; it belongs to the weights.

    Attributes:
        mean: Mean of each channel, RGB, of pixels from 0 to 255; it is subtracted.
        variance: Variance of each channel; the difference is divided by its root.
        crop: Share of the resized image, along each side, that the central crop
            keeps, as in `keras_resnet.data.Preprocessing`.
        interpolation: `"bilinear"` or `"bicubic"`, for the resizing.
        size: Height and width of the input, in pixels, at which the weights were
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


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a network's weights came from, and what belongs to them.

    It travels in the files that this package writes.

    Attributes:
        source: Name from the registry, such as `"resnet50/keras"`, or path.
        pixels: What the network was trained to see; `None` if that is unknown.
        classes: Name of each class, in order; `None` if they are unknown.
        model: Name of the architecture; `None` if that is unknown.
        stride_on: See `keras_resnet.spec.Variant`, as for the next two; `None`
            where it is unknown or makes no difference.
        shortcut: The paper's option.
        avg_down: Whether shortcuts average.
        certain: Whether `stride_on` is known, not only the dialect's habit.
    """

    source: str
    pixels: Pixels | None = None
    classes: tuple[str, ...] | None = None
    model: str | None = None
    stride_on: str | None = None
    shortcut: str | None = None
    avg_down: bool | None = None
    certain: bool = True

    def note(self) -> str:
        """Returns what is written into a file: JSON of less than 64 KiB."""
        note = dataclasses.asdict(self) | {"source": None}
        text = json.dumps(note)
        return text if len(text) < 2**16 else json.dumps(note | {"classes": None})

    @classmethod
    def of_note(cls, note: str | bytes, source: str) -> "Origin":
        """Reads a note again."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {k: v for k, v in json.loads(note).items() if k in known}
        if values.get("pixels"):
            mean, variance, *rest = values["pixels"]
            values["pixels"] = Pixels(tuple(mean), tuple(variance), *rest)
        if values.get("classes"):
            values["classes"] = tuple(values["classes"])
        return cls(**values | {"source": source})


# The note's name in the metadata of files; in a .keras file it is the comment.
NOTE = "keras_resnet"
