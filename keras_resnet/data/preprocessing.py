"""Conversion of images to the input of a network.

Training, evaluation, prediction and the exported artifacts all read images through
this module. The results are raw pixels, uint8 from 0 to 255. The first layer of each
network normalises them, so that no client can apply a wrong normalisation.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from keras_resnet.data import decoding
from keras_resnet.data.decoding import IMAGE_FORMATS, PixelFunction, decode_jpeg_part
from keras_resnet.support import InputError, PixelCount, read_file

# A pair (height, width) or (row, column) in pixels.
Sides: TypeAlias = tf.Tensor | Sequence[int | tf.Tensor]

# Shorter sides in pixels of the ResNet paper's multi-scale test (section 3.4).
PAPER_SCALES = (224, 256, 384, 480, 640)

# Maps the name of a filter to the kernel's name in TensorFlow and its radius in pixels.
_KERNELS = {"bilinear": ("triangle", 1.0), "bicubic": ("keyscubic", 2.0)}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Conversion of an image to a network's input.

    Attributes:
        height: Height of the network's input in pixels.
        width: Width of the network's input in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: Fraction of each side of the resized image that the central crop keeps,
            such as 1 for small images and 0.875 (224 of 256 pixels) for photographs.
        interpolation: `"bilinear"` or `"bicubic"`, both with antialiasing.
    """

    height: PixelCount
    width: PixelCount
    channels: PixelCount
    crop: Annotated[float, lambda crop: 1e-3 <= crop <= 1] = 1.0
    interpolation: Annotated[str, _KERNELS.__contains__] = "bilinear"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (height, width, channels) of the network's input."""
        return (self.height, self.width, self.channels)

    def load(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Reads an image file as a network's input, uint8 (height, width, channels).

        Raises:
            OSError: If the file cannot be read.
            InputError: If the file is not a regular file, is damaged, has an unsupported
                format, or has more than `decoding.MAX_PIXELS` pixels.
        """
        encoded = read_file(path, 4 * decoding.MAX_PIXELS)
        try:
            return self.read(tf.constant(encoded)).numpy()
        except tf.errors.OpError as error:
            problem = f"The file is damaged or not a {IMAGE_FORMATS} image"
            if size := decoding.describe_size(error):
                problem = f"The image has {size}"
            raise InputError(f"{problem}. Received: {os.fspath(path)!r}") from None

    def decode(self, encoded: tf.Tensor, upright: bool = True) -> tf.Tensor:
        """Decodes a JPEG, PNG, WebP, BMP or GIF (first frame) file.

        Args:
            encoded: Content of the file, a scalar string.
            upright: Whether a JPEG is rotated according to its EXIF orientation. Users'
                images are rotated. Images of datasets are not, because all published
                evaluations ignore EXIF orientations. One in a hundred images of
                ImageNet has an orientation, and some orientations are wrong.

        Returns:
            uint8 (any height, any width, channels).
        """
        return decoding.decode_image(encoded, self.channels, upright)

    def view(self, image: tf.Tensor, margin: int = 0) -> tf.Tensor:
        """Returns the central crop of an image, which is the network's input.

        The image keeps its aspect ratio and is resized to just cover the input size
        divided by `crop`. Then the centre is cut out. Sides and offsets are rounded as
        in torchvision. If `crop` is 1, an image of the input's size is returned
        unchanged.

        Args:
            image: uint8 (any height, any width, channels).
            margin: Number of extra pixels on each side, at most `self.margin`.

        Returns:
            uint8 (height + 2 margin, width + 2 margin, channels).
        """
        size, sides = self._crop_size(margin), tf.shape(image)[:2]
        if self.crop == 1 and image.shape[:2] == size:
            return image
        resized_sides, corner = self._plan_resize(sides, size, self.crop)
        return self._resample(image, (0, 0), resized_sides / sides, corner, size)

    def read(
        self, encoded: tf.Tensor, margin: int = 0, upright: bool = True
    ) -> tf.Tensor:
        """Decodes an image file and returns its central crop.

        Only the part of a JPEG that the crop shows is decoded and resampled.

        Args:
            encoded: Content of the file, a scalar string.
            margin: See `view`.
            upright: See `decode`.

        Returns:
            The result of `view(decode(encoded, upright), margin)`, except that a few
            pixels of a JPEG differ by 1.
        """
        is_upright_jpeg = tf.io.is_jpeg(encoded)
        if upright:
            is_upright_jpeg &= decoding.read_orientation(encoded) == 1
        image = tf.cond(
            is_upright_jpeg,
            lambda: self._read_jpeg_part(encoded, self._crop_size(margin)),
            lambda: self.view(self.decode(encoded, upright), margin),
        )
        return tf.ensure_shape(image, (*self._crop_size(margin), self.channels))

    def _read_jpeg_part(self, encoded: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
        """Decodes and resamples the part of a JPEG that the crop shows."""
        sides = tf.io.extract_jpeg_shape(encoded)[:2]
        resized_sides, corner = self._plan_resize(sides, size, self.crop)
        scale = resized_sides / sides
        # Radius of the kernel in pixels of the original image, plus a pixel of margin.
        radius = _KERNELS[self.interpolation][1] * tf.maximum(1 / scale, 1.0) + 1
        corner64 = tf.cast(corner, tf.float64)
        origin = tf.maximum(tf.floor(corner64 / scale - radius), 0.0)
        end = tf.cast(tf.math.ceil((corner64 + size) / scale + radius), tf.int32)
        origin = tf.cast(origin, tf.int32)
        part = tf.concat([origin, tf.minimum(sides, end) - origin], 0)
        image = decode_jpeg_part(encoded, part, self.channels, "INTEGER_ACCURATE")
        return self._resample(image, origin, scale, corner, size)

    def crop_and_resize(
        self, image: tf.Tensor, find_box: Callable[[tf.Tensor], tf.Tensor]
    ) -> tf.Tensor:
        """Crops a box of an image and resizes it to the network's input, for training.

        This is faster than `read`. Pixels differ from Pillow's bilinear filter by about
        1 on average. Pillow's bilinear and bicubic filters differ more from each other.

        Args:
            image: Content of an image file, or uint8 (any height, any width, channels).
                Only the box is decoded if the file is a JPEG.
            find_box: Function from the (height, width) of the image to the box (row,
                column, height, width), int32.

        Returns:
            uint8 (height, width, channels).
        """

        def crop_array(pixels: tf.Tensor) -> tf.Tensor:
            row, column, height, width = tf.unstack(find_box(tf.shape(pixels)[:2]))
            return pixels[row : row + height, column : column + width]

        def crop_jpeg() -> tf.Tensor:
            part = find_box(tf.io.extract_jpeg_shape(image)[:2])
            # The fast DCT is accurate enough for randomly augmented images.
            return decode_jpeg_part(image, part, self.channels, "INTEGER_FAST")

        def crop_other() -> tf.Tensor:
            return crop_array(self.decode(image, upright=False))

        if image.dtype == tf.string:
            part = tf.cond(tf.io.is_jpeg(image), crop_jpeg, crop_other)
        else:
            part = crop_array(image)
        is_larger = tf.reduce_prod(tf.shape(part)[:2]) > self.height * self.width
        options = {"images": part[None], "size": self.shape[:2]}
        # Averaging areas (to shrink) and bilinear interpolation (to enlarge) take half
        # as long as the antialiased kernels of `read`.
        resized = tf.cond(
            is_larger,
            lambda: tf.raw_ops.ResizeArea(**options),
            lambda: tf.raw_ops.ResizeBilinear(**options, half_pixel_centers=True),
        )
        return tf.ensure_shape(tf.cast(resized[0] + 0.5, tf.uint8), self.shape)

    def ten_crops(self, image: tf.Tensor) -> tf.Tensor:
        """Returns the centre and corner crops of an image and their mirror images.

        The ResNet paper cites Krizhevsky et al. 2012 for its 10-crop test. As in that
        work, the shorter side is resized to 256/224 of the input's shorter side, and
        the central square is cropped. fb.resnet.torch crops the whole image instead.

        Args:
            image: uint8 (any height, any width, channels).

        Returns:
            uint8 (10, height, width, channels).
        """
        size = (round(self.height / 0.875), round(self.width / 0.875))
        sides = tf.shape(image)[:2]
        resized_sides, corner = self._plan_resize(sides, size, 0.875)
        image = self._resample(image, (0, 0), resized_sides / sides, corner, size)
        max_y, max_x = size[0] - self.height, size[1] - self.width
        corners = [(round(max_y / 2), round(max_x / 2))]
        corners += [(y, x) for y in (0, max_y) for x in (0, max_x)]
        crops = [image[y : y + self.height, x : x + self.width] for y, x in corners]
        crops = tf.stack(crops)
        return tf.concat([crops, crops[:, :, ::-1]], 0)

    def resize_shorter_side(self, image: tf.Tensor, shorter_side: int) -> tf.Tensor:
        """Resizes an image such that its shorter side has `shorter_side` pixels."""
        sides = tf.shape(image)[:2]
        size = scale_to_cover(sides, (shorter_side, shorter_side))
        return self._resample(image, (0, 0), size / sides, (0, 0), size)

    def _crop_size(self, margin: int) -> tuple[int, int]:
        return (self.height + 2 * margin, self.width + 2 * margin)

    def _plan_resize(
        self, sides: tf.Tensor, size: tuple[int, int], crop: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the sides of the resized image and the corner of the crop, int32."""
        target = [round(side / crop) for side in self.shape[:2]]
        resized_sides = scale_to_cover(sides, target)
        # tf.round rounds halves to even, like Python's round(), which torchvision uses.
        corner = tf.round((tf.cast(resized_sides, tf.float64) - size) / 2)
        return resized_sides, tf.cast(corner, tf.int32)

    def _resample(
        self,
        image: tf.Tensor,
        origin: Sides,
        scale: tf.Tensor,
        corner: Sides,
        size: Sides,
    ) -> tf.Tensor:
        """Resizes an image by `scale`, and returns its crop of `size` at `corner`, uint8.

        `image` is the part of the original image that starts at (row, column) `origin`.
        """
        shift = tf.cast(origin, scale.dtype) * scale - tf.cast(corner, scale.dtype)
        image = tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=size,
            scale=tf.cast(scale, tf.float32),
            translation=tf.cast(shift, tf.float32),
            kernel_type=_KERNELS[self.interpolation][0],
            antialias=True,
        )[0]
        if self.interpolation == "bicubic":  # Bicubic values may exceed 255.
            image = tf.clip_by_value(image, 0.0, 255.0)
        return tf.cast(image + 0.5, tf.uint8)

    @property
    def margin(self) -> int:
        """Number of pixels between the central crop and the resized image's border."""
        shorter_side = min(self.height, self.width)
        return int(round(shorter_side / self.crop) - shorter_side) // 2


