"""Cross-layer equalisation.

Our own, because the quantisers for LiteRT have none, and NNCF's scales channels between
two layers of an OpenVINO or ONNX graph, not those of a whole stage.
"""

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
WEIGHTED_LAYERS = (layers.Conv2D, layers.Dense)

_TINY = 1e-30  # In place of a range of zero, which is divided by.
_BATCH = 16


def equalise(model: keras.Model, images: np.ndarray) -> keras.Model:
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
        model: A functional model, left unchanged.
        images: Input of the model: (n, height, width, channels).

    Returns:
        A folded model.
    """
    model = fold(model)
    groups = _find_groups(model)
    tensors = [tensor for group in groups for tensor in group.tensors]
    peaks_of_tensors = iter(_measure_peaks(model, tensors, images))
    ends = [layer for group in groups for layer in (*group.writers, *group.readers)]
    weights = {layer: layer.get_weights() for layer in ends}
    for group in groups:
        peaks = [next(peaks_of_tensors) for _ in group.tensors]
        kernels = [weights[reader][0] for reader in group.readers]
        factor = _choose_factors(peaks, kernels)
        for writer in group.writers:
            weights[writer] = [values / factor for values in weights[writer]]
        for reader in group.readers:
            kernel = weights[reader][0]
            weights[reader][0] = kernel * _spread(factor, kernel.shape)
    for layer, values in weights.items():
        layer.set_weights(values)
    return model


class _Group:
    """Tensors whose channels can only be scaled together."""

    def __init__(self, free: bool) -> None:
        self.tensors: list[keras.KerasTensor] = []
        self.writers: list[keras.Layer] = []  # With weights; they compute a tensor.
        self.readers: list[keras.Layer] = []  # With weights; they read one.
        self.free = free  # Whether all layers at the ends can take a factor.

    def add(self, other: "_Group") -> None:
        self.tensors += other.tensors
        self.writers += other.writers
        self.readers += other.readers
        self.free &= other.free


def _find_groups(model: keras.Model) -> list[_Group]:
    """Finds what can be scaled in a functional model without sub-models."""
    group_of: dict[int, _Group] = {}  # By the id of a tensor.
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            layer = node.operation
            inputs = [group_of[id(tensor)] for tensor in node.input_tensors]
            if _passes(layer):
                group = inputs[0]
                for other in inputs[1:]:
                    if other is not group:
                        group.add(other)
                        group_of.update({id(tensor): group for tensor in other.tensors})
            else:
                weighted = type(layer) in WEIGHTED_LAYERS
                group = _Group(free=weighted and _is_rectifier(layer))
                group.writers += [layer] * weighted
                for read_group in inputs:
                    read_group.readers.append(layer)
                    read_group.free &= weighted
            group.tensors += node.outputs
            group_of.update({id(tensor): group for tensor in node.outputs})
    for tensor in model.outputs:
        group_of[id(tensor)].free = False
    groups = {id(group): group for group in group_of.values()}.values()
    return [group for group in groups if group.free and group.readers]


def _is_rectifier(layer: keras.Layer) -> bool:
    return layer.activation in (keras.activations.linear, keras.activations.relu)


def _passes(layer: keras.Layer) -> bool:
    """Whether a layer keeps a positive factor of each channel."""
    if isinstance(layer, layers.ZeroPadding2D):
        # Shortcut A pads channels: it reads them in the other data format.
        return layer.data_format == keras.config.image_data_format()
    if isinstance(layer, layers.Activation):
        return _is_rectifier(layer)
    return isinstance(layer, (layers.ReLU, *_HOMOGENEOUS))


def _measure_peaks(
    model: keras.Model, tensors: list[keras.KerasTensor], images: np.ndarray
) -> list[np.ndarray]:
    """Returns the largest absolute value of each channel: (channels,) of each tensor."""
    peaks = [
        keras.ops.max(keras.ops.abs(t), axis=tuple(range(t.ndim - 1))) for t in tensors
    ]
    probe = keras.Model(model.input, peaks)
    batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    parts = [keras.tree.flatten(probe(batch, training=False)) for batch in batches]
    return [np.max(batch_peaks, axis=0) for batch_peaks in zip(*parts, strict=True)]


def _choose_factors(peaks: list[np.ndarray], kernels: list[np.ndarray]) -> np.ndarray:
    """Returns the number that each channel of a group is divided by: (channels,).

    `peaks` are the largest absolute values of its tensors; the kernels read them.
    """
    written = np.max([peak / max(peak.max(), _TINY) for peak in peaks], axis=0)
    read = np.max([_read_peaks(kernel, len(written)) for kernel in kernels], axis=0)
    alive = (written > 0) & (read > 0)
    factor = np.ones(len(written))
    factor[alive] = np.sqrt(written[alive] / read[alive])
    return factor


def _read_peaks(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns the largest weight that reads each channel, over its output's largest.

    `kernel` is (..., input channels of a convolution's group, output channels).
    """
    kernel = np.abs(kernel).reshape(-1, *kernel.shape[-2:]).max(axis=0)
    kernel = kernel / np.maximum(kernel.max(axis=0), _TINY)
    taken = len(kernel)
    return kernel.reshape(taken, channels // taken, -1).max(axis=2).T.ravel()


def _spread(factor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the factor of each channel that is read, by a kernel's last two axes."""
    taken, given = shape[-2:]
    groups = len(factor) // taken
    return np.repeat(factor.reshape(groups, taken).T, given // groups, axis=1)
