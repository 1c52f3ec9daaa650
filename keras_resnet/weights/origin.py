"""Origin of weights, and the pixel format that weights require."""

import dataclasses
import json
from typing import Annotated, NamedTuple

from keras_resnet.spec import select_known_fields
from keras_resnet.support import InputError, PixelCount, check_type, first_line


class PixelFormat(NamedTuple):
    """Preprocessing that weights require: (pixel - mean) / sqrt(variance).

    Attributes:
        mean: Mean of each channel in RGB order, for pixels from 0 to 255.
        variance: Variance of each channel in RGB order.
        crop: Fraction of each side of the resized image that the central crop keeps,
            as in `keras_resnet.data.Preprocessing`.
        interpolation: Resizing method, `"bilinear"` or `"bicubic"`.
        size: Height and width of the input in pixels at which the published accuracy
            was measured; `None` if unknown.
    """

    mean: Annotated[tuple[float, ...], len]
    variance: tuple[Annotated[float, lambda value: value > 0], ...]
    crop: Annotated[float, lambda crop: 1e-3 <= crop <= 1] = 0.875
    interpolation: Annotated[str, ("bilinear", "bicubic").__contains__] = "bilinear"
    size: PixelCount | None = None


# The three common pixel formats, all for RGB images. If weights expect BGR images, this
# package reverses the input channels of their first kernel when it loads them.
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

    keras_resnet stores an `Origin` as JSON metadata in each weights file.

    Attributes:
        source: Name of published weights, such as `"resnet50/keras"`, or file path.
        pixels: Pixel format that the weights were trained with; `None` if unknown.
        classes: Class names in the order of the labels; `None` if unknown.
        model: Name of the variant; `None` if unknown.
        stride_on: See `keras_resnet.spec.Variant`. `None` if unknown or irrelevant.
        shortcut: See `keras_resnet.spec.Variant`. `None` if unknown.
        avg_down: See `keras_resnet.spec.Variant`. `None` if unknown.
        certain: Whether `stride_on` is known, not only guessed from the weight names.
    """

    source: str
    pixels: PixelFormat | None = None
    classes: tuple[str, ...] | None = None
    model: str | None = None
    stride_on: str | None = None
    shortcut: str | None = None
    avg_down: bool | None = None
    certain: bool = True

    def to_metadata(self) -> str:
        """Returns JSON. Class names are left out if the JSON would exceed 64 KiB."""
        metadata = dataclasses.asdict(self) | {"source": None}
        if len(json.dumps(metadata)) >= 2**16:
            metadata["classes"] = None
        return json.dumps(metadata)

    @classmethod
    def from_metadata(cls, metadata: str | bytes, source: str) -> "Origin":
        """Reads JSON from `to_metadata`. Ignores fields that newer versions added.

        Raises:
            InputError: If the JSON is damaged.
        """
        try:
            fields = {**json.loads(metadata), "source": ""}
            fields = {k: v for k, v in fields.items() if v is not None}
            values = select_known_fields(cls, fields)
            if pixels := values.get("pixels"):
                mean, variance, *other_values = pixels
                pixels = PixelFormat(tuple(mean), tuple(variance), *other_values)
                for name, hint in PixelFormat.__annotations__.items():
                    check_type(getattr(pixels, name), hint, name)
                values["pixels"] = pixels if len(mean) == len(variance) else "damaged"
            origin = cls(**values)
            check_type(origin, cls, "metadata")
        except (RecursionError, TypeError, ValueError) as error:
            raise InputError(
                f"{source} contains damaged metadata of keras_resnet: {first_line(error)}"
            ) from None
        return dataclasses.replace(origin, source=source)


# Key of the metadata in .safetensors and .weights.h5 files. In .keras files, the
# comment of the ZIP archive contains the metadata, so no key is necessary.
METADATA_KEY = "keras_resnet"
