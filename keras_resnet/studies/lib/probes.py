"""What is read off a network: how strongly its layers respond, and their gradients."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.nets import batch_norms, flat_layers
from keras_resnet.studies.lib.tables import Rows

if TYPE_CHECKING:
    from keras_resnet.data import Split


def responses(network: keras.Model, images: np.ndarray) -> list[float]:
    """Standard deviation of what each 3x3 layer gives, after its batch normalisation
    and before what follows: the sum with a shortcut, or the nonlinearity (Figure 7).

    It is over images, places and channels of each layer, first to last.

    Args:
        network: A CIFAR net without sub-models.
        images: uint8, (number, height, width, channels).
    """
    norms = [n for n in batch_norms(network) if not n.name.endswith("_0_bn")]
    probe = keras.Model(network.input, [layer.output for layer in norms])
    sums = np.zeros((len(norms), 3))  # Count, sum and sum of squares of each layer.
    for begin in range(0, len(images), 100):
        # Not `predict`, on whose pipeline TensorFlow logs an error.
        outputs = probe(images[begin : begin + 100])
        values = [np.array(output, np.float64) for output in outputs]
        sums += [(x.size, x.sum(), (x**2).sum()) for x in values]
    count, total, squares = sums.T
    return np.sqrt(squares / count - (total / count) ** 2).tolist()


class _Block(NamedTuple):
    """The begin of a block's branch."""

    source: int  # `id` of the Keras tensor that branch and shortcut read.
    first: str  # Name of the first layer of the branch.
    kernel: keras.Variable  # Of the first convolution of the branch.


class _Measured(NamedTuple):
    """Tensors of a block by which the loss is differentiated, or gradients' norms."""

    gradient: tf.Tensor  # What the block reads.
    branch: tf.Tensor  # The copy of it that the branch reads.
    shortcut: tf.Tensor  # The copy of it that the shortcut reads.
    kernel: tf.Variable  # Kernel of the first convolution.


def gradient_meter(
    network: keras.Model, images: np.ndarray, labels: np.ndarray
) -> Callable[[], Rows]:
    """Measures the loss's gradient by what each block reads, and its two terms.

    A residual block gives f(g) + g for what it reads, g. By the chain rule the
    gradient by g has a term through the branch f and one through the shortcut, which
    no weight of f can make small.

    Args:
        network: A CIFAR net without sub-models.
        images: uint8, (batch, height, width, channels).
        labels: Their classes, (batch,).

    Returns:
        A function that gives a row for each block of the network as it is then,
        first to last: `block` (its number), `gradient` (the norm of the whole),
        `branch`, `shortcut` (0 in a plain net) and `kernel` (norm of the gradient by
        the kernel of its first convolution).
    """
    blocks = _find_blocks(network)

    @tf.function(autograph=False)
    def norms() -> list[_Measured]:
        with tf.GradientTape() as tape:
            logits, sources = _run(network, blocks, images, tape)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        # Zeros: by the copy that a plain net does not read.
        gradients = tape.gradient(loss, sources, None, tf.UnconnectedGradients.ZERO)
        return tf.nest.map_structure(tf.norm, gradients)

    def measure() -> Rows:
        before = network.get_weights()  # The moving statistics, which will move.
        measured = norms()
        network.set_weights(before)
        return [
            {"block": number, **{k: float(v) for k, v in block._asdict().items()}}
            for number, block in enumerate(measured, 1)
        ]

    return measure


def _find_blocks(network: keras.Model) -> list[_Block]:
    layers = {layer.name: layer for layer in network.layers}
    blocks = []
    for name, layer in layers.items():
        if name.endswith("_1_conv"):
            pad = name.replace("_conv", "_pad")
            first = pad if pad in layers else name
            blocks.append(_Block(id(layers[first].input), first, layer.kernel))
    return blocks


def _run(
    network: keras.Model,
    blocks: list[_Block],
    images: np.ndarray,
    tape: tf.GradientTape,
) -> tuple[tf.Tensor, list[_Measured]]:
    """Runs a network in training mode, with two copies of what each block reads.

    Logits, (batch, classes), keep what a softmax would lose.
    """
    by_source = {block.source: block for block in blocks}
    *body, head = network.layers[1:]
    pixels = tf.cast(images, network.compute_dtype)
    tape.watch(pixels)
    values = {id(network.input): pixels}  # By the Keras tensor that they stand for.
    branches: dict[tuple[str, int], tf.Tensor] = {}
    sources = []
    for layer in body:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        read = [branches.get((layer.name, id(x)), values[id(x)]) for x in inputs]
        output = layer(read if len(read) > 1 else read[0], training=True)
        if block := by_source.get(id(layer.output)):
            # The gradients by two copies are the two terms.
            branch, shortcut = tf.identity(output), tf.identity(output)
            sources.append(_Measured(output, branch, shortcut, block.kernel.value))
            branches[block.first, block.source] = branch
            output = shortcut
        values[id(layer.output)] = output
    return values[id(head.input)] @ head.kernel + head.bias, sources


def chain_rule_error(seed: int) -> float:
    """Checks d(f(g(x)) + g(x))/dx = (df/dg)(dg/dx) + dg/dx on a small net.

    f and g are layers of 5 tanh units, in float64. The left side is by central
    differences, the right side of the two layers' own Jacobians. Returns the largest
    difference, as a share of the largest entry.
    """
    draw = np.random.default_rng(seed)
    weights, x = draw.normal(size=(2, 5, 5)), draw.normal(size=5)

    def layer(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.tanh(weight @ x)

    def jacobian(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
        return (1 - layer(weight, x) ** 2)[:, None] * weight

    def block(x: np.ndarray) -> np.ndarray:
        g = layer(weights[0], x)
        return layer(weights[1], g) + g

    step = 1e-6
    left = [(block(x + e) - block(x - e)) / (2 * step) for e in step * np.eye(5)]
    dg = jacobian(weights[0], x)
    right = jacobian(weights[1], layer(weights[0], x)) @ dg + dg
    return float(np.abs(np.transpose(left) - right).max() / np.abs(right).max())


class GradientProbe(keras.callbacks.Callback):
    """Scales a network's initial weights, and measures it while it is trained.

    Args:
        split: The batch that it is measured on.
        steps: Numbers of training steps after which it is measured; 0 is before the
            first.
        scale: Standard deviation of the kernels, as a share of He's.
        normalised: Whether batch normalisation is left in. Without, its layers pass
            on what they read: mean 0, variance 1, scale 1 and shift 0 stay.

    Attributes:
        rows: What was measured, with `step` and the columns of `gradient_meter`.
    """

    def __init__(
        self, split: "Split", steps: Collection[int], scale: float, normalised: bool
    ) -> None:
        super().__init__()
        self._batch, self._at = (split.images, split.labels), steps
        self._scale, self._normalised = scale, normalised
        self._taken = 0
        self.rows: Rows = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        for layer in flat_layers(self.model):
            if isinstance(layer, keras.layers.Conv2D):
                layer.kernel.assign(layer.kernel * self._scale)
        for layer in batch_norms(self.model):
            layer.trainable = self._normalised
        self._meter = gradient_meter(self.model, *self._batch)
        self._measure()

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._taken += 1
        self._measure()

    def _measure(self) -> None:
        if self._taken in self._at:
            self.rows += [{"step": self._taken, **row} for row in self._meter()]
