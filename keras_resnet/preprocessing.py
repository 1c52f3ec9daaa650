"""From an image to a network's input: one definition for every use.

Training, evaluation, prediction and the exported artifacts all read images
through this module. Its results are raw pixels, uint8 from 0 to 255; a net
trained here normalises them itself, in its first layer, so that no client can
get that wrong.
"""

import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input.

    Attributes:
        height: of the network's input, in pixels.
        width: of the network's input, in pixels.
        channels: 1 (grey) or 3 (RGB).
        crop: share of the resized image, along each side, that the central crop
            keeps: 1 for small images, 0.875 (224 of 256 pixels) for photographs.
    """

    height: int
    width: int
    channels: int
    crop: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the network's input."""
        return (self.height, self.width, self.channels)

    def decode(self, encoded):
        """Decodes a JPEG, PNG, GIF (first frame) or BMP file.

        Args:
            encoded: scalar string tensor, the file's bytes.

        Returns:
            uint8 tensor (any height, any width, channels).
        """
        image = tf.io.decode_image(encoded, 3, expand_animations=False)
        image = tf.ensure_shape(image, (None, None, 3))
        # Not by decode_image, which makes grey of JPEG and PNG files only.
        return image if self.channels == 3 else tf.image.rgb_to_grayscale(image)

    def view(self, image, margin=0):
        """The central crop of an image: what the network sees of it.

        The image is resized, bilinear with antialiasing, its aspect kept, until
        it just covers the input divided by `crop`; the centre is cut out and
        rounded to whole pixel values. An image of the right size stays as it is.

        Args:
            image: uint8 tensor (any height, any width, channels).
            margin: number of pixels to keep around the crop, at most
                `self.margin`.

        Returns:
            uint8 tensor (height + 2 margin, width + 2 margin, channels).
        """
        height, width = self.height + 2 * margin, self.width + 2 * margin
        if self.crop == 1 and image.shape[:2] == (height, width):
            return image
        sides = tf.cast(tf.shape(image)[:2], tf.float64)
        target = tf.constant([self.height, self.width], tf.float64) / self.crop
        scale = tf.reduce_max(target / sides)
        sides = tf.cast(tf.round(sides * scale), tf.int32)
        image = tf.image.resize(image, sides, antialias=True)
        top_left = (sides - [height, width]) // 2
        image = tf.slice(
            image, [top_left[0], top_left[1], 0], [height, width, self.channels]
        )
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    @property
    def margin(self) -> int:
        """Pixels of a resized image on each side of the central crop."""
        return (
            int(round(min(self.height, self.width) / self.crop) - min(self.shape[:2]))
            // 2
        )


def crop_and_flip(images, size, draws, flip):
    """Random crops of a batch, mirrored at random.

    Args:
        images: (batch, height, width, channels), at least `size` large.
        size: (height, width) of the crops, in pixels.
        draws: (batch, 3) numbers from [0, 1) that decide the rows, the columns
            and the mirroring of each image.
        flip: whether to mirror half of the images.

    Returns:
        (batch, *size, channels) of the same type.
    """
    height, width = size
    rows, columns = images.shape[1] - height + 1, images.shape[2] - width + 1
    top = tf.cast(draws[:, 0] * rows, tf.int32)[:, None]
    left = tf.cast(draws[:, 1] * columns, tf.int32)[:, None]
    rows = top + tf.range(height)
    columns = left + tf.range(width)
    if flip:
        columns = tf.where(draws[:, 2:] < 0.5, columns, columns[:, ::-1])
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)


def statistics(images):
    """Mean and variance of each channel.

    Args:
        images: uint8 array (number, height, width, channels).

    Returns:
        Two lists of one float for each channel, in pixel values and their
        squares. A channel that never changes gets the variance 1.
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
