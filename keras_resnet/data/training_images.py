"""One training image: read, cropped at random, mirrored and augmented."""

import functools
from collections.abc import Callable

import tensorflow as tf

from keras_resnet.data import augmentation, policies
from keras_resnet.data.augmentation import Colour, crop_and_flip, whole_numbers
from keras_resnet.data.preprocessing import Preprocessing, central_crop
from keras_resnet.data.splits import Split
from keras_resnet.spec import Recipe

# From a place in the split, three numbers from [0, 1) and a seed (2,) to an image.
# Each has a leading dimension where it is for a batch.
ImageReader = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
# For all images of a step at once, `None` where they are better read one by one, in
# parallel; and for one image.
ImageReaders = tuple[ImageReader | None, ImageReader]


def make_readers(
    split: Split, preprocessing: Preprocessing, recipe: Recipe, mean: Colour
) -> ImageReaders:
    """Makes the functions that read and augment images; as for `TrainingBatches`."""
    if recipe.crop == "pad":
        return _padded_readers(split, preprocessing, recipe, mean)
    entries = split.entries()

    def draw_box(sides: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        if recipe.crop == "inception":
            return augmentation.inception_box(sides, seed, (recipe.area, 1.0))
        return _shorter_side(sides, seed, preprocessing.shape[:2])

    def read_boxed(place: tf.Tensor, draws: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        seeds = tf.random.experimental.stateless_split(seed, 2)
        box_of = functools.partial(draw_box, seed=seeds[0])
        read = functools.partial(preprocessing.cut, box_of=box_of)
        image = split.reader(read, read)(entries[place])
        return _augment(image, draws, seeds[1], recipe, mean)

    return None, read_boxed


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
        corner = whole_numbers(draws[:2], tf.shape(image)[:2] - size + 1)
        image = tf.slice(image, [*tf.unstack(corner), 0], preprocessing.shape)
        return _augment(image, draws, seed, recipe, mean)

    def read_all(places: tf.Tensor, draws: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        del seeds
        images = tf.pad(tf.gather(entries, places), [[0, 0], *border])
        return crop_and_flip(images, size, draws, recipe.flip)

    augments = recipe.policy != "none" or recipe.colour or recipe.erase
    at_once = not augments and split.stays_under(view)
    return read_all if at_once else None, read_padded


def _shorter_side(
    sides: tf.Tensor, seed: tf.Tensor, size: tuple[int, int]
) -> tf.Tensor:
    """The paper's box, moved to whole pixels of the image."""
    box = augmentation.shorter_side_box(sides, seed, size)
    first, last = tf.round(box[:2]), tf.round(box[:2] + box[2:])
    first = tf.minimum(tf.cast(first, tf.int32), sides - 1)
    last = tf.clip_by_value(tf.cast(last, tf.int32), first + 1, sides)
    return tf.concat([first, last - first], 0)


def _augment(
    image: tf.Tensor, draws: tf.Tensor, seed: tf.Tensor, recipe: Recipe, mean: Colour
) -> tf.Tensor:
    """Mirrors an image at random, and changes its colours and shapes."""
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
        image = augmentation.pca_colour(image, seeds[1], recipe.colour)
    if recipe.erase:
        image = augmentation.erase(image, seeds[2], recipe.erase, mean)
    return image
