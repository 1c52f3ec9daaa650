"""GPTQ: rounding of weights that minimises the error of a layer's output.

The implementations of GPTQ in Keras 3.15, NNCF 3.4 and litert-quantizer 0.11 are not
used, because they only round dense layers.
"""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_resnet.nets import fold
from keras_resnet.support import progress_bar

from .equalize import WEIGHTED_LAYERS

# Ridge term, as a fraction of the mean variance. It is added to the covariance, which
# is noisy if the calibration images are few.
_DAMPING = 0.01

_BLOCK_ROWS = 128  # Rows per block. One matrix product propagates a block's errors.


def round_weights(
    model: keras.Model, images: np.ndarray, batch_size: int = 16
) -> keras.Model:
    """Returns a copy of a network whose kernels are rounded to int8 by GPTQ.

    Weights are rounded one after the other. The weights that are not yet rounded are
    adjusted to compensate for each rounding error, as far as their inputs are
    correlated (Frantar et al., arXiv:2210.17323, algorithm 1, with the covariance of a
    layer's inputs). The bias compensates for the remaining shift of the output's mean
    (Nagel et al., arXiv:1906.04721, section 4.2).

    `model` is a functional model. `images` are calibration images, (n, height, width,
    channels). The copy is folded. Conversion to int8 does not change its kernels.
    """
    model = fold(model)
    candidates = [layer for layer in model.layers if type(layer) in WEIGHTED_LAYERS]
    targets = [layer for layer in candidates if layer.use_bias]
    moments = _measure_moments(model, targets, images, batch_size)
    with progress_bar("rounding weights", len(targets)) as advance:
        for layer, (products, means) in zip(targets, moments, strict=True):
            _round_layer(layer, products, means)
            advance()
    return model


def _round_layer(layer: keras.Layer, products: np.ndarray, means: np.ndarray) -> None:
    """Rounds a kernel and corrects the bias, given a result of `_measure_moments`."""
    kernel, bias = layer.get_weights()
    matrices = np.split(kernel.reshape(-1, kernel.shape[-1]), len(means), axis=1)
    covariances = products - means[:, :, None] * means[:, None, :]
    rounded_matrices = list(map(_round_matrix, matrices, covariances))
    groups = zip(means, rounded_matrices, matrices, strict=True)
    shifts = [mean @ (rounded - original) for mean, rounded, original in groups]
    kernel = np.concatenate(rounded_matrices, axis=1).reshape(kernel.shape)
    layer.set_weights([kernel, bias - np.concatenate(shifts)])


def _round_matrix(weights: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Returns weights that are rounded to multiples of a quantisation step per output.

    A step is 1/127 of the largest absolute weight of the output. `weights` and the
    returned float64 array have the shape (inputs, outputs).
    `covariance` is the covariance of the inputs, (inputs, inputs).
    """
    num_inputs, peak = len(weights), np.abs(weights).max(axis=0)
    step = np.maximum(np.float64(peak), 1e-30) / 127
    covariance = covariance.astype(np.float64)
    ridge = _DAMPING * np.trace(covariance) / num_inputs + 1e-12
    covariance[np.diag_indices(num_inputs)] += ridge
    # Inputs with large variance come first: more weights can compensate for the errors.
    order = np.argsort(-np.diag(covariance), kind="stable")
    adjusted_weights = weights.astype(np.float64)[order]
    # The largest weight of an output keeps its value, because the converter computes
    # the quantisation step from it.
    is_peak = np.abs(weights)[order] == peak
    factor = np.linalg.cholesky(np.linalg.inv(covariance[np.ix_(order, order)])).T
    rounded_weights = np.empty_like(adjusted_weights)
    for start in range(0, num_inputs, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, num_inputs)
        errors = np.empty((stop - start, adjusted_weights.shape[1]))
        for i in range(start, stop):
            integers = np.clip(np.round(adjusted_weights[i] / step), -127, 127)
            integers[is_peak[i]] = 127 * np.sign(weights[order[i], is_peak[i]])
            rounded_weights[i] = integers * step
            error = (adjusted_weights[i] - rounded_weights[i]) / factor[i, i]
            adjusted_weights[i + 1 : stop] -= np.outer(factor[i, i + 1 : stop], error)
            errors[i - start] = error
        adjusted_weights[stop:] -= factor[start:stop, stop:].T @ errors
    return rounded_weights[np.argsort(order)]


def _measure_moments(
    model: keras.Model, targets: list[keras.Layer], images: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the second and first moments of the inputs of each layer in `targets`.

    The shapes are (groups, inputs, inputs) and (groups, inputs). The inputs are the
    values that one output position reads (a convolution's patch), in kernel order.
    """
    probe = keras.Model(model.input, [layer.input for layer in targets])

    @tf.function(autograph=False, reduce_retracing=True)
    def measure(batch: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        inputs = keras.tree.flatten(probe(batch, training=False))
        patches = list(map(_extract_patches, targets, inputs))
        counts = [tf.cast(tf.shape(patch)[0], patch.dtype) for patch in patches]
        totals = [tf.einsum("ngi,ngj->gij", patch, patch) for patch in patches]
        products = list(map(tf.divide, totals, counts))
        return products, [tf.reduce_mean(patch, axis=0) for patch in patches]

    sums: list[list[np.ndarray]] = []
    for i in range(0, len(images), batch_size):
        batch = images[i : i + batch_size]
        fraction = len(batch) / len(images)
        parts = [[fraction * t.numpy() for t in tensors] for tensors in measure(batch)]
        sums = keras.tree.map_structure(np.add, sums, parts) if sums else parts
    return zip(*sums, strict=True)


def _extract_patches(layer: keras.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """Returns the inputs of each output position: (positions, groups, inputs)."""
    groups, num_channels = getattr(layer, "groups", 1), inputs.shape[-1]
    if isinstance(layer, layers.Conv2D):
        windows = layer.kernel_size, layer.strides, layer.dilation_rate
        sizes = [(1, *window, 1) for window in windows]
        inputs = tf.image.extract_patches(inputs, *sizes, layer.padding.upper())
    num_pixels = inputs.shape[-1] // num_channels
    inputs = tf.reshape(inputs, (-1, num_pixels, groups, num_channels // groups))
    inputs = tf.transpose(inputs, (0, 2, 1, 3))
    return tf.reshape(inputs, (-1, groups, num_pixels * num_channels // groups))
