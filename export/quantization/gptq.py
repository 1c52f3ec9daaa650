"""Weights rounded by their joint loss (GPTQ)."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_resnet.nets import fold
from keras_resnet.support import progress_bar

from .equalize import _WEIGHTED


def round_weights(model, images, batch_size=16):
    """Returns a network with weights of int8's levels, rounded with regard to each other.

    What a weight loses to rounding is made good by those not yet rounded, as far as
    what they read goes together: GPTQ (Frantar et al., arXiv:2210.17323, algorithm
    1), by the covariance of what a layer reads. The shift of the mean that remains is
    taken back by the bias (Nagel et al., arXiv:1906.04721, section 4.2).

    Args:
        model: as for `equalise`.
        images: as for `equalise`.
        batch_size: images at a time.

    Returns:
        A folded `keras.Model`, whose kernels a converter to int8 leaves as they are.
    """
    model = fold(model)
    weighted = [
        layer for layer in model.layers if type(layer) in _WEIGHTED and layer.use_bias
    ]
    seen = _input_moments(model, weighted, images, batch_size)
    with progress_bar("rounding weights", len(weighted)) as advance:
        for layer, (products, means) in zip(weighted, seen, strict=True):
            kernel, bias = layer.get_weights()
            parts = kernel.reshape(-1, kernel.shape[-1])
            parts = np.split(parts, len(means), axis=1)
            covariances = products - means[:, :, None] * means[:, None, :]
            rounded = [_round(*each) for each in zip(parts, covariances, strict=True)]
            shifts = [
                mean @ (after - before)
                for mean, after, before in zip(means, rounded, parts, strict=True)
            ]
            kernel = np.concatenate(rounded, axis=1).reshape(kernel.shape)
            layer.set_weights([kernel, bias - np.concatenate(shifts)])
            advance()
    return model


# Share of the mean variance that each gets more of, as few images tell little.
_DAMPING = 0.01


_BLOCK = 128  # Weights whose losses are handed on together, which is faster.


def _round(weights, covariance):
    """Rounds weights to multiples of a 127th of the largest of each output.

    Args:
        weights: (read, written).
        covariance: of what is read, (read, read).

    Returns:
        float64, of the shape of `weights`.
    """
    count, peak = len(weights), np.abs(weights).max(axis=0)
    level = np.maximum(np.float64(peak), 1e-30) / 127
    covariance = np.float64(covariance)
    covariance[np.diag_indices(count)] += (
        _DAMPING * np.trace(covariance) / count + 1e-12
    )
    # First what varies most: many are left to make good what it loses.
    order = np.argsort(-np.diag(covariance), kind="stable")
    left = np.float64(weights)[order]
    # The largest stay: the converter takes the level from them.
    stays = np.abs(weights)[order] == peak
    upper = np.linalg.cholesky(np.linalg.inv(covariance[np.ix_(order, order)])).T
    rounded = np.empty_like(left)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        losses = np.empty((stop - start, left.shape[1]))
        for i in range(start, stop):
            levels = np.clip(np.round(left[i] / level), -127, 127)
            levels[stays[i]] = 127 * np.sign(weights[order[i], stays[i]])
            rounded[i] = levels * level
            loss = (left[i] - rounded[i]) / upper[i, i]
            left[i + 1 : stop] -= np.outer(upper[i, i + 1 : stop], loss)
            losses[i - start] = loss
        left[stop:] -= upper[start:stop, stop:].T @ losses
    return rounded[np.argsort(order)]


def _input_moments(model, weighted, images, batch_size):
    """Moments of what an output of a layer reads: of a convolution, a patch.

    Returns:
        For each layer the means of products (groups, read, read) and the means
        (groups, read), in the order of its kernel.
    """
    probe = keras.Model(model.input, [layer.input for layer in weighted])

    @tf.function(autograph=False, reduce_retracing=True)
    def moments(batch):
        inputs = keras.tree.flatten(probe(batch, training=False))
        read = [_patches(*each) for each in zip(weighted, inputs, strict=True)]
        products = [
            tf.einsum("ngi,ngj->gij", each, each)
            / tf.cast(tf.shape(each)[0], each.dtype)
            for each in read
        ]
        return products, [tf.reduce_mean(each, axis=0) for each in read]

    sums = None
    for i in range(0, len(images), batch_size):
        batch = images[i : i + batch_size]
        share = len(batch) / len(images)
        found = [[share * each.numpy() for each in part] for part in moments(batch)]
        sums = found if sums is None else keras.tree.map_structure(np.add, sums, found)
    return zip(*sums, strict=True)


def _patches(layer, inputs):
    """What each output of a layer reads: (outputs, groups, read)."""
    groups, taken = getattr(layer, "groups", 1), inputs.shape[-1]
    if isinstance(layer, layers.Conv2D):
        inputs = tf.image.extract_patches(
            inputs,
            (1, *layer.kernel_size, 1),
            (1, *layer.strides, 1),
            (1, *layer.dilation_rate, 1),
            layer.padding.upper(),
        )
    places = inputs.shape[-1] // taken
    inputs = tf.reshape(inputs, (-1, places, groups, taken // groups))
    inputs = tf.transpose(inputs, (0, 2, 1, 3))
    return tf.reshape(inputs, (-1, groups, places * taken // groups))
