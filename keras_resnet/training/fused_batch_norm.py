"""Batch normalisation by TensorFlow's kernel while a step is traced."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_resnet.nets import batch_norms


@contextlib.contextmanager
def fused(model: keras.Model) -> Iterator[None]:
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


def _call_fused(
    layer: keras.layers.BatchNormalization,
    inputs: tf.Tensor,
    training: bool | None = None,
    mask: Any = None,
) -> tf.Tensor:
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
