"""Input pipelines: from a split of a data set to batches.

Every batch is a function of the seed and the step alone: a run resumes anywhere
without reading what came before, and each worker reads its part only.
"""

import functools
import os

import numpy as np
import tensorflow as tf

from keras_resnet.data import augmentation, policies
from keras_resnet.data.augmentation import crop_and_flip
from keras_resnet.data.service import serve_batches
from keras_resnet.support import InputError


def steps_per_epoch(split, batch_size, shares):
    """Number of training steps in a pass over the images.

    The last batch may be smaller than the others. One that would leave a share
    without an image is dropped: at most `shares - 1` images of each pass, other
    ones each time.

    Args:
        split: the images.
        batch_size: of a step, over all replicas.
        shares: parts in which each batch is computed: replicas, times the
            recipe's `accumulate`.
    """
    full, rest = divmod(len(split), batch_size)
    return full + (rest >= shares)


def check_batch_size(batch_size, shares):
    """Refuses a global batch that the replicas don't share equally."""
    if batch_size < 1 or batch_size % shares:
        raise InputError(
            f"The batch is shared by {shares} replica(s) and must be a multiple of that; "
            "accumulate's parts and pairs that are mixed count as such. "
            f"Received: batch_size={batch_size}"
        )


def training_batches(
    split,
    preprocessing,
    recipe,
    replicas,
    seed,
    start,
    stop,
    *,
    here=None,
    classes=None,
    mean=(0.0,),
    service="",
):
    """Augmented batches for the steps `start` to `stop` of a run.

    Each is a function of the seed and its step, so that a resumed run sees what
    an undisturbed one would; and the images of a step, with their augmentation,
    are the same for any number of replicas.

    Args:
        split: the images.
        preprocessing: to the training images' size.
        recipe: a `keras_resnet.recipes.Recipe`, of which the batch and all about
            augmentation is read.
        replicas: that share each batch; their parts differ by one image at most, or
            by two where images are mixed in pairs.
        seed: whole number.
        start: first step, counted from the beginning of the run.
        stop: the step after the last.
        here: range of the replicas whose parts are wanted; `None` is all.
        classes: their number, which mixing needs.
        mean: of each channel, which erased rectangles get.
        service: address of a `tf.data` service that is to prepare the batches; or
            several, with commas between, which take turns. Each has one worker.

    Returns:
        A `tf.data.Dataset` of (images, labels, weights), an element for each
        replica and step: uint8 (part, height, width, channels); int32 (part,), or
        float32 (part, classes) where images are mixed; and float32 (part,), the
        weights of a step adding up to 1.
    """
    here = range(replicas) if here is None else here
    steps = steps_per_epoch(split, recipe.batch_size, recipe.shares(replicas))
    orders = _orders(split, recipe, replicas, seed)
    whole, one = _pixels(split, preprocessing, recipe, mean)
    # Of pairs, which are mixed, neither goes alone.
    unit = 2 if recipe.mixes else 1

    def bounds_of(count):
        """Where the replicas' parts of a batch begin and end."""
        bounds = tf.range(here.start, here.stop + 1) * -(-count // unit) // replicas
        return tf.minimum(bounds * unit, count)

    def plan(step, order):
        """A row for each image of this process's part of a step."""
        count = tf.size(order)
        # Not the seed of the shuffling: both would draw the same numbers.
        draws = tf.random.stateless_uniform((count, 3), (seed + 1, step))
        seeds = tf.random.stateless_uniform(
            (count, 2), (seed + 2, step), None, None, tf.int32
        )
        bounds = bounds_of(count)
        part = slice(bounds[0], bounds[-1])
        step, counts = tf.repeat(step, count), tf.repeat(count, count)
        return tuple(row[part] for row in (order, draws, seeds, step, counts))

    def fill(*rows):
        """All steps get as many rows: an image of the number -1 is none."""
        order, *rows = rows
        lacking = len(here) * recipe.batch_size // replicas - tf.size(order)
        rows = [tf.concat([r, tf.repeat(r[:1], lacking, 0)], 0) for r in rows]
        return tf.concat([order, tf.fill([lacking], -1)], 0), *rows

    def read(place, draws, seed, step, count):
        image = tf.cond(
            place >= 0,
            lambda: one(place, draws, seed),
            lambda: tf.zeros(preprocessing.shape, tf.uint8),
        )
        return image, place, step, count

    def finish(images, order, steps, counts):
        step, count = steps[0], counts[0]
        bounds = bounds_of(count) - bounds_of(count)[0]
        images, order = images[: bounds[-1]], order[: bounds[-1]]
        labels = tf.gather(split.labels, order)
        if recipe.mixes:
            labels = tf.one_hot(labels, classes)
            images, labels = augmentation.mix(
                images, labels, (seed + 3, step), recipe.mixup, recipe.cutmix
            )
        weights = tf.fill(tf.shape(order), 1 / tf.cast(count, tf.float32))
        return step, bounds, images, labels, weights

    def lane(number, count):
        """Every so many steps."""
        first = start // steps
        batches = tf.data.Dataset.range(first, -(-stop // steps)).flat_map(orders)
        batches = batches.skip(start - first * steps).take(stop - start)
        batches = batches.shard(count, number).map(plan)
        if whole is None:
            rows = batches.map(fill).unbatch()
            rows = rows.map(read, 4 * os.cpu_count(), deterministic=True)
            batches = rows.batch(len(here) * recipe.batch_size // replicas)
        else:
            batches = batches.map(
                lambda *r: (whole(*r[:3]), r[0], *r[3:]),
                os.cpu_count(),
                deterministic=True,
            )
        batches = batches.map(finish, os.cpu_count(), deterministic=True)
        return batches.with_options(_options())

    def part(_, bounds, *batch):
        return tf.data.Dataset.range(len(here)).map(
            lambda r: tuple(each[bounds[r] : bounds[r + 1]] for each in batch)
        )

    batches = serve_batches(lane, service, start, stop) if service else lane(0, 1)
    if len(here) == 1:
        batches = batches.map(lambda step, bounds, *batch: batch)
    else:
        batches = batches.flat_map(part)
    return batches.prefetch(2 * len(here)).with_options(_options())


def _orders(split, recipe, replicas, seed):
    """Returns a function from an epoch to the number and the images of its steps."""
    steps = steps_per_epoch(split, recipe.batch_size, recipe.shares(replicas))
    used = min(steps * recipe.batch_size, len(split))

    def orders(epoch):
        shuffled = tf.random.experimental.stateless_shuffle(
            tf.range(len(split)), (seed, epoch)
        )
        # Of repeated images the second round follows the first.
        place, distinct = tf.range(used), -(-recipe.batch_size // recipe.repeats)
        place = place // recipe.batch_size * distinct + (
            place % recipe.batch_size % distinct
        )
        step = epoch * steps + tf.range(steps, dtype=tf.int64)
        order = tf.data.Dataset.from_tensor_slices(tf.gather(shuffled, place))
        return tf.data.Dataset.zip(
            tf.data.Dataset.from_tensor_slices(step), order.batch(recipe.batch_size)
        )

    return orders


def places_of_step(split, recipe, replicas, seed, step):
    """Returns the places of the images of a step, in order; see `training_batches`."""
    steps = steps_per_epoch(split, recipe.batch_size, recipe.shares(replicas))
    epoch = tf.constant(step // steps, tf.int64)
    orders = _orders(split, recipe, replicas, seed)(epoch).skip(step % steps)
    return next(orders.as_numpy_iterator())[1]


def _pixels(split, preprocessing, recipe, mean):
    """How the images of a step come about.

    Returns:
        Two functions of a place in the split, three draws and a seed: one of a whole
        batch of them, `None` where images are better taken one by one; and of one.
    """
    size = preprocessing.shape[:2]
    polish = _polish(recipe, mean)
    entries = _entries(split)

    def turn(image, draws):
        if not recipe.flip:
            return image
        return tf.cond(draws[2] < 0.5, lambda: image, lambda: tf.reverse(image, [1]))

    if recipe.crop != "pad":
        draw = {"inception": _inception, "shorter_side": _shorter_side}[recipe.crop]

        def boxed(place, draws, seed):
            seeds = tf.random.experimental.stateless_split(seed, 2)
            read = functools.partial(
                preprocessing.cut,
                box_of=lambda sides: draw(sides, seeds[0], size, recipe),
            )
            image = split.reader(read, read)(entries[place])
            return polish(turn(image, draws), seeds[1])

        return None, boxed

    pad = 0 if preprocessing.crop < 1 else round(recipe.pad * preprocessing.height)
    border = [[pad, pad], [pad, pad], [0, 0]]
    decode, view, _ = central_crop(preprocessing, preprocessing.margin)

    def padded(place, draws, seed):
        image = tf.pad(split.reader(decode, view)(entries[place]), border)
        room = tf.shape(image)[:2] - size + 1
        corner = tf.cast(draws[:2] * tf.cast(room, tf.float32), tf.int32)
        image = tf.slice(image, [*tf.unstack(corner), 0], preprocessing.shape)
        return polish(turn(image, draws), seed)

    def all_padded(order, draws, seeds):
        del seeds
        images = tf.pad(tf.gather(entries, order), [[0, 0], *border])
        return crop_and_flip(images, size, draws, recipe.flip)

    changes = recipe.policy != "none" or recipe.colour or recipe.erase
    return None if changes or not _as_they_are(entries, view) else all_padded, padded


def _inception(sides, seed, size, recipe):
    del size
    return augmentation.inception_box(sides, seed, (recipe.area, 1.0))


def _shorter_side(sides, seed, size, recipe):
    """The paper's box, moved to whole pixels of the image."""
    del recipe
    box = augmentation.shorter_side_box(sides, seed, size)
    first, last = tf.round(box[:2]), tf.round(box[:2] + box[2:])
    first = tf.minimum(tf.cast(first, tf.int32), sides - 1)
    last = tf.clip_by_value(tf.cast(last, tf.int32), first + 1, sides)
    return tf.concat([first, last - first], 0)


def _polish(recipe, mean):
    """Returns a function from an image and a seed to one of other colours and shapes."""

    def polish(image, seed):
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

    return polish


def central_crop(preprocessing, margin=0):
    """The central crop of each image, as `evaluation_batches` takes it.

    Returns:
        Three things: a function from an encoded file, one from a uint8 image, both
        to the same crop, and what they give, a `tf.TensorSpec`.
    """
    height, width, channels = preprocessing.shape
    shape = (height + 2 * margin, width + 2 * margin, channels)
    return (
        lambda encoded: preprocessing.read(encoded, margin, upright=False),
        lambda image: preprocessing.view(image, margin),
        tf.TensorSpec(shape, tf.uint8),
    )


def evaluation_batches(split, cut, batch_size, replicas):
    """Every image once, in order.

    Args:
        split: the images.
        cut: what is taken of each image; see `central`.
        batch_size: over all replicas; a multiple of `replicas`.
        replicas: that share each batch equally; the last one is filled up with
            images of weight 0.

    Returns:
        A `tf.data.Dataset` like `training_batches`', with weights of 1 or 0.
    """
    filled = -(-len(split) // replicas) * replicas
    order = np.arange(filled) % len(split)
    weights = (np.arange(filled) < len(split)).astype(np.float32)
    view = _views(split, *cut)

    def load(order, weights):
        return view(order), tf.gather(split.labels, order), weights

    def parts(order, weights):
        share = tf.size(order) // replicas
        return tf.data.Dataset.from_tensor_slices((order, weights)).batch(
            tf.cast(share, tf.int64)
        )

    batches = tf.data.Dataset.from_tensor_slices((order, weights)).batch(batch_size)
    batches = batches.flat_map(parts).map(
        load, num_parallel_calls=os.cpu_count(), deterministic=True
    )
    return batches.prefetch(2).with_options(_options())


def load_views(split, preprocessing):
    """Returns every image as the network sees it.

    Returns:
        uint8 array (number, height, width, channels).
    """
    batches = evaluation_batches(split, central_crop(preprocessing), 64, 1)
    return np.concatenate([images for images, _, _ in batches.as_numpy_iterator()])


def _views(split, decode, view, spec):
    """Returns a function from indices to a batch of what is cut from the images."""
    images = _entries(split)
    if _as_they_are(images, view):
        return lambda order: tf.gather(images, order)
    read = split.reader(decode, view)
    return lambda order: tf.map_fn(
        lambda i: read(images[i]), order, fn_output_signature=spec
    )


def _as_they_are(images, view):
    """Whether these are pixels, of a size that a view leaves as it is."""
    if images.dtype != tf.uint8:
        return False
    sample = tf.zeros(images.shape[1:], tf.uint8)
    return view(sample) is sample


def _entries(split):
    with tf.device("CPU:0"):  # Whole sets do not belong in a GPU's memory.
        return tf.constant(split.images)


def _options():
    # tf.data's autotuning was seen to stall steps for up to seconds.
    options = tf.data.Options()
    options.autotune.enabled = False
    return options
