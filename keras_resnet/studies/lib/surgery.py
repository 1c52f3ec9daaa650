"""Changes to a trained network: blocks are removed, swapped or added, weights pruned.

The functions need a network of this package whose blocks end in a rectifier. Networks
of sub-models (the deepest ones, see `keras_resnet.nets.resnet`) cannot be cut.
"""

import itertools
import re
from collections.abc import Collection, Iterable

import keras
import numpy as np

from keras_resnet.nets import flat_layers
from keras_resnet.studies.lib.tables import Rows
from keras_resnet.zoo import ResNet

BATCH = 100  # Number of images in a batch.

# Models by name. The input of each is the output of the one before it.
Parts = dict[str, keras.Model]


def cut_into_parts(network: keras.Model) -> Parts:
    """Cuts a network before and after each block.

    The parts are named `"stem"`, after each block, such as `"conv2_block1"`, and
    `"head"`. They share the layers of the network.
    """
    outs = [layer for layer in network.layers if layer.name.endswith("_out")]
    inner = {layer.name.removesuffix("_out"): layer.output for layer in outs}
    first = network.get_layer("conv2_block1_1_conv").input
    ends = {"stem": first, **inner, "head": network.output}
    begins = (network.input, *ends.values())
    pairs = zip(ends, begins, strict=False)
    return {name: keras.Model(begin, ends[name]) for name, begin in pairs}


def find_removable_blocks(parts: Parts) -> list[str]:
    """Returns the names of the blocks whose output has the shape of their input."""
    names = [name for name in parts if "_block" in name]
    return [n for n in names if parts[n].input_shape == parts[n].output_shape]


def remove_blocks(parts: Parts, names: Collection[str]) -> Parts:
    """Returns the parts without some blocks. The next part reads their input."""
    return {name: part for name, part in parts.items() if name not in names}


def swap_blocks(parts: Parts, first: str, second: str) -> Parts:
    """Returns the parts with two blocks exchanged."""
    replacements = {first: parts[second], second: parts[first]}
    return {name: replacements.get(name, part) for name, part in parts.items()}


def predict_probabilities(parts: Parts, images: np.ndarray) -> np.ndarray:
    """Returns the predicted probabilities in inference mode, float32, (n, classes).

    `parts` come from `cut_into_parts`; for a whole network, they are `{"": network}`.
    `images` are uint8, (n, height, width, channels).
    """
    outputs = []
    for begin in range(0, len(images), BATCH):
        x = images[begin : begin + BATCH].astype(np.float32)
        # `predict` would compile each part again for each lesion.
        for part in parts.values():
            x = part(x, training=False)
        outputs.append(keras.ops.convert_to_numpy(x))
    return np.concatenate(outputs)


