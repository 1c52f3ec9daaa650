"""Loss and accuracy over a split, each image counted exactly once."""

import keras
import tensorflow as tf

from keras_resnet.data import check_batch_size, evaluation_batches, refuse_damaged
from keras_resnet.strategies import next_batch


class Evaluator:
    """Evaluates a model, as often as it is called.

    Exact for any batch size and any number of replicas: a last, partial batch
    is filled up with the first images again, which then count as nothing.

    Args:
        model: classifier that gives probabilities (batch, classes).
        split: a `keras_resnet.data.Split`.
        preprocessing: from its images to the model's input.
        batch_size: images in a step, over all replicas.
        strategy: in whose scope the model was made.

    Raises:
        InputError: the replicas don't divide the batch.
    """

    def __init__(self, model, split, preprocessing, batch_size, strategy):
        replicas = strategy.num_replicas_in_sync
        check_batch_size(batch_size, replicas)
        self._split, self._preprocessing = split, preprocessing
        self._batches = evaluation_batches(split, preprocessing, batch_size, replicas)
        self._steps = -(-len(split) // batch_size)
        self._sums = tf.Variable(tf.zeros(4, tf.float64))
        top = min(5, model.output_shape[-1])

        def replica_step(images, labels, weights):
            probabilities = model(images, training=False)
            losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
            # Not Keras's top-k metric, for which every class of a tie is in.
            hits = tf.math.top_k(probabilities, top).indices == labels[:, None]
            near = tf.reduce_any(hits, axis=1)
            each = [losses, hits[:, 0], near, tf.ones_like(weights)]
            each = tf.stack([tf.cast(value, tf.float64) for value in each])
            return tf.reduce_sum(each * tf.cast(weights, tf.float64), axis=1)

        @tf.function
        def step(batches):
            sums = strategy.run(replica_step, args=next_batch(strategy, batches))
            self._sums.assign_add(strategy.reduce("SUM", sums, axis=None))

        self._step = step

    def __call__(self):
        """Evaluates the model as it is now.

        Returns:
            A dict of `"loss"` (mean cross-entropy), `"accuracy"`,
            `"top5_accuracy"` (shares from 0 to 1) and `"images"` (their number).

        Raises:
            InputError: images cannot be decoded; it names them.
        """
        self._sums.assign(tf.zeros_like(self._sums))
        try:
            batches = iter(self._batches)
            for _ in range(self._steps):
                self._step(batches)
        except tf.errors.OpError:
            refuse_damaged(self._split, self._preprocessing)
            raise
        loss, right, top, images = self._sums.numpy().tolist()
        return {
            "loss": loss / images,
            "accuracy": right / images,
            "top5_accuracy": top / images,
            "images": int(images),
        }
