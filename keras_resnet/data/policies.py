"""RandAugment and TrivialAugment, as implemented in torchvision and timm."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from keras_resnet.data.augmentation import Colour, make_pixel, to_integers, to_pixels
from keras_resnet.support import InputError

# Pillow's luma weights of R, G, B (ITU-R 601-2). Weighted sums are exact in float32.
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)

# Affine map (a, b, c, d, e, f): the output pixel at (x, y) is the input pixel at
# (ax + by + c, dx + ey + f). The centre of the first pixel is at (0.5, 0.5).
Matrix = tuple[tf.Tensor | float, ...]
# Function from an image and a `Matrix` to the transformed image.
Warp = Callable[[tf.Tensor, Matrix], tf.Tensor]
# Function from an image, a parameter (such as an angle in degrees) and a `Warp` to the
# changed image.
Operation = Callable[[tf.Tensor, Any, Warp], tf.Tensor]
# Function that returns an operation's parameter. Its arguments are the level (0 to 1),
# the sign (-1 or 1) and the image's (height, width).
Rule = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
# Maps the name of an operation to the operation and the rule for its parameter, or
# `None` if the operation has no parameter.
Operations = Mapping[str, tuple[Operation, Rule | None]]


def _to_luma(image: tf.Tensor) -> tf.Tensor:
    """Converts a float32 image to grey like Pillow's convert("L")."""
    if image.shape[-1] == 1:
        return image
    return tf.floor(tf.linalg.matvec(image, _LUMA) + 0.5)[..., None]


