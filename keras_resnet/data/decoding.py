"""Decoders of image files, as functions for a tf.data graph."""

import re
from collections.abc import Callable
from functools import partial

import tensorflow as tf

IMAGE_FORMATS = "JPEG, PNG, WebP, BMP or GIF"

# Largest accepted number of pixels of an image. Images of 108-megapixel cameras are
# smaller. Such an image takes up to 0.8 GB of memory, and up to 5 GB if it is turned
# upright or converted to grey.
MAX_PIXELS = 2**27

# Function from an encoded file, or an entry of `Split.images`, to an image's pixels.
PixelFunction = Callable[[tf.Tensor], tf.Tensor]

# Matches the head of a JPEG file up to the orientation in its EXIF block, in either
# byte order. Group 1 or group 2 is the orientation. \C matches any byte.
_ORIENTATION = (
    r"\C*?Exif\x00\x00(?:"
    r"II\*\x00\x08\x00\x00\x00\C\C(?:(?:\C\x00|[\x00-\x11]\x01)\C{10})*?"
    r"\x12\x01\x03\x00\x01\x00\x00\x00(\C)\x00|"
    r"MM\x00\*\x00\x00\x00\x08\C\C(?:(?:\x00\C|\x01[\x00-\x11])\C{10})*?"
    r"\x01\x12\x00\x03\x00\x00\x00\x01\x00(\C))\C*"
)


def decode_image(encoded: tf.Tensor, channels: int, upright: bool) -> tf.Tensor:
    """Implements `Preprocessing.decode`."""

    def decode_jpeg() -> tf.Tensor:
        checked = _limit_pixels(encoded, tf.io.extract_jpeg_shape(encoded))
        image = tf.io.decode_jpeg(checked, 3, dct_method="INTEGER_ACCURATE")
        return _turn_upright(image, read_orientation(encoded)) if upright else image

    is_jpeg = tf.io.is_jpeg(encoded)
    image = tf.cond(is_jpeg, decode_jpeg, lambda: _decode_by_signature(encoded))
    return _convert_channels(tf.ensure_shape(image, (None, None, 3)), channels)


def decode_jpeg_part(
    encoded: tf.Tensor, part: tf.Tensor, channels: int, dct_method: str
) -> tf.Tensor:
    """Decodes a part of a JPEG file and ignores its EXIF orientation.

    Args:
        encoded: Content of the file, a scalar string.
        part: Box (row, column, height, width) in pixels, int32.
        channels: 1 (grey) or 3 (RGB).
        dct_method: `"INTEGER_ACCURATE"` or `"INTEGER_FAST"`.
    """
    checked = _limit_pixels(encoded, tf.io.extract_jpeg_shape(encoded))
    image = tf.image.decode_and_crop_jpeg(checked, part, 3, dct_method=dct_method)
    return _convert_channels(image, channels)


def _limit_pixels(encoded: tf.Tensor, sides: tf.Tensor) -> tf.Tensor:
    """Returns an image file. Reading it fails if the image has too large `sides`."""
    num_pixels = tf.reduce_prod(tf.cast(sides[:2], tf.float64))
    message = tf.strings.format("[{} x {} pixels]", (sides[1], sides[0]))
    check = tf.debugging.Assert(num_pixels <= MAX_PIXELS, [message])
    with tf.control_dependencies([check]):
        return tf.identity(encoded)


def describe_size(error: tf.errors.OpError) -> str:
    """Returns the size of an image that is too large, or `""` for other errors."""
    match = re.search(r"\[(\d+ x \d+ pixels)\]", error.message)
    return f"{match[1]}; at most {MAX_PIXELS:,} are accepted" if match else ""


def _convert_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    # tf.io.decode_image can convert only JPEG and PNG files to grey.
    return image if channels == 3 else tf.image.rgb_to_grayscale(image)


