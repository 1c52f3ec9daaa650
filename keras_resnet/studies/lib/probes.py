"""What is read off a network: how strongly its layers respond, and their gradients."""

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.nets import batch_norms, flat_layers


def responses(network, images):
    """Standard deviation of what each 3x3 layer gives, after its batch normalisation
    and before what follows: the sum with a shortcut, or the nonlinearity (Figure 7).

    Args:
        network: a CIFAR net of `keras_resnet`, without sub-models.
        images: uint8 (number, height, width, channels).

    Returns:
        One number for each layer, first to last, over images, places and channels.
    """
    layers = [each for each in batch_norms(network) if not _on_shortcut(each)]
    probe = keras.Model(network.input, [layer.output for layer in layers])
    sums = 0.0
    for begin in range(0, len(images), 100):
        # Not `predict`, on whose pipeline TensorFlow logs an error.
        found = [
            np.array(each, np.float64) for each in probe(images[begin : begin + 100])
        ]
        sums += np.array([(each.size, each.sum(), (each**2).sum()) for each in found])
    count, total, squares = np.transpose(sums)
    return np.sqrt(squares / count - (total / count) ** 2).tolist()


def _on_shortcut(layer):
    return layer.name.endswith("_0_bn")


def gradient_meter(network, images, labels):
    """Measures the loss's gradient by what each block reads, and its two terms.

    A residual block gives f(g) + g for what it reads, g. By the chain rule the
    gradient by g has a term through the branch f and one through the shortcut, which
    no weight of f can make small.

    Args:
        network: a CIFAR net of `keras_resnet`, without sub-models.
        images: uint8 (batch, height, width, channels).
        labels: their classes, (batch,).

    Returns:
        A function that gives a dict for each block of the network as it is then,
        first to last: `block` (its number), `gradient` (the norm of the whole),
        `branch`, `shortcut` (0 in a plain net) and `kernel` (of the gradient by the
        kernel of its first convolution).
    """
    layers = {layer.name: layer for layer in network.layers}
    firsts = {}  # The first layer of each branch, by what that and the shortcut read.
    for block in (
        name.removesuffix("_out") for name in layers if name.endswith("_out")
    ):
        first = f"{block}_1_{'pad' if f'{block}_1_pad' in layers else 'conv'}"
        firsts[id(layers[first].input)] = block, first
    kernels = [layers[f"{block}_1_conv"].kernel for block, _ in firsts.values()]
    *body, head = network.layers[1:]

    @tf.function(autograph=False)
    def norms():
        found, branches, sources = {}, {}, []
        with tf.GradientTape() as tape:
            pixels = tf.cast(images, network.compute_dtype)
            tape.watch(pixels)
            found[id(network.input)] = pixels
            for layer in body:
                inputs = layer.input if isinstance(layer.input, list) else [layer.input]
                read = [branches.get((layer.name, id(x)), found[id(x)]) for x in inputs]
                given = layer(read if len(read) > 1 else read[0], training=True)
                if key := firsts.get(id(layer.output)):
                    # Two copies, whose gradients are the two terms.
                    branch, shortcut = tf.identity(given), tf.identity(given)
                    sources += [given, branch, shortcut]
                    branches[key[1], id(layer.output)] = branch
                    given = shortcut
                found[id(layer.output)] = given
            # Logits keep what a softmax would lose.
            logits = found[id(head.input)] @ head.kernel + head.bias
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        sources += [kernel.value for kernel in kernels]
        # Zeros: by the copy that a plain net does not read.
        found = tape.gradient(loss, sources, None, tf.UnconnectedGradients.ZERO)
        return [tf.norm(each) for each in found]

    def measure():
        before = network.get_weights()  # The moving statistics, which will move.
        found = list(map(float, norms()))
        network.set_weights(before)
        count = len(kernels)
        return [
            {
                "block": block + 1,
                **dict(
                    zip(
                        ("gradient", "branch", "shortcut"),
                        found[3 * block :],
                        strict=False,
                    )
                ),
                "kernel": found[3 * count + block],
            }
            for block in range(count)
        ]

    return measure


def chain_rule_error(seed):
    """Checks d(f(g(x)) + g(x))/dx = (df/dg)(dg/dx) + dg/dx on a small net.

    f and g are layers of 5 tanh units, in float64. The left side is by central
    differences, the right side of the two layers' own Jacobians.

    Args:
        seed: of weights and input.

    Returns:
        The largest difference, as a share of the largest entry.
    """
    draw = np.random.default_rng(seed)
    weights, x = draw.normal(size=(2, 5, 5)), draw.normal(size=5)

    def layer(weight, x):
        return np.tanh(weight @ x)

    def jacobian(weight, x):
        return (1 - layer(weight, x) ** 2)[:, None] * weight

    def block(x):
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
        split: a `keras_resnet.data.Split`, the batch that it is measured on.
        steps: after which it is measured; 0 is before the first.
        scale: of the kernels' standard deviation, as a share of He's.
        normalised: whether batch normalisation is left in. Without, its layers pass
            on what they read: mean 0, variance 1, scale 1 and shift 0 stay.

    Attributes:
        rows: what was measured, a dict of `step` and those of `gradient_meter` each.
    """

    def __init__(self, split, steps, scale=1.0, normalised=True):
        super().__init__()
        self._batch, self._at = (split.images, split.labels), steps
        self._scale, self._normalised = scale, normalised
        self._taken, self._meter, self.rows = 0, None, []

    def on_train_begin(self, logs=None):
        for layer in flat_layers(self.model):
            if isinstance(layer, keras.layers.Conv2D):
                layer.kernel.assign(layer.kernel * self._scale)
        for layer in batch_norms(self.model):
            layer.trainable = self._normalised
        self._meter = gradient_meter(self.model, *self._batch)
        self._measure()

    def on_train_batch_end(self, batch, logs=None):
        self._taken += 1
        self._measure()

    def _measure(self):
        if self._taken in self._at:
            self.rows += [{"step": self._taken, **row} for row in self._meter()]
