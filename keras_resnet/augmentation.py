"""Random changes of training images: pure functions, for a tf.data graph.

Every random number is drawn from the seed that a function is given, so that a batch
depends on its seed alone. Images are uint8 (height, width, channels) of 1 or 3
channels and stay so.

Keras's layers are not used: RandAugment, MixUp, CutMix and RandomErasing draw from
seed generators that keep state, and RandAugment has other operations and ranges than
the published recipes, runs each of them on every batch, as floats, and chooses once
for all of its images. Nor is tf.image for colours: its contrast keeps the mean of
each channel and its saturation goes by HSV, where the recipes use Pillow's.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.preprocessing import _cover

# Eigenvalues and eigenvectors (columns; rows are R, G, B) of ImageNet's colours, for
# pixels from 0 to 1, as fb.resnet.torch has them (datasets/imagenet.lua).
_PCA_VALUES = (0.2175, 0.0188, 0.0045)
_PCA_VECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
# ITU-R 601-2 luma, as Pillow has it: exact in float32, sums included.
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)


# Boxes


def inception_box(sides, seed, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """Draws the part of an image that becomes the input, by area and aspect ratio.

    Szegedy et al. 2015 (arXiv:1409.4842), as torchvision's RandomResizedCrop: the
    first of ten tries that fits, else the central part whose ratio is nearest.

    Args:
        sides: int32 tensor (height, width) of the image, in pixels.
        seed: integer tensor (2,).
        scale: range of the share of the area, drawn uniformly.
        ratio: range of width / height, whose logarithm is drawn uniformly.

    Returns:
        int32 tensor (y, x, height, width), in pixels.
    """
    sides = tf.convert_to_tensor(sides)
    draws = tf.random.stateless_uniform((10, 4), seed)
    width, height = _random_sides(sides, draws, scale, ratio)
    boxes = tf.stack([height, width], 1)
    fits = tf.reduce_all((boxes > 0) & (boxes <= sides), 1)
    height, width = tf.unstack(tf.cast(sides, tf.float32))
    rounded = tf.round([width / min(ratio), height * max(ratio)])
    central = tf.minimum(sides, tf.cast(rounded, tf.int32))
    return tf.cond(
        tf.reduce_any(fits),
        lambda: _place(sides, boxes, fits, draws),
        lambda: tf.concat([(sides - central) // 2, central], 0),
    )


def shorter_side_box(sides, seed, size, shorter=(256, 480)):
    """Draws the part of an image that becomes the input: the paper's way.

    Section 3.4 (after Simonyan & Zisserman 2015): the image is resized, its aspect
    kept, until its shorter side has a length drawn from a range, and a crop of the
    input's size is cut at random. The paper's input is 224x224; for another the
    range grows with its shorter side, and the resized image covers it alike.

    Args:
        sides: int32 tensor (height, width) of the image, in pixels.
        seed: integer tensor (2,).
        size: (height, width) of the input, in pixels.
        shorter: range of the shorter side for an input of 224, whole pixels.

    Returns:
        float32 tensor (y, x, height, width) in pixels of the image as it is: resizing
        that box to `size` is resizing the image and cropping.

    Raises:
        InputError: the resized image would not cover the input.
    """
    if not 224 <= shorter[0] <= shorter[1]:
        raise InputError(
            "The range of the shorter side must begin at 224 or above. "
            f"Received: shorter={shorter}"
        )
    draws = tf.random.stateless_uniform((3,), seed)
    low, high = (round(side * min(size) / 224) for side in shorter)
    drawn = tf.cast(low + _whole(draws[0], high - low + 1), tf.float64)
    resized = _cover(sides, [drawn * side / min(size) for side in size])
    corner = _whole(draws[1:], resized - size + 1)
    scale = resized / sides
    box = tf.concat([tf.cast(corner, scale.dtype) / scale, size / scale], 0)
    return tf.cast(box, tf.float32)


def erase(image, seed, probability, fill, scale=(0.02, 1 / 3), ratio=(0.3, 3.3)):
    """Covers a random box of an image with a colour, or leaves it as it is.

    Zhong et al. 2017 (arXiv:1708.04896), as torchvision's RandomErasing: the first of
    ten tries that is smaller than the image along both sides; where none is, nothing.

    Args:
        image: uint8 tensor (height, width, channels).
        seed: integer tensor (2,).
        probability: of covering anything.
        fill: the colour: a pixel value for each channel or for all, rounded.
        scale: range of the share of the area, drawn uniformly.
        ratio: range of height / width, whose logarithm is drawn uniformly.

    Returns:
        uint8 tensor (height, width, channels).
    """
    image = tf.convert_to_tensor(image)
    sides = tf.shape(image)[:2]
    whether, where = tf.unstack(tf.random.split(seed))
    draws = tf.random.stateless_uniform((10, 4), where)
    boxes = tf.stack(_random_sides(sides, draws, scale, ratio), 1)
    fits = tf.reduce_all(boxes < sides, 1)

    def erased():
        y, x, height, width = tf.unstack(_place(sides, boxes, fits, draws))
        inside = _inside(sides, y, x, y + height, x + width)
        return tf.where(inside, _colour(fill, image.shape[-1]), image)

    chosen = tf.random.stateless_uniform((), whether) < probability
    return tf.cond(chosen & tf.reduce_any(fits), erased, lambda: image)


def _random_sides(sides, draws, scale, ratio):
    """Sides of random boxes, the first `ratio` times the second; int32 (tries,) each."""
    area = tf.reduce_prod(tf.cast(sides, tf.float32))
    area *= scale[0] + draws[:, 0] * (scale[1] - scale[0])
    low, high = map(math.log, ratio)
    ratios = tf.exp(low + draws[:, 1] * (high - low))
    # Half to even, as Python rounds in torchvision.
    pair = tf.round([tf.sqrt(area * ratios), tf.sqrt(area / ratios)])
    return tf.unstack(tf.cast(pair, tf.int32))


def _place(sides, boxes, fits, draws):
    """The first box that fits, anywhere: int32 (y, x, height, width)."""
    first = tf.argmax(fits)
    corner = _whole(draws[first, 2:], sides - boxes[first] + 1)
    return tf.concat([corner, boxes[first]], 0)


def _whole(draws, count):
    """Whole numbers below `count` from numbers of [0, 1)."""
    return tf.cast(draws * tf.cast(count, tf.float32), tf.int32)


def _inside(sides, top, left, bottom, right):
    """Which pixels lie in a box: bool (height, width, 1)."""
    rows, columns = tf.range(sides[0])[:, None, None], tf.range(sides[1])[:, None]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def _colour(fill, channels):
    """A pixel: uint8 (channels,)."""
    fill = tf.round(tf.cast(fill, tf.float32))
    return tf.broadcast_to(tf.cast(fill, tf.uint8), (channels,))


# Colours


def pca_colour(image, seed, std=0.1):
    """Shifts the colour of an image along the principal axes of ImageNet's colours.

    Krizhevsky et al. 2012, section 4.1, whose "standard color augmentation" the paper
    uses, with the numbers of fb.resnet.torch.

    Args:
        image: uint8 tensor (height, width, channels); a grey one is not changed.
        seed: integer tensor (2,).
        std: standard deviation of the random factor of each eigenvalue.

    Returns:
        uint8 tensor (height, width, channels), rounded and clipped.
    """
    image = tf.convert_to_tensor(image)
    if image.shape[-1] == 1:
        return image
    draws = std * tf.random.stateless_normal((3,), seed)
    shift = 255 * tf.linalg.matvec(_PCA_VECTORS, draws * _PCA_VALUES)
    # Pixels are whole: rounding the sum is rounding the shift.
    return _to_pixels(tf.cast(image, tf.float32) + tf.round(shift))


def _to_pixels(image):
    """Clips and truncates, as Pillow does."""
    return tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8)


def _luma(image):
    """Grey of a float32 image as Pillow's convert("L") has it: (height, width, 1)."""
    if image.shape[-1] == 1:
        return image
    return tf.floor(tf.linalg.matvec(image, _LUMA) + 0.5)[..., None]


