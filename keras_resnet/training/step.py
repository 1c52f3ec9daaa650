"""The training step, which updates the weights from one batch.

Mixed precision and fused batch normalisation make a step faster, but do not belong in a
saved network. `Step` therefore changes the layers only while TensorFlow traces the
step into a graph. The graph keeps the changes, and the layers are restored. The saved
network is a float32 network of standard layers, which Keras loads without this package.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_resnet.distribution import next_batch
from keras_resnet.nets import (
    list_batch_norms,
    list_layers,
    pair_layers_with_stages,
    synchronize_batch_norms,
)
from keras_resnet.spec import Execution, Recipe
from keras_resnet.training.optimizers import Schedule, all_finite, make_optimizer

# Images, labels and the weight of each image; see `keras_resnet.data.TrainingBatches`.
Batch = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
BatchIterator = Iterator[Batch]


def compute_rate_multipliers(network: keras.Model, stage_rate: float) -> list[float]:
    """Returns a learning-rate multiplier for each trainable variable.

    The head, which is the last stage, has the multiplier 1. The multiplier of each
    earlier stage is `stage_rate` times the multiplier of the next stage.
    """
    numbered_layers = list(pair_layers_with_stages(network))
    head_stage = max(stage for _, stage in numbered_layers)
    multipliers = {
        id(variable): stage_rate ** (head_stage - stage)
        for layer, stage in numbered_layers
        for variable in layer.trainable_variables
    }
    return [multipliers[id(variable)] for variable in network.trainable_variables]


@contextlib.contextmanager
def _replace_attribute(
    layers: Sequence[keras.layers.Layer], name: str, value: Any
) -> Iterator[None]:
    """Sets the attribute `name` of all layers to `value` inside the context."""
    original_values = [getattr(layer, name) for layer in layers]
    for layer in layers:
        setattr(layer, name, value)
    try:
        yield
    finally:
        for layer, original_value in zip(layers, original_values, strict=True):
            setattr(layer, name, original_value)


@contextlib.contextmanager
def _use_fused_kernel(network: keras.Model) -> Iterator[None]:
    """Makes batch normalisation use TensorFlow's fused kernel inside the context.

    Keras computes batch normalisation with a dozen operations, each of which reads all
    activations. On a CPU, these operations take a third of ResNet-20's training step
    (benchmarks/results/step.csv). The fused kernel returns the same values as Keras up
    to rounding. A custom layer class that calls the kernel would make saved networks
    depend on this package. Therefore `_call_fused` replaces the `call` of the standard
    layers while the step is traced, and the traced graph keeps the kernel.

    Layers with variables of another type than float32, and layers whose channel axis
    is not the last axis, are left unchanged. In mixed precision, the variables stay
    float32, so the kernel is used.
    """
    norms = [
        layer
        for layer in list_batch_norms(network)
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
    """Normalises like `BatchNormalization.call`, with the fused kernel in training."""
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
    # The kernel returns the unbiased variance, but Keras averages the biased variance.
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
    variance *= (count - 1) / count
    for stat, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        stat.assign(stat * layer.momentum + value * (1 - layer.momentum))
    return outputs


def compute_losses(recipe: Recipe, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the loss of each image, (batch,).

    `labels` are class indices, int32 (batch,), or probabilities, (batch, classes).
    """
    smoothing, num_classes = recipe.label_smoothing, logits.shape[-1]
    if recipe.loss == "cross_entropy" and labels.shape.rank == 1 and not smoothing:
        return keras.losses.sparse_categorical_crossentropy(labels, logits, True)
    targets = labels
    if labels.shape.rank == 1:
        targets = tf.one_hot(labels, num_classes, dtype=logits.dtype)
    targets = tf.cast(targets, logits.dtype)
    if recipe.loss == "bce":
        targets = tf.cast(targets > 0, logits.dtype)
    targets = targets * (1 - smoothing) + smoothing / num_classes
    if recipe.loss == "bce":
        losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
        return tf.reduce_mean(losses, axis=-1)
    return keras.losses.categorical_crossentropy(targets, logits, from_logits=True)


def _resize(network: keras.Model, size: int) -> keras.Model:
    """Returns a network with the same layers for images of `size` x `size` pixels."""
    return keras.models.clone_model(
        network,
        input_tensors=keras.Input((size, size, network.input_shape[-1]), name="image"),
        call_function=lambda layer, *args, **kwargs: layer(*args, **kwargs),
        clone_function=lambda layer: layer,
    )


