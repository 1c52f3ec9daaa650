"""RandAugment and TrivialAugment, as torchvision and timm have them."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from keras_resnet.data.augmentation import Colour, fill_colour, to_pixels, whole_numbers
from keras_resnet.support import InputError

# ITU-R 601-2 luma, as Pillow has it: exact in float32, sums included.
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)

# (a, b, c, d, e, f): what comes to (x, y) was at (ax + by + c, dx + ey + f), in pixels;
# the centre of the first pixel is (0.5, 0.5).
Matrix = tuple[tf.Tensor | float, ...]
# From an image and a matrix to the moved image.
Warp = Callable[[tf.Tensor, Matrix], tf.Tensor]
# From an image, an amount and `Warp` to an image.
Operation = Callable[[tf.Tensor, Any, Warp], tf.Tensor]
# From a level (0 to 1), a sign (-1 or 1) and the image's (height, width) to the amount.
Amount = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
# By name. The amount is `None` for an operation without one.
Operations = Mapping[str, tuple[Operation, Amount | None]]


def _luma(image: tf.Tensor) -> tf.Tensor:
    """Grey of a float32 image as Pillow's convert("L") has it: (height, width, 1)."""
    if image.shape[-1] == 1:
        return image
    return tf.floor(tf.linalg.matvec(image, _LUMA) + 0.5)[..., None]


def _look_up(image: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Replaces pixel values: `tables` (channels, 256), of numbers from 0 to 255."""
    tables = tf.reshape(tf.cast(tables, tf.uint8), [-1])
    return tf.gather(tables, tf.cast(image, tf.int32) + _starts(image))


def _starts(image: tf.Tensor) -> tf.Tensor:
    """Where the table of each channel begins: int32 (channels,)."""
    return 256 * tf.range(image.shape[-1])


def _auto_contrast(image: tf.Tensor, *_: Any) -> tf.Tensor:
    low = tf.cast(tf.reduce_min(image, (0, 1)), tf.float64)[:, None]
    high = tf.cast(tf.reduce_max(image, (0, 1)), tf.float64)[:, None]
    levels = tf.range(256, dtype=tf.float64)
    scale = 255 / tf.maximum(high - low, 1)
    tables = tf.where(high > low, levels * scale + -low * scale, levels)
    return _look_up(image, tf.clip_by_value(tables, 0, 255))


def _equalize(image: tf.Tensor, *_: Any) -> tf.Tensor:
    channels = image.shape[-1]
    values, size = tf.cast(image, tf.int32) + _starts(image), 256 * channels
    histogram = tf.math.bincount(values, minlength=size, maxlength=size)
    histogram = tf.reshape(histogram, (channels, 256))
    brightest = tf.cast(tf.reduce_max(image, (0, 1)), tf.int32)
    last = tf.gather(histogram, brightest, batch_dims=1)
    step = ((tf.reduce_sum(histogram, 1) - last) // 255)[:, None]
    below = tf.cumsum(histogram, 1, exclusive=True)
    tables = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    return _look_up(image, tf.where(step > 0, tables, tf.range(256)))


def _posterize(image: tf.Tensor, bits: tf.Tensor, _: Warp) -> tf.Tensor:
    kept = 256 - tf.bitwise.right_shift(256, tf.cast(bits, tf.int32))
    return tf.bitwise.bitwise_and(image, tf.cast(kept, tf.uint8))


def _solarize(image: tf.Tensor, threshold: tf.Tensor, _: Warp) -> tf.Tensor:
    above = tf.cast(image, tf.float32) >= threshold
    return tf.bitwise.bitwise_xor(image, 255 * tf.cast(above, tf.uint8))


def _solarize_add(image: tf.Tensor, addition: tf.Tensor, _: Warp) -> tf.Tensor:
    return image + tf.cast(image < 128, tf.uint8) * tf.cast(addition, tf.uint8)


def _enhance(flat_of: Callable[[tf.Tensor], tf.Tensor | float]) -> Operation:
    """Away from a flat version of an image, or towards it; Pillow's ImageEnhance."""

    def enhanced(image: tf.Tensor, factor: tf.Tensor, _: Warp) -> tf.Tensor:
        image = tf.cast(image, tf.float32)
        flat = flat_of(image)
        return to_pixels(flat + factor * (image - flat))

    return enhanced


def _mean_grey(image: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(tf.cast(_luma(image), tf.float64))
    return tf.cast(tf.floor(mean + 0.5), tf.float32)


def _smooth(image: tf.Tensor) -> tf.Tensor:
    rows = image[:-2] + image[1:-1] + image[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]
    detail = image[1:-1, 1:-1] - tf.floor(sums / 13 + 0.5)
    # The outermost pixels have no neighbours to be smoothed with.
    return image - tf.pad(detail, [[1, 1], [1, 1], [0, 0]])


_brightness = _enhance(lambda image: 0.0)
_colour_balance = _enhance(_luma)
_contrast = _enhance(_mean_grey)
_sharpness = _enhance(_smooth)


def _affine(matrix_of: Callable[[tf.Tensor], Matrix]) -> Operation:
    return lambda image, amount, warp: warp(image, matrix_of(amount))


_shear_x = _affine(lambda shear: (1, shear, 0, 0, 1, 0))
_shear_y = _affine(lambda shear: (1, 0, 0, shear, 1, 0))
_translate_x = _affine(lambda pixels: (1, 0, pixels, 0, 1, 0))
_translate_y = _affine(lambda pixels: (1, 0, 0, 0, 1, pixels))


def _rotate(image: tf.Tensor, degrees: tf.Tensor, warp: Warp) -> tf.Tensor:
    turn = tf.cast(degrees, tf.float64) * (math.pi / 180)
    cos, sin = tf.cos(turn), tf.sin(turn)
    y, x = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float64) / 2)
    across, down = x - x * cos + y * sin, y - x * sin - y * cos
    return warp(image, (cos, -sin, across, sin, cos, down))


