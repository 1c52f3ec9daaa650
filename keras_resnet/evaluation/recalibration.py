"""Recomputing the statistics of batch normalisation after training."""

import contextlib

import keras
import tensorflow as tf

from keras_resnet.data import central_crop, evaluation_batches
from keras_resnet.distribution import next_batch
from keras_resnet.nets import batch_norms, synchronized
from keras_resnet.support import InputError

# Batches over which statistics are recomputed, at most.
RECALIBRATION_BATCHES = 100


@contextlib.contextmanager
def _momentum(model, value):
    """Another momentum while a step is traced.

    Around all replicas, whose tracing takes turns: not in each of them.
    """
    kept = [(layer, layer.momentum) for layer in batch_norms(model)]
    for layer, _ in kept:
        layer.momentum = value
    try:
        yield
    finally:
        for layer, momentum in kept:
            layer.momentum = momentum


def recalibrate(model, split, preprocessing, batch_size, strategy, seed=0):
    """Recomputes the moving statistics of batch normalisation, weights as they are.

    The authors of the paper did so for their release (README of
    KaimingHe/deep-residual-networks). Each becomes the mean over batches of central
    crops of training images in random order, RECALIBRATION_BATCHES of them at most.
    Layers that are frozen keep theirs.

    Args:
        model: a `keras.Model`, changed in place.
        split: the training images, a `keras_resnet.data.Split`.
        preprocessing: from its images to the model's input.
        batch_size: images in a batch, over all replicas; the more, the better.
        strategy: in whose scope the model was made.
        seed: of the order.

    Returns:
        The number of images that were used.
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

    def replica_step(images, labels, weights):
        del labels, weights
        model(images, training=True)

    @tf.function
    def step(batches, momentum):
        shared = synchronized(model) if replicas > 1 else contextlib.nullcontext()
        with shared, _momentum(model, momentum):
            strategy.run(replica_step, args=next_batch(strategy, batches))

    source = iter(
        evaluation_batches(images, central_crop(preprocessing), batch_size, replicas)
    )
    for number in range(batches):
        # The mean of all batches so far.
        step(source, tf.constant(number / (number + 1), keras.config.floatx()))
    return batches * batch_size
