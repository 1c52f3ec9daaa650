"""Input pipelines: from a split of a data set to batches.

Every batch is a function of the seed and the step alone: a run resumes anywhere
without reading what came before, and each worker reads its part only.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_resnet.data.augmentation import Colour, mix
from keras_resnet.data.preprocessing import Cut, Preprocessing, central_crop
from keras_resnet.data.service import serve_batches
from keras_resnet.data.splits import Split
from keras_resnet.data.training_images import ImageReader, ImageReaders, make_readers
from keras_resnet.spec import Recipe, steps_per_epoch
from keras_resnet.support import InputError

# A row for each image of a step, in parallel tensors (rows, ...): its place in the
# split, three numbers from [0, 1), a seed (2,), and the step and its number of images.
Rows = tuple[tf.Tensor, ...]


def check_batch_size(batch_size: int, shares: int) -> None:
    """Refuses a global batch that the replicas don't share equally."""
    if batch_size < 1 or batch_size % shares:
        raise InputError(
            f"The batch is shared by {shares} replica(s) and must be a multiple of that; "
            "accumulate's parts and pairs that are mixed count as such. "
            f"Received: batch_size={batch_size}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingBatches:
    """The augmented batches of a run.

    The images of a step, with their augmentation, are the same for any number of
    replicas.

    Each use of the seed adds another number to it, because a stateless function of
    TensorFlow draws the same numbers wherever it is given the same pair: the order of
    epoch 3 and the crops of step 3 would depend on each other. `seed` is for the
    orders, `seed + 1` for crops and mirroring, `seed + 2` for the seeds of the images'
    augmentation, `seed + 3` for mixing.

    Attributes:
        preprocessing: To the training images' size.
        recipe: What the batch and all about augmentation is read from.
        replicas: Number of replicas that share each batch. Their parts differ by one
            image at most, or by two where images are mixed in pairs.
        seed: Random seed for shuffling and augmentation.
        local_replicas: Replicas whose parts are wanted; `None` is all.
        classes: Number of classes, which mixing needs.
        mean: Mean of each channel in pixel values, the colour of erased rectangles.
        service: Address of a `tf.data` service that prepares the batches; or several,
            with commas between, which take turns. Each has one worker.
    """

    split: Split
    preprocessing: Preprocessing
    recipe: Recipe
    replicas: int
    seed: int
    local_replicas: range | None = None
    classes: int | None = None
    mean: Colour = (0.0,)
    service: str = ""

    def dataset(self, start: int, stop: int) -> tf.data.Dataset:
        """Returns the batches of the steps from `start` to before `stop`.

        Returns:
            A `tf.data.Dataset` of (images, labels, weights), an element for each
            replica and step: uint8 (part, height, width, channels); int32 (part,), or
            float32 (part, classes) where images are mixed; and float32 (part,), the
            weights of a step adding up to 1.
        """
        readers = make_readers(self.split, self.preprocessing, self.recipe, self.mean)
        lane = functools.partial(self._lane, readers, start, stop)
        service = self.service
        batches = serve_batches(lane, service, start, stop) if service else lane(0, 1)
        if len(self._local) == 1:
            batches = batches.map(lambda step, bounds, *batch: batch)
        else:
            batches = batches.flat_map(self._split_batch)
        return batches.prefetch(2 * len(self._local)).with_options(_options())

    def places_of_step(self, step: int) -> np.ndarray:
        """Returns the places of a step's images in the split, in order."""
        epoch, rest = divmod(step, self._steps_per_epoch)
        orders = self._orders(tf.constant(epoch, tf.int64)).skip(rest)
        return next(orders.as_numpy_iterator())[1]

    @property
    def _local(self) -> range:
        return self.local_replicas or range(self.replicas)

    @property
    def _rows(self) -> int:
        """Largest number of images in this process's part of a step."""
        return len(self._local) * self.recipe.batch_size // self.replicas

    @property
    def _steps_per_epoch(self) -> int:
        shares = self.recipe.shares(self.replicas)
        return steps_per_epoch(len(self.split), self.recipe.batch_size, shares)

    def _lane(
        self, readers: ImageReaders, start: int, stop: int, number: int, count: int
    ) -> tf.data.Dataset:
        """Every `count`-th step from the `number`-th on, as `_finish` returns it."""
        first, last = start // self._steps_per_epoch, -(-stop // self._steps_per_epoch)
        batches = tf.data.Dataset.range(first, last).flat_map(self._orders)
        batches = batches.skip(start - first * self._steps_per_epoch)
        batches = batches.take(stop - start).shard(count, number).map(self._plan)
        read_batch, read_image = readers
        cores = os.cpu_count() or 1

        def read(reader: ImageReader, *rows: tf.Tensor) -> Rows:
            return reader(*rows[:3]), rows[0], *rows[3:]

        def read_unless_padding(place: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
            nothing = tf.zeros(self.preprocessing.shape, tf.uint8)
            return tf.cond(
                place >= 0, lambda: read_image(place, *rest), lambda: nothing
            )

        if read_batch:
            batches = batches.map(functools.partial(read, read_batch), cores)
        else:
            # The images of all steps are one stream, so that those of several steps
            # are read in parallel, and are put together to batches again.
            rows = batches.map(self._fill).unbatch()
            rows = rows.map(functools.partial(read, read_unless_padding), 4 * cores)
            batches = rows.batch(self._rows)
        batches = batches.map(self._finish, cores)
        return batches.with_options(_options())

    def _orders(self, epoch: tf.Tensor) -> tf.data.Dataset:
        """The steps of an epoch, each with the places of its images."""
        steps, images = self._steps_per_epoch, tf.range(len(self.split))
        batch_size, seed = self.recipe.batch_size, (self.seed, epoch)
        shuffled = tf.random.experimental.stateless_shuffle(images, seed)
        used = min(steps * batch_size, len(self.split))
        # Of repeated images the second round follows the first.
        place, distinct = tf.range(used), -(-batch_size // self.recipe.repeats)
        place = place // batch_size * distinct + place % batch_size % distinct
        step = epoch * steps + tf.range(steps, dtype=tf.int64)
        order = tf.data.Dataset.from_tensor_slices(tf.gather(shuffled, place))
        steps_of = tf.data.Dataset.from_tensor_slices(step)
        return tf.data.Dataset.zip(steps_of, order.batch(batch_size))

    def _bounds(self, count: tf.Tensor) -> tf.Tensor:
        """Where the parts of this process's replicas begin and end in a batch."""
        # Images are mixed in pairs, so both must be on the same replica.
        unit = 2 if self.recipe.mixes else 1
        replicas = tf.range(self._local.start, self._local.stop + 1)
        bounds = replicas * -(-count // unit)
        return tf.minimum(bounds // self.replicas * unit, count)

    def _plan(self, step: tf.Tensor, order: tf.Tensor) -> Rows:
        """A row for each image of this process's part of a step."""
        count = tf.size(order)
        draws = tf.random.stateless_uniform((count, 3), (self.seed + 1, step))
        seed = (self.seed + 2, step)
        seeds = tf.random.stateless_uniform((count, 2), seed, None, None, tf.int32)
        bounds = self._bounds(count)
        part = slice(bounds[0], bounds[-1])
        step, counts = tf.repeat(step, count), tf.repeat(count, count)
        return tuple(row[part] for row in (order, draws, seeds, step, counts))

    def _fill(self, order: tf.Tensor, *rows: tf.Tensor) -> Rows:
        """Pads a step to the largest number of rows; the index -1 marks padding.

        With as many rows in every step, batches of that many rows are steps again.
        No image is read for a padding row, and `_finish` cuts them off.
        """
        lacking = self._rows - tf.size(order)
        padded = [tf.concat([row, tf.repeat(row[:1], lacking, 0)], 0) for row in rows]
        return tf.concat([order, tf.fill([lacking], -1)], 0), *padded

    def _finish(
        self, images: tf.Tensor, order: tf.Tensor, steps: tf.Tensor, counts: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """The step, its bounds, and images, labels and weights without the padding."""
        step, count = steps[0], counts[0]
        bounds = self._bounds(count) - self._bounds(count)[0]
        images, order = images[: bounds[-1]], order[: bounds[-1]]
        labels, recipe = tf.gather(self.split.labels, order), self.recipe
        if recipe.mixes:
            labels, seed = tf.one_hot(labels, self.classes), (self.seed + 3, step)
            images, labels = mix(images, labels, seed, recipe.mixup, recipe.cutmix)
        weights = tf.fill(tf.shape(order), 1 / tf.cast(count, tf.float32))
        return step, bounds, images, labels, weights

    def _split_batch(
        self, step: tf.Tensor, bounds: tf.Tensor, *batch: tf.Tensor
    ) -> tf.data.Dataset:
        """The parts of a batch, one for each of this process's replicas."""
        del step
        return tf.data.Dataset.range(len(self._local)).map(
            lambda r: tuple(column[bounds[r] : bounds[r + 1]] for column in batch)
        )


def evaluation_batches(
    split: Split, cut: Cut, batch_size: int, replicas: int
) -> tf.data.Dataset:
    """Every image once, in order.

    Args:
        cut: What is taken of each image; see `central_crop`.
        batch_size: Number of images over all replicas; a multiple of `replicas`.
        replicas: Number of replicas that share each batch equally. The last batch is
            filled up with images of weight 0.

    Returns:
        A `tf.data.Dataset` like that of `TrainingBatches`, with weights of 1 or 0.
    """
    filled = -(-len(split) // replicas) * replicas
    order = np.arange(filled) % len(split)
    weights = (np.arange(filled) < len(split)).astype(np.float32)
    read, rows = _batch_reader(split, cut), tf.data.Dataset.from_tensor_slices

    def load(order: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return read(order), tf.gather(split.labels, order), weights

    def parts(order: tf.Tensor, weights: tf.Tensor) -> tf.data.Dataset:
        share = tf.size(order, tf.int64) // replicas
        return rows((order, weights)).batch(share)

    batches = rows((order, weights)).batch(batch_size).flat_map(parts)
    batches = batches.map(load, os.cpu_count())
    return batches.prefetch(2).with_options(_options())


def load_views(split: Split, preprocessing: Preprocessing) -> np.ndarray:
    """Returns every image as the network sees it: uint8 (number, *shape)."""
    batches = evaluation_batches(split, central_crop(preprocessing), 64, 1)
    return np.concatenate([images for images, _, _ in batches.as_numpy_iterator()])


def _batch_reader(split: Split, cut: Cut) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function from places in a split to a batch of what is cut."""
    decode, view, spec = cut
    entries = split.entries()
    if split.stays_under(view):
        return lambda order: tf.gather(entries, order)
    read = split.reader(decode, view)
    return lambda order: tf.map_fn(
        lambda place: read(entries[place]), order, fn_output_signature=spec
    )


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    # tf.data's autotuning was seen to stall steps for up to seconds.
    options.autotune.enabled = False
    return options
