"""Changes to a trained network: removed, swapped or added blocks, and pruned weights.

The functions need a network of this package whose blocks end in a ReLU. Very deep
networks, which consist of sub-models (`keras_resnet.nets.resnet`), are not supported.
"""

import itertools
import re
from collections.abc import Collection, Iterable

import keras
import numpy as np

from keras_resnet.nets import list_layers
from keras_resnet.studies.lib.tables import Rows
from keras_resnet.support import derive_seed
from keras_resnet.zoo import ResNet

BATCH_SIZE = 100  # Number of images that a network processes at once.

# Models by name, in execution order. Each model reads the output of the previous model.
Parts = dict[str, keras.Model]


def cut_into_parts(network: keras.Model) -> Parts:
    """Cuts a network into parts: the stem, each block and the head.

    The names of the parts are `"stem"`, the names of the blocks, such as
    `"conv2_block1"`, and `"head"`. The parts share their layers with the network.
    """
    last_layers = [layer for layer in network.layers if layer.name.endswith("_out")]
    block_outputs = {x.name.removesuffix("_out"): x.output for x in last_layers}
    stem_output = network.get_layer("conv2_block1_1_conv").input
    outputs = {"stem": stem_output, **block_outputs, "head": network.output}
    inputs = (network.input, *outputs.values())
    names_and_inputs = zip(outputs, inputs, strict=False)
    return {name: keras.Model(x, outputs[name]) for name, x in names_and_inputs}


def find_removable_blocks(parts: Parts) -> list[str]:
    """Returns the names of the blocks whose input and output have the same shape."""
    names = [name for name in parts if "_block" in name]
    return [n for n in names if parts[n].input_shape == parts[n].output_shape]


def remove_blocks(parts: Parts, names: Collection[str]) -> Parts:
    """Returns the parts without the named blocks. All other parts keep their order."""
    return {name: part for name, part in parts.items() if name not in names}


def swap_blocks(parts: Parts, block: str, other_block: str) -> Parts:
    """Returns the parts with two blocks exchanged."""
    replacements = {block: parts[other_block], other_block: parts[block]}
    return {name: replacements.get(name, part) for name, part in parts.items()}


def predict_probabilities(parts: Parts, images: np.ndarray) -> np.ndarray:
    """Returns the probabilities that a network predicts, float32, (n, classes).

    `parts` is the result of `cut_into_parts`, or `{"": network}` for a whole network.
    `images` are uint8, (n, height, width, channels).
    """
    outputs = []
    for start in range(0, len(images), BATCH_SIZE):
        x = images[start : start + BATCH_SIZE].astype(np.float32)
        # Parts are called directly, because `predict` would compile each part again.
        for part in parts.values():
            x = part(x, training=False)
        outputs.append(keras.ops.convert_to_numpy(x))
    return np.concatenate(outputs)