def _warp(image: tf.Tensor, matrix: Matrix, bilinear: bool, fill: Colour) -> tf.Tensor:
    """Moves the pixels of an image, sides below 10000, as Pillow's affine transform does.

    The nearest pixels are exact, `bilinear` ones Pillow's to a level but for a few at
    the border.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    a, b, c, d, e, f = (tf.cast(number, tf.float64) for number in matrix)

    def position(across: tf.Tensor, down: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
        # In Pillow's fixed-point numbers: 16 bits behind the point.
        across, down, start = (
            tf.cast(tf.floor(number * 65536 + 0.5), tf.int32)
            for number in (across, down, start + across * 0.5 + down * 0.5)
        )
        place = across * tf.range(width) + down * tf.range(height)[:, None] + start
        return tf.bitwise.right_shift(place, 16)

    x, y = position(a, b, c), position(d, e, f)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    colour = fill_colour(fill, image.shape[-1])
    if not bilinear:
        pixels = tf.reshape(image, (-1, image.shape[-1]))
        pixels = tf.concat([pixels, colour[None]], 0)
        return tf.gather(pixels, tf.where(inside, y * width + x, height * width))
    # Its coordinates are those of the pixels' centres. Beyond the outermost ones it
    # repeats them, as Pillow does up to the image's edge.
    matrix = (a, b, c + (a + b - 1) / 2, d, e, f + (d + e - 1) / 2, 0, 0)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=[[tf.cast(number, tf.float32) for number in matrix]],
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )[0]
    return tf.where(inside[..., None], moved, colour)


class Space(NamedTuple):
    """What a policy draws from."""

    ops: Operations
    top: int  # The highest magnitude, which is level 1.
    probability: float  # That a chosen operation is applied.
    bilinear: bool  # Whether moved pixels are interpolated.


def _either(most: float) -> Amount:
    return lambda level, sign, _: sign * level * most


def _of_side(axis: int, most: float) -> Amount:
    return lambda level, sign, sides: sign * level * most * sides[axis]


def _from_one(most: float) -> Amount:
    return lambda level, sign, _: 1 + sign * level * most


def _truncated(amount: Amount) -> Amount:
    """In whole numbers, towards zero."""
    return lambda *args: tf.cast(tf.cast(amount(*args), tf.int32), tf.float32)


def _torchvision(
    shear: float, down: Amount, across: Amount, degrees: float, factor: float, bits: int
) -> Operations:
    """The operations of torchvision's RandAugment and TrivialAugmentWide."""
    return {
        "Identity": (lambda image, *_: image, None),
        "ShearX": (_shear_x, _either(shear)),
        "ShearY": (_shear_y, _either(shear)),
        "TranslateX": (_translate_x, _truncated(across)),
        "TranslateY": (_translate_y, _truncated(down)),
        "Rotate": (_rotate, _either(degrees)),
        "Brightness": (_brightness, _from_one(factor)),
        "Color": (_colour_balance, _from_one(factor)),
        "Contrast": (_contrast, _from_one(factor)),
        "Sharpness": (_sharpness, _from_one(factor)),
        "Posterize": (_posterize, lambda level, *_: 8 - tf.round(level * bits)),
        "Solarize": (_solarize, lambda level, *_: 255 - level * 255),
        "AutoContrast": (_auto_contrast, None),
        "Equalize": (_equalize, None),
    }


_RAND = _torchvision(0.3, _of_side(0, 150 / 331), _of_side(1, 150 / 331), 30, 0.9, 4)
_WIDE = _torchvision(0.99, _either(32), _either(32), 135, 0.99, 6)

