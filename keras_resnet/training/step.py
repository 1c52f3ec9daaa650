"""The training step: from a batch to changed weights.

What makes a step fast or safe and does not belong into a saved network, such as
mixed precision, is switched on while the step is traced: what is saved stays an
ordinary float32 network of standard layers.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_resnet.distribution import next_batch
from keras_resnet.nets import batch_norms, flat_layers, stages, synchronized
from keras_resnet.spec import Execution, Recipe
from keras_resnet.training.optimizers import Rate, all_finite, make_optimizer

# Images, labels and weights; see `keras_resnet.data.TrainingBatches`.
Batch = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
BatchIterator = Iterator[Batch]


def rates(network: keras.Model, stage_rate: float) -> list[float]:
    """Returns each trainable variable's share of the head's learning rate."""
    numbered = list(stages(network))
    head = max(number for _, number in numbered)
    shares = {
        id(variable): stage_rate ** (head - number)
        for layer, number in numbered
        for variable in layer.trainable_variables
    }
    return [shares[id(variable)] for variable in network.trainable_variables]


@contextlib.contextmanager
def _replaced(
    layers: Sequence[keras.layers.Layer], name: str, value: Any
) -> Iterator[None]:
    """Gives an attribute of layers another value while a step is traced."""
    kept = [getattr(layer, name) for layer in layers]
    for layer in layers:
        setattr(layer, name, value)
    try:
        yield
    finally:
        for layer, old in zip(layers, kept, strict=True):
            setattr(layer, name, old)


@contextlib.contextmanager
def _fused(network: keras.Model) -> Iterator[None]:
    """Batch normalisation by TensorFlow's kernel while a step is traced.

    Keras computes it by a dozen operations, each of which passes over the
    activations: a third of ResNet-20's step on a CPU (benchmarks/results/step.csv).
    The numbers are the same but for rounding. For float32 variables, alone or with
    mixed precision, and channels last; others stay as they are.
    """
    norms = [
        layer
        for layer in batch_norms(network)
        if layer.variable_dtype == "float32" and layer.axis in (-1, 3)
    ]
    for layer in norms:
        layer.call = functools.partial(_call_fused, layer)
    try:
        yield
    finally:
        for layer in norms:
            del layer.call


def _call_fused(
    layer: keras.layers.BatchNormalization,
    inputs: tf.Tensor,
    training: bool | None = None,
    mask: Any = None,
) -> tf.Tensor:
    """Calls a layer of batch normalisation by the fused kernel, if it trains."""
    if not (training and layer.trainable) or mask is not None:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.cast(layer.gamma, tf.float32),
        offset=tf.cast(layer.beta, tf.float32),
        mean=tf.constant([], tf.float32),
        variance=tf.constant([], tf.float32),
        epsilon=layer.epsilon,
        is_training=True,
    )
    # The kernel's variance is unbiased, and Keras's moving average of biased ones.
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
    variance *= (count - 1) / count
    for moving, now in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + now * (1 - layer.momentum))
    return outputs


def loss_of(recipe: Recipe, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the loss of each image, (batch,).

    Args:
        recipe: Recipe with the loss and its smoothing.
        labels: Classes, int32 (batch,), or shares of them, (batch, classes).
        logits: (batch, classes).
    """
    smoothing, classes = recipe.label_smoothing, logits.shape[-1]
    if recipe.loss == "cross_entropy" and labels.shape.rank == 1 and not smoothing:
        return keras.losses.sparse_categorical_crossentropy(labels, logits, True)
    targets = labels
    if labels.shape.rank == 1:
        targets = tf.one_hot(labels, classes, dtype=logits.dtype)
    targets = tf.cast(targets, logits.dtype)
    if recipe.loss == "bce":
        targets = tf.cast(targets > 0, logits.dtype)
    targets = targets * (1 - smoothing) + smoothing / classes
    if recipe.loss == "bce":
        losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
        return tf.reduce_mean(losses, axis=-1)
    return keras.losses.categorical_crossentropy(targets, logits, from_logits=True)