def error_rate(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the error in %, from probabilities (n, classes) and true labels (n,)."""
    return 100 * float(np.mean(probabilities.argmax(axis=1) != labels))


def get_kernels(network: keras.Model) -> list[np.ndarray]:
    """Returns the kernels of all convolutions, in the order of the layers."""
    return [keras.ops.convert_to_numpy(c.kernel) for c in _list_convs(network)]


def prune(network: keras.Model, fraction: float) -> keras.Model:
    """Returns a copy of a network in which a fraction of the kernel weights are zero.

    The weights with the smallest magnitudes among all convolutions are set to zero.
    """
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    magnitudes = np.sort(np.hstack([np.abs(k).ravel() for k in get_kernels(network)]))
    num_zeros = round(fraction * len(magnitudes))
    threshold = magnitudes[num_zeros - 1] if num_zeros else -1.0
    for layer, kernel in zip(_list_convs(copy), get_kernels(network), strict=True):
        layer.kernel.assign(np.where(np.abs(kernel) > threshold, kernel, 0))
    return copy


def _list_convs(network: keras.Model) -> list[keras.layers.Conv2D]:
    return [x for x in list_layers(network) if isinstance(x, keras.layers.Conv2D)]


def rank_fraction(kernel: np.ndarray) -> float:
    """Returns the smallest fraction of singular values that hold 90 % of the energy.

    The kernel, (height, width, inputs, outputs), is reshaped to a matrix with a column
    for each output channel. The energy is the sum of the squared singular values.
    """
    matrix = np.reshape(kernel, (-1, kernel.shape[-1]))
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    cumulative_energy = np.cumsum(squares) / squares.sum()
    # The tolerance prevents rounding errors from adding a singular value.
    return (1 + int(np.searchsorted(cumulative_energy, 0.9 - 1e-6))) / len(squares)


def measure_lesions(
    network: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    percentages: Iterable[float],
    seed: int,
) -> Rows:
    """Measures the error of a network after lesions, and the ranks of its kernels.

    Args:
        network: Trained network.
        images: Test images, uint8, (n, height, width, channels).
        labels: Class indices, (n,).
        percentages: Percentages of weights to prune.
        seed: Random seed of the untrained kernels.

    Returns:
        Rows with the columns `what`, `at` and `percent`. `percent` is the test error of
        the network without a lesion ("intact"), without block number `at` ("removed"),
        with block number `at` and the next block swapped ("swapped"), without the `at`
        blocks whose removal costs least ("first"), or with the smallest `at` % of the
        weights set to zero ("pruned"). "rank" is 100 * `rank_fraction` of kernel number
        `at`, and "untrained" is the same for a random kernel of that shape.
    """
    parts = cut_into_parts(network)
    rows: Rows = []
    numbers = {name: number for number, name in enumerate(parts)}
    block_names = find_removable_blocks(parts)
    rng = np.random.default_rng(derive_seed(seed, "untrained kernels"))

    def add_row(series: str, position: float, percent: float) -> float:
        rows.append({"what": series, "at": position, "percent": percent})
        return percent

    def test(parts: Parts) -> float:
        return error_rate(predict_probabilities(parts, images), labels)

    add_row("intact", 0, test(parts))
    error_by_block = {
        name: add_row("removed", numbers[name], test(remove_blocks(parts, [name])))
        for name in block_names
    }
    for name, next_name in itertools.pairwise(block_names):
        if parts[name].input_shape == parts[next_name].input_shape:
            add_row("swapped", numbers[name], test(swap_blocks(parts, name, next_name)))
    ranking = sorted(block_names, key=error_by_block.__getitem__)
    for num_removed in range(1, len(ranking) + 1):
        add_row("first", num_removed, test(remove_blocks(parts, ranking[:num_removed])))
    for percentage in percentages:
        add_row("pruned", percentage, test({"": prune(network, percentage / 100)}))
    for number, kernel in enumerate(get_kernels(network), 1):
        # `rank_fraction` is the same for all scales, so any standard deviation will do.
        random_kernel = rng.normal(size=kernel.shape)
        add_row("rank", number, 100 * rank_fraction(kernel))
        add_row("untrained", number, 100 * rank_fraction(random_kernel))
    return rows


def deepen(shallow_network: keras.Model, model: str) -> keras.Model:
    """Builds a deeper network from a shallow one by adding blocks to each stage.

    Each stage starts with the blocks of the shallow network. In the added blocks, gamma
    and beta of the last batch normalisation are zero, so the residual branch is zero.
    With a shortcut, an added block returns its input exactly, because the input is not
    negative and passes the final ReLU. Without a shortcut, the block returns zeros.

    Args:
        shallow_network: Trained network of basic blocks.
        model: Name of a variant with more blocks per stage.
    """
    deep_network = ResNet(
        model,
        input_tensor=shallow_network.get_layer("conv1_conv").input,
        classes=shallow_network.output_shape[-1],
    )
    shallow_layers = {layer.name: layer for layer in shallow_network.layers}
    for layer in deep_network.layers:
        if layer.name in shallow_layers:
            layer.set_weights(shallow_layers[layer.name].get_weights())
        elif re.fullmatch(r"conv\d+_block\d+_2_bn", layer.name):
            layer.gamma.assign(np.zeros(layer.gamma.shape))
            layer.beta.assign(np.zeros(layer.beta.shape))
    # `origin` describes the first layer and the classes, which both networks share.
    deep_network.origin = getattr(shallow_network, "origin", None)
    return deep_network
