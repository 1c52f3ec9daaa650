"""Random changes of training images: pure functions, for a tf.data graph.

Every random number is drawn from the seed that a function is given, integers (2,), so
that a batch depends on its seed alone. Images are uint8 (height, width, channels) of
1 or 3 channels and stay so.

Keras's layers are not used: RandAugment, MixUp, CutMix and RandomErasing draw from
seed generators that keep state, and RandAugment has other operations and ranges than
the published recipes, runs each of them on every batch, as floats, and chooses once
for all of its images. Nor is tf.image for colours: its contrast keeps the mean of
each channel and its saturation goes by HSV, where the recipes use Pillow's.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

from keras_resnet.data.preprocessing import covering_sides
from keras_resnet.support import InputError

# Eigenvalues and eigenvectors (columns; rows are R, G, B) of ImageNet's colours, for
# pixels from 0 to 1, as fb.resnet.torch has them (datasets/imagenet.lua).
_PCA_VALUES = (0.2175, 0.0188, 0.0045)
_PCA_VECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)

Range = tuple[float, float]
# A pixel value for each channel or for all.
Colour = float | Sequence[float]


def inception_box(
    sides: tf.Tensor,
    seed: tf.Tensor,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """Draws the part of an image that becomes the input, by area and aspect ratio.

    Szegedy et al. 2015 (arXiv:1409.4842), as torchvision's RandomResizedCrop: the
    first of ten tries that fits, else the central part whose ratio is nearest.

    Args:
        sides: Height and width of the image in pixels, int32 (2,).
        scale: Range of the share of the area, drawn uniformly.
        ratio: Range of width / height, whose logarithm is drawn uniformly.

    Returns:
        int32 (y, x, height, width), in pixels.
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


def shorter_side_box(
    sides: tf.Tensor,
    seed: tf.Tensor,
    size: tuple[int, int],
    shorter: tuple[int, int] = (256, 480),
) -> tf.Tensor:
    """Draws the part of an image that becomes the input: the paper's way.

    Section 3.4 (after Simonyan & Zisserman 2015): the image is resized, its aspect
    kept, until its shorter side has a length drawn from a range, and a crop of the
    input's size is cut at random. The paper's input is 224x224; for another the
    range grows with its shorter side, and the resized image covers it alike.

    Args:
        sides: Height and width of the image in pixels, int32 (2,).
        size: Height and width of the input, in pixels.
        shorter: Range of the shorter side for an input of 224, whole pixels.

    Returns:
        float32 (y, x, height, width) in pixels of the image as it is: resizing
        that box to `size` is resizing the image and cropping.

    Raises:
        InputError: The resized image would not cover the input.
    """
    if not 224 <= shorter[0] <= shorter[1]:
        raise InputError(
            "The range of the shorter side must begin at 224 or above. "
            f"Received: shorter={shorter}"
        )
    draws = tf.random.stateless_uniform((3,), seed)
    low, high = (round(side * min(size) / 224) for side in shorter)
    drawn = tf.cast(low + whole_numbers(draws[0], high - low + 1), tf.float64)
    resized = covering_sides(sides, [drawn * side / min(size) for side in size])
    corner = whole_numbers(draws[1:], resized - size + 1)
    scale = resized / sides
    corner = tf.cast(corner, scale.dtype)
    return tf.cast(tf.concat([corner / scale, size / scale], 0), tf.float32)


def erase(
    image: tf.Tensor,
    seed: tf.Tensor,
    probability: float,
    fill: Colour,
    scale: Range = (0.02, 1 / 3),
    ratio: Range = (0.3, 3.3),
) -> tf.Tensor:
    """Covers a random box of an image with a colour, or leaves it as it is.

    Zhong et al. 2017 (arXiv:1708.04896), as torchvision's RandomErasing: the first of
    ten tries that is smaller than the image along both sides; where none is, nothing.

    Args:
        probability: Probability that anything is covered.
        fill: Colour of the box: a pixel value for each channel or for all, rounded.
        scale: Range of the share of the area, drawn uniformly.
        ratio: Range of height / width, whose logarithm is drawn uniformly.
    """
    image = tf.convert_to_tensor(image)
    sides = tf.shape(image)[:2]
    whether, where = tf.unstack(tf.random.split(seed))
    draws = tf.random.stateless_uniform((10, 4), where)
    boxes = tf.stack(_random_sides(sides, draws, scale, ratio), 1)
    fits = tf.reduce_all(boxes < sides, 1)

    def erased() -> tf.Tensor:
        box = _place(sides, boxes, fits, draws)
        inside = _inside(sides, box[:2], box[:2] + box[2:])
        return tf.where(inside, fill_colour(fill, image.shape[-1]), image)

    chosen = tf.random.stateless_uniform((), whether) < probability
    return tf.cond(chosen & tf.reduce_any(fits), erased, lambda: image)


def _random_sides(
    sides: tf.Tensor, draws: tf.Tensor, scale: Range, ratio: Range
) -> list[tf.Tensor]:
    """Sides of random boxes, the first `ratio` times the second; int32 (tries,) each."""
    area = tf.reduce_prod(tf.cast(sides, tf.float32))
    area *= scale[0] + draws[:, 0] * (scale[1] - scale[0])
    low, high = map(math.log, ratio)
    ratios = tf.exp(low + draws[:, 1] * (high - low))
    # Half to even, as Python rounds in torchvision.
    pair = tf.round([tf.sqrt(area * ratios), tf.sqrt(area / ratios)])
    return tf.unstack(tf.cast(pair, tf.int32))