def _average_moving_statistics(
    network: keras.Model, context: tf.distribute.ReplicaContext
) -> None:
    """Averages the moving statistics over all replicas, which Keras does not do."""
    norms = list_batch_norms(network)
    stats = [v for norm in norms for v in (norm.moving_mean, norm.moving_variance)]
    means = context.all_reduce("MEAN", [tf.identity(v.value) for v in stats])
    for variable, mean in zip(stats, means, strict=True):
        variable.assign(mean)


class Step:
    """Runs training steps, each of which updates the weights from one batch.

    Reading a number from the device blocks until all pending steps are computed. Each
    step therefore only adds its results to `sums` on the device, and Python reads
    `sums` less often. Once the loss of a step is not finite, the summed loss is not
    finite either, and the last element of `sums` stops counting. An error message can
    therefore name that step, although Python reads `sums` several steps later.

    Args:
        network: Network that ends in a softmax, built in the scope of `strategy`.
        strategy: Strategy of the run.
        recipe: Recipe with the loss, the optimizer and the learning-rate schedule.
        steps: Number of steps of the whole run, over which the learning rate changes.
        execution: Execution settings. Default: `Execution()`.
        rate: Learning rate or schedule. Default: the schedule of the recipe.

    Attributes:
        sums: float64 (4,), sums over the steps since `clear_sums`: loss, number of
            correct predictions, number of images, and number of steps before the
            first loss that was not finite.
        stop_request: Variable that this worker sets to 1 to ask all workers to stop.
        stop_flag: Variable that is above 0 on all workers once any worker has asked to
            stop. Workers exchange the requests together with `sums`, at no extra cost.
        optimizer: Optimizer that receives the gradients.
        averages: Moving averages of all float variables, or empty without `recipe.ema`.
    """

    def __init__(
        self,
        network: keras.Model,
        strategy: tf.distribute.Strategy,
        recipe: Recipe,
        steps: int,
        execution: Execution | None = None,
        rate: Schedule | None = None,
    ) -> None:
        self._network, self._strategy, self._recipe = network, strategy, recipe
        self._execution = execution = execution or Execution()
        variables = network.trainable_variables
        weights = [v for v in network.variables if v.dtype.startswith("float")]
        self._ema_variables = weights if recipe.ema else []
        with strategy.scope():
            inner_optimizer, self.optimizer = make_optimizer(
                recipe, steps, execution.precision, rate
            )
            decays = [
                recipe.weight_decay if recipe.decay_all or v.name == "kernel" else 0.0
                for v in variables
            ]
            multipliers = compute_rate_multipliers(network, recipe.stage_rate)
            inner_optimizer.build_per_variable(variables, decays, multipliers)
            self.optimizer.build(variables)
            self.averages = [
                tf.Variable(v.value, trainable=False, name=f"average/{v.path}")
                for v in self._ema_variables
            ]
        self.sums = tf.Variable(tf.zeros(4, tf.float64))
        self.stop_request = tf.Variable(0.0, dtype=tf.float64)
        self.stop_flag = tf.Variable(0.0, dtype=tf.float64)
        # `_networks` has one network per size of training images, with shared layers.
        self._networks = {(size, size): _resize(network, size) for size in recipe.sizes}
        self._networks[tuple(network.input_shape[1:3])] = network
        self._take_one_step = tf.function(self._run_step)
        self._take_steps = tf.function(self._run_steps)
        self._all_finite = tf.function(lambda: all_finite([v.value for v in weights]))

    def __call__(self, batches: BatchIterator, count: int = 1) -> None:
        """Runs `count` steps. `batches` is an iterator made by `iterate_batches`."""
        if count == 1:
            self._take_one_step(batches)
        else:
            self._take_steps(batches, tf.constant(count))

    def clear_sums(self) -> None:
        self.sums.assign(tf.zeros_like(self.sums))

    def has_finite_weights(self) -> bool:
        """Returns whether all weights and moving statistics are finite."""
        return bool(self._all_finite())

    def reset_averages(self) -> None:
        """Sets the moving averages to the current weights, before the first step."""
        for average, variable in zip(self.averages, self._ema_variables, strict=True):
            average.assign(variable.value)

    @contextlib.contextmanager
    def load_averaged_weights(self) -> Iterator[None]:
        """Loads the averaged weights inside the context, if the recipe keeps any."""
        if not self.averages:
            yield
            return
        saved_values = [keras.ops.convert_to_numpy(v) for v in self._ema_variables]
        for average, variable in zip(self.averages, self._ema_variables, strict=True):
            variable.assign(average.read_value())
        try:
            yield
        finally:
            for value, variable in zip(saved_values, self._ema_variables, strict=True):
                variable.assign(value)

    def _run_steps(self, batches: BatchIterator, count: tf.Tensor) -> None:
        for _ in tf.range(count):
            self._run_step(batches)

    def _run_step(self, batches: BatchIterator) -> None:
        batch = next_batch(self._strategy, batches)
        size = self._strategy.experimental_local_results(batch[0])[0].shape[1:3]
        network, execution = self._networks[tuple(size)], self._execution
        *layers, head = list_layers(network)
        mixed_layers = layers if execution.precision != "float32" else []
        sync_bn = execution.sync_bn and self._strategy.num_replicas_in_sync > 1
        replica_step = functools.partial(self._replica_step, network)
        run = self._strategy.run
        if execution.jit_compile:
            # A strategy keeps each `tf.function` that `run` gets, and so the network.
            run = tf.function(run, jit_compile=True)
        # Python runs this method only while TensorFlow traces the step. The graph keeps
        # the attributes that are set here, but the layers get their old values back.
        # The head computes logits instead of probabilities, because a loss of logits is
        # more accurate. The head stays float32 in mixed precision.
        with (
            _replace_attribute([head], "activation", keras.activations.linear),
            _replace_attribute(mixed_layers, "dtype_policy", execution.precision),
            synchronize_batch_norms(network) if sync_bn else _use_fused_kernel(network),
        ):
            sums = run(replica_step, args=batch)
        sums = self._strategy.reduce("SUM", sums, axis=None)
        is_finite = tf.math.is_finite(sums[0]) & tf.math.is_finite(self.sums[0])
        self.stop_flag.assign_add(sums[3])
        self.sums.assign_add(tf.concat([sums[:3], [tf.cast(is_finite, tf.float64)]], 0))
        self._update_averages()

    def _replica_step(self, model: keras.Model, *batch: tf.Tensor) -> tf.Tensor:
        gradients, sums = self._accumulate_gradients(model, batch)
        if self._strategy.num_replicas_in_sync > 1:
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce("SUM", gradients)
            if not self._execution.sync_bn:
                _average_moving_statistics(model, context)
        if max_norm := self._recipe.clip_norm:
            if self._execution.precision == "mixed_float16":
                max_norm = max_norm * self.optimizer.dynamic_scale.value
            gradients, _ = tf.clip_by_global_norm(gradients, max_norm)
        # If reading the batch fails, `apply` must not count a step.
        with tf.control_dependencies(batch):
            self.optimizer.apply(gradients, self._network.trainable_variables)
        return sums

    def _accumulate_gradients(
        self, model: keras.Model, batch: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Adds up the results of `_compute_gradients` over a replica's micro-batches.

        Only the activations of one micro-batch are in memory at a time.
        """
        num_parts = self._recipe.accumulate
        bounds = tf.range(num_parts + 1) * tf.shape(batch[1])[0] // num_parts
        gradients: list[tf.Tensor] = []
        sums = 0.0
        for i in range(num_parts):
            part = slice(bounds[i], bounds[i + 1]) if num_parts > 1 else slice(None)
            new_gradients, new_sums = self._compute_gradients(
                model, *(x[part] for x in batch)
            )
            if gradients:
                pairs = zip(gradients, new_gradients, strict=True)
                new_gradients = [x + y for x, y in pairs]
            gradients, sums = new_gradients, sums + new_sums
        return gradients, sums

    def _compute_gradients(
        self, model: keras.Model, *batch: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns the gradients of the weighted loss, and four numbers to be summed.

        The numbers, float64 (4,), are the total loss of the images, the number of
        correct predictions, the number of images and the stop request of this worker.
        """
        images, labels, image_weights = batch
        variables = self._network.trainable_variables
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = compute_losses(self._recipe, labels, logits)
            loss = tf.reduce_sum(losses * tf.cast(image_weights, losses.dtype))
            loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, [v.value for v in variables])
        if labels.shape.rank == 2:  # Mixed images are counted by their main class.
            labels = tf.argmax(labels, -1, tf.int32)
        is_correct = labels == tf.argmax(logits, -1, tf.int32)
        sums = [tf.reduce_sum(tf.cast(x, tf.float64)) for x in (losses, is_correct)]
        count = tf.cast(tf.shape(labels)[0], tf.float64)
        return gradients, tf.stack([*sums, count, self.stop_request.read_value()])

    def _update_averages(self) -> None:
        if not self.averages:
            return
        steps = tf.cast(self.optimizer.iterations.value, tf.float32)
        # The decay grows up to `ema`, so that the initial weights lose influence early.
        fraction = 1 - tf.minimum(self._recipe.ema, (1 + steps) / (10 + steps))

        def update(average: tf.Variable, value: tf.Tensor) -> None:
            average.assign_add((value - average) * tf.cast(fraction, average.dtype))

        for average, variable in zip(self.averages, self._ema_variables, strict=True):
            self._strategy.extended.update(average, update, args=(variable.value,))
