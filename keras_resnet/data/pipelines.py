"""Input pipelines that turn a split of a dataset into batches.

Every training batch is a function of the seed and the step number alone:

- Order: The images of each epoch are shuffled with the seed and the epoch's number,
  and the shuffled images are divided into steps. The images of any step are therefore
  known before any image is read, and a run that resumes in mid-epoch skips the earlier
  steps without decoding their images.
- Rows: A step has one row for each of its images, with the image's index in the split
  and its random numbers. The numbers are drawn for the whole step, from the seed and
  the step number. Each worker then keeps only the rows of its own replicas, so a
  batch does not depend on the number of workers.
- Padding: To read the images of several steps in parallel, the rows of all steps are
  joined into one stream, which is cut into steps again afterwards. This requires the
  same number of rows in every step, but the last step of an epoch may be smaller. Such
  a step is padded with rows whose index is -1. No image is read for these rows, and
  they are removed at the end.
- Lanes: With n `tf.data` services, the steps are divided into n lanes. Lane i consists
  of the steps i, i + n, i + 2n and so on. Each service prepares one lane, and training
  takes a batch from each lane in turn. Without a service, one lane has all steps.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_resnet.data.augmentation import Colour, mix
from keras_resnet.data.preprocessing import CropReader, Preprocessing, central_crop
from keras_resnet.data.service import serve_batches
from keras_resnet.data.splits import Split
from keras_resnet.data.training_images import ImageReader, ImageReaders, make_readers
from keras_resnet.spec import RUN_FORMAT, Recipe, count_steps
from keras_resnet.support import InputError, derive_seed

# Tensors with one row for each image of a step. Before the images are read: index in
# the split, three random numbers from [0, 1), augmentation seed (2,), step number, and
# number of images in the step. Afterwards: image, index, step number, number of images.
Rows = tuple[tf.Tensor, ...]

# Purposes of random numbers: the order of the images; crops and mirroring; the seeds of
# the images' augmentation; and mixing.
_PURPOSES = ("shuffling", "crops", "augmentation", "mixing")


def check_batch_size(batch_size: int, num_parts: int) -> None:
    """Raises an InputError if a global batch cannot be divided into equal parts."""
    if batch_size < 1 or batch_size % num_parts:
        raise InputError(
            f"The batch size must be a multiple of {num_parts}: the number of replicas, "
            "multiplied by `accumulate`, and by 2 if training mixes images in pairs. "
            f"Received: batch_size={batch_size}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingBatches:
    """The augmented batches of a training run.

    The augmented images of a step are the same for any number of replicas.

    The seeds of TensorFlow's stateless functions are pairs of numbers. If the shuffling
    of epoch 3 and the crops of step 3 both used the pair (seed, 3), both would be
    correlated. The first number is therefore derived from the seed and the purpose. In
    runs of format 1, it is the seed plus the position of the purpose in `_PURPOSES`, so
    that runs with neighbouring seeds share random numbers.

    Attributes:
        split: Images and labels to train on.
        preprocessing: Preprocessing whose output has the size of the training images.
        recipe: Recipe with the batch size and all augmentation options.
        replicas: Number of replicas that share each batch. The sizes of their parts
            differ by at most one image, or two if images are mixed in pairs.
        seed: Random seed for shuffling and augmentation.
        local_replicas: Indices of this process's replicas. Default: all replicas.
        num_classes: Number of classes, required if images are mixed.
        mean: Mean pixel value of each channel, used as the colour of erased boxes.
        service: Comma-separated addresses of `tf.data` services that prepare the
            batches in turn. Each service has one worker. Default: no service.
        format: Format number of the run; see `keras_resnet.spec.RunSpec`.
    """

    split: Split
    preprocessing: Preprocessing
    recipe: Recipe
    replicas: int
    seed: int
    local_replicas: range | None = None
    num_classes: int | None = None
    mean: Colour = (0.0,)
    service: str = ""
    format: int = RUN_FORMAT

    def dataset(self, start: int, stop: int) -> tf.data.Dataset:
        """Returns the batches of the steps from `start` up to, but excluding, `stop`.

        Returns:
            A `tf.data.Dataset` with one element (images, labels, weights) for each
            step and replica. Images are uint8 (part, height, width, channels). Labels
            are int32 (part,), or float32 (part, classes) if images are mixed. Weights
            are float32 (part,) and add up to 1 over all replicas of a step.
        """
        readers = make_readers(self.split, self.preprocessing, self.recipe, self.mean)
        lane = functools.partial(self._make_lane, readers, start, stop)
        service = self.service
        batches = serve_batches(lane, service, start, stop) if service else lane(0, 1)
        if len(self._local_replicas) == 1:
            batches = batches.map(lambda step, bounds, *batch: batch)
        else:
            batches = batches.flat_map(self._split_among_replicas)
        return batches.prefetch(2 * len(self._local_replicas)).with_options(_options())

    def find_step_indices(self, step: int) -> np.ndarray:
        """Returns the indices of a step's images in the split, in batch order."""
        epoch, step_in_epoch = divmod(step, self._steps_per_epoch)
        steps = self._plan_epoch(tf.constant(epoch, tf.int64)).skip(step_in_epoch)
        return next(steps.as_numpy_iterator())[1]

    @property
    def _local_replicas(self) -> range:
        return self.local_replicas or range(self.replicas)

    @property
    def _max_rows(self) -> int:
        """Largest number of rows that this process has in a step."""
        return len(self._local_replicas) * self.recipe.batch_size // self.replicas

    @property
    def _steps_per_epoch(self) -> int:
        return count_steps(len(self.split), self.recipe, self.replicas, self.format)

    def _seed(self, purpose: str, number: tf.Tensor) -> tuple[int, tf.Tensor]:
        """Returns the seed of a stateless function in an epoch or step `number`."""
        if self.format == 1:
            return self.seed + _PURPOSES.index(purpose), number
        return derive_seed(self.seed, purpose), number

    def _make_lane(
        self, readers: ImageReaders, start: int, stop: int, lane: int, num_lanes: int
    ) -> tf.data.Dataset:
        """Returns the batches of a lane in the format of `_finish_step`."""
        first, last = start // self._steps_per_epoch, -(-stop // self._steps_per_epoch)
        batches = tf.data.Dataset.range(first, last).flat_map(self._plan_epoch)
        batches = batches.skip(start - first * self._steps_per_epoch)
        batches = batches.take(stop - start).shard(num_lanes, lane).map(self._plan_step)
        read_batch, read_image = readers
        num_cores = os.cpu_count() or 1

        def read(reader: ImageReader, *rows: tf.Tensor) -> Rows:
            return reader(*rows[:3]), rows[0], *rows[3:]

        def read_unless_padding(index: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
            blank = tf.zeros(self.preprocessing.shape, tf.uint8)
            return tf.cond(index >= 0, lambda: read_image(index, *rest), lambda: blank)

        if read_batch:
            batches = batches.map(functools.partial(read, read_batch), num_cores)
        else:
            rows = batches.map(self._pad_step).unbatch()
            rows = rows.map(functools.partial(read, read_unless_padding), 4 * num_cores)
            batches = rows.batch(self._max_rows)
        batches = batches.map(self._finish_step, num_cores)
        return batches.with_options(_options())

    def _plan_epoch(self, epoch: tf.Tensor) -> tf.data.Dataset:
        """Returns the steps of an epoch as pairs of step number and image indices."""
        num_steps, all_indices = self._steps_per_epoch, tf.range(len(self.split))
        batch_size, seed = self.recipe.batch_size, self._seed("shuffling", epoch)
        shuffled_indices = tf.random.experimental.stateless_shuffle(all_indices, seed)
        num_used = min(num_steps * batch_size, len(self.split))
        # `num_distinct` images and their copies form a batch in the order A B C A B C,
        # because neighbours may be mixed in pairs and must not be copies of one image.
        order, num_distinct = tf.range(num_used), -(-batch_size // self.recipe.repeats)
        order = order // batch_size * num_distinct + order % batch_size % num_distinct
        step_numbers = epoch * num_steps + tf.range(num_steps, dtype=tf.int64)
        indices = tf.data.Dataset.from_tensor_slices(tf.gather(shuffled_indices, order))
        step_numbers = tf.data.Dataset.from_tensor_slices(step_numbers)
        return tf.data.Dataset.zip(step_numbers, indices.batch(batch_size))

    def _find_part_bounds(self, count: tf.Tensor) -> tf.Tensor:
        """Returns the bounds of each local replica's part of a `count`-image batch."""
        # Both images of a pair to be mixed must be on the same replica.
        group_size = 2 if self.recipe.mixes_images else 1
        replicas = tf.range(self._local_replicas.start, self._local_replicas.stop + 1)
        bounds = replicas * -(-count // group_size)
        return tf.minimum(bounds // self.replicas * group_size, count)

    def _plan_step(self, step: tf.Tensor, indices: tf.Tensor) -> Rows:
        """Returns the rows of a step that belong to this process; see `Rows`."""
        count = tf.size(indices)
        draws = tf.random.stateless_uniform((count, 3), self._seed("crops", step))
        seed = self._seed("augmentation", step)
        seeds = tf.random.stateless_uniform((count, 2), seed, None, None, tf.int32)
        bounds = self._find_part_bounds(count)
        rows = slice(bounds[0], bounds[-1])
        step, counts = tf.repeat(step, count), tf.repeat(count, count)
        return tuple(column[rows] for column in (indices, draws, seeds, step, counts))

    def _pad_step(self, indices: tf.Tensor, *columns: tf.Tensor) -> Rows:
        """Pads a step to `_max_rows` rows. The index -1 marks padding."""
        num_padding = self._max_rows - tf.size(indices)
        padded = [tf.concat([x, tf.repeat(x[:1], num_padding, 0)], 0) for x in columns]
        return tf.concat([indices, tf.fill([num_padding], -1)], 0), *padded

    def _finish_step(
        self, images: tf.Tensor, indices: tf.Tensor, steps: tf.Tensor, counts: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Removes padding. Returns step, part bounds, images, labels and weights."""
        step, count = steps[0], counts[0]
        bounds = self._find_part_bounds(count) - self._find_part_bounds(count)[0]
        images, indices = images[: bounds[-1]], indices[: bounds[-1]]
        labels, recipe = tf.gather(self.split.labels, indices), self.recipe
        if recipe.mixes_images:
            seed = self._seed("mixing", step)
            labels = tf.one_hot(labels, self.num_classes)
            images, labels = mix(images, labels, seed, recipe.mixup, recipe.cutmix)
        weights = tf.fill(tf.shape(indices), 1 / tf.cast(count, tf.float32))
        return step, bounds, images, labels, weights

    def _split_among_replicas(
        self, step: tf.Tensor, bounds: tf.Tensor, *batch: tf.Tensor
    ) -> tf.data.Dataset:
        """Splits a batch into one element for each replica of this process."""
        del step
        return tf.data.Dataset.range(len(self._local_replicas)).map(
            lambda r: tuple(column[bounds[r] : bounds[r + 1]] for column in batch)
        )


def evaluation_batches(
    split: Split, crop_reader: CropReader, batch_size: int, replicas: int
) -> tf.data.Dataset:
    """Returns batches that contain every image once, in the order of the split.

    Args:
        split: Images and labels to evaluate on.
        crop_reader: Functions that read the crop of each image; see `central_crop`.
        batch_size: Number of images in each global batch, a multiple of `replicas`.
        replicas: Number of replicas that share each batch equally. The last batch is
            padded with images of weight 0.

    Returns:
        A `tf.data.Dataset` with one element (images, labels, weights) for each batch
        and replica. Labels are int32. Weights are 1 for images and 0 for padding.
    """
    padded_length = -(-len(split) // replicas) * replicas
    indices = np.arange(padded_length) % len(split)
    weights = (np.arange(padded_length) < len(split)).astype(np.float32)
    read, slices = _make_reader(split, crop_reader), tf.data.Dataset.from_tensor_slices

    def load(indices: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return read(indices), tf.gather(split.labels, indices), weights

    def split_batch(indices: tf.Tensor, weights: tf.Tensor) -> tf.data.Dataset:
        part_size = tf.size(indices, tf.int64) // replicas
        return slices((indices, weights)).batch(part_size)

    batches = slices((indices, weights)).batch(batch_size).flat_map(split_batch)
    batches = batches.map(load, os.cpu_count())
    return batches.prefetch(2).with_options(_options())


def load_views(split: Split, preprocessing: Preprocessing) -> np.ndarray:
    """Returns central crops of a split's images, uint8 (n, height, width, channels)."""
    batches = evaluation_batches(split, central_crop(preprocessing), 64, 1)
    return np.concatenate([images for images, _, _ in batches.as_numpy_iterator()])


def _make_reader(split: Split, reader: CropReader) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function that maps image indices in a split to the images' crops."""
    decode, view, spec = reader
    entries = split.entries()
    if split.is_unchanged_by(view):
        return lambda indices: tf.gather(entries, indices)
    read = split.make_reader(decode, view)
    return lambda indices: tf.map_fn(
        lambda index: read(entries[index]), indices, fn_output_signature=spec
    )


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    # Autotuning is disabled, because it can delay a step by seconds.
    options.autotune.enabled = False
    return options
