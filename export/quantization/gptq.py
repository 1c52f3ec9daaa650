"""Weights rounded by their joint loss (GPTQ).

Our own, because the GPTQ of Keras 3.15, NNCF 3.4 and litert-quantizer 0.11 rounds dense
layers only.
"""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_resnet.nets import fold
from keras_resnet.support import progress_bar

from .equalize import WEIGHTED_LAYERS

# Ridge term, as a fraction of the mean variance, because few images give a noisy
# covariance.
_DAMPING = 0.01

_BLOCK = 128  # Weights whose losses are handed on together, which is faster.


def round_weights(
    model: keras.Model, images: np.ndarray, batch_size: int = 16
) -> keras.Model:
    """Returns a network with weights of int8's levels, rounded with regard to each other.

    What a weight loses to rounding is made good by those not yet rounded, as far as
    what they read goes together: GPTQ (Frantar et al., arXiv:2210.17323, algorithm
    1), by the covariance of what a layer reads. The shift of the mean that remains is
    taken back by the bias (Nagel et al., arXiv:1906.04721, section 4.2).

    Args:
        model: As for `equalise`.
        images: As for `equalise`.
        batch_size: Number of images at a time.

    Returns:
        A folded model. A converter to int8 leaves its kernels as they are.
    """
    model = fold(model)
    known = [layer for layer in model.layers if type(layer) in WEIGHTED_LAYERS]
    weighted = [layer for layer in known if layer.use_bias]
    moments = _input_moments(model, weighted, images, batch_size)
    with progress_bar("rounding weights", len(weighted)) as advance:
        for layer, (products, means) in zip(weighted, moments, strict=True):
            _round_layer(layer, products, means)
            advance()
    return model


def _round_layer(layer: keras.Layer, products: np.ndarray, means: np.ndarray) -> None:
    """Rounds the kernel of a layer and corrects its bias; see `_input_moments`."""
    kernel, bias = layer.get_weights()
    parts = np.split(kernel.reshape(-1, kernel.shape[-1]), len(means), axis=1)
    covariances = products - means[:, :, None] * means[:, None, :]
    rounded = list(map(_round, parts, covariances))
    groups = zip(means, rounded, parts, strict=True)
    shifts = [mean @ (after - before) for mean, after, before in groups]
    kernel = np.concatenate(rounded, axis=1).reshape(kernel.shape)
    layer.set_weights([kernel, bias - np.concatenate(shifts)])


def _round(weights: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Rounds weights, (read, written), to multiples of a 127th of each output's largest.

    `covariance`, (read, read), is that of what is read. Returns float64.
    """
    count, peak = len(weights), np.abs(weights).max(axis=0)
    level = np.maximum(np.float64(peak), 1e-30) / 127
    covariance = covariance.astype(np.float64)
    ridge = _DAMPING * np.trace(covariance) / count + 1e-12
    covariance[np.diag_indices(count)] += ridge
    # First what varies most: many are left to make good what it loses.
    order = np.argsort(-np.diag(covariance), kind="stable")
    left = weights.astype(np.float64)[order]
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


def _input_moments(
    model: keras.Model, weighted: list[keras.Layer], images: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Measures what an output of a layer reads: of a convolution, a patch.

    Yields the means of products (groups, read, read) and the means (groups, read) for
    each layer, in the order of its kernel.
    """
    probe = keras.Model(model.input, [layer.input for layer in weighted])

    @tf.function(autograph=False, reduce_retracing=True)
    def moments(batch: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        inputs = keras.tree.flatten(probe(batch, training=False))
        patches = list(map(_patches, weighted, inputs))
        counts = [tf.cast(tf.shape(patch)[0], patch.dtype) for patch in patches]
        totals = [tf.einsum("ngi,ngj->gij", patch, patch) for patch in patches]
        products = list(map(tf.divide, totals, counts))
        return products, [tf.reduce_mean(patch, axis=0) for patch in patches]

    sums: list[list[np.ndarray]] = []
    for i in range(0, len(images), batch_size):
        batch = images[i : i + batch_size]
        share = len(batch) / len(images)
        parts = [[share * t.numpy() for t in moment] for moment in moments(batch)]
        sums = keras.tree.map_structure(np.add, sums, parts) if sums else parts
    return zip(*sums, strict=True)


def _patches(layer: keras.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """Returns what each output of a layer reads: (outputs, groups, read)."""
    groups, taken = getattr(layer, "groups", 1), inputs.shape[-1]
    if isinstance(layer, layers.Conv2D):
        windows = layer.kernel_size, layer.strides, layer.dilation_rate
        sizes = [(1, *window, 1) for window in windows]
        inputs = tf.image.extract_patches(inputs, *sizes, layer.padding.upper())
    places = inputs.shape[-1] // taken
    inputs = tf.reshape(inputs, (-1, places, groups, taken // groups))
    inputs = tf.transpose(inputs, (0, 2, 1, 3))
    return tf.reshape(inputs, (-1, groups, places * taken // groups))
