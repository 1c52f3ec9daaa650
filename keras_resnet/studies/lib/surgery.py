"""What is done to a trained network: blocks left out or exchanged, pruned, made deeper.

For the networks of `keras_resnet` whose blocks end in a rectifier; the deepest of
them, which have sub-models (see `keras_resnet.nets.resnet`), are not cut.
"""

import itertools
import re
from collections.abc import Collection, Iterable

import keras
import numpy as np

from keras_resnet.nets import flat_layers
from keras_resnet.studies.lib.tables import Rows
from keras_resnet.zoo import ResNet

BATCH = 100  # Images at a time.

# Models by name: each reads what the one before it gives.
Parts = dict[str, keras.Model]


def cut(network: keras.Model) -> Parts:
    """Cuts a network before and after each block.

    The parts share its layers: `"stem"`, each block by its name, such as
    `"conv2_block1"`, and `"head"`.
    """
    outs = [layer for layer in network.layers if layer.name.endswith("_out")]
    inner = {layer.name.removesuffix("_out"): layer.output for layer in outs}
    first = network.get_layer("conv2_block1_1_conv").input
    ends = {"stem": first, **inner, "head": network.output}
    begins = (network.input, *ends.values())
    pairs = zip(ends, begins, strict=False)
    return {name: keras.Model(begin, ends[name]) for name, begin in pairs}


def blocks(parts: Parts) -> list[str]:
    """Returns the names of the blocks that keep the shape: those that can be left out."""
    names = [name for name in parts if "_block" in name]
    return [n for n in names if parts[n].input_shape == parts[n].output_shape]


def without(parts: Parts, names: Collection[str]) -> Parts:
    """Returns the parts of a network but for some blocks: the next one reads what they read."""
    return {name: part for name, part in parts.items() if name not in names}


def swapped(parts: Parts, first: str, second: str) -> Parts:
    """Returns the parts of a network of which two blocks have changed places."""
    places = {first: parts[second], second: parts[first]}
    return {name: places.get(name, part) for name, part in parts.items()}


def probabilities(parts: Parts, images: np.ndarray) -> np.ndarray:
    """Returns the outputs of a network in inference mode: float32, (number, classes).

    Args:
        parts: Its models, see `cut`; of a whole network `{"": network}`.
        images: uint8, (number, height, width, channels).
    """
    outputs = []
    for begin in range(0, len(images), BATCH):
        x = images[begin : begin + BATCH].astype(np.float32)
        # Not `predict`, which would compile each part anew for each lesion.
        for part in parts.values():
            x = part(x, training=False)
        outputs.append(keras.ops.convert_to_numpy(x))
    return np.concatenate(outputs)


def error_rate(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of images that are named wrongly, in %.

    Outputs are (number, classes), labels (number,).
    """
    return 100 * float(np.mean(outputs.argmax(axis=1) != labels))


def kernels(network: keras.Model) -> list[np.ndarray]:
    """Returns the kernels of a network's convolutions, in order."""
    return [keras.ops.convert_to_numpy(c.kernel) for c in _convolutions(network)]


def pruned(network: keras.Model, share: float) -> keras.Model:
    """Returns a copy whose smallest weights are zero.

    The share, from 0 to 1, is of the weights of all convolutions together.
    """
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    sizes = np.sort(np.concatenate([np.abs(k).ravel() for k in kernels(network)]))
    count = round(share * len(sizes))
    limit = sizes[count - 1] if count else -1.0
    for layer, kernel in zip(_convolutions(copy), kernels(network), strict=True):
        layer.kernel.assign(np.where(np.abs(kernel) > limit, kernel, 0))
    return copy


def _convolutions(network: keras.Model) -> list[keras.layers.Conv2D]:
    layers = flat_layers(network)
    return [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]


def rank_share(kernel: np.ndarray) -> float:
    """Returns the least share of a kernel's directions that hold 90 % of its energy.

    The kernel, (height, width, read, written), is a matrix of height x width x read rows
    and a column for each channel that it writes; the energy is the sum of its squared
    singular values.
    """
    matrix = np.reshape(kernel, (-1, kernel.shape[-1]))
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    held = np.cumsum(squares) / squares.sum()
    # A matrix of rank 1 may hold 1 - 1e-16 with its first direction.
    return (1 + int(np.searchsorted(held, 0.9 - 1e-6))) / len(squares)


def lesions(
    network: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    shares: Iterable[float],
    seed: int,
) -> Rows:
    """Does all of this to a network, and sees what it names wrongly.

    Args:
        network: A trained network.
        images: Held-out images, uint8, (number, height, width, channels).
        labels: Their classes, (number,).
        shares: Shares of the smallest weights that are set to zero, in %.
        seed: Seed of the kernels drawn for comparison.

    Returns:
        Rows of `what` was done, `at` which place or to what extent, and `percent`:
        the error of the net that is "intact"; with the block number `at` "removed", or
        "swapped" for the next; with `at` blocks removed, the least harmful "first";
        with `at` % of the smallest weights "pruned". Also the share of directions that
        hold 90 % of the energy of layer number `at`, its "rank", and that of an
        "untrained" kernel of the same shape.
    """
    parts = cut(network)
    rows: Rows = []
    numbers = {name: number for number, name in enumerate(parts)}
    names, random = blocks(parts), np.random.default_rng(seed)

    def add_row(what: str, at: float, percent: float) -> float:
        rows.append({"what": what, "at": at, "percent": percent})
        return percent

    def wrong(parts: Parts) -> float:
        return error_rate(probabilities(parts, images), labels)

    add_row("intact", 0, wrong(parts))
    harm = {
        name: add_row("removed", numbers[name], wrong(without(parts, [name])))
        for name in names
    }
    for name, following in itertools.pairwise(names):
        if parts[name].input_shape == parts[following].input_shape:
            add_row("swapped", numbers[name], wrong(swapped(parts, name, following)))
    order = sorted(names, key=harm.__getitem__)
    for count in range(1, len(order) + 1):
        add_row("first", count, wrong(without(parts, order[:count])))
    for share in shares:
        add_row("pruned", share, wrong({"": pruned(network, share / 100)}))
    for number, kernel in enumerate(kernels(network), 1):
        untrained = random.normal(size=kernel.shape)  # Its scale makes no difference.
        add_row("rank", number, 100 * rank_share(kernel))
        add_row("untrained", number, 100 * rank_share(untrained))
    return rows


def deepened(shallow: keras.Model, model: str) -> keras.Model:
    """Builds a deeper net with the weights of a shallow one, and zeros.

    Each stage begins with the blocks of the shallow net. Of those that follow, the
    last gamma and beta are zero. With shortcuts they give what they read, exactly: it
    is not negative, so that the rectifier after the sum leaves it. Without shortcuts
    they give zeros, whatever the image.

    Args:
        shallow: A trained network of basic blocks.
        model: Name of a network with more blocks in its stages.
    """
    deep = ResNet(
        model,
        input_tensor=shallow.get_layer("conv1_conv").input,
        classes=shallow.output_shape[-1],
    )
    known = {layer.name: layer for layer in shallow.layers}
    for layer in deep.layers:
        if layer.name in known:
            layer.set_weights(known[layer.name].get_weights())
        elif re.fullmatch(r"conv\d+_block\d+_2_bn", layer.name):
            layer.gamma.assign(np.zeros(layer.gamma.shape))
            layer.beta.assign(np.zeros(layer.beta.shape))
    # The origin describes its first layer and its classes.
    deep.origin = getattr(shallow, "origin", None)
    return deep