def _decode_by_signature(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes an image file that is not a JPEG. Its first bytes indicate the format."""
    encoded = _limit_pixels(encoded, _read_sides(encoded))
    offset = tf.minimum(8, tf.strings.length(encoded))  # substr fails past the end.
    magic = tf.strings.substr(encoded, 0, 4) + tf.strings.substr(encoded, offset, 4)
    is_webp = (tf.strings.length(encoded) > 20) & (magic == "RIFFWEBP")
    is_bmp = tf.strings.substr(encoded, 0, 2) == "BM"
    is_bmp &= tf.strings.length(encoded) > 54
    read_webp, read_bmp = (partial(f, encoded) for f in (_decode_webp, _decode_bmp))
    read_other = partial(_decode_any, encoded)
    return tf.cond(is_webp, read_webp, lambda: tf.cond(is_bmp, read_bmp, read_other))


def _read_sides(encoded: tf.Tensor) -> tf.Tensor:
    """Reads the height and width, int32 (2,), of a PNG, GIF or WebP file.

    Returns 0 for other files, such as BMP files, which are larger than their pixels.
    """
    head = tf.strings.substr(encoded, 0, 32) + bytes(32)
    start, kind = (tf.strings.substr(head, offset, 4) for offset in (0, 12))
    png_sides = tf.io.decode_raw(tf.strings.substr(head, 16, 8), tf.int32, False)

    def read(offset: int, num_bits: int) -> tf.Tensor:
        return _read_int32(head, offset) % 2**num_bits

    cases = [
        (start == b"\x89PNG", png_sides[1], png_sides[0]),
        (start == "GIF8", read(8, 16), read(6, 16)),
        (kind == "VP8X", read(27, 24) + 1, read(24, 24) + 1),
        (kind == "VP8L", read(21, 28) // 2**14 + 1, read(21, 14) + 1),
        (kind == "VP8 ", read(28, 14), read(26, 14)),
    ]
    return tf.add_n([tf.where(case, sides, 0) for case, *sides in cases])


def _decode_any(encoded: tf.Tensor, channels: int = 3) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels, expand_animations=False)


def _decode_webp(encoded: tf.Tensor) -> tf.Tensor:
    # tf.io.decode_image accepts only the number of channels of the WebP file, or 0 for
    # any number. With 0 channels, TensorFlow 2.21 writes beyond its buffer if the file
    # is animated. Decoding animated files with 3 channels raises an error instead.
    head = tf.io.decode_raw(tf.strings.substr(encoded, 12, 9), tf.uint8)
    is_extended = tf.strings.substr(encoded, 12, 4) == "VP8X"
    is_animated = is_extended & (tf.bitwise.bitwise_and(head[8], 2) > 0)
    decode_rgb, decode_native = (partial(_decode_any, encoded, n) for n in (3, 0))
    return tf.cond(is_animated, decode_rgb, decode_native)[..., :3]


def _decode_bmp(encoded: tf.Tensor) -> tf.Tensor:
    def decode_palette() -> tf.Tensor:
        # tf.io.decode_image returns the palette indices as if they were grey values.
        start = 14 + _read_int32(encoded, 14)
        palette = tf.strings.substr(encoded, start, _read_int32(encoded, 10) - start)
        palette = tf.reshape(tf.io.decode_raw(palette, tf.uint8), (-1, 4))
        indices = _decode_any(encoded)[..., 0]
        return tf.gather(palette, tf.cast(indices, tf.int32))[..., 2::-1]

    has_palette = _read_int32(encoded, 28) % 65536 == 8
    return tf.cond(has_palette, decode_palette, partial(_decode_any, encoded))


def _read_int32(encoded: tf.Tensor, offset: int) -> tf.Tensor:
    """Returns the little-endian int32 at a byte offset of a file."""
    return tf.io.decode_raw(tf.strings.substr(encoded, offset, 4), tf.int32)[0]


def read_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Reads a JPEG file's EXIF orientation, int32 from 1 (upright, default) to 8."""
    head = tf.strings.substr(encoded, 0, 8192)
    orientation = tf.strings.regex_replace(
        head, f"^{_ORIENTATION}$", r"\1\2", replace_global=False
    )
    value = tf.io.decode_raw(tf.strings.substr(orientation, 0, 1), tf.uint8)
    value = tf.concat([tf.cast(value, tf.int32), [1]], 0)[0]
    is_valid = (tf.strings.length(orientation) == 1) & (value >= 1) & (value <= 8)
    return tf.where(is_valid, value, 1)


def _turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns an image upright, given its EXIF orientation (EXIF 2.3, tag 0x0112)."""

    def transpose_image() -> tf.Tensor:
        # oneDNN prints an error line if integers are transposed. Four bytes of which the
        # last is 64 are the bytes of a float32 number from 2 to 4.
        four_channels = tf.pad(image, [[0, 0], [0, 0], [0, 1]], constant_values=64)
        pixels = tf.transpose(tf.bitcast(four_channels, tf.float32))
        return tf.bitcast(pixels, tf.uint8)[..., :3]

    image = tf.cond(orientation > 4, transpose_image, lambda: image)
    is_mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    image = tf.cond(is_mirrored, lambda: image[:, ::-1], lambda: image)
    is_upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
    return tf.cond(is_upside_down, lambda: image[::-1], lambda: image)
