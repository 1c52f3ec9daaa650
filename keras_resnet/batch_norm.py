"""Batch normalisation: over several replicas, fused, recalibrated after training."""

import contextlib
import functools

import keras
import tensorflow as tf

from keras_resnet.blocks import flat_layers
from keras_resnet.errors import InputError
from keras_resnet.pipelines import central, evaluation_batches
from keras_resnet.strategies import next_batch

# Batches over which statistics are recomputed, at most.
RECALIBRATION_BATCHES = 100


def batch_norms(model):
    """Returns the batch normalisations of a model."""
    return [
        layer
        for layer in flat_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


@contextlib.contextmanager
def synchronized(model):
    """Batch normalisation over all replicas while a step is traced.

    Only there: the saved model stays an ordinary one, which also loads where
    there is nothing to synchronise with.
    """
    norms = batch_norms(model)
    for layer in norms:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in norms:
            layer.synchronized = False


@contextlib.contextmanager
def fused(model):
    """Batch normalisation by TensorFlow's kernel while a step is traced.

    Keras computes it by a dozen operations, each of which passes over the
    activations: a third of ResNet-20's step on a CPU (benchmarks/results/step.csv).
    The numbers are the same but for rounding. For float32 variables, alone or with
    mixed precision, and channels last; others stay as they are.
    """
    norms = [
        layer
        for layer in batch_norms(model)
        if layer.variable_dtype == "float32" and layer.axis in (-1, 3)
    ]
    for layer in norms:
        layer.call = functools.partial(_call_fused, layer)
    try:
        yield
    finally:
        for layer in norms:
            del layer.call


def _call_fused(layer, inputs, training=None, mask=None):
    if not (training and layer.trainable) or mask is not None:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.cast(layer.gamma, tf.float32),
        offset=tf.cast(layer.beta, tf.float32),
        mean=tf.constant([], tf.float32),
        variance=tf.constant([], tf.float32),
        epsilon=layer.epsilon,
        is_training=True,
    )
    # The kernel's variance is unbiased, and Keras's moving average of biased ones.
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
    variance *= (count - 1) / count
    for moving, now in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + now * (1 - layer.momentum))
    return outputs


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
        evaluation_batches(images, central(preprocessing), batch_size, replicas)
    )
    for number in range(batches):
        # The mean of all batches so far.
        step(source, tf.constant(number / (number + 1), keras.config.floatx()))
    return batches * batch_size
