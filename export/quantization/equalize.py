"""Cross-layer equalisation.

The quantisers for LiteRT do not implement equalisation. NNCF only scales channels
between two layers of an OpenVINO or ONNX graph, not the channels that all blocks of a
stage share.
"""

import keras
import numpy as np
from keras import layers

from keras_resnet.nets import fold

# Layers f with f(factors * x) = factors * f(x), for one positive factor per channel.
_HOMOGENEOUS_LAYERS = (
    layers.Add, layers.AveragePooling2D, layers.Dropout, layers.GlobalAveragePooling2D,
    layers.MaxPooling2D,
)  # fmt: skip

# Layers whose weights can absorb the factors of their input and output channels.
WEIGHTED_LAYERS = (layers.Conv2D, layers.Dense)

_TINY = 1e-30  # Smallest divisor, in case a range is zero.
_BATCH_SIZE = 16


def equalise(model: keras.Model, images: np.ndarray) -> keras.Model:
    """Returns an equivalent network whose channels have ranges that suit int8.

    In int8 all channels of a tensor share one scale, so one channel with large values
    leaves few quantisation steps to the others. Cross-layer equalisation (Nagel et al.,
    arXiv:1906.04721) divides each channel by a positive factor in the layers that write
    the channel, and multiplies by this factor in the layers that read the channel.
    ReLUs, sums and pooling preserve the factor, also across a whole stage of residual
    blocks. int8 weights have a scale per output channel, so the factors balance the
    ranges of activations and of the weights that read them, as in SmoothQuant (Xiao et
    al., arXiv:2211.10438).

    Channels are not scaled if they pass through a layer that does not preserve factors,
    such as batch normalisation before a convolution, squeeze and excitation, or the
    padding of channels in shortcut A.

    `model` is a functional model, left unchanged. `images` are calibration images, (n,
    height, width, channels). The new model is folded by `keras_resnet.nets.fold`.
    """
    model = fold(model)
    groups = _find_groups(model)
    tensors = [tensor for group in groups for tensor in group.tensors]
    all_peaks = iter(_measure_peaks(model, tensors, images) if tensors else ())
    members = [layer for group in groups for layer in (*group.writers, *group.readers)]
    weights = {layer: layer.get_weights() for layer in members}
    for group in groups:
        peaks = [next(all_peaks) for _ in group.tensors]
        kernels = [weights[reader][0] for reader in group.readers]
        factors = _choose_factors(peaks, kernels)
        for writer in group.writers:
            weights[writer] = [values / factors for values in weights[writer]]
        for reader in group.readers:
            kernel = weights[reader][0]
            weights[reader][0] = kernel * _expand_factors(factors, kernel.shape)
    for layer, values in weights.items():
        layer.set_weights(values)
    return model


class _Group:
    """Tensors whose channels can only be scaled together."""

    def __init__(self, scalable: bool) -> None:
        self.tensors: list[keras.KerasTensor] = []
        self.writers: list[keras.Layer] = []  # Layers that output one of `tensors`.
        self.readers: list[keras.Layer] = []  # Layers that read one of `tensors`.
        self.scalable = scalable  # Whether all writers and readers can absorb factors.

    def merge(self, other: "_Group") -> None:
        self.tensors += other.tensors
        self.writers += other.writers
        self.readers += other.readers
        self.scalable &= other.scalable


def _find_groups(model: keras.Model) -> list[_Group]:
    """Returns the scalable groups of a functional model without sub-models."""
    groups: dict[int, _Group] = {}  # Group of each tensor, by the tensor's id.
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            layer = node.operation
            inputs = [groups[id(tensor)] for tensor in node.input_tensors]
            if _preserves_factors(layer):
                group = inputs[0]
                for other in inputs[1:]:
                    if other is not group:
                        group.merge(other)
                        groups.update({id(tensor): group for tensor in other.tensors})
            else:
                is_weighted = type(layer) in WEIGHTED_LAYERS
                group = _Group(scalable=is_weighted and _is_relu_or_linear(layer))
                group.writers += [layer] * is_weighted
                for input_group in inputs:
                    input_group.readers.append(layer)
                    input_group.scalable &= is_weighted
            group.tensors += node.outputs
            groups.update({id(tensor): group for tensor in node.outputs})
    for tensor in model.outputs:
        groups[id(tensor)].scalable = False
    unique_groups = {id(group): group for group in groups.values()}.values()
    return [group for group in unique_groups if group.scalable and group.readers]


def _is_relu_or_linear(layer: keras.Layer) -> bool:
    return layer.activation in (keras.activations.linear, keras.activations.relu)


def _preserves_factors(layer: keras.Layer) -> bool:
    """Returns whether scaling the input channels scales the output channels equally."""
    if isinstance(layer, layers.ZeroPadding2D):
        # With the opposite data format, the layer pads channels (see `nets.blocks`).
        return layer.data_format == keras.config.image_data_format()
    if isinstance(layer, layers.Activation):
        return _is_relu_or_linear(layer)
    return isinstance(layer, (layers.ReLU, *_HOMOGENEOUS_LAYERS))


def _measure_peaks(
    model: keras.Model, tensors: list[keras.KerasTensor], images: np.ndarray
) -> list[np.ndarray]:
    """Returns one array per tensor: the largest absolute value of each channel."""
    peaks = [
        keras.ops.max(keras.ops.abs(t), axis=tuple(range(t.ndim - 1))) for t in tensors
    ]
    probe = keras.Model(model.input, peaks)
    batches = [images[i : i + _BATCH_SIZE] for i in range(0, len(images), _BATCH_SIZE)]
    parts = [keras.tree.flatten(probe(batch, training=False)) for batch in batches]
    return [np.max(batch_peaks, axis=0) for batch_peaks in zip(*parts, strict=True)]


def _choose_factors(peaks: list[np.ndarray], kernels: list[np.ndarray]) -> np.ndarray:
    """Returns the factors by which the channels of a group are divided, (channels,).

    `peaks` are the results of `_measure_peaks` for the group's tensors, and `kernels`
    are the kernels of the group's readers. A factor is sqrt(activation range / weight
    range). An activation range is a fraction of the largest range in the tensor, and a
    weight range is a fraction of the largest weight of the output channel.
    """
    ranges = np.max([peak / max(peak.max(), _TINY) for peak in peaks], axis=0)
    weights = np.max([_compute_kernel_peaks(k, len(ranges)) for k in kernels], axis=0)
    is_active = (ranges > 0) & (weights > 0)
    factors = np.ones(len(ranges))
    factors[is_active] = np.sqrt(ranges[is_active] / weights[is_active])
    return factors


def _compute_kernel_peaks(kernel: np.ndarray, num_channels: int) -> np.ndarray:
    """Returns the largest relative weight of each input channel, (num_channels,).

    Relative weights are fractions of the largest absolute weight of an output channel.
    `kernel` is (..., input channels of a convolution's group, output channels).
    """
    kernel = np.abs(kernel).reshape(-1, *kernel.shape[-2:]).max(axis=0)
    kernel = kernel / np.maximum(kernel.max(axis=0), _TINY)
    num_groups = num_channels // len(kernel)
    return kernel.reshape(len(kernel), num_groups, -1).max(axis=2).T.ravel()


def _expand_factors(factors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the factors for a kernel with `shape`, as an (inputs, outputs) array."""
    factors_by_group = factors.reshape(-1, shape[-2]).T
    num_outputs_per_group = shape[-1] // factors_by_group.shape[1]
    return np.repeat(factors_by_group, num_outputs_per_group, axis=1)
