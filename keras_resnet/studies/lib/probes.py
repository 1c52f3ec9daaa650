"""Measurements on a network: layer responses, and gradients of the loss."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.nets import list_batch_norms, list_layers
from keras_resnet.studies.lib.tables import Rows
from keras_resnet.support import derive_seed

if TYPE_CHECKING:
    from keras_resnet.data import Split


def measure_responses(network: keras.Model, images: np.ndarray) -> list[float]:
    """Returns the standard deviation of the response of each 3x3 layer, first to last.

    The response of a layer is the output of the batch normalisation that follows it,
    before the shortcut is added and the ReLU is applied (Figure 7 of the paper).
    The standard deviation is taken over images, positions and channels.

    Args:
        network: CIFAR network without sub-models.
        images: uint8, (n, height, width, channels).
    """
    norm_layers = [n for n in list_batch_norms(network) if not n.name.endswith("_0_bn")]
    probe = keras.Model(network.input, [layer.output for layer in norm_layers])
    sums = np.zeros((len(norm_layers), 3))  # Columns: count, sum, sum of squares.
    for start in range(0, len(images), 100):
        # A call of `predict` would log an error about TensorFlow's input pipeline.
        outputs = probe(images[start : start + 100])
        values = [np.array(output, np.float64) for output in outputs]
        sums += [(x.size, x.sum(), (x**2).sum()) for x in values]
    counts, totals, square_sums = sums.T
    return np.sqrt(square_sums / counts - (totals / counts) ** 2).tolist()


class _Block(NamedTuple):
    """Input of a block, and the first layer of the block's residual branch."""

    input_id: int  # `id` of the Keras tensor that is the input of the block.
    first_layer: str  # Name of the first layer of the residual branch.
    kernel: keras.Variable  # Kernel of the first convolution of the branch.


class _BlockTensors(NamedTuple):
    """Tensors of a block, or the norm of the loss gradient for each of the tensors."""

    input: tf.Tensor  # Input of the block.
    branch_input: tf.Tensor  # Copy of the block's input that the branch reads.
    shortcut_input: tf.Tensor  # Copy of the block's input that the shortcut reads.
    kernel: tf.Variable  # Kernel of the first convolution of the branch.


def make_gradient_meter(
    network: keras.Model, images: np.ndarray, labels: np.ndarray
) -> Callable[[], Rows]:
    """Returns a function that measures the loss gradient at the input of each block.

    A residual block computes f(g) + g from its input g. By the chain rule, the gradient
    with respect to g is the sum of a term that passes through the branch f and a term
    that passes through the shortcut. The weights of f cannot shrink the second term.

    Args:
        network: CIFAR network without sub-models.
        images: uint8, (batch, height, width, channels).
        labels: Class indices, (batch,).

    Returns:
        A function that measures the network with its current weights and returns a row
        for each block. The columns are `block` (number, from 1), `gradient` (2-norm of
        the gradient at the block's input), `branch` and `shortcut` (2-norms of the two
        terms of this gradient; `shortcut` is 0 in a plain network), and `kernel`
        (2-norm of the gradient at the kernel of the block's first convolution).
    """
    blocks = _find_blocks(network)

    @tf.function(autograph=False)
    def compute_norms() -> list[_BlockTensors]:
        with tf.GradientTape() as tape:
            logits, tensors = _run_with_copies(network, blocks, images, tape)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        # A plain network does not read `shortcut_input`, so the gradient at it is zero.
        gradients = tape.gradient(loss, tensors, None, tf.UnconnectedGradients.ZERO)
        return tf.nest.map_structure(tf.norm, gradients)

    def measure_gradients() -> Rows:
        columns = ("gradient", "branch", "shortcut", "kernel")
        original_weights = network.get_weights()
        gradient_norms = compute_norms()
        # Running the network in training mode has changed the moving statistics.
        network.set_weights(original_weights)
        return [
            {"block": number, **dict(zip(columns, map(float, norms), strict=True))}
            for number, norms in enumerate(gradient_norms, 1)
        ]

    return measure_gradients


