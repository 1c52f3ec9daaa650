"""From an image to a network's input: one definition for every use.

Training, evaluation, prediction and the exported artifacts all read images
through this module. Its results are raw pixels, uint8 from 0 to 255; a network
normalises them itself, in its first layer, so that no client can get that wrong.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from keras_resnet.data import decoding
from keras_resnet.data.decoding import IMAGE_FORMATS, PixelFunction

# Height and width, or row and column, in pixels.
Sides: TypeAlias = tf.Tensor | Sequence[int | tf.Tensor]

# The shorter sides that the paper averages over (section 3.4).
PAPER_SCALES = (224, 256, 384, 480, 640)

# TensorFlow's kernels that resample as Pillow's filters of these names do, and how
# far they reach.
_KERNELS = {"bilinear": ("triangle", 1.0), "bicubic": ("keyscubic", 2.0)}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input.

    Attributes:
        height: Height of the network's input, in pixels.
        width: Its width, in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: Share of the resized image, along each side, that the central crop
            keeps: 1 for small images, 0.875 (224 of 256 pixels) for photographs.
        interpolation: `"bilinear"` or `"bicubic"`, both with antialiasing.
    """

    height: int
    width: int
    channels: int
    crop: float = 1.0
    interpolation: str = "bilinear"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the network's input."""
        return (self.height, self.width, self.channels)

    def load(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Reads an image file as the network sees it: uint8 (height, width, channels).

        Raises:
            OSError: The file cannot be read.
            ValueError: It is damaged, or no such image.
        """
        with open(path, "rb") as file:
            encoded = file.read()
        try:
            return self.read(tf.constant(encoded)).numpy()
        except tf.errors.OpError:
            raise ValueError(f"{path}: damaged, or no {IMAGE_FORMATS} image") from None

    def decode(self, encoded: tf.Tensor, upright: bool = True) -> tf.Tensor:
        """Decodes a JPEG, PNG, WebP, BMP or GIF (first frame) file.

        Args:
            encoded: Content of the file, a scalar string.
            upright: Whether a JPEG is turned as its EXIF orientation says, as is
                done wherever somebody names a picture. Data sets are read as they
                are stored, as for every published accuracy on ImageNet: one in a
                hundred of its images has an orientation, and not all are true.

        Returns:
            uint8 (any height, any width, channels).
        """
        return decoding.decode_image(encoded, self.channels, upright)

    def view(self, image: tf.Tensor, margin: int = 0) -> tf.Tensor:
        """The central crop of an image: what the network sees of it.

        The image is resized, its aspect kept, until it just covers the input
        divided by `crop`; the centre is cut out and rounded to whole pixel values.
        Sides and offsets are rounded as torchvision does. With a `crop` of 1 an
        image of the right size stays as it is.

        Args:
            image: uint8 (any height, any width, channels).
            margin: Pixels that are kept around the crop, at most `self.margin`.

        Returns:
            uint8 (height + 2 margin, width + 2 margin, channels).
        """
        size, sides = self._size(margin), tf.shape(image)[:2]
        if self.crop == 1 and image.shape[:2] == size:
            return image
        resized, corner = self._place(sides, size, self.crop)
        return self._resample(image, (0, 0), resized / sides, corner, size)

    def read(
        self, encoded: tf.Tensor, margin: int = 0, upright: bool = True
    ) -> tf.Tensor:
        """Decodes a file and takes its view, decoding no more than is needed.

        Of a JPEG only the part under the crop is decoded and resampled.

        Args:
            encoded: Content of the file, a scalar string.
            margin: As in `view`.
            upright: As in `decode`.

        Returns:
            `view(decode(encoded, upright), margin)`, but a few pixels differ by 1.
        """
        is_upright_jpeg = tf.io.is_jpeg(encoded)
        if upright:
            is_upright_jpeg &= decoding.exif_orientation(encoded) == 1
        image = tf.cond(
            is_upright_jpeg,
            lambda: self._read_jpeg_part(encoded, self._size(margin)),
            lambda: self.view(self.decode(encoded, upright), margin),
        )
        return tf.ensure_shape(image, (*self._size(margin), self.channels))

    def _read_jpeg_part(self, encoded: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
        """Decodes and resamples the part of a JPEG under the crop."""
        sides = tf.io.extract_jpeg_shape(encoded)[:2]
        resized, corner = self._place(sides, size, self.crop)
        scale = resized / sides
        # What the kernel reaches, and a pixel more.
        reach = _KERNELS[self.interpolation][1] * tf.maximum(1 / scale, 1.0) + 1
        corner64 = tf.cast(corner, tf.float64)
        first = tf.maximum(tf.floor(corner64 / scale - reach), 0.0)
        last = tf.cast(tf.math.ceil((corner64 + size) / scale + reach), tf.int32)
        first = tf.cast(first, tf.int32)
        part = tf.concat([first, tf.minimum(sides, last) - first], 0)
        image = decoding.decode_jpeg_part(
            encoded, part, self.channels, "INTEGER_ACCURATE"
        )
        return self._resample(image, first, scale, corner, size)

    def cut(
        self, image: tf.Tensor, box_of: Callable[[tf.Tensor], tf.Tensor]
    ) -> tf.Tensor:
        """A part of an image, stretched to the network's input.

        For training: quicker than `read`, with pixels that differ from those of
        Pillow's bilinear filter by about one level in the mean, less than those of its
        bicubic one.

        Args:
            image: Content of a file, of which a JPEG is decoded within the part only;
                or uint8 (any height, any width, channels).
            box_of: From (height, width) to the part: int32 (row, column, height, width).

        Returns:
            uint8 (height, width, channels).
        """

        def part_of(pixels: tf.Tensor) -> tf.Tensor:
            row, column, height, width = tf.unstack(box_of(tf.shape(pixels)[:2]))
            return pixels[row : row + height, column : column + width]

        def part_of_jpeg() -> tf.Tensor:
            part = box_of(tf.io.extract_jpeg_shape(image)[:2])
            # The quick transform: training sees other pixels each time anyway.
            return decoding.decode_jpeg_part(image, part, self.channels, "INTEGER_FAST")

        def part_of_other() -> tf.Tensor:
            return part_of(self.decode(image, upright=False))

        if image.dtype == tf.string:
            part = tf.cond(tf.io.is_jpeg(image), part_of_jpeg, part_of_other)
        else:
            part = part_of(image)
        shrinks = tf.reduce_prod(tf.shape(part)[:2]) > self.height * self.width
        images = {"images": part[None], "size": self.shape[:2]}
        # Half as much work as the antialiased kernels of `read`, whatever the
        # interpolation: averages where there are more pixels than wanted.
        resized = tf.cond(
            shrinks,
            lambda: tf.raw_ops.ResizeArea(**images),
            lambda: tf.raw_ops.ResizeBilinear(**images, half_pixel_centers=True),
        )
        return tf.ensure_shape(tf.cast(resized[0] + 0.5, tf.uint8), self.shape)

    def ten_crops(self, image: tf.Tensor) -> tf.Tensor:
        """The centre and the corners of the central square, and their mirror images.

        As in Krizhevsky et al. 2012, whom the paper cites for its 10-crop test: the
        shorter side becomes 256/224 of the input, and the corners are those of the
        central square. (The paper does not say so; fb.resnet.torch takes those of
        the whole image.)

        Args:
            image: uint8 (any height, any width, channels).

        Returns:
            uint8 (10, height, width, channels).
        """
        size = (round(self.height / 0.875), round(self.width / 0.875))
        sides = tf.shape(image)[:2]
        resized, corner = self._place(sides, size, 0.875)
        image = self._resample(image, (0, 0), resized / sides, corner, size)
        down, across = size[0] - self.height, size[1] - self.width
        corners = [(round(down / 2), round(across / 2))]
        corners += [(y, x) for y in (0, down) for x in (0, across)]
        crops = [image[y : y + self.height, x : x + self.width] for y, x in corners]
        crops = tf.stack(crops)
        return tf.concat([crops, crops[:, :, ::-1]], 0)

    def whole_at(self, image: tf.Tensor, shorter: int) -> tf.Tensor:
        """The whole image, its shorter side resized to `shorter` pixels, aspect kept."""
        sides = tf.shape(image)[:2]
        size = covering_sides(sides, (shorter, shorter))
        return self._resample(image, (0, 0), size / sides, (0, 0), size)

    def _size(self, margin: int) -> tuple[int, int]:
        return (self.height + 2 * margin, self.width + 2 * margin)

    def _place(
        self, sides: tf.Tensor, size: tuple[int, int], crop: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Sides of the resized image, and the crop's corner in it; int32 (2,) each."""
        target = [round(side / crop) for side in self.shape[:2]]
        resized = covering_sides(sides, target)
        # Half to even, as Python rounds in torchvision.
        corner = tf.round((tf.cast(resized, tf.float64) - size) / 2)
        return resized, tf.cast(corner, tf.int32)

    def _resample(
        self,
        image: tf.Tensor,
        first: Sides,
        scale: tf.Tensor,
        corner: Sides,
        size: Sides,
    ) -> tf.Tensor:
        """The part of a resized image from `corner` on, uint8 (*size, channels).

        `image` is the original from (row, column) `first` on.
        """
        shift = tf.cast(first, scale.dtype) * scale - tf.cast(corner, scale.dtype)
        image = tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=size,
            scale=tf.cast(scale, tf.float32),
            translation=tf.cast(shift, tf.float32),
            kernel_type=_KERNELS[self.interpolation][0],
            antialias=True,
        )[0]
        if self.interpolation == "bicubic":  # It overshoots; bilinear does not.
            image = tf.clip_by_value(image, 0.0, 255.0)
        return tf.cast(image + 0.5, tf.uint8)

    @property
    def margin(self) -> int:
        """Pixels of a resized image on each side of the central crop."""
        shorter = min(self.height, self.width)
        return int(round(shorter / self.crop) - shorter) // 2


