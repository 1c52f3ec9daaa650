"""Decoding image files to pixels."""

import tensorflow as tf

IMAGE_FORMATS = "JPEG, PNG, WebP, BMP or GIF"


# An EXIF block's orientation in either order of bytes. \C is any byte.
_ORIENTATION = (
    r"\C*?Exif\x00\x00(?:"
    r"II\*\x00\x08\x00\x00\x00\C\C(?:(?:\C\x00|[\x00-\x11]\x01)\C{10})*?"
    r"\x12\x01\x03\x00\x01\x00\x00\x00(\C)\x00|"
    r"MM\x00\*\x00\x00\x00\x08\C\C(?:(?:\x00\C|\x01[\x00-\x11])\C{10})*?"
    r"\x01\x12\x00\x03\x00\x00\x00\x01\x00(\C))\C*"
)


def exif_orientation(encoded):
    """EXIF's orientation of a JPEG file, from 1 (upright) to 8."""
    head = tf.strings.substr(encoded, 0, 8192)
    found = tf.strings.regex_replace(
        head, f"^{_ORIENTATION}$", r"\1\2", replace_global=False
    )
    value = tf.io.decode_raw(tf.strings.substr(found, 0, 1), tf.uint8)
    value = tf.cast(tf.concat([value, [1]], 0)[0], tf.int32)
    known = (tf.strings.length(found) == 1) & (value >= 1) & (value <= 8)
    return tf.where(known, value, 1)


def _part(encoded, start, length):
    """Some of a file's bytes; none where it ends before them."""
    start = tf.minimum(start, tf.strings.length(encoded))
    return tf.strings.substr(encoded, start, length)


def _little(encoded, place):
    """A number of four bytes in a file, the lowest first."""
    return tf.io.decode_raw(tf.strings.substr(encoded, place, 4), tf.int32)[0]


def turn_upright(image, orientation):
    """Turns an image upright; see EXIF 2.3, tag 0x0112."""

    def transposed():
        # As int32: oneDNN complains, in every graph, that it cannot do uint8.
        return tf.cast(tf.transpose(tf.cast(image, tf.int32), (1, 0, 2)), tf.uint8)

    image = tf.cond(orientation > 4, transposed, lambda: image)
    mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    image = tf.cond(mirrored, lambda: image[:, ::-1], lambda: image)
    upended = tf.reduce_any(orientation == [3, 4, 7, 8])
    return tf.cond(upended, lambda: image[::-1], lambda: image)
