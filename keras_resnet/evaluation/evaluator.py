"""What a model says of each image of a split, each counted exactly once."""

import dataclasses
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import (
    Preprocessing,
    Split,
    check_batch_size,
    evaluation_batches,
    refuse_damaged,
)
from keras_resnet.distribution import local_replicas, next_batch
from keras_resnet.evaluation.views import VIEWS, Classify, make_view
from keras_resnet.support import choose


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of each image.

    Attributes:
        labels: Right class, int32 (n,).
        classes: Likeliest classes, best first, int32 (n, k); k is 5, or the number
            of classes if that is less.
        scores: Probabilities of these classes, float32 (n, k).
        losses: Cross-entropy, float32 (n,).
    """

    labels: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    losses: np.ndarray

    def summary(self) -> dict[str, float]:
        """Returns the loss and the accuracies over all images.

        Returns:
            A dict of `"loss"` (mean cross-entropy), `"accuracy"`, `"top5_accuracy"`
            (from 0 to 1) and `"images"` (number of images, an `int`).
        """
        hits = self.classes == self.labels[:, None]
        return {
            "loss": float(self.losses.mean(dtype=np.float64)),
            "accuracy": float(hits[:, 0].mean()),
            "top5_accuracy": float(hits.any(axis=1).mean()),
            "images": len(self.labels),
        }

    def confusion(self, classes: int) -> np.ndarray:
        """Counts pairs: int64 (right class, named class), of so many classes."""
        pairs = self.labels.astype(np.int64) * classes + self.classes[:, 0]
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


class Evaluator:
    """Evaluates a model, as often as it is called.

    Exact for any batch size and any number of replicas: a last, partial batch
    is filled up with the first images again, which then count as nothing.

    Args:
        model: Classifier that gives probabilities (batch, classes).
        split: Images that it is evaluated on.
        preprocessing: From these images to the model's input.
        batch_size: Number of images in a step, over all replicas of this process;
            with `"10crop"` number of crops. `"multiscale"` takes one image for each
            replica.
        strategy: Strategy in whose scope the model was made.
        views: One of `VIEWS`; see `keras_resnet.evaluation.views`.

    Raises:
        InputError: The replicas do not divide the batch, or the views are not for
            this network.
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
        replicas = len(local_replicas(strategy))
        choose("views", views, VIEWS)
        check_batch_size(batch_size, replicas)
        with strategy.scope():
            view = make_view(views, model, preprocessing)
        crops = view.crops or batch_size
        batch_size = max(1, batch_size // crops // replicas) * replicas
        self._split, self._preprocessing = split, preprocessing
        self._strategy, self._refresh = strategy, view.refresh
        self._batches = evaluation_batches(split, view.cut, batch_size, replicas)
        self.steps = -(-len(split) // batch_size)
        self._step = _make_step(strategy, view.classify, min(5, model.output_shape[-1]))

    def predict(self, on_step: Callable[[], object] = lambda: None) -> Predictions:
        """Says what the model, as it is now, makes of each image, in their order.

        Args:
            on_step: Function that is called after each of `steps` steps.

        Raises:
            InputError: Images cannot be decoded; it names them.
        """
        self._refresh()
        parts: list[tuple[tf.Tensor, ...]] = []
        try:
            batches = iter(self._batches)
            for _ in range(self.steps):
                outputs = [
                    self._strategy.experimental_local_results(output)
                    for output in self._step(batches)
                ]
                parts += zip(*outputs, strict=True)
                on_step()
        except tf.errors.OpError:
            refuse_damaged(self._split, self._preprocessing)
            raise
        classes, scores, losses = (
            np.concatenate([np.asarray(part) for part in column])[: len(self._split)]
            for column in zip(*parts, strict=True)
        )
        return Predictions(self._split.labels, classes, scores, losses)

    def __call__(self) -> dict[str, float]:
        """Returns `Predictions.summary()` of the model as it is now."""
        return self.predict().summary()


def _make_step(
    strategy: tf.distribute.Strategy, classify: Classify, top: int
) -> Callable[[Iterator[tf.Tensor]], tuple[tf.Tensor, ...]]:
    """Makes the step: from a batch to the `top` classes, their scores, and losses."""

    def replica_step(
        images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        del weights  # The images that fill the last batch are its last.
        probabilities = classify(images, training=False)
        losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
        # Not Keras's top-k metric, for which every class of a tie is in.
        best = tf.math.top_k(probabilities, top)
        return best.indices, best.values, losses

    @tf.function(reduce_retracing=True)
    def step(batches: Iterator[tf.Tensor]) -> tuple[tf.Tensor, ...]:
        return strategy.run(replica_step, args=next_batch(strategy, batches))

    return step
