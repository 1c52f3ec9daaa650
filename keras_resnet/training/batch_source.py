"""The training batches of a run, starting at any step."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from keras_resnet.data import refuse_damaged, replace_damaged
from keras_resnet.distribution import iterate_batches, worker_count
from keras_resnet.training.figures import draw_batch
from keras_resnet.training.preparation import Run
from keras_resnet.training.step import BatchIterator


class BatchSource:
    """Iterates over the batches of a run and replaces images that cannot be decoded."""

    def __init__(self, run: Run) -> None:
        self._run, self._images = run, run.images
        self._batches: BatchIterator | None = None
        self._end = 0

    def batches_from(self, step: int) -> tuple[BatchIterator, int]:
        """Returns an iterator whose next batch is the batch of `step`.

        Args:
            step: Step, counted from 0. The batches of all earlier steps must have been
                taken from the previous iterator, unless `replace_damaged` was called.

        Returns:
            The iterator, and the step at which the iterator ends, because the image
            size changes or the run ends.
        """
        if self._batches is None or step == self._end:
            size, self._end = self._find_size(step)
            batches = self._run.get_batches(self._images, size).dataset(step, self._end)
            self._batches = iterate_batches(self._run.strategy, batches)
        return self._batches, self._end

    def _find_size(self, step: int) -> tuple[int | None, int]:
        """Returns the image size of a step, and the step at which the size changes.

        The size is in pixels. `None` stands for the network's input size.
        """
        sizes, total_steps = self._run.spec.recipe.sizes, self._run.total_steps
        if not sizes:
            return None, total_steps
        index = step * len(sizes) // total_steps
        return sizes[index], -(-(index + 1) * total_steps // len(sizes))

    def substitute(self, damaged_indices: Sequence[int]) -> None:
        """Replaces images that the run has found damaged before its last checkpoint.

        The crop of a damaged image may be readable. Without this call, a resumed run
        would use the image until another crop of it fails.
        """
        train = self._images.train.substitute(damaged_indices)
        self._images = dataclasses.replace(self._images, train=train)

    def replace_damaged(self, step: int, error: tf.errors.OpError) -> tuple[int, ...]:
        """Replaces the damaged images in the batch of a step that failed.

        Args:
            step: Step that failed. The next call of `batches_from` must pass this step.
            error: Error of the step, which is raised again if no image is damaged.

        Returns:
            Indices of all images that have been replaced so far.

        Raises:
            InputError: If too many images are damaged, or any with several workers.
        """
        split, preprocessing = self._images.train, self._run.preprocessing
        indices = self._run.get_batches(self._images).find_step_indices(step)
        if worker_count(self._run.strategy) > 1:
            # The other workers wait in this step, so no image can be replaced.
            refuse_damaged(split.take(indices), preprocessing)
            raise error
        train = replace_damaged(split, preprocessing, indices, error)
        self._images = dataclasses.replace(self._images, train=train)
        self._batches = None
        return train.damaged

    def draw_first_batch(self) -> tuple[tf.Tensor, bytes] | None:
        """Draws the first training batch after augmentation.

        Returns:
            The images, uint8 (n, height, width, channels), and a PNG figure of the
            images. `None` if an image is damaged, which the first step then reports.
        """
        size, _ = self._find_size(0)
        dataset = self._run.get_batches(self._images, size).dataset(0, 1)
        try:
            images, labels, _ = next(iter(dataset))
        except tf.errors.OpError:
            return None
        class_names = self._images.classes
        return images, draw_batch(images.numpy(), labels.numpy(), class_names)
