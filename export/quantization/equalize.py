"""Cross-layer equalisation."""

import keras
import numpy as np
from keras import layers

from keras_resnet.nets import fold

# A positive factor of a channel passes through these unchanged.
_HOMOGENEOUS = (
    layers.Add,
    layers.AveragePooling2D,
    layers.Dropout,
    layers.GlobalAveragePooling2D,
    layers.MaxPooling2D,
)


# These end with another factor than they begin with.
_WEIGHTED = (layers.Conv2D, layers.Dense)


def equalise(model, images, batch_size=16):
    """Returns a network that computes the same, with ranges that suit int8.

    All channels of a tensor share one scale in int8: one with large values takes
    the levels of the others. But a channel may be divided by any positive number
    that the layers which read it make good, since rectifiers, sums and pooling
    pass it on: cross-layer equalisation (Nagel et al., arXiv:1906.04721), here
    of whole stages of residual blocks too. As weights have a scale for each channel
    that they write, ranges of activations are set against those of the weights
    that read them, as in SmoothQuant (Xiao et al., arXiv:2211.10438).

    Channels that pass through anything else (batch normalisation before a
    convolution, squeeze and excitation, shortcut A) stay as they are.

    Args:
        model: a functional `keras.Model`, left unchanged.
        images: what it takes, (n, height, width, channels).
        batch_size: images at a time.

    Returns:
        A folded `keras.Model`.
    """
    model = fold(model)
    groups = _groups(model)
    tensors = [tensor for group in groups for tensor in group.tensors]
    seen = iter(_peaks(model, tensors, images, batch_size))
    weights = {
        layer: layer.get_weights()
        for group in groups
        for layer in (*group.writers, *group.readers)
    }
    for group in groups:
        peaks = [next(seen) for _ in group.tensors]
        active = np.max([peak / max(peak.max(), 1e-30) for peak in peaks], axis=0)
        read = np.max(
            [_read(weights[r][0], len(active)) for r in group.readers], axis=0
        )
        alive = (active > 0) & (read > 0)
        factor = np.ones(len(active))
        factor[alive] = np.sqrt(active[alive] / read[alive])
        for writer in group.writers:
            weights[writer] = [each / factor for each in weights[writer]]
        for reader in group.readers:
            kernel = weights[reader][0]
            weights[reader][0] = kernel * _spread(factor, kernel.shape)
    for layer, values in weights.items():
        layer.set_weights(values)
    return model


class _Group:
    """Tensors whose channels can only be scaled together, and who scales them."""

    def __init__(self, free):
        self.tensors, self.writers, self.readers, self.free = [], [], [], free

    def add(self, other):
        self.tensors += other.tensors
        self.writers += other.writers
        self.readers += other.readers
        self.free &= other.free


def _groups(model):
    """Finds what can be scaled in a network.

    Args:
        model: a functional `keras.Model` without sub-models.

    Returns:
        A list of `_Group`s.
    """
    group_of = {}  # By the id of a tensor.
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            layer, read = node.operation, [group_of[id(t)] for t in node.input_tensors]
            weighted = type(layer) in _WEIGHTED
            if _passes(layer):
                group = read[0]
                for other in read[1:]:
                    if other is not group:
                        group.add(other)
                        for tensor in other.tensors:
                            group_of[id(tensor)] = group
            else:
                group = _Group(free=weighted and _is_rectifier(layer))
                group.writers += [layer] * weighted
                for each in read:
                    each.readers.append(layer)
                    each.free &= weighted
            group.tensors += node.outputs
            group_of.update({id(tensor): group for tensor in node.outputs})
    for tensor in model.outputs:
        group_of[id(tensor)].free = False
    found = {id(group): group for group in group_of.values() if group.free}
    return [group for group in found.values() if group.readers]


def _is_rectifier(layer):
    return layer.activation in (keras.activations.linear, keras.activations.relu)


def _passes(layer):
    """Whether a layer keeps a positive factor of each channel."""
    if isinstance(layer, layers.ZeroPadding2D):
        # Shortcut A pads channels: it reads them in the other data format.
        return layer.data_format == keras.config.image_data_format()
    if isinstance(layer, layers.Activation):
        return _is_rectifier(layer)
    return isinstance(layer, (layers.ReLU, *_HOMOGENEOUS))


def _peaks(model, tensors, images, batch_size):
    """Largest absolute value of each channel of tensors of a network.

    Returns:
        For each tensor an array (channels,).
    """
    peaks = [
        keras.ops.max(keras.ops.abs(t), axis=tuple(range(t.ndim - 1))) for t in tensors
    ]
    probe = keras.Model(model.input, peaks)
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    parts = [keras.tree.flatten(probe(batch, training=False)) for batch in batches]
    return [np.max(each, axis=0) for each in zip(*parts, strict=True)]


def _read(kernel, channels):
    """Largest weight that reads each channel, relative to its output's largest.

    Args:
        kernel: (..., channels of a group, channels out).
        channels: that are read.
    """
    kernel = np.abs(kernel).reshape(-1, *kernel.shape[-2:]).max(axis=0)
    kernel = kernel / np.maximum(kernel.max(axis=0), 1e-30)
    taken = len(kernel)
    return kernel.reshape(taken, channels // taken, -1).max(axis=2).T.ravel()


def _spread(factor, shape):
    """A number for each channel that is read, in the shape of a kernel's last axes."""
    taken, given = shape[-2:]
    groups = len(factor) // taken
    return np.repeat(factor.reshape(groups, taken).T, given // groups, axis=1)
