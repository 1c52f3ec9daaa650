"""Recomputing the statistics of batch normalisation after training."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_resnet.data import Preprocessing, Split, central_crop, evaluation_batches
from keras_resnet.distribution import next_batch
from keras_resnet.nets import batch_norms, synchronized
from keras_resnet.support import InputError

# Batches over which statistics are recomputed, at most.
RECALIBRATION_BATCHES = 100


@contextlib.contextmanager
def _momentum(model: keras.Model, value: tf.Tensor) -> Iterator[None]:
    """Sets the momentum of batch normalisation while a step is traced.

    Enter this context outside `strategy.run`: replicas are traced one at a time.
    """
    kept = [(layer, layer.momentum) for layer in batch_norms(model)]
    for layer, _ in kept:
        layer.momentum = value
    try:
        yield
    finally:
        for layer, momentum in kept:
            layer.momentum = momentum


def recalibrate(
    model: keras.Model,
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    strategy: tf.distribute.Strategy,
    seed: int = 0,
) -> int:
    """Recomputes the moving statistics of batch normalisation, weights as they are.

    The authors of the paper did so for their release (README of
    KaimingHe/deep-residual-networks). Each statistic becomes the mean over batches of
    central crops of training images in random order, RECALIBRATION_BATCHES of them at
    most. Frozen layers keep their statistics.

    Args:
        model: Network that is changed in place.
        split: Training images.
        preprocessing: From these images to the model's input.
        batch_size: Number of images in a batch, over all replicas; the more, the
            better.
        strategy: Strategy in whose scope the model was made.
        seed: Random seed for the order of the images.

    Returns:
        The number of images that were used.

    Raises:
        InputError: There are fewer images than replicas.
    """
    replicas = strategy.num_replicas_in_sync
    if len(split) < replicas:
        raise InputError(
            f"{replicas} replicas cannot share {len(split)} training image(s)"
        )
    batch_size = min(batch_size, len(split))
    batch_size -= batch_size % replicas
    batches = min(RECALIBRATION_BATCHES, len(split) // batch_size)
    order = tf.random.experimental.stateless_shuffle(tf.range(len(split)), (seed, 0))
    images = split.take(order.numpy()[: batches * batch_size])

    def replica_step(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> None:
        del labels, weights
        model(images, training=True)

    @tf.function
    def step(batches: Iterator[tf.Tensor], momentum: tf.Tensor) -> None:
        shared = synchronized(model) if replicas > 1 else contextlib.nullcontext()
        with shared, _momentum(model, momentum):
            strategy.run(replica_step, args=next_batch(strategy, batches))

    cut = central_crop(preprocessing)
    source = iter(evaluation_batches(images, cut, batch_size, replicas))
    for number in range(batches):
        # The mean of all batches so far.
        step(source, tf.constant(number / (number + 1), keras.config.floatx()))
    return batches * batch_size