class Cut(NamedTuple):
    """What is taken of each image: a crop, or several.

    Attributes:
        decode: From an encoded file to pixels.
        view: From a uint8 image to the same pixels.
        spec: What both give, a `tf.TensorSpec`, or several.
    """

    decode: PixelFunction
    view: PixelFunction
    spec: tf.TensorSpec


def central_crop(preprocessing: Preprocessing, margin: int = 0) -> Cut:
    """The central crop of each image, of data sets as they are stored.

    `margin` is that of `Preprocessing.view`.
    """
    shape = (*preprocessing._size(margin), preprocessing.channels)
    return Cut(
        lambda encoded: preprocessing.read(encoded, margin, upright=False),
        lambda image: preprocessing.view(image, margin),
        tf.TensorSpec(shape, tf.uint8),
    )


def covering_sides(sides: tf.Tensor, target: Sides) -> tf.Tensor:
    """Sides of an image resized until it just covers `target`, as torchvision's."""
    sides, target = tf.cast(sides, tf.float64), tf.cast(target, tf.float64)
    return tf.cast(tf.floor(sides * tf.reduce_max(target / sides) + 1e-6), tf.int32)


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and variance of each channel, in pixel values and their squares.

    A channel that never changes gets the variance 1.

    Args:
        images: uint8 (number, height, width, channels).
    """
    sums, squares = np.zeros(images.shape[-1]), np.zeros(images.shape[-1])
    for image in images:  # One at a time: float64 copies of all would not fit.
        pixels = image.reshape(-1, images.shape[-1]).astype(np.float64)
        sums += pixels.sum(axis=0)
        squares += np.square(pixels).sum(axis=0)
    count = images[..., 0].size
    mean = sums / count
    variance = squares / count - np.square(mean)
    return mean.tolist(), np.where(variance > 0, variance, 1.0).tolist()
