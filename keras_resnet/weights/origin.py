"""Origin of weights and the pixel format that they require."""

import dataclasses
import json
from typing import NamedTuple


class PixelFormat(NamedTuple):
    """Preprocessing of images that weights require: (pixel - mean) / sqrt(variance).

    Attributes:
        mean: Mean of each channel in RGB order, for pixels from 0 to 255.
        variance: Variance of each channel in RGB order.
        crop: Fraction of each side of the resized image that the central crop keeps,
            as in `keras_resnet.data.Preprocessing`.
        interpolation: Resizing method, `"bilinear"` or `"bicubic"`.
        size: Height and width of the input in pixels at which the published accuracy
            was measured; `None` if unknown.
    """

    mean: tuple[float, ...]
    variance: tuple[float, ...]
    crop: float = 0.875
    interpolation: str = "bilinear"
    size: int | None = None


# The three common pixel formats, all for RGB. Weights for BGR images get the input
# channels of their first kernel reversed when they are read.
PIXEL_FORMATS = {
    "torch": PixelFormat(
        tuple(255 * m for m in (0.485, 0.456, 0.406)),
        tuple((255 * s) ** 2 for s in (0.229, 0.224, 0.225)),
    ),
    "caffe": PixelFormat((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    "tf": PixelFormat((127.5,) * 3, (127.5**2,) * 3),
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of weights, and properties that their arrays do not show.

    This package stores it as JSON, called the note, in the weights files that it
    writes.

    Attributes:
        source: Name in the registry, such as `"resnet50/keras"`, or path.
        pixels: Pixel format of the training; `None` if unknown.
        classes: Class names in the order of the labels; `None` if unknown.
        model: Name of the variant; `None` if unknown.
        stride_on: See `keras_resnet.spec.Variant`. `None` if unknown or irrelevant.
        shortcut: See `keras_resnet.spec.Variant`. `None` if unknown.
        avg_down: See `keras_resnet.spec.Variant`. `None` if unknown.
        certain: Whether `stride_on` is known. Otherwise the dialect suggests it.
    """

    source: str
    pixels: PixelFormat | None = None
    classes: tuple[str, ...] | None = None
    model: str | None = None
    stride_on: str | None = None
    shortcut: str | None = None
    avg_down: bool | None = None
    certain: bool = True

    def to_note(self) -> str:
        """Returns the note as JSON of less than 64 KiB, without classes if necessary."""
        note = dataclasses.asdict(self) | {"source": None}
        text = json.dumps(note)
        return text if len(text) < 2**16 else json.dumps(note | {"classes": None})

    @classmethod
    def from_note(cls, note: str | bytes, source: str) -> "Origin":
        """Reads a note and ignores fields of newer versions."""
        field_names = {field.name for field in dataclasses.fields(cls)}
        values = {k: v for k, v in json.loads(note).items() if k in field_names}
        if values.get("pixels"):
            mean, variance, *rest = values["pixels"]
            values["pixels"] = PixelFormat(tuple(mean), tuple(variance), *rest)
        if values.get("classes"):
            values["classes"] = tuple(values["classes"])
        return cls(**values | {"source": source})


# Key of the note in a file's metadata. In a .keras file the note is the ZIP comment.
NOTE = "keras_resnet"