def _apply_tables(image: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Looks up pixel values in `tables`, (channels, 256), with a table per channel."""
    tables = tf.reshape(tf.cast(tables, tf.uint8), [-1])
    return tf.gather(tables, tf.cast(image, tf.int32) + 256 * tf.range(image.shape[-1]))


def _auto_contrast(image: tf.Tensor, *_: Any) -> tf.Tensor:
    low = tf.cast(tf.reduce_min(image, (0, 1)), tf.float64)[:, None]
    high = tf.cast(tf.reduce_max(image, (0, 1)), tf.float64)[:, None]
    levels = tf.range(256, dtype=tf.float64)
    scale = 255 / tf.maximum(high - low, 1)
    tables = tf.where(high > low, levels * scale + -low * scale, levels)
    return _apply_tables(image, tf.clip_by_value(tables, 0, 255))


def _equalize(image: tf.Tensor, *_: Any) -> tf.Tensor:
    channels = image.shape[-1]
    values, size = tf.cast(image, tf.int32) + 256 * tf.range(channels), 256 * channels
    histogram = tf.math.bincount(values, minlength=size, maxlength=size)
    histogram = tf.reshape(histogram, (channels, 256))
    brightest = tf.cast(tf.reduce_max(image, (0, 1)), tf.int32)
    num_brightest = tf.gather(histogram, brightest, batch_dims=1)
    step = ((tf.reduce_sum(histogram, 1) - num_brightest) // 255)[:, None]
    num_below = tf.cumsum(histogram, 1, exclusive=True)
    tables = tf.minimum((step // 2 + num_below) // tf.maximum(step, 1), 255)
    return _apply_tables(image, tf.where(step > 0, tables, tf.range(256)))


def _posterize(image: tf.Tensor, bits: tf.Tensor, _: Warp) -> tf.Tensor:
    mask = 256 - tf.bitwise.right_shift(256, tf.cast(bits, tf.int32))
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def _solarize(image: tf.Tensor, threshold: tf.Tensor, _: Warp) -> tf.Tensor:
    is_above = tf.cast(image, tf.float32) >= threshold
    return tf.bitwise.bitwise_xor(image, 255 * tf.cast(is_above, tf.uint8))


def _solarize_add(image: tf.Tensor, addition: tf.Tensor, _: Warp) -> tf.Tensor:
    return image + tf.cast(image < 128, tf.uint8) * tf.cast(addition, tf.uint8)


def _make_enhance(degrade: Callable[[tf.Tensor], tf.Tensor | float]) -> Operation:
    """Returns an operation that blends an image with a degraded version of the image.

    As in Pillow's ImageEnhance, the degraded version is a black image, for example. A
    factor of 0 returns the degraded version, and 1 returns the original image. Larger
    factors extrapolate.
    """

    def enhance(image: tf.Tensor, factor: tf.Tensor, _: Warp) -> tf.Tensor:
        image = tf.cast(image, tf.float32)
        degraded = degrade(image)
        return to_pixels(degraded + factor * (image - degraded))

    return enhance


def _compute_mean_grey(image: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(tf.cast(_to_luma(image), tf.float64))
    return tf.cast(tf.floor(mean + 0.5), tf.float32)


def _smooth(image: tf.Tensor) -> tf.Tensor:
    sums = image[:-2] + image[1:-1] + image[2:]
    sums = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:] + 4 * image[1:-1, 1:-1]
    detail = image[1:-1, 1:-1] - tf.floor(sums / 13 + 0.5)
    # The pixels at the border lack neighbours and are not smoothed.
    return image - tf.pad(detail, [[1, 1], [1, 1], [0, 0]])


_adjust_brightness = _make_enhance(lambda image: 0.0)
_adjust_colour = _make_enhance(_to_luma)
_adjust_contrast = _make_enhance(_compute_mean_grey)
_adjust_sharpness = _make_enhance(_smooth)


def _make_affine(make_matrix: Callable[[tf.Tensor], Matrix]) -> Operation:
    return lambda image, parameter, warp: warp(image, make_matrix(parameter))


_shear_x = _make_affine(lambda shear: (1, shear, 0, 0, 1, 0))
_shear_y = _make_affine(lambda shear: (1, 0, 0, shear, 1, 0))
_translate_x = _make_affine(lambda pixels: (1, 0, pixels, 0, 1, 0))
_translate_y = _make_affine(lambda pixels: (1, 0, 0, 0, 1, pixels))


def _rotate(image: tf.Tensor, degrees: tf.Tensor, warp: Warp) -> tf.Tensor:
    angle = tf.cast(degrees, tf.float64) * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float64) / 2)
    shift_x, shift_y = x - x * cos + y * sin, y - x * sin - y * cos
    return warp(image, (cos, -sin, shift_x, sin, cos, shift_y))


def _warp(image: tf.Tensor, matrix: Matrix, bilinear: bool, fill: Colour) -> tf.Tensor:
    """Applies an affine transform to an image with sides below 10,000 pixels.

    Without `bilinear`, the result equals Pillow's. With `bilinear`, pixel values differ
    from Pillow's by at most 1, except for a few pixels at the border.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    a, b, c, d, e, f = (tf.cast(value, tf.float64) for value in matrix)

    def find_source_indices(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        # To match Pillow, ax + by + c is a fixed-point number with 16 fractional bits.
        a, b, c = (
            tf.cast(tf.floor(value * 65536 + 0.5), tf.int32)
            for value in (a, b, c + a * 0.5 + b * 0.5)
        )
        position = a * tf.range(width) + b * tf.range(height)[:, None] + c
        return tf.bitwise.right_shift(position, 16)

    x, y = find_source_indices(a, b, c), find_source_indices(d, e, f)
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    colour = make_pixel(fill, image.shape[-1])
    if not bilinear:
        pixels = tf.reshape(image, (-1, image.shape[-1]))
        pixels = tf.concat([pixels, colour[None]], 0)
        return tf.gather(pixels, tf.where(is_inside, y * width + x, height * width))
    # ImageProjectiveTransformV3 places pixel centres at integers, so the matrix is
    # shifted by half a pixel. From the outermost pixel centres to the edge, NEAREST
    # repeats border pixels, as Pillow does. Beyond the edge, `colour` is used instead.
    matrix = (a, b, c + (a + b - 1) / 2, d, e, f + (d + e - 1) / 2, 0, 0)
    transformed = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=[[tf.cast(value, tf.float32) for value in matrix]],
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )[0]
    return tf.where(is_inside[..., None], transformed, colour)


class Space(NamedTuple):
    """The operations that a policy draws from, and the settings for applying them."""

    ops: Operations
    max_magnitude: int  # The level of an operation is magnitude / max_magnitude.
    probability: float  # Probability that a drawn operation is applied.
    bilinear: bool  # Whether geometric operations use bilinear interpolation.


# These rules change a parameter in proportion to the level, by `largest` at level 1.
def _signed(largest: float) -> Rule:
    return lambda level, sign, _: sign * level * largest


def _relative(axis: int, largest: float) -> Rule:
    return lambda level, sign, sides: sign * level * largest * sides[axis]


def _around_one(largest: float) -> Rule:
    return lambda level, sign, _: 1 + sign * level * largest


def _truncate(rule: Rule) -> Rule:
    return lambda *args: tf.cast(tf.cast(rule(*args), tf.int32), tf.float32)


def _get_ops(
    shear: float, dy_rule: Rule, dx_rule: Rule, degrees: float, factor: float, bits: int
) -> Operations:
    """Returns torchvision's operations, given the largest change of each parameter."""
    return {
        "Identity": (lambda image, *_: image, None),
        "ShearX": (_shear_x, _signed(shear)),
        "ShearY": (_shear_y, _signed(shear)),
        "TranslateX": (_translate_x, _truncate(dx_rule)),
        "TranslateY": (_translate_y, _truncate(dy_rule)),
        "Rotate": (_rotate, _signed(degrees)),
        "Brightness": (_adjust_brightness, _around_one(factor)),
        "Color": (_adjust_colour, _around_one(factor)),
        "Contrast": (_adjust_contrast, _around_one(factor)),
        "Sharpness": (_adjust_sharpness, _around_one(factor)),
        "Posterize": (_posterize, lambda level, *_: 8 - tf.round(level * bits)),
        "Solarize": (_solarize, lambda level, *_: 255 - level * 255),
        "AutoContrast": (_auto_contrast, None),
        "Equalize": (_equalize, None),
    }


_RAND_OPS = _get_ops(0.3, _relative(0, 150 / 331), _relative(1, 150 / 331), 30, 0.9, 4)
_WIDE_OPS = _get_ops(0.99, _signed(32), _signed(32), 135, 0.99, 6)

# Operations in the list `_RAND_INCREASING_TRANSFORMS` of timm.data.auto_augment.
_TIMM_OPS: Operations = {
    "AutoContrast": (_auto_contrast, None),
    "Equalize": (_equalize, None),
    "Invert": (lambda image, *_: 255 - image, None),
    "Rotate": (_rotate, _signed(30)),
    "Posterize": (_posterize, lambda level, *_: 4 - tf.floor(level * 4)),
    "Solarize": (_solarize, lambda level, *_: 256 - tf.floor(level * 256)),
    "SolarizeAdd": (_solarize_add, lambda level, *_: tf.floor(level * 110)),
    "Color": (_adjust_colour, _around_one(0.9)),
    "Contrast": (_adjust_contrast, _around_one(0.9)),
    "Brightness": (_adjust_brightness, _around_one(0.9)),
    "Sharpness": (_adjust_sharpness, _around_one(0.9)),
    "ShearX": (_shear_x, _signed(0.3)),
    "ShearY": (_shear_y, _signed(0.3)),
    "TranslateX": (_translate_x, _relative(1, 0.45)),
    "TranslateY": (_translate_y, _relative(0, 0.45)),
}

SPACES = {
    "rand": Space(_RAND_OPS, max_magnitude=30, probability=1.0, bilinear=False),
    "wide": Space(_WIDE_OPS, max_magnitude=30, probability=1.0, bilinear=False),
    "increasing": Space(_TIMM_OPS, max_magnitude=10, probability=0.5, bilinear=True),
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
    """Applies randomly drawn operations with a common magnitude (RandAugment).

    The method is from Cubuk et al. 2019 (arXiv:1909.13719). The default is the version
    of torchvision, with magnitudes from 0 to 30 and nearest-pixel interpolation.
    `increasing` selects the version of timm's option `inc1`, which is used by "ResNet
    strikes back" (arXiv:2110.00476): `rand-m7-mstd0.5-inc1` is `magnitude=7, std=0.5,
    increasing=True`. This version applies each drawn operation with probability 1/2 and
    interpolates bilinearly, while timm randomly uses bilinear or bicubic interpolation.

    Args:
        image: uint8 (height, width, channels). Grey images stay grey.
        seed: Random seed, integers (2,).
        ops: Number of operations, each drawn independently from all operations.
        magnitude: Magnitude from 0 to 30, or from 0 to 10 if `increasing`.
        std: Standard deviation of the normal distribution of magnitudes. A magnitude is
            drawn for each operation and clipped to the accepted range.
        increasing: Whether to use timm's version with `inc1`.
        fill: Colour of areas outside of the original image. timm uses the mean colour.

    Raises:
        InputError: If the magnitude is out of range.
    """
    space = SPACES["increasing" if increasing else "rand"]
    if not 0 <= magnitude <= space.max_magnitude:
        raise InputError(
            f"The magnitude must be from 0 to {space.max_magnitude}. "
            f"Received: magnitude={magnitude} with increasing={increasing}"
        )
    uniform_seed, normal_seed = tf.unstack(tf.random.split(seed))
    draws = tf.random.stateless_uniform((ops, 3), uniform_seed)
    magnitudes = magnitude + std * tf.random.stateless_normal((ops,), normal_seed)
    levels = tf.clip_by_value(magnitudes / space.max_magnitude, 0.0, 1.0)
    for draw, level in zip(tf.unstack(draws), tf.unstack(levels), strict=True):
        image = _apply_one_operation(image, space, draw, level, fill)
    return image


def trivial_augment(image: tf.Tensor, seed: tf.Tensor, fill: Colour = 0) -> tf.Tensor:
    """Applies a random operation with a random magnitude (TrivialAugment).

    This is the method of Müller & Hutter 2021 (arXiv:2103.10158) as implemented by
    torchvision's TrivialAugmentWide. See `rand_augment` for the arguments.
    """
    space = SPACES["wide"]
    draws = tf.random.stateless_uniform((4,), seed)
    level = tf.floor(draws[3] * (space.max_magnitude + 1)) / space.max_magnitude
    return _apply_one_operation(image, space, draws, level, fill)


def _apply_one_operation(
    image: tf.Tensor, space: Space, draws: tf.Tensor, level: tf.Tensor, fill: Colour
) -> tf.Tensor:
    """Applies at most one operation. `draws` are three random numbers from [0, 1)."""
    image = tf.convert_to_tensor(image)
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    sign = tf.where(draws[2] < 0.5, -1.0, 1.0)
    warp = functools.partial(_warp, bilinear=space.bilinear, fill=fill)

    def make_branch(op: Operation, rule: Rule | None) -> Callable[[], tf.Tensor]:
        return lambda: op(image, rule and rule(level, sign, sides), warp)

    branches = [make_branch(*row) for row in space.ops.values()]
    branch_index = to_integers(draws[0], len(branches))
    branch_index = tf.where(draws[1] < space.probability, branch_index, len(branches))
    # Only the chosen branch is computed. The default branch returns the image.
    augmented = tf.switch_case(branch_index, branches, default=lambda: image)
    return tf.ensure_shape(augmented, image.shape)
