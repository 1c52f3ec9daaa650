"""Random augmentation of training images, as pure functions for a tf.data graph.

The result of each function depends on its arguments alone. Random numbers are derived
from the argument `seed`, integers (2,). Images are uint8 (height, width, channels) with
1 or 3 channels, before and after augmentation.

Keras's augmentation layers are not used, because their seed generators keep state.
Keras's RandAugment also differs from the published recipes: it has other operations and
ranges, computes in floating point, and applies the same operation to all images of a
batch. The recipes use Pillow's colour operations. Unlike these, the operations
of tf.image keep the mean of each channel and change saturation in HSV.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

from keras_resnet.data.preprocessing import scale_to_cover
from keras_resnet.support import InputError

# Eigenvalues and eigenvectors (columns) of the covariance matrix of ImageNet's R, G and
# B values, scaled to 0 to 1. Source: fb.resnet.torch, datasets/imagenet.lua.
_PCA_VALUES = (0.2175, 0.0188, 0.0045)
_PCA_VECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)

Range = tuple[float, float]
# A colour is one pixel value for all channels, or one value for each channel.
Colour = float | Sequence[float]


def draw_inception_box(
    sides: tf.Tensor, seed: tf.Tensor, scale: Range = (0.08, 1.0)
) -> tf.Tensor:
    """Draws a box to crop, with a random area and a random aspect ratio.

    This is the method of Szegedy et al. 2015 (arXiv:1409.4842) as implemented by
    torchvision's RandomResizedCrop. The aspect ratio (width / height) is drawn
    log-uniformly from 3/4 to 4/3. The result is the first of ten random boxes that fits
    into the image, else the largest central box with an aspect ratio in this range.

    Args:
        sides: Height and width of the image in pixels, int32 (2,).
        scale: Range of the uniformly drawn area, as a fraction of the image's area.

    Returns:
        The box (y, x, height, width) in pixels, int32.
    """
    sides, ratio = tf.convert_to_tensor(sides), (3 / 4, 4 / 3)
    draws = tf.random.stateless_uniform((10, 4), seed)
    width, height = _draw_sides(sides, draws, scale, ratio)
    boxes = tf.stack([height, width], 1)
    fits = tf.reduce_all((boxes > 0) & (boxes <= sides), 1)
    height, width = tf.unstack(tf.cast(sides, tf.float32))
    max_sides = tf.round([width / min(ratio), height * max(ratio)])
    central_sides = tf.minimum(sides, tf.cast(max_sides, tf.int32))
    return tf.cond(
        tf.reduce_any(fits),
        lambda: _place_first_fitting(sides, boxes, fits, draws),
        lambda: tf.concat([(sides - central_sides) // 2, central_sides], 0),
    )


def draw_shorter_side_box(
    sides: tf.Tensor,
    seed: tf.Tensor,
    size: tuple[int, int],
    shorter_range: tuple[int, int] = (256, 480),
) -> tf.Tensor:
    """Draws a box to crop, with the scale augmentation of the ResNet paper.

    Section 3.4 of the paper follows Simonyan & Zisserman 2015: an image is resized to a
    shorter side of random length, and a random crop of the input's size is taken. The
    paper's input is 224x224. For other inputs, the range of the shorter side is
    scaled in proportion to the shorter side of the input.

    Args:
        sides: Height and width of the image in pixels, int32 (2,).
        size: Height and width of the network's input in pixels.
        shorter_range: Range of the shorter side in pixels, for an input of 224x224.

    Returns:
        The box (y, x, height, width) in pixels of the original image, float32.
        Resizing this box to `size` equals resizing the image and cropping it.

    Raises:
        InputError: If the resized image could be smaller than `size`.
    """
    if not 224 <= shorter_range[0] <= shorter_range[1]:
        raise InputError(
            "The range of the shorter side must be a pair (low, high) in pixels with "
            f"224 <= low <= high. Received: shorter_range={shorter_range}"
        )
    draws = tf.random.stateless_uniform((3,), seed)
    low, high = (round(side * min(size) / 224) for side in shorter_range)
    shorter_side = tf.cast(low + to_integers(draws[0], high - low + 1), tf.float64)
    resized = scale_to_cover(sides, [shorter_side * side / min(size) for side in size])
    corner = to_integers(draws[1:], resized - size + 1)
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
    """Fills a random box of an image with a colour, or returns the image unchanged.

    This is the method of Zhong et al. 2017 (arXiv:1708.04896) as implemented by
    torchvision's RandomErasing. The first of ten random boxes that is smaller than the
    image along both sides is filled. If no box is smaller, the image is not changed.

    Args:
        probability: Probability that a box is filled.
        fill: Colour of the box, rounded to integers.
        scale: Range of the uniformly drawn area, as a fraction of the image's area.
        ratio: Range of height / width, which is drawn log-uniformly.
    """
    image = tf.convert_to_tensor(image)
    sides = tf.shape(image)[:2]
    decision_seed, box_seed = tf.unstack(tf.random.split(seed))
    draws = tf.random.stateless_uniform((10, 4), box_seed)
    boxes = tf.stack(_draw_sides(sides, draws, scale, ratio), 1)
    fits = tf.reduce_all(boxes < sides, 1)

    def erase_box() -> tf.Tensor:
        box = _place_first_fitting(sides, boxes, fits, draws)
        mask = _box_mask(sides, box[:2], box[:2] + box[2:])
        return tf.where(mask, make_pixel(fill, image.shape[-1]), image)

    should_erase = tf.random.stateless_uniform((), decision_seed) < probability
    return tf.cond(should_erase & tf.reduce_any(fits), erase_box, lambda: image)


def _draw_sides(
    sides: tf.Tensor, draws: tf.Tensor, scale: Range, ratio: Range
) -> list[tf.Tensor]:
    """Draws two sides of each box, int32. `ratio` is the range of first / second."""
    area = tf.reduce_prod(tf.cast(sides, tf.float32))
    area *= scale[0] + draws[:, 0] * (scale[1] - scale[0])
    low, high = map(math.log, ratio)
    ratios = tf.exp(low + draws[:, 1] * (high - low))
    # tf.round rounds halves to even, like Python's round(), which torchvision uses.
    box_sides = tf.round([tf.sqrt(area * ratios), tf.sqrt(area / ratios)])
    return tf.unstack(tf.cast(box_sides, tf.int32))


def _place_first_fitting(
    sides: tf.Tensor, boxes: tf.Tensor, fits: tf.Tensor, draws: tf.Tensor
) -> tf.Tensor:
    """Returns the first box that fits, at a random position (y, x, height, width)."""
    index = tf.argmax(fits)
    corner = to_integers(draws[index, 2:], sides - boxes[index] + 1)
    return tf.concat([corner, boxes[index]], 0)


def to_integers(draws: tf.Tensor, count: tf.Tensor | int) -> tf.Tensor:
    """Converts random numbers from [0, 1) to integers from 0 to `count` - 1."""
    return tf.cast(draws * tf.cast(count, tf.float32), tf.int32)


def _box_mask(sides: tf.Tensor, corner: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Returns a mask of the pixels in a box, bool (height, width, 1)."""
    (top, left), (bottom, right) = tf.unstack(corner), tf.unstack(end)
    rows, columns = tf.range(sides[0])[:, None, None], tf.range(sides[1])[:, None]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def make_pixel(fill: Colour, channels: int) -> tf.Tensor:
    """Converts a colour to the pixel values of all channels, uint8 (channels,)."""
    fill = tf.round(tf.cast(fill, tf.float32))
    return tf.broadcast_to(tf.cast(fill, tf.uint8), (channels,))


