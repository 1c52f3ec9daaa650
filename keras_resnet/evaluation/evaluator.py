"""Predictions and losses of a network for each image of a split."""

import dataclasses
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import data
from keras_resnet.data import Preprocessing, Split, evaluation_batches
from keras_resnet.distribution import local_replicas, next_batch
from keras_resnet.evaluation.views import VIEWS, ClassifyFunction, make_view
from keras_resnet.support import check_choice


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions and losses of a network for n images.

    Attributes:
        labels: Correct class of each image, int32 (n,).
        classes: Most probable classes of each image, the most probable first, int32
            (n, k). k is 5, or the number of classes if that is smaller.
        scores: Probabilities of `classes`, float32 (n, k).
        losses: Cross-entropy of each image, float32 (n,).
    """

    labels: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    losses: np.ndarray

    def summarise(self) -> dict[str, float]:
        """Returns the mean loss and the accuracies over all images.

        Returns:
            A dict with `"loss"` (mean cross-entropy), `"accuracy"`, `"top5_accuracy"`
            (both from 0 to 1) and `"images"` (number of images, an `int`).
        """
        hits = self.classes == self.labels[:, None]
        return {
            "loss": float(self.losses.mean(dtype=np.float64)),
            "accuracy": float(hits[:, 0].mean()),
            "top5_accuracy": float(hits.any(axis=1).mean()),
            "images": len(self.labels),
        }

    def confusion_matrix(self, num_classes: int) -> np.ndarray:
        """Returns image counts, int64, by correct class (row) and predicted class."""
        cells = self.labels.astype(np.int64) * num_classes + self.classes[:, 0]
        return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, -1)


class Evaluator:
    """Evaluates a network on a split. Each call uses the network's current weights.

    Every image counts exactly once, for any batch size and number of replicas. The last
    batch is padded with the first images of the split, and the predictions for the
    padding are discarded.

    Args:
        model: Network that returns probabilities (batch, classes).
        batch_size: Number of images (with `"10crop"`: of crops) per step over all
            replicas of this process. With `"multiscale"`, the batch size is ignored,
            and each replica processes one image per step.
        strategy: Strategy in whose scope the network was built.
        views: Name of the views whose predictions are averaged, one of `VIEWS`.

    Raises:
        InputError: If the batch size is not a multiple of the number of replicas, or
            the network does not support the views.
    """

    def __init__(
        self,
        model: keras.Model,
        split: Split,
        preprocessing: Preprocessing,
        batch_size: int,
        strategy: tf.distribute.Strategy,
        views: str = "single",
    ) -> None:
        num_replicas = len(local_replicas(strategy))
        check_choice("views", views, VIEWS)
        data.check_batch_size(batch_size, num_replicas)
        with strategy.scope():
            view = make_view(views, model, preprocessing)
        num_crops = view.num_crops or batch_size
        batch_size = max(1, batch_size // num_crops // num_replicas) * num_replicas
        self._split, self._preprocessing = split, preprocessing
        self._strategy, self._refresh_weights = strategy, view.refresh_weights
        self._batches = evaluation_batches(split, view.reader, batch_size, num_replicas)
        self.steps = -(-len(split) // batch_size)
        self._step = _make_step(strategy, view.classify, min(5, model.output_shape[-1]))

    def predict(self, on_step: Callable[[], object] = lambda: None) -> Predictions:
        """Returns the predictions of the network in the order of the images.

        Args:
            on_step: Function that is called after each step, `self.steps` times in all.

        Raises:
            InputError: If images cannot be decoded. The message lists these images.
        """
        self._refresh_weights()
        replica_outputs: list[tuple[tf.Tensor, ...]] = []
        try:
            batches = iter(self._batches)
            for _ in range(self.steps):
                outputs = [
                    self._strategy.experimental_local_results(output)
                    for output in self._step(batches)
                ]
                replica_outputs += zip(*outputs, strict=True)
                on_step()
        except tf.errors.OpError:
            data.refuse_damaged(self._split, self._preprocessing)
            raise
        classes, scores, losses = (
            np.concatenate([np.asarray(v) for v in values])[: len(self._split)]
            for values in zip(*replica_outputs, strict=True)
        )
        return Predictions(self._split.labels, classes, scores, losses)

    def __call__(self) -> dict[str, float]:
        """Returns the mean loss and the accuracies; see `Predictions.summarise`."""
        return self.predict().summarise()


def _make_step(
    strategy: tf.distribute.Strategy, classify: ClassifyFunction, k: int
) -> Callable[[Iterator[tf.Tensor]], tuple[tf.Tensor, ...]]:
    """Makes a function that evaluates one batch on each replica.

    For each image, the function returns the k most probable classes, the probabilities
    of these classes, and the loss.
    """

    def replica_step(
        images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        del weights  # Weight 0 marks padding, which `Evaluator.predict` discards.
        probabilities = classify(images, training=False)
        losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
        # Keras's top-k accuracy is not used, because it counts all tied classes as hits.
        top_k = tf.math.top_k(probabilities, k)
        return top_k.indices, top_k.values, losses

    @tf.function(reduce_retracing=True)
    def step(batches: Iterator[tf.Tensor]) -> tuple[tf.Tensor, ...]:
        return strategy.run(replica_step, args=next_batch(strategy, batches))

    return step