def _look_up(image, tables):
    """Replaces pixel values: `tables` (channels, 256), of numbers from 0 to 255."""
    tables = tf.reshape(tf.cast(tables, tf.uint8), [-1])
    return tf.gather(tables, tf.cast(image, tf.int32) + _starts(image))


def _starts(image):
    """Where the table of each channel begins: int32 (channels,)."""
    return 256 * tf.range(image.shape[-1])


# Operations: functions of an image, an amount and how to move pixels (`_warp`). All give
# what Pillow gives, to the level, but for bilinear interpolation. Tables of 256 entries
# only where arithmetic would round otherwise: looking pixels up takes longer.


def _identity(image, *_):
    return image


def _auto_contrast(image, *_):
    low = tf.cast(tf.reduce_min(image, (0, 1)), tf.float64)[:, None]
    high = tf.cast(tf.reduce_max(image, (0, 1)), tf.float64)[:, None]
    levels = tf.range(256, dtype=tf.float64)
    scale = 255 / tf.maximum(high - low, 1)
    tables = tf.where(high > low, levels * scale + -low * scale, levels)
    return _look_up(image, tf.clip_by_value(tables, 0, 255))


def _equalize(image, *_):
    channels = image.shape[-1]
    found = tf.math.bincount(
        tf.cast(image, tf.int32) + _starts(image),
        minlength=256 * channels,
        maxlength=256 * channels,
    )
    found = tf.reshape(found, (channels, 256))
    brightest = tf.cast(tf.reduce_max(image, (0, 1)), tf.int32)
    last = tf.gather(found, brightest, batch_dims=1)
    step = ((tf.reduce_sum(found, 1) - last) // 255)[:, None]
    below = tf.cumsum(found, 1, exclusive=True)
    tables = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    return _look_up(image, tf.where(step > 0, tables, tf.range(256)))


def _invert(image, *_):
    return 255 - image


def _posterize(image, bits, _):
    kept = 256 - tf.bitwise.right_shift(256, tf.cast(bits, tf.int32))
    return tf.bitwise.bitwise_and(image, tf.cast(kept, tf.uint8))


def _solarize(image, threshold, _):
    above = tf.cast(image, tf.float32) >= threshold
    return tf.bitwise.bitwise_xor(image, 255 * tf.cast(above, tf.uint8))


def _solarize_add(image, addition, _):
    return image + tf.cast(image < 128, tf.uint8) * tf.cast(addition, tf.uint8)


def _blend(flat, image, factor):
    """Away from a flat version of an image, or towards it; Pillow's ImageEnhance."""
    return _to_pixels(flat + factor * (image - flat))


def _brightness(image, factor, _):
    return _blend(0.0, tf.cast(image, tf.float32), factor)


def _colour_balance(image, factor, _):
    if image.shape[-1] == 1:
        return image
    image = tf.cast(image, tf.float32)
    return _blend(_luma(image), image, factor)


def _contrast(image, factor, _):
    image = tf.cast(image, tf.float32)
    mean = tf.reduce_mean(tf.cast(_luma(image), tf.float64))
    return _blend(tf.cast(tf.floor(mean + 0.5), tf.float32), image, factor)


def _sharpness(image, factor, _):
    image = tf.cast(image, tf.float32)
    rows = image[:-2] + image[1:-1] + image[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]
    detail = image[1:-1, 1:-1] - tf.floor(sums / 13 + 0.5)
    # The outermost pixels have no neighbours to be smoothed with.
    detail = tf.pad(detail, [[1, 1], [1, 1], [0, 0]])
    return _blend(image - detail, image, factor)


def _shear_x(image, shear, warp):
    return warp(image, (1, shear, 0, 0, 1, 0))


def _shear_y(image, shear, warp):
    return warp(image, (1, 0, 0, shear, 1, 0))


def _translate_x(image, pixels, warp):
    return warp(image, (1, 0, pixels, 0, 1, 0))


def _translate_y(image, pixels, warp):
    return warp(image, (1, 0, 0, 0, 1, pixels))


def _rotate(image, degrees, warp):
    turn = tf.cast(degrees, tf.float64) * (math.pi / 180)
    cos, sin = tf.cos(turn), tf.sin(turn)
    y, x = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float64) / 2)
    return warp(
        image, (cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos)
    )