def shift_colours(image: tf.Tensor, seed: tf.Tensor, std: float = 0.1) -> tf.Tensor:
    """Shifts all pixels along the principal components of ImageNet's colours.

    This is the "standard color augmentation" of the ResNet paper, from section 4.1 of
    Krizhevsky et al. 2012, with the constants of fb.resnet.torch. `std` is the standard
    deviation of each eigenvalue's random factor. Grey images are not changed.
    """
    image = tf.convert_to_tensor(image)
    if image.shape[-1] == 1:
        return image
    draws = std * tf.random.stateless_normal((3,), seed)
    shift = 255 * tf.linalg.matvec(_PCA_VECTORS, draws * _PCA_VALUES)
    # Pixels are integers, so adding the rounded shift equals rounding the sum.
    return to_pixels(tf.cast(image, tf.float32) + tf.round(shift))


def to_pixels(image: tf.Tensor) -> tf.Tensor:
    """Converts a float image to uint8 by clipping and truncating, like Pillow."""
    return tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8)


def mix(
    images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, mixup: float, cutmix: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes the images of a batch in pairs, and their labels in the same proportion.

    Mixup (arXiv:1710.09412) blends each image with its partner. CutMix
    (arXiv:1905.04899) replaces a box of each image with the partner's pixels. If both
    are enabled, each batch uses either method with probability 1/2, as in timm and
    torchvision. The weight of an image is drawn from Beta(alpha, alpha), once for the
    batch. Partners are images 0 and 1, 2 and 3, and so on. If the number of images is
    odd, the last image is not mixed. All random numbers depend on the seed alone. Parts
    of a batch can therefore be mixed separately if they begin at even positions.

    Args:
        images: uint8 (batch, height, width, channels).
        labels: float32 (batch, classes), each row adding up to 1.
        mixup: Alpha of mixup, or 0 to disable mixup.
        cutmix: Alpha of CutMix, or 0 to disable CutMix.

    Returns:
        Mixed images, rounded to uint8, and mixed labels. CutMix weights the labels by
        the area of its box after clipping the box to the image.
    """
    images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
    method_seed, weight_seed, box_seed = tf.unstack(tf.random.split(seed, 3))
    index = tf.range(tf.shape(images)[0])
    partner_index = tf.bitwise.bitwise_xor(index, 1)
    partner_index = tf.where(partner_index < tf.size(index), partner_index, index)
    partners = tf.gather(images, partner_index)

    def blend() -> tuple[tf.Tensor, tf.Tensor]:
        weight = _draw_beta(weight_seed, mixup)
        x, y = tf.cast(images, tf.float32), tf.cast(partners, tf.float32)
        return tf.cast(y + weight * (x - y) + 0.5, tf.uint8), weight

    def replace_box() -> tuple[tf.Tensor, tf.Tensor]:
        sides = tf.shape(images)[1:3]
        centre = to_integers(tf.random.stateless_uniform((2,), box_seed), sides)
        half = to_integers(tf.sqrt(1 - _draw_beta(weight_seed, cutmix)) / 2, sides)
        corner, end = tf.maximum(centre - half, 0), tf.minimum(centre + half, sides)
        mask = _box_mask(sides, corner, end)
        box_fraction = tf.reduce_prod(end - corner) / tf.reduce_prod(sides)
        return tf.where(mask, partners, images), 1 - tf.cast(box_fraction, tf.float32)

    if mixup and cutmix:
        use_mixup = tf.random.stateless_uniform((), method_seed) < 0.5
        images, weight = tf.cond(use_mixup, blend, replace_box)
    elif mixup or cutmix:
        images, weight = blend() if mixup else replace_box()
    else:
        return images, labels
    partner_labels = tf.gather(labels, partner_index)
    return images, partner_labels + weight * (labels - partner_labels)


def _draw_beta(seed: tf.Tensor, alpha: float) -> tf.Tensor:
    gammas = tf.random.stateless_gamma((2,), seed, alpha)
    # For a small alpha, both gamma variates may be 0, and 0 / 0 would be NaN.
    return tf.math.divide_no_nan(gammas[0], tf.reduce_sum(gammas))


def crop_and_flip(
    images: tf.Tensor, size: tuple[int, int], draws: tf.Tensor, flip: bool
) -> tf.Tensor:
    """Crops the images of a batch at random positions and mirrors some of them.

    Args:
        images: (batch, height, width, channels), each at least as large as `size`.
        size: Height and width of the crops in pixels.
        draws: Random numbers from [0, 1), (batch, 3), that determine the first row, the
            first column and the mirroring of each image.
        flip: Whether to mirror each image with probability 1/2.
    """
    height, width = size
    y_count, x_count = images.shape[1] - height + 1, images.shape[2] - width + 1
    rows = tf.cast(draws[:, 0] * y_count, tf.int32)[:, None] + tf.range(height)
    columns = tf.cast(draws[:, 1] * x_count, tf.int32)[:, None] + tf.range(width)
    if flip:
        columns = tf.where(draws[:, 2:] < 0.5, columns, columns[:, ::-1])
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)
