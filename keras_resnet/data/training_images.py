"""Functions that read, crop and augment training images."""

import functools
from collections.abc import Callable

import tensorflow as tf

from keras_resnet.data import augmentation, policies
from keras_resnet.data.augmentation import Colour, crop_and_flip, to_integers
from keras_resnet.data.preprocessing import Preprocessing, central_crop
from keras_resnet.data.splits import Split
from keras_resnet.spec import Recipe

# Function from an index in the split, three random numbers from [0, 1) and a seed (2,)
# to an augmented image. To read a batch, each tensor has a leading batch dimension.
ImageReader = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
# A reader of batches and a reader of single images. The reader of batches is `None` if
# reading single images in parallel is faster.
ImageReaders = tuple[ImageReader | None, ImageReader]


def make_readers(
    split: Split, preprocessing: Preprocessing, recipe: Recipe, mean: Colour
) -> ImageReaders:
    """Returns readers of augmented images. See `TrainingBatches` for the arguments."""
    if recipe.crop == "pad":
        return _make_padded_readers(split, preprocessing, recipe, mean)
    entries = split.entries()

    def draw_box(sides: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        if recipe.crop == "inception":
            return augmentation.draw_inception_box(sides, seed, (recipe.area, 1.0))
        return _draw_paper_box(sides, seed, preprocessing.shape[:2])

    def read_crop(index: tf.Tensor, draws: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        seeds = tf.random.experimental.stateless_split(seed, 2)
        find_box = functools.partial(draw_box, seed=seeds[0])
        read = functools.partial(preprocessing.crop_and_resize, find_box=find_box)
        image = split.make_reader(read, read)(entries[index])
        return _augment(image, draws, seeds[1], recipe, mean)

    return None, read_crop


def _make_padded_readers(
    split: Split, preprocessing: Preprocessing, recipe: Recipe, mean: Colour
) -> ImageReaders:
    """Returns readers of random crops of zero-padded images or larger central crops."""
    size, entries = preprocessing.shape[:2], split.entries()
    pad_size = 0 if preprocessing.crop < 1 else round(recipe.pad * preprocessing.height)
    padding = [[pad_size, pad_size], [pad_size, pad_size], [0, 0]]
    decode, view, _ = central_crop(preprocessing, preprocessing.margin)

    def read_padded(index: tf.Tensor, draws: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        image = tf.pad(split.make_reader(decode, view)(entries[index]), padding)
        corner = to_integers(draws[:2], tf.shape(image)[:2] - size + 1)
        image = tf.slice(image, [*tf.unstack(corner), 0], preprocessing.shape)
        return _augment(image, draws, seed, recipe, mean)

    def read_batch(indices: tf.Tensor, draws: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        del seeds
        images = tf.pad(tf.gather(entries, indices), [[0, 0], *padding])
        return crop_and_flip(images, size, draws, recipe.flip)

    is_augmented = recipe.policy != "none" or recipe.colour or recipe.erase
    reads_batches = not is_augmented and split.is_unchanged_by(view)
    return read_batch if reads_batches else None, read_padded


def _draw_paper_box(
    sides: tf.Tensor, seed: tf.Tensor, size: tuple[int, int]
) -> tf.Tensor:
    """Draws the box of `draw_shorter_side_box`, rounded to whole pixels."""
    box = augmentation.draw_shorter_side_box(sides, seed, size)
    first, last = tf.round(box[:2]), tf.round(box[:2] + box[2:])
    first = tf.minimum(tf.cast(first, tf.int32), sides - 1)
    last = tf.clip_by_value(tf.cast(last, tf.int32), first + 1, sides)
    return tf.concat([first, last - first], 0)


def _augment(
    image: tf.Tensor, draws: tf.Tensor, seed: tf.Tensor, recipe: Recipe, mean: Colour
) -> tf.Tensor:
    """Mirrors an image at random and applies the recipe's other augmentations."""
    if recipe.flip:
        image = tf.cond(draws[2] < 0.5, lambda: image, lambda: tf.reverse(image, [1]))
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
        image = augmentation.shift_colours(image, seeds[1], recipe.colour)
    if recipe.erase:
        image = augmentation.erase(image, seeds[2], recipe.erase, mean)
    return image