class CropReader(NamedTuple):
    """Functions that read one or several crops of an image.

    Attributes:
        decode: Function from the content of an image file to the crops.
        view: Function from a uint8 image to the same crops.
        spec: `tf.TensorSpec` of the crop, or a tuple with one spec for each crop.
    """

    decode: PixelFunction
    view: PixelFunction
    spec: tf.TensorSpec


def central_crop(preprocessing: Preprocessing, margin: int = 0) -> CropReader:
    """Returns functions that read the central crop and ignore EXIF orientations.

    See `Preprocessing.view` for `margin`.
    """
    shape = (*preprocessing._crop_size(margin), preprocessing.channels)
    return CropReader(
        lambda encoded: preprocessing.read(encoded, margin, upright=False),
        lambda image: preprocessing.view(image, margin),
        tf.TensorSpec(shape, tf.uint8),
    )


def scale_to_cover(sides: tf.Tensor, target: Sides) -> tf.Tensor:
    """Returns the sides scaled to just cover `target`, rounded as in torchvision."""
    sides, target = tf.cast(sides, tf.float64), tf.cast(target, tf.float64)
    return tf.cast(tf.floor(sides * tf.reduce_max(target / sides) + 1e-6), tf.int32)


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Returns the mean and the variance of each channel's pixel values from 0 to 255.

    The variance of a constant channel is replaced by 1.

    Args:
        images: uint8 (n, height, width, channels).
    """
    sums, square_sums = np.zeros(images.shape[-1]), np.zeros(images.shape[-1])
    for image in images:  # float64 copies of all images might not fit into memory.
        pixels = image.reshape(-1, images.shape[-1]).astype(np.float64)
        sums += pixels.sum(axis=0)
        square_sums += np.square(pixels).sum(axis=0)
    num_pixels = images[..., 0].size
    mean = sums / num_pixels
    variance = square_sums / num_pixels - np.square(mean)
    return mean.tolist(), np.where(variance > 0, variance, 1.0).tolist()
