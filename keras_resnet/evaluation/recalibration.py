"""Recomputation of the moving statistics of batch normalisation after training."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import keras
import tensorflow as tf

from keras_resnet import data
from keras_resnet.data import Preprocessing, Split, central_crop, evaluation_batches
from keras_resnet.distribution import next_batch
from keras_resnet.nets import list_batch_norms, synchronize_batch_norms
from keras_resnet.support import InputError, derive_seed

# Maximum number of batches over which the moving statistics are averaged.
MAX_BATCHES = 100


@contextmanager
def _replace_momentum(model: keras.Model, momentum: tf.Tensor) -> Iterator[None]:
    """Replaces the momentum of all batch normalisation layers inside the context.

    Enter this context outside `strategy.run`. Inside `strategy.run`, the replicas are
    traced in turns and would overwrite each other's momentum.
    """
    original_values = [(layer, layer.momentum) for layer in list_batch_norms(model)]
    for layer, _ in original_values:
        layer.momentum = momentum
    try:
        yield
    finally:
        for layer, original_value in original_values:
            layer.momentum = original_value


def recalibrate(
    model: keras.Model,
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    strategy: tf.distribute.Strategy,
    seed: int = 0,
) -> int:
    """Recomputes the moving statistics of batch normalisation with fixed weights.

    The authors of the paper recomputed the statistics before they released the weights
    (README of KaimingHe/deep-residual-networks). The statistics are averaged over at
    most `MAX_BATCHES` batches of central crops of randomly chosen training images.
    Frozen layers keep their statistics.

    Args:
        model: Network, which is changed in place.
        batch_size: Number of images per batch over all replicas. Larger batches give
            more accurate statistics.
        strategy: Strategy in whose scope the network was built.

    Returns:
        Number of images from which the statistics were computed.

    Raises:
        InputError: If there are fewer images than replicas, or if images are damaged.
    """
    num_replicas = strategy.num_replicas_in_sync
    if len(split) < num_replicas:
        raise InputError(
            f"Each of {num_replicas} replicas needs a training image. "
            f"Received: {len(split)} training image(s)"
        )
    batch_size = min(batch_size, len(split))
    batch_size -= batch_size % num_replicas
    num_batches = min(MAX_BATCHES, len(split) // batch_size)
    key = (derive_seed(seed, "recalibration"), 0)
    order = tf.random.experimental.stateless_shuffle(tf.range(len(split)), key)
    subset = split.take(order.numpy()[: num_batches * batch_size])

    def replica_step(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> None:
        del labels, weights
        model(images, training=True)

    @tf.function
    def step(batches: Iterator[tf.Tensor], momentum: tf.Tensor) -> None:
        sync = synchronize_batch_norms(model) if num_replicas > 1 else nullcontext()
        with sync, _replace_momentum(model, momentum):
            strategy.run(replica_step, args=next_batch(strategy, batches))

    crop_reader = central_crop(preprocessing)
    batches = iter(evaluation_batches(subset, crop_reader, batch_size, num_replicas))
    try:
        for i in range(num_batches):
            # Each moving statistic becomes the mean over all batches so far.
            step(batches, tf.constant(i / (i + 1), keras.config.floatx()))
    except tf.errors.OpError:
        data.refuse_damaged(subset, preprocessing)
        raise
    return num_batches * batch_size
