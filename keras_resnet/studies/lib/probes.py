"""Measurements on a network: the strength of layer responses, and gradients."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.nets import batch_norms, flat_layers
from keras_resnet.studies.lib.tables import Rows

if TYPE_CHECKING:
    from keras_resnet.data import Split


def measure_responses(network: keras.Model, images: np.ndarray) -> list[float]:
    """Returns the standard deviation of the response of each 3x3 layer, first to last.

    The response is the output of the batch normalisation after the layer, before the
    shortcut is added or the nonlinearity applied (Figure 7 of the paper). The standard
    deviation is over images, positions and channels.

    Args:
        network: CIFAR network without sub-models.
        images: uint8, (n, height, width, channels).
    """
    norm_layers = [n for n in batch_norms(network) if not n.name.endswith("_0_bn")]
    probe = keras.Model(network.input, [layer.output for layer in norm_layers])
    sums = np.zeros((len(norm_layers), 3))  # Count, sum, sum of squares of a layer.
    for begin in range(0, len(images), 100):
        # `predict` works too, but TensorFlow logs an error about its input pipeline.
        outputs = probe(images[begin : begin + 100])
        values = [np.array(output, np.float64) for output in outputs]
        sums += [(x.size, x.sum(), (x**2).sum()) for x in values]
    count, total, squares = sums.T
    return np.sqrt(squares / count - (total / count) ** 2).tolist()


class _Block(NamedTuple):
    """Start of a block's residual branch."""

    source: int  # `id` of the Keras tensor that is the input of the block.
    first: str  # Name of the first layer of the branch.
    kernel: keras.Variable  # Kernel of the first convolution of the branch.


class _BlockTensors(NamedTuple):
    """Tensors of a block, or the norms of the loss gradients with respect to them."""

    gradient: tf.Tensor  # Input of the block.
    branch: tf.Tensor  # Copy of the input that the branch reads.
    shortcut: tf.Tensor  # Copy of the input that the shortcut reads.
    kernel: tf.Variable  # Kernel of the first convolution.


def make_gradient_meter(
    network: keras.Model, images: np.ndarray, labels: np.ndarray
) -> Callable[[], Rows]:
    """Returns a function that measures the loss gradient at the input of each block.

    A residual block computes f(g) + g from its input g. By the chain rule, the gradient
    with respect to g is the sum of a term through the branch f and a term through the
    shortcut. The weights of f cannot make the second term small.

    Args:
        network: CIFAR network without sub-models.
        images: uint8, (batch, height, width, channels).
        labels: Class indices, (batch,).

    Returns:
        A function that returns a row for each block, first to last, from the current
        weights. The columns are `block` (its number), `gradient` (2-norm of the whole
        gradient), `branch` and `shortcut` (2-norms of the two terms; `shortcut` is 0 in
        a plain network), and `kernel` (2-norm of the gradient with respect to the kernel
        of the block's first convolution).
    """
    blocks = _find_blocks(network)

    @tf.function(autograph=False)
    def norms() -> list[_BlockTensors]:
        with tf.GradientTape() as tape:
            logits, sources = _run(network, blocks, images, tape)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        # A plain network does not use the copy for the shortcut: its gradient is zero.
        gradients = tape.gradient(loss, sources, None, tf.UnconnectedGradients.ZERO)
        return tf.nest.map_structure(tf.norm, gradients)

    def measure() -> Rows:
        original_weights = network.get_weights()
        gradient_norms = norms()
        network.set_weights(original_weights)  # Restores the moving statistics.
        return [
            {"block": number, **{k: float(v) for k, v in block._asdict().items()}}
            for number, block in enumerate(gradient_norms, 1)
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
) -> tuple[tf.Tensor, list[_BlockTensors]]:
    """Runs a network in training mode, with two copies of the input of each block.

    Branch and shortcut read different copies, so that the gradients with respect to the
    copies are the two terms. Returns the logits, (batch, classes), which are more
    precise than probabilities, and the tensors of each block.
    """
    by_source = {block.source: block for block in blocks}
    *body, head = network.layers[1:]
    pixels = tf.cast(images, network.compute_dtype)
    tape.watch(pixels)
    values = {id(network.input): pixels}  # Values by the `id` of the Keras tensor.
    branches: dict[tuple[str, int], tf.Tensor] = {}
    sources = []
    for layer in body:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        args = [branches.get((layer.name, id(x)), values[id(x)]) for x in inputs]
        output = layer(args if len(args) > 1 else args[0], training=True)
        if block := by_source.get(id(layer.output)):
            branch, shortcut = tf.identity(output), tf.identity(output)
            sources.append(_BlockTensors(output, branch, shortcut, block.kernel.value))
            branches[block.first, block.source] = branch
            output = shortcut
        values[id(layer.output)] = output
    return values[id(head.input)] @ head.kernel + head.bias, sources


def chain_rule_error(seed: int) -> float:
    """Checks d(f(g(x)) + g(x))/dx = (df/dg)(dg/dx) + dg/dx on a small random network.

    f and g are layers of 5 tanh units in float64. The left side is computed by central
    differences, the right side from the Jacobians of both layers. Returns the largest
    absolute difference as a fraction of the largest entry.
    """
    random = np.random.default_rng(seed)
    weights, x = random.normal(size=(2, 5, 5)), random.normal(size=5)

    def layer(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.tanh(weight @ x)

    def jacobian(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
        return (1 - layer(weight, x) ** 2)[:, None] * weight

    def block(x: np.ndarray) -> np.ndarray:
        g = layer(weights[0], x)
        return layer(weights[1], g) + g

    step = 1e-6
    lhs = [(block(x + e) - block(x - e)) / (2 * step) for e in step * np.eye(5)]
    dg = jacobian(weights[0], x)
    rhs = jacobian(weights[1], layer(weights[0], x)) @ dg + dg
    return float(np.abs(np.transpose(lhs) - rhs).max() / np.abs(rhs).max())


class GradientProbe(keras.callbacks.Callback):
    """Scales the initial weights of a network and measures its gradients in training.

    Args:
        split: Batch for the measurements.
        steps: Numbers of training steps after which to measure; 0 is before training.
        scale: Factor on the initial kernels, whose initialisation is He's.
        normalised: Whether batch normalisation is active. If not, its layers are
            frozen with mean 0, variance 1, scale 1 and shift 0, which is the identity.

    Attributes:
        rows: Measured rows, with `step` and the columns of `make_gradient_meter`.
    """

    def __init__(
        self, split: "Split", steps: Collection[int], scale: float, normalised: bool
    ) -> None:
        super().__init__()
        self._batch, self._steps = (split.images, split.labels), steps
        self._scale, self._normalised = scale, normalised
        self._step = 0
        self.rows: Rows = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        for layer in flat_layers(self.model):
            if isinstance(layer, keras.layers.Conv2D):
                layer.kernel.assign(layer.kernel * self._scale)
        for layer in batch_norms(self.model):
            layer.trainable = self._normalised
        self._meter = make_gradient_meter(self.model, *self._batch)
        self._measure()

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._step += 1
        self._measure()

    def _measure(self) -> None:
        if self._step in self._steps:
            self.rows += [{"step": self._step, **row} for row in self._meter()]
