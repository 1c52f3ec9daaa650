"""The training step: from a batch to changed weights.

What makes a step fast or safe and does not belong into a saved network, such as
mixed precision, is switched on while the step is traced: what is saved stays an
ordinary float32 network of standard layers.
"""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_resnet.distribution import next_batch
from keras_resnet.nets import batch_norms, flat_layers, stages, synchronized
from keras_resnet.spec import Execution, Recipe
from keras_resnet.training.fused_batch_norm import fused
from keras_resnet.training.optimizers import Rate, all_finite, make_optimizer

# Of images, labels and weights; see `keras_resnet.data.TrainingBatches`.
BatchIterator = Iterator[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


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
def _logits(network: keras.Model) -> Iterator[None]:
    """Without the softmax while a step is traced: losses take logits."""
    head = flat_layers(network)[-1]
    kept, head.activation = head.activation, keras.activations.linear
    try:
        yield
    finally:
        head.activation = kept


@contextlib.contextmanager
def _mixed(network: keras.Model, precision: str) -> Iterator[None]:
    """Another precision while a step is traced, the head's float32 excepted."""
    layers = [] if precision == "float32" else flat_layers(network)[:-1]
    kept = [layer.dtype_policy for layer in layers]
    for layer in layers:
        layer.dtype_policy = precision
    try:
        yield
    finally:
        for layer, policy in zip(layers, kept, strict=True):
            layer.dtype_policy = policy


def loss_of(recipe: Recipe, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Loss of each image.

    Args:
        recipe: a `keras_resnet.recipes.Recipe`.
        labels: classes, int32 (batch,), or shares of them, (batch, classes).
        logits: (batch, classes).

    Returns:
        (batch,).
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
    """Gives all replicas the mean of their moving statistics.

    Without synchronised batch normalisation Keras leaves each replica its own.
    """
    moving = [
        variable
        for norm in batch_norms(network)
        for variable in (norm.moving_mean, norm.moving_variance)
    ]
    means = context.all_reduce("MEAN", [tf.identity(v.value) for v in moving])
    for variable, mean in zip(moving, means, strict=True):
        variable.assign(mean)


class Step:
    """Takes training steps.

    Args:
        network: a `keras.Model` of this package that ends in a softmax.
        strategy: in whose scope it was made.
        recipe: a `keras_resnet.recipes.Recipe`.
        steps: of the whole run, over which the learning rate changes.
        execution: a `keras_resnet.recipes.Execution`; `None` is its defaults.
        rate: a learning rate in the place of the recipe's.

    Attributes:
        sums: variable of four numbers: over the steps since it was last set to 0,
            the summed loss, right answers, and images; and the number of steps until
            a loss was not finite.
        asks_to_stop: variable by which this worker asks all of them to stop.
        asked: variable above 0 once any worker has asked, on all of them.
        optimizer: what changes the weights.
        averages: of the network's variables, with `recipe.ema`, else none.
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
        self._network, self._strategy = network, strategy
        self._recipe = recipe
        self._execution = execution = execution or Execution()
        variables = network.trainable_variables
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
            self._averaged = [
                v
                for v in (network.variables if recipe.ema else [])
                if v.dtype.startswith("float")
            ]
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
        self._finite = tf.function(
            lambda: all_finite(
                [v.value for v in network.variables if v.dtype.startswith("float")]
            )
        )

    def __call__(self, batches: BatchIterator, count: int = 1) -> None:
        """Takes some steps.

        Args:
            batches: iterator over training batches, as
                `keras_resnet.strategies.iterate` makes it.
            count: number of steps, in one call of the device.
        """
        if count == 1:
            self._one(batches)
        else:
            self._many(batches, tf.constant(count))

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
        network = self._networks[tuple(sizes)]
        shared = self._execution.sync_bn and self._strategy.num_replicas_in_sync > 1
        with contextlib.ExitStack() as stack:
            stack.enter_context(_logits(network))
            stack.enter_context(_mixed(network, self._execution.precision))
            stack.enter_context(synchronized(network) if shared else fused(network))
            replica_step = lambda *batch: self._replica_step(network, *batch)  # noqa: E731
            if self._execution.jit_compile:
                replica_step = tf.function(replica_step, jit_compile=True)
            found = self._strategy.run(replica_step, args=args)
        found = self._strategy.reduce("SUM", found, axis=None)
        good = tf.math.is_finite(found[0]) & tf.math.is_finite(self.sums[0])
        self.asked.assign_add(found[3])
        self.sums.assign_add(tf.concat([found[:3], [tf.cast(good, tf.float64)]], 0))
        self._update_averages()

    def _replica_step(
        self,
        network: keras.Model,
        images: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor,
    ) -> tf.Tensor:
        gradients, sums = self._accumulated(network, images, labels, weights)
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
        self,
        network: keras.Model,
        images: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Adds up what `_gradients` gives for each part of a replica's images."""
        parts = self._recipe.accumulate
        bounds = tf.range(parts + 1) * tf.shape(labels)[0] // parts
        gradients: list[tf.Tensor] = []
        sums = 0.0
        for i in range(parts):
            part = slice(bounds[i], bounds[i + 1]) if parts > 1 else slice(None)
            new_gradients, new_sums = self._gradients(
                network, images[part], labels[part], weights[part]
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
        sums = [tf.reduce_sum(tf.cast(each, tf.float64)) for each in (losses, right)]
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