def _warp(image, matrix, bilinear, fill):
    """Moves the pixels of an image, as Pillow's affine transform does.

    Args:
        image: uint8 tensor (height, width, channels), sides below 10000 pixels.
        matrix: (a, b, c, d, e, f): what comes to (x, y) was at (ax + by + c,
            dx + ey + f), in pixels; the centre of the first pixel is (0.5, 0.5).
        bilinear: whether to interpolate, which gives Pillow's pixels to a level but
            for a few at the border, or to take the nearest pixel, which is exact.
        fill: the colour of what comes from outside.

    Returns:
        uint8 tensor (height, width, channels).
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    a, b, c, d, e, f = (tf.cast(number, tf.float64) for number in matrix)

    def position(across, down, start):
        # In Pillow's fixed-point numbers: 16 bits behind the point.
        across, down, start = (
            tf.cast(tf.floor(number * 65536 + 0.5), tf.int32)
            for number in (across, down, start + across * 0.5 + down * 0.5)
        )
        place = across * tf.range(width) + down * tf.range(height)[:, None] + start
        return tf.bitwise.right_shift(place, 16)

    x, y = position(a, b, c), position(d, e, f)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    colour = _colour(fill, image.shape[-1])
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


# Spaces of operations


@dataclasses.dataclass(frozen=True)
class Space:
    """What a policy draws from.

    Attributes:
        ops: from a name to an operation and how much of it, a function of the level
            (from 0 to 1), a sign (-1 or 1) and the image's (height, width); or
            `None` for an operation without a measure.
        top: the highest magnitude, level 1.
        probability: that a chosen operation is applied.
        bilinear: whether moved pixels are interpolated.
    """

    ops: Mapping[str, tuple[Callable, Callable | None]]
    top: int
    probability: float
    bilinear: bool


def _either(most):
    return lambda level, sign, _: sign * level * most


def _of_side(axis, most):
    return lambda level, sign, sides: sign * level * most * sides[axis]


def _from_one(most):
    return lambda level, sign, _: 1 + sign * level * most


def _truncated(amount):
    """In whole numbers, towards zero."""
    return lambda *given: tf.cast(tf.cast(amount(*given), tf.int32), tf.float32)


def _torchvision(shear, down, across, degrees, factor, bits):
    """The operations of torchvision's RandAugment and TrivialAugmentWide."""
    return {
        "Identity": (_identity, None),
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
_INCREASING = {
    "AutoContrast": (_auto_contrast, None),
    "Equalize": (_equalize, None),
    "Invert": (_invert, None),
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


def rand_augment(image, seed, ops=2, magnitude=9, std=0.0, increasing=False, fill=0):
    """Applies operations drawn from a list, all with one magnitude (RandAugment).

    Cubuk et al. 2019 (arXiv:1909.13719), in one of two versions. By default it is
    torchvision's, with 31 magnitudes and the nearest pixel where pixels move. The
    other is timm's with `inc1`, which "ResNet strikes back" (arXiv:2110.00476) trains
    with: its `rand-m7-mstd0.5-inc1` is `magnitude=7, std=0.5, increasing=True`. There
    a drawn operation is applied with probability 1/2, and moved pixels are bilinear;
    timm draws between that and bicubic each time.

    Args:
        image: uint8 tensor (height, width, channels). Grey ones keep their colour;
            nothing else changes for them.
        seed: integer tensor (2,).
        ops: how many operations, one after the other; each is drawn from all.
        magnitude: from 0 to 30, or to 10 if `increasing`.
        std: standard deviation of the magnitude, which is drawn for each operation
            and clipped to its range; in its unit.
        increasing: whether it is timm's version.
        fill: the colour of what comes from outside of the image: a pixel value for
            each channel or for all. timm's is the mean colour.

    Returns:
        uint8 tensor (height, width, channels).

    Raises:
        InputError: there is no such magnitude.
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


def trivial_augment(image, seed, fill=0):
    """Applies one operation with a magnitude, both drawn (TrivialAugment, wide).

    Müller & Hutter 2021 (arXiv:2103.10158), as torchvision's TrivialAugmentWide.

    Args:
        image: uint8 tensor (height, width, channels), as for `rand_augment`.
        seed: integer tensor (2,).
        fill: as for `rand_augment`.

    Returns:
        uint8 tensor (height, width, channels).
    """
    space = SPACES["wide"]
    draws = tf.random.stateless_uniform((4,), seed)
    level = tf.floor(draws[3] * (space.top + 1)) / space.top
    return _apply_one(image, space, draws, level, fill)


def _apply_one(image, space, draws, level, fill):
    """Applies an operation of a space: draws decide which, whether and the sign."""
    image = tf.convert_to_tensor(image)
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    sign = tf.where(draws[2] < 0.5, -1.0, 1.0)
    warp = functools.partial(_warp, bilinear=space.bilinear, fill=fill)

    def branch(op, amount):
        return lambda: op(image, amount and amount(level, sign, sides), warp)

    branches = [branch(*row) for row in space.ops.values()]
    choice = _whole(draws[0], len(branches))
    choice = tf.where(draws[1] < space.probability, choice, len(branches))
    # Of the branches only the chosen one runs; past the last one nothing is done.
    changed = tf.switch_case(choice, branches, default=lambda: image)
    return tf.ensure_shape(changed, image.shape)


# Batches


def mix(images, labels, seed, mixup, cutmix):
    """Mixes the images of a batch in pairs, and their labels in the same shares.

    Either blends each image with its partner (mixup, arXiv:1710.09412) or replaces a
    box of it (CutMix, arXiv:1905.04899); with both, one of them is drawn for a batch,
    each with probability 1/2, as by timm and torchvision. The image's share is drawn
    once for a batch too, from Beta(alpha, alpha). Partners are images 0 and 1, 2 and
    3 and so on, since a batch is in random order anyway; a last one without a partner
    stays as it is. All that is drawn depends on the seed alone: a batch may be mixed
    whole or in parts that begin at even places.

    Args:
        images: uint8 tensor (batch, height, width, channels).
        labels: float32 tensor (batch, classes), each row adding up to 1.
        seed: integer tensor (2,).
        mixup: alpha of the blending; 0 for none.
        cutmix: alpha of the boxes; 0 for none.

    Returns:
        Images and labels of the same shapes and types. Blended pixels are rounded,
        by which they differ from the paper's by at most half a level. For a box cut
        off at the border, the labels' shares are those of the areas.
    """
    images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
    which, share, place = tf.unstack(tf.random.split(seed, 3))
    places = tf.range(tf.shape(images)[0])
    partners = tf.bitwise.bitwise_xor(places, 1)
    partners = tf.where(partners < tf.size(places), partners, places)
    others = tf.gather(images, partners)

    def blended():
        kept = _beta(share, mixup)
        ours, theirs = tf.cast(images, tf.float32), tf.cast(others, tf.float32)
        return tf.cast(theirs + kept * (ours - theirs) + 0.5, tf.uint8), kept

    def boxed():
        sides = tf.shape(images)[1:3]
        centre = _whole(tf.random.stateless_uniform((2,), place), sides)
        half = _whole(tf.sqrt(1 - _beta(share, cutmix)) / 2, sides)
        corner = tf.maximum(centre - half, 0)
        end = tf.minimum(centre + half, sides)
        inside = _inside(sides, *tf.unstack(corner), *tf.unstack(end))
        replaced = tf.reduce_prod(end - corner) / tf.reduce_prod(sides)
        return tf.where(inside, others, images), 1 - tf.cast(replaced, tf.float32)

    if mixup and cutmix:
        first = tf.random.stateless_uniform((), which) < 0.5
        images, kept = tf.cond(first, blended, boxed)
    elif mixup or cutmix:
        images, kept = blended() if mixup else boxed()
    else:
        return images, labels
    others = tf.gather(labels, partners)
    return images, others + kept * (labels - others)


def _beta(seed, alpha):
    """A number of Beta(alpha, alpha)."""
    pair = tf.random.stateless_gamma((2,), seed, alpha)
    # Both may underflow for a small alpha, which then stands for an end of the range.
    return tf.math.divide_no_nan(pair[0], tf.reduce_sum(pair))