def error_rate(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the error in % of probabilities, (n, classes), given labels, (n,)."""
    return 100 * float(np.mean(outputs.argmax(axis=1) != labels))


def get_kernels(network: keras.Model) -> list[np.ndarray]:
    """Returns the kernels of all convolutions in network order."""
    return [keras.ops.convert_to_numpy(c.kernel) for c in _convolutions(network)]


def prune(network: keras.Model, fraction: float) -> keras.Model:
    """Returns a copy whose smallest convolution weights, a `fraction`, are zero."""
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    sizes = np.sort(np.concatenate([np.abs(k).ravel() for k in get_kernels(network)]))
    count = round(fraction * len(sizes))
    limit = sizes[count - 1] if count else -1.0
    for layer, kernel in zip(_convolutions(copy), get_kernels(network), strict=True):
        layer.kernel.assign(np.where(np.abs(kernel) > limit, kernel, 0))
    return copy


def _convolutions(network: keras.Model) -> list[keras.layers.Conv2D]:
    layers = flat_layers(network)
    return [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]


def rank_fraction(kernel: np.ndarray) -> float:
    """Returns the smallest fraction of directions that hold 90 % of a kernel's energy.

    The kernel, (height, width, inputs, outputs), is reshaped to a matrix with a column
    for each output channel. Its energy is the sum of the squared singular values.
    """
    matrix = np.reshape(kernel, (-1, kernel.shape[-1]))
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    energy = np.cumsum(squares) / squares.sum()
    # The tolerance prevents rounding errors from adding a direction.
    return (1 + int(np.searchsorted(energy, 0.9 - 1e-6))) / len(squares)


def measure_lesions(
    network: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    percentages: Iterable[float],
    seed: int,
) -> Rows:
    """Measures the error of a network after different lesions, and ranks of kernels.

    Args:
        network: Trained network.
        images: Test images, uint8, (n, height, width, channels).
        labels: Class indices, (n,).
        percentages: Percentages of the smallest weights to set to zero.
        seed: Random seed of the untrained kernels.

    Returns:
        Rows with the columns `what`, `at` and `percent`. For most values of `what`,
        `percent` is the test error: "intact"; "removed", without block number `at`;
        "swapped", with block `at` and the next one exchanged; "first", without the `at`
        least harmful blocks; "pruned", with the smallest `at` % of the weights zeroed.
        For "rank" it is the percentage of directions that hold 90 % of the energy of
        kernel number `at`, for "untrained" that of a random kernel of the same shape.
    """
    parts = cut_into_parts(network)
    rows: Rows = []
    numbers = {name: number for number, name in enumerate(parts)}
    names, random = find_removable_blocks(parts), np.random.default_rng(seed)

    def add_row(what: str, at: float, percent: float) -> float:
        rows.append({"what": what, "at": at, "percent": percent})
        return percent

    def error(parts: Parts) -> float:
        return error_rate(predict_probabilities(parts, images), labels)

    add_row("intact", 0, error(parts))
    harm = {
        name: add_row("removed", numbers[name], error(remove_blocks(parts, [name])))
        for name in names
    }
    for first, second in itertools.pairwise(names):
        if parts[first].input_shape == parts[second].input_shape:
            add_row("swapped", numbers[first], error(swap_blocks(parts, first, second)))
    order = sorted(names, key=harm.__getitem__)
    for count in range(1, len(order) + 1):
        add_row("first", count, error(remove_blocks(parts, order[:count])))
    for percentage in percentages:
        add_row("pruned", percentage, error({"": prune(network, percentage / 100)}))
    for number, kernel in enumerate(get_kernels(network), 1):
        untrained = random.normal(size=kernel.shape)  # The scale is irrelevant.
        add_row("rank", number, 100 * rank_fraction(kernel))
        add_row("untrained", number, 100 * rank_fraction(untrained))
    return rows


def deepen(shallow: keras.Model, model: str) -> keras.Model:
    """Builds a deeper network from a shallow one by appending blocks of zeros.

    Each stage starts with the blocks of the shallow network. In the blocks added behind
    them, gamma and beta of the last batch normalisation are zero. With a shortcut, such
    a block returns its input exactly, since the input is not negative and passes the
    rectifier after the sum. Without a shortcut, the block always returns zeros.

    Args:
        shallow: Trained network of basic blocks.
        model: Name of a variant with more blocks in its stages.
    """
    deep = ResNet(
        model,
        input_tensor=shallow.get_layer("conv1_conv").input,
        classes=shallow.output_shape[-1],
    )
    shallow_layers = {layer.name: layer for layer in shallow.layers}
    for layer in deep.layers:
        if layer.name in shallow_layers:
            layer.set_weights(shallow_layers[layer.name].get_weights())
        elif re.fullmatch(r"conv\d+_block\d+_2_bn", layer.name):
            layer.gamma.assign(np.zeros(layer.gamma.shape))
            layer.beta.assign(np.zeros(layer.beta.shape))
    # `origin` describes the first layer and the classes, which stay the same.
    deep.origin = getattr(shallow, "origin", None)
    return deep