def _find_blocks(network: keras.Model) -> list[_Block]:
    layers = {layer.name: layer for layer in network.layers}
    blocks = []
    for name, layer in layers.items():
        if name.endswith("_1_conv"):
            pad_name = name.replace("_conv", "_pad")
            first = pad_name if pad_name in layers else name
            blocks.append(_Block(id(layers[first].input), first, layer.kernel))
    return blocks


def _run_with_copies(
    model: keras.Model, blocks: list[_Block], images: np.ndarray, tape: tf.GradientTape
) -> tuple[tf.Tensor, list[_BlockTensors]]:
    """Runs a network in training mode, with two copies of the input of each block.

    The branch reads one copy and the shortcut reads the other copy, so the gradients at
    the copies are the two terms of the gradient at the block's input. Returns logits,
    (batch, classes), and the tensors of each block.
    """
    blocks_by_input = {block.input_id: block for block in blocks}
    *body, head = model.layers[1:]
    pixels = tf.cast(images, model.compute_dtype)
    tape.watch(pixels)
    outputs = {id(model.input): pixels}  # Values of Keras tensors, by `id`.
    branch_inputs: dict[tuple[str, int], tf.Tensor] = {}
    tensors = []
    for layer in body:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        args = [branch_inputs.get((layer.name, id(x)), outputs[id(x)]) for x in inputs]
        output = layer(args if len(args) > 1 else args[0], training=True)
        if block := blocks_by_input.get(id(layer.output)):
            copies = tf.identity(output), tf.identity(output)
            tensors.append(_BlockTensors(output, *copies, block.kernel.value))
            branch_inputs[block.first_layer, block.input_id], output = copies
        outputs[id(layer.output)] = output
    return outputs[id(head.input)] @ head.kernel + head.bias, tensors


def chain_rule_error(seed: int) -> float:
    """Checks d(f(g(x)) + g(x))/dx = (df/dg)(dg/dx) + dg/dx on a small random network.

    f and g are layers of 5 tanh units in float64. The left-hand side is computed by
    central differences, the right-hand side from the Jacobians of f and g.

    Returns:
        The maximum of |left-hand side - right-hand side| over all entries, divided by
        the maximum of |right-hand side|.
    """
    rng = np.random.default_rng(derive_seed(seed, "chain rule"))
    weights, x = rng.normal(size=(2, 5, 5)), rng.normal(size=5)

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
    """Scales the initial kernels of a network and measures gradients during training.

    Args:
        split: Batch of images and labels on which gradients are measured.
        steps: Steps after which gradients are measured; 0 is before training.
        scale: Factor by which the kernels are multiplied after He initialisation.
        normalised: Whether batch normalisation layers are active. Otherwise the layers
            are frozen as the identity: mean 0, variance 1, scale 1 and shift 0.

    Attributes:
        rows: Measured rows, with `step` and the columns of `make_gradient_meter`.
    """

    def __init__(
        self, split: "Split", steps: Collection[int], scale: float, normalised: bool
    ) -> None:
        super().__init__()
        self._batch, self._steps = (split.images, split.labels), steps
        self._scale, self._normalised = scale, normalised
        self._taken = 0
        self.rows: Rows = []

    def on_train_begin(self, logs: Any = None) -> None:
        for layer in list_layers(self.model):
            if isinstance(layer, keras.layers.Conv2D):
                layer.kernel.assign(layer.kernel * self._scale)
        for layer in list_batch_norms(self.model):
            layer.trainable = self._normalised
        self._meter = make_gradient_meter(self.model, *self._batch)
        self._measure()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._taken += 1
        self._measure()

    def _measure(self) -> None:
        if self._taken in self._steps:
            self.rows += [{"step": self._taken, **row} for row in self._meter()]