# timm.data.auto_augment's _RAND_INCREASING_TRANSFORMS.
_INCREASING: Operations = {
    "AutoContrast": (_auto_contrast, None),
    "Equalize": (_equalize, None),
    "Invert": (lambda image, *_: 255 - image, None),
    "Rotate": (_rotate, _either(30)),
    "Posterize": (_posterize, lambda level, *_: 4 - tf.floor(level * 4)),
    "Solarize": (_solarize, lambda level, *_: 256 - tf.floor(level * 256)),
    "SolarizeAdd": (_solarize_add, lambda level, *_: tf.floor(level * 110)),
    "Color": (_colour_balance, _from_one(0.9)),
    "Contrast": (_contrast, _from_one(0.9)),
    "Brightness": (_brightness, _from_one(0.9)),
    "Sharpness": (_sharpness, _from_one(0.9)),
    "ShearX": (_shear_x, _either(0.3)),
    "ShearY": (_shear_y, _either(0.3)),
    "TranslateX": (_translate_x, _of_side(1, 0.45)),
    "TranslateY": (_translate_y, _of_side(0, 0.45)),
}

SPACES = {
    "rand": Space(_RAND, top=30, probability=1.0, bilinear=False),
    "wide": Space(_WIDE, top=30, probability=1.0, bilinear=False),
    "increasing": Space(_INCREASING, top=10, probability=0.5, bilinear=True),
}


def rand_augment(
    image: tf.Tensor,
    seed: tf.Tensor,
    ops: int = 2,
    magnitude: float = 9,
    std: float = 0.0,
    increasing: bool = False,
    fill: Colour = 0,
) -> tf.Tensor:
    """Applies operations drawn from a list, all with one magnitude (RandAugment).

    Cubuk et al. 2019 (arXiv:1909.13719), in one of two versions. By default it is
    torchvision's, with 31 magnitudes and the nearest pixel where pixels move. The
    other is timm's with `inc1`, which "ResNet strikes back" (arXiv:2110.00476) trains
    with: its `rand-m7-mstd0.5-inc1` is `magnitude=7, std=0.5, increasing=True`. There
    a drawn operation is applied with probability 1/2, and moved pixels are bilinear;
    timm draws between that and bicubic each time.

    Args:
        image: uint8 (height, width, channels). The colour of grey ones does not change.
        seed: Random seed, integers (2,).
        ops: Number of operations, one after the other; each is drawn from all.
        magnitude: Magnitude from 0 to 30, or to 10 if `increasing`.
        std: Standard deviation of the magnitude, in its unit; it is drawn for each
            operation and clipped to its range.
        increasing: Whether it is timm's version.
        fill: Colour of what comes from outside of the image: a pixel value for
            each channel or for all. timm's is the mean colour.

    Raises:
        InputError: There is no such magnitude.
    """
    space = SPACES["increasing" if increasing else "rand"]
    if not 0 <= magnitude <= space.top:
        raise InputError(
            f"A magnitude from 0 to {space.top} is accepted. "
            f"Received: magnitude={magnitude} with increasing={increasing}"
        )
    uniform, normal = tf.unstack(tf.random.split(seed))
    draws = tf.random.stateless_uniform((ops, 3), uniform)
    magnitudes = magnitude + std * tf.random.stateless_normal((ops,), normal)
    levels = tf.clip_by_value(magnitudes / space.top, 0.0, 1.0)
    for draw, level in zip(tf.unstack(draws), tf.unstack(levels), strict=True):
        image = _apply_one(image, space, draw, level, fill)
    return image


def trivial_augment(image: tf.Tensor, seed: tf.Tensor, fill: Colour = 0) -> tf.Tensor:
    """Applies one operation with a magnitude, both drawn (TrivialAugment, wide).

    Müller & Hutter 2021 (arXiv:2103.10158), as torchvision's TrivialAugmentWide. The
    arguments are those of `rand_augment`.
    """
    space = SPACES["wide"]
    draws = tf.random.stateless_uniform((4,), seed)
    level = tf.floor(draws[3] * (space.top + 1)) / space.top
    return _apply_one(image, space, draws, level, fill)


def _apply_one(
    image: tf.Tensor, space: Space, draws: tf.Tensor, level: tf.Tensor, fill: Colour
) -> tf.Tensor:
    """Applies an operation of a space: draws decide which, whether and the sign."""
    image = tf.convert_to_tensor(image)
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    sign = tf.where(draws[2] < 0.5, -1.0, 1.0)
    warp = functools.partial(_warp, bilinear=space.bilinear, fill=fill)

    def branch(op: Operation, amount: Amount | None) -> Callable[[], tf.Tensor]:
        return lambda: op(image, amount and amount(level, sign, sides), warp)

    branches = [branch(*row) for row in space.ops.values()]
    choice = whole_numbers(draws[0], len(branches))
    choice = tf.where(draws[1] < space.probability, choice, len(branches))
    # Of the branches only the chosen one runs; past the last one nothing is done.
    changed = tf.switch_case(choice, branches, default=lambda: image)
    return tf.ensure_shape(changed, image.shape)
