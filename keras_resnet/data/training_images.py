"""One training image: read, cropped at random, mirrored and augmented."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_resnet.data import augmentation, policies
from keras_resnet.data.augmentation import Colour, crop_and_flip
from keras_resnet.data.preprocessing import Preprocessing, central_crop
from keras_resnet.data.splits import Split
from keras_resnet.spec import Recipe

# From a place in the split, three numbers from [0, 1) and a seed (2,) to an image.
# Each has a leading dimension where it is for a batch.
ImageReader = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


class ImageReaders(NamedTuple):
    """How the images of a step come about.

    Attributes:
        batch: Reads all images of a step at once; `None` where they are better read
            one by one, in parallel.
        single: Reads one image.
    """

    batch: ImageReader | None
    single: ImageReader


def make_readers(
    split: Split, preprocessing: Preprocessing, recipe: Recipe, mean: Colour
) -> ImageReaders:
    """Makes the functions that read and augment training images.

    Args:
        split: The training images.
        preprocessing: To the training images' size.
        recipe: What the augmentation is read from.
        mean: Mean of each channel in pixel values, the colour of erased rectangles.
    """
    if recipe.crop == "pad":
        return _padded_readers(split, preprocessing, recipe, mean)
    size, entries = preprocessing.shape[:2], split.entries()
    draw_box = {"inception": _inception, "shorter_side": _shorter_side}[recipe.crop]

    def read_boxed(place: tf.Tensor, draws: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        seeds = tf.random.experimental.stateless_split(seed, 2)
        read = functools.partial(
            preprocessing.cut,
            box_of=lambda sides: draw_box(sides, seeds[0], size, recipe),
        )
        image = split.reader(read, read)(entries[place])
        return _augment(_flip(image, draws, recipe), seeds[1], recipe, mean)

    return ImageReaders(None, read_boxed)


def _padded_readers(
    split: Split, preprocessing: Preprocessing, recipe: Recipe, mean: Colour
) -> ImageReaders:
    """Readers that crop the padded image, or the resized one with its margin."""
    size, entries = preprocessing.shape[:2], split.entries()
    pad = 0 if preprocessing.crop < 1 else round(recipe.pad * preprocessing.height)
    border = [[pad, pad], [pad, pad], [0, 0]]
    decode, view, _ = central_crop(preprocessing, preprocessing.margin)

    def read_padded(place: tf.Tensor, draws: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        image = tf.pad(split.reader(decode, view)(entries[place]), border)
        room = tf.shape(image)[:2] - size + 1
        corner = tf.cast(draws[:2] * tf.cast(room, tf.float32), tf.int32)
        image = tf.slice(image, [*tf.unstack(corner), 0], preprocessing.shape)
        return _augment(_flip(image, draws, recipe), seed, recipe, mean)

    def read_all(places: tf.Tensor, draws: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        del seeds
        images = tf.pad(tf.gather(entries, places), [[0, 0], *border])
        return crop_and_flip(images, size, draws, recipe.flip)

    augments = recipe.policy != "none" or recipe.colour or recipe.erase
    at_once = not augments and split.stays_under(view)
    return ImageReaders(read_all if at_once else None, read_padded)


def _inception(
    sides: tf.Tensor, seed: tf.Tensor, size: tuple[int, int], recipe: Recipe
) -> tf.Tensor:
    del size
    return augmentation.inception_box(sides, seed, (recipe.area, 1.0))


def _shorter_side(
    sides: tf.Tensor, seed: tf.Tensor, size: tuple[int, int], recipe: Recipe
) -> tf.Tensor:
    """The paper's box, moved to whole pixels of the image."""
    del recipe
    box = augmentation.shorter_side_box(sides, seed, size)
    first, last = tf.round(box[:2]), tf.round(box[:2] + box[2:])
    first = tf.minimum(tf.cast(first, tf.int32), sides - 1)
    last = tf.clip_by_value(tf.cast(last, tf.int32), first + 1, sides)
    return tf.concat([first, last - first], 0)


def _flip(image: tf.Tensor, draws: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    if not recipe.flip:
        return image
    return tf.cond(draws[2] < 0.5, lambda: image, lambda: tf.reverse(image, [1]))


def _augment(
    image: tf.Tensor, seed: tf.Tensor, recipe: Recipe, mean: Colour
) -> tf.Tensor:
    """Changes the colours and shapes of an image."""
    seeds = tf.random.experimental.stateless_split(seed, 3)
    if recipe.policy == "trivial_augment":
        image = policies.trivial_augment(image, seeds[0])
    elif recipe.policy == "rand_augment":
        image = policies.rand_augment(image, seeds[0], 2, recipe.magnitude)
    elif recipe.policy == "rand_augment_increasing":
        image = policies.rand_augment(
            image, seeds[0], 2, recipe.magnitude, 0.5, increasing=True, fill=mean
        )
    if recipe.colour:
        image = augmentation.pca_colour(image, seeds[1], recipe.colour)
    if recipe.erase:
        image = augmentation.erase(image, seeds[2], recipe.erase, mean)
    return image