def _at(network: keras.Model, size: int) -> keras.Model:
    """The same layers as a network for images of another size."""
    return keras.models.clone_model(
        network,
        input_tensors=keras.Input((size, size, network.input_shape[-1]), name="image"),
        call_function=lambda layer, *args, **kwargs: layer(*args, **kwargs),
        clone_function=lambda layer: layer,
    )


def _average_moving_statistics(
    network: keras.Model, context: tf.distribute.ReplicaContext
) -> None:
    """Gives all replicas the mean of their moving statistics, as Keras does not."""
    norms = batch_norms(network)
    moving = [v for norm in norms for v in (norm.moving_mean, norm.moving_variance)]
    means = context.all_reduce("MEAN", [tf.identity(v.value) for v in moving])
    for variable, mean in zip(moving, means, strict=True):
        variable.assign(mean)


class Step:
    """Takes training steps.

    Args:
        network: Network of this package that ends in a softmax.
        strategy: Strategy in whose scope it was made.
        recipe: Loss, optimizer and schedule.
        steps: Number of steps of the whole run, over which the rate changes.
        execution: How steps are executed; `None` is the defaults.
        rate: Learning rate in the place of the recipe's.

    Attributes:
        sums: Four numbers: over the steps since they were last set to 0, the summed
            loss, right answers, and images; and the number of steps until a loss was
            not finite.
        asks_to_stop: Variable by which this worker asks all of them to stop.
        asked: Variable above 0 once any worker has asked, on all of them.
        optimizer: Optimizer that gets the gradients.
        averages: Averages of the network's variables, with `recipe.ema`, else none.
    """

    def __init__(
        self,
        network: keras.Model,
        strategy: tf.distribute.Strategy,
        recipe: Recipe,
        steps: int,
        execution: Execution | None = None,
        rate: Rate | None = None,
    ) -> None:
        self._network, self._strategy, self._recipe = network, strategy, recipe
        self._execution = execution = execution or Execution()
        variables = network.trainable_variables
        floats = [v for v in network.variables if v.dtype.startswith("float")]
        self._averaged = floats if recipe.ema else []
        with strategy.scope():
            inner, self.optimizer = make_optimizer(
                recipe, steps, execution.precision, rate
            )
            decays = [
                recipe.weight_decay
                if recipe.decay_all or variable.name == "kernel"
                else 0.0
                for variable in variables
            ]
            inner.set_shares(variables, decays, rates(network, recipe.stage_rate))
            self.optimizer.build(variables)
            self.averages = [
                tf.Variable(v.value, trainable=False, name=f"average/{v.path}")
                for v in self._averaged
            ]
        self.sums = tf.Variable(tf.zeros(4, tf.float64))
        self.asks_to_stop = tf.Variable(0.0, dtype=tf.float64)
        self.asked = tf.Variable(0.0, dtype=tf.float64)
        # A network for each size of training images, of the same layers.
        self._networks = {(size, size): _at(network, size) for size in recipe.sizes}
        self._networks[tuple(network.input_shape[1:3])] = network
        self._one = tf.function(self._step)
        self._many = tf.function(self._loop)
        self._finite = tf.function(lambda: all_finite([v.value for v in floats]))

    def __call__(self, batches: BatchIterator, count: int = 1) -> None:
        """Takes some steps in one call of the device.

        Args:
            batches: Iterator that `keras_resnet.distribution.iterate_batches` makes.
            count: Number of steps.
        """
        if count == 1:
            self._one(batches)
        else:
            self._many(batches, tf.constant(count))

    def clear_sums(self) -> None:
        """Sets the sums to 0."""
        self.sums.assign(tf.zeros_like(self.sums))

    def is_finite(self) -> bool:
        """Whether all weights, and the moving statistics, are numbers."""
        return bool(self._finite())

    def average(self) -> None:
        """Sets the averages to the weights as they are, before the first step."""
        for average, variable in zip(self.averages, self._averaged, strict=True):
            average.assign(variable.value)

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """The network as it is judged and saved: with averaged weights, if any."""
        if not self.averages:
            yield
            return
        kept = [keras.ops.convert_to_numpy(v) for v in self._averaged]
        for average, variable in zip(self.averages, self._averaged, strict=True):
            variable.assign(average.read_value())
        try:
            yield
        finally:
            for value, variable in zip(kept, self._averaged, strict=True):
                variable.assign(value)

    def _loop(self, batches: BatchIterator, count: tf.Tensor) -> None:
        for _ in tf.range(count):
            self._step(batches)

    def _step(self, batches: BatchIterator) -> None:
        args = next_batch(self._strategy, batches)
        sizes = self._strategy.experimental_local_results(args[0])[0].shape[1:3]
        network, execution = self._networks[tuple(sizes)], self._execution
        *layers, head = flat_layers(network)
        mixed = layers if execution.precision != "float32" else []
        shared = execution.sync_bn and self._strategy.num_replicas_in_sync > 1
        replica_step = functools.partial(self._replica_step, network)
        if execution.jit_compile:
            replica_step = tf.function(replica_step, jit_compile=True)
        with (
            _replaced([head], "activation", keras.activations.linear),  # Logits.
            _replaced(mixed, "dtype_policy", execution.precision),
            synchronized(network) if shared else _fused(network),
        ):
            sums = self._strategy.run(replica_step, args=args)
        sums = self._strategy.reduce("SUM", sums, axis=None)
        good = tf.math.is_finite(sums[0]) & tf.math.is_finite(self.sums[0])
        self.asked.assign_add(sums[3])
        self.sums.assign_add(tf.concat([sums[:3], [tf.cast(good, tf.float64)]], 0))
        self._update_averages()

    def _replica_step(self, network: keras.Model, *batch: tf.Tensor) -> tf.Tensor:
        gradients, sums = self._accumulated(network, batch)
        if self._strategy.num_replicas_in_sync > 1:
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce("SUM", gradients)
            if not self._execution.sync_bn:
                _average_moving_statistics(network, context)
        if limit := self._recipe.clip_norm:
            if self._execution.precision == "mixed_float16":
                limit = limit * self.optimizer.dynamic_scale.value
            gradients, _ = tf.clip_by_global_norm(gradients, limit)
        self.optimizer.apply(gradients, self._network.trainable_variables)
        return sums

    def _accumulated(
        self, network: keras.Model, batch: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Adds up what `_gradients` gives for each part of a replica's images."""
        parts = self._recipe.accumulate
        bounds = tf.range(parts + 1) * tf.shape(batch[1])[0] // parts
        gradients: list[tf.Tensor] = []
        sums = 0.0
        for i in range(parts):
            part = slice(bounds[i], bounds[i + 1]) if parts > 1 else slice(None)
            new_gradients, new_sums = self._gradients(
                network, *(x[part] for x in batch)
            )
            if gradients:
                pairs = zip(gradients, new_gradients, strict=True)
                new_gradients = [total + new for total, new in pairs]
            gradients, sums = new_gradients, sums + new_sums
        return gradients, sums

    def _gradients(
        self,
        network: keras.Model,
        images: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Gradients of the weighted loss; and loss, right answers, images, asks."""
        variables = self._network.trainable_variables
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            losses = loss_of(self._recipe, labels, logits)
            loss = tf.reduce_sum(losses * tf.cast(weights, losses.dtype))
            loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, [v.value for v in variables])
        if labels.shape.rank == 2:  # Of a mixed image, the class that it shows most.
            labels = tf.argmax(labels, -1, tf.int32)
        right = labels == tf.argmax(logits, -1, tf.int32)
        sums = [tf.reduce_sum(tf.cast(x, tf.float64)) for x in (losses, right)]
        count = tf.cast(tf.shape(labels)[0], tf.float64)
        return gradients, tf.stack([*sums, count, self.asks_to_stop.read_value()])

    def _update_averages(self) -> None:
        if not self.averages:
            return
        steps = tf.cast(self.optimizer.iterations.value, tf.float32)
        share = 1 - tf.minimum(self._recipe.ema, (1 + steps) / (10 + steps))

        def update(average: tf.Variable, value: tf.Tensor) -> None:
            average.assign_add((value - average) * tf.cast(share, average.dtype))

        for average, variable in zip(self.averages, self._averaged, strict=True):
            self._strategy.extended.update(average, update, args=(variable.value,))