def _place(
    sides: tf.Tensor, boxes: tf.Tensor, fits: tf.Tensor, draws: tf.Tensor
) -> tf.Tensor:
    """The first box that fits, anywhere: int32 (y, x, height, width)."""
    first = tf.argmax(fits)
    corner = whole_numbers(draws[first, 2:], sides - boxes[first] + 1)
    return tf.concat([corner, boxes[first]], 0)


def whole_numbers(draws: tf.Tensor, count: tf.Tensor | int) -> tf.Tensor:
    """Whole numbers below `count` from numbers of [0, 1)."""
    return tf.cast(draws * tf.cast(count, tf.float32), tf.int32)


def _inside(sides: tf.Tensor, corner: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Which pixels lie in a box: bool (height, width, 1)."""
    (top, left), (bottom, right) = tf.unstack(corner), tf.unstack(end)
    rows, columns = tf.range(sides[0])[:, None, None], tf.range(sides[1])[:, None]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def fill_colour(fill: Colour, channels: int) -> tf.Tensor:
    """A pixel: uint8 (channels,)."""
    fill = tf.round(tf.cast(fill, tf.float32))
    return tf.broadcast_to(tf.cast(fill, tf.uint8), (channels,))


def pca_colour(image: tf.Tensor, seed: tf.Tensor, std: float = 0.1) -> tf.Tensor:
    """Shifts the colour of an image along the principal axes of ImageNet's colours.

    Krizhevsky et al. 2012, section 4.1, whose "standard color augmentation" the paper
    uses, with the numbers of fb.resnet.torch. `std` is the standard deviation of the
    random factor of each eigenvalue. A grey image is not changed.
    """
    image = tf.convert_to_tensor(image)
    if image.shape[-1] == 1:
        return image
    draws = std * tf.random.stateless_normal((3,), seed)
    shift = 255 * tf.linalg.matvec(_PCA_VECTORS, draws * _PCA_VALUES)
    # Pixels are whole: rounding the sum is rounding the shift.
    return to_pixels(tf.cast(image, tf.float32) + tf.round(shift))


def to_pixels(image: tf.Tensor) -> tf.Tensor:
    """Clips and truncates, as Pillow does."""
    return tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8)


def mix(
    images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, mixup: float, cutmix: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes the images of a batch in pairs, and their labels in the same shares.

    Either blends each image with its partner (mixup, arXiv:1710.09412) or replaces a
    box of it (CutMix, arXiv:1905.04899); with both, one of them is drawn for a batch,
    each with probability 1/2, as by timm and torchvision. The image's share is drawn
    once for a batch too, from Beta(alpha, alpha). Partners are images 0 and 1, 2 and
    3 and so on, since a batch is in random order anyway; a last one without a partner
    stays as it is. All that is drawn depends on the seed alone: a batch may be mixed
    whole or in parts that begin at even places.

    Args:
        images: uint8 (batch, height, width, channels).
        labels: float32 (batch, classes), each row adding up to 1.
        mixup: Alpha of the blending; 0 for none.
        cutmix: Alpha of the boxes; 0 for none.

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

    def blended() -> tuple[tf.Tensor, tf.Tensor]:
        kept = _beta(share, mixup)
        ours, theirs = tf.cast(images, tf.float32), tf.cast(others, tf.float32)
        return tf.cast(theirs + kept * (ours - theirs) + 0.5, tf.uint8), kept

    def boxed() -> tuple[tf.Tensor, tf.Tensor]:
        sides = tf.shape(images)[1:3]
        centre = whole_numbers(tf.random.stateless_uniform((2,), place), sides)
        half = whole_numbers(tf.sqrt(1 - _beta(share, cutmix)) / 2, sides)
        corner, end = tf.maximum(centre - half, 0), tf.minimum(centre + half, sides)
        inside = _inside(sides, corner, end)
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


def _beta(seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """A number of Beta(alpha, alpha)."""
    pair = tf.random.stateless_gamma((2,), seed, alpha)
    # Both may underflow for a small alpha, which then stands for an end of the range.
    return tf.math.divide_no_nan(pair[0], tf.reduce_sum(pair))


def crop_and_flip(
    images: tf.Tensor, size: tuple[int, int], draws: tf.Tensor, flip: bool
) -> tf.Tensor:
    """Random crops of a batch, mirrored at random.

    Args:
        images: (batch, height, width, channels), at least `size` large.
        size: Height and width of the crops, in pixels.
        draws: Numbers from [0, 1) that decide the rows, the columns and the mirroring
            of each image, (batch, 3).
        flip: Whether half of the images are mirrored.
    """
    height, width = size
    rows, columns = images.shape[1] - height + 1, images.shape[2] - width + 1
    rows = tf.cast(draws[:, 0] * rows, tf.int32)[:, None] + tf.range(height)
    columns = tf.cast(draws[:, 1] * columns, tf.int32)[:, None] + tf.range(width)
    if flip:
        columns = tf.where(draws[:, 2:] < 0.5, columns, columns[:, ::-1])
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)
