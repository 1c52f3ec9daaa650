"""The training step, compared with formulas in NumPy and between strategies."""

import dataclasses
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import run_python

from keras_resnet.data import TrainingBatches, sources, splits
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.distribution import strategies
from keras_resnet.evaluation.evaluator import Evaluator
from keras_resnet.nets.graph import list_layers
from keras_resnet.spec import RunOptions, recipes
from keras_resnet.spec.execution import Execution
from keras_resnet.spec.run_spec import count_steps
from keras_resnet.support.errors import InputError
from keras_resnet.training.network import make_network
from keras_resnet.training.resolution import resolve_run
from keras_resnet.training.run import train
from keras_resnet.training.step import Step, compute_losses
from keras_resnet.weights.formats import load_model

# Keras 3.15 causes this warning whenever variables of two replicas are read.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
WITH_BOTH_STRATEGIES = pytest.mark.parametrize(
    "strategy_name", ["one_device", "mirrored"]
)
DEFAULTS = {"model": "cifar_resnet8", "strategy": "one_device", "verbose": 0}


@pytest.fixture
def use_float64():
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def flatten(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


def load_some_digits(count):
    digits = sources.load_dataset("digits")
    train = splits.Split(digits.train.images[:count], digits.train.labels[:count])
    return splits.Dataset("digits", digits.classes, train, digits.test, digits.shape)


def make_recipe(batch_size, **changes):
    """Returns a recipe whose learning rate is 0.1 for the first 500 epochs."""
    changes = {"epochs": 1000, "schedule": "steps", "warmup": 0.0, **changes}
    return dataclasses.replace(
        recipes.RECIPES["digits"], batch_size=batch_size, learning_rate=0.1, **changes
    )


def make_run_network(images, recipe, model="cifar_resnet8"):
    """Returns the network that a run with `recipe` trains, and the run's dataset."""
    options = RunOptions.from_keywords(model, images, shortcut="A", recipe="digits")
    spec, images, preprocessing = resolve_run(options, Execution(), 1)
    spec = dataclasses.replace(spec, recipe=recipe)
    return make_network(spec, images, preprocessing, None)


def take_steps(strategy_name, images, recipe, num_steps, model="cifar_resnet8"):
    """Trains a new network for `num_steps` steps.

    Returns:
        The network, its initial weights, its final weights and its `Step`.
    """
    strategy = strategies.make_strategy(strategy_name)
    num_replicas = strategy.num_replicas_in_sync
    preprocessing = Preprocessing(8, 8, 1)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        network, images = make_run_network(images, recipe, model)
    initial_weights = network.get_weights()
    num_steps_per_epoch = count_steps(
        len(images.train),
        recipe.batch_size,
        recipe.compute_min_batch_size(num_replicas),
    )
    step = Step(network, strategy, recipe, recipe.epochs * num_steps_per_epoch)
    step.reset_averages()
    batches = TrainingBatches(
        split=images.train,
        preprocessing=preprocessing,
        recipe=recipe,
        replicas=num_replicas,
        seed=0,
        num_classes=10,
    ).dataset(0, num_steps)
    batches = iter(batches)
    for _ in range(num_steps):
        step(batches)
    assert not any(
        layer.synchronized
        for layer in list_layers(network)
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    return network, initial_weights, network.get_weights(), step


@pytest.mark.parametrize(
    "model", ["cifar_resnet8", pytest.param("resnet20", marks=pytest.mark.full)]
)
def test_two_replicas_equal_one_device(use_float64, model):
    """Ten steps with synchronised batch normalisation give the same weights.

    Each epoch has batches of 16, 16, 16 and 3 images.
    """
    images, recipe = load_some_digits(51), make_recipe(16)
    _, initial_weights, single_weights, single_step = take_steps(
        "one_device", images, recipe, 10, model
    )
    _, mirrored_initial_weights, mirrored_weights, mirrored_step = take_steps(
        "mirrored", images, recipe, 10, model
    )
    np.testing.assert_array_equal(
        flatten(initial_weights), flatten(mirrored_initial_weights)
    )
    assert np.abs(flatten(single_weights) - flatten(initial_weights)).max() > 0.1
    assert np.abs(flatten(single_weights) - flatten(mirrored_weights)).max() <= 1e-9
    single_sums, mirrored_sums = single_step.sums.numpy(), mirrored_step.sums.numpy()
    np.testing.assert_allclose(single_sums, mirrored_sums, rtol=1e-9)
    assert single_sums[2] == 2 * 51 + 2 * 16
    assert single_sums.shape == (4,) and single_sums[3] == 10
    assert float(single_step.stop_flag) == float(mirrored_step.stop_flag) == 0


def test_two_replicas_equal_one_device_with_a_full_recipe(use_float64):
    """The number of replicas does not change Mixup, CutMix, LAMB, clipping, averages.

    Each epoch has batches of 16, 16, 16 and 4 images.
    """
    recipe = make_recipe(
        16, mixup=0.8, cutmix=1.0, ema=0.9, optimizer="lamb", clip_norm=0.5,
        label_smoothing=0.1,
    )  # fmt: skip
    images = load_some_digits(52)
    _, initial_weights, single_weights, single_step = take_steps(
        "one_device", images, recipe, 5
    )
    _, _, mirrored_weights, mirrored_step = take_steps("mirrored", images, recipe, 5)
    assert np.abs(flatten(single_weights) - flatten(initial_weights)).max() > 0.1
    np.testing.assert_allclose(
        flatten(mirrored_weights), flatten(single_weights), atol=1e-8
    )
    single_averages, mirrored_averages = (
        flatten([average.read_value() for average in step.averages])
        for step in (single_step, mirrored_step)
    )
    np.testing.assert_allclose(mirrored_averages, single_averages, atol=1e-8)
    np.testing.assert_allclose(
        single_step.sums.numpy(), mirrored_step.sums.numpy(), rtol=1e-8
    )


def test_first_gradients_of_two_replicas_equal_those_of_one_device():
    images, recipe = load_some_digits(64), make_recipe(32, momentum=0.0)
    _, initial_weights, single_weights, _ = take_steps("one_device", images, recipe, 1)
    _, _, mirrored_weights, _ = take_steps("mirrored", images, recipe, 1)
    expected = flatten(single_weights) - flatten(initial_weights)
    actual = flatten(mirrored_weights) - flatten(initial_weights)
    assert np.linalg.norm(actual - expected) <= 1e-3 * np.linalg.norm(expected)


def test_two_replicas_omit_a_last_batch_of_one_image():
    images = load_some_digits(33)
    _, _, weights, step = take_steps("mirrored", images, make_recipe(16), 5)
    assert np.isfinite(flatten(weights)).all()
    assert step.sums.numpy()[2] == 5 * 16


def test_step_equals_the_sgd_of_the_paper(use_float64):
    """The paper uses momentum, and adds the weight decay of kernels to the gradient."""
    images, recipe = load_some_digits(32), make_recipe(16, weight_decay=0.01)
    network, initial_weights, final_weights, _ = take_steps(
        "one_device", images, recipe, 2
    )
    batches = TrainingBatches(
        split=images.train,
        preprocessing=Preprocessing(8, 8, 1),
        recipe=recipe,
        replicas=1,
        seed=0,
    ).dataset(0, 2)
    network.set_weights(initial_weights)
    variables = network.trainable_variables
    velocities = [0.0] * len(variables)
    for pixels, labels, _ in batches:
        with tf.GradientTape() as tape:
            logits = tf.math.log(network(pixels, training=True))
            loss = -tf.reduce_mean(tf.gather(logits, labels, batch_dims=1))
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        for i, (variable, gradient) in enumerate(
            zip(variables, gradients, strict=True)
        ):
            weight = np.asarray(variable)
            is_kernel = weight.ndim > 1
            velocities[i] = (
                0.9 * velocities[i] + gradient.numpy() + 0.01 * is_kernel * weight
            )
            variable.assign(weight - 0.1 * velocities[i])
    np.testing.assert_allclose(
        flatten(final_weights), flatten(network.get_weights()), atol=1e-7
    )


# Tests of the losses, with the formulas of PyTorch's documentation and of the papers.


def make_logits_and_labels():
    """Returns logits, class indices and class probabilities (6 images, 5 classes)."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (6, 5))
    class_indices = random.integers(0, 5, 6).astype(np.int32)
    class_probabilities = np.zeros((6, 5))
    class_probabilities[np.arange(6), class_indices] = 0.7
    class_probabilities[np.arange(6), (class_indices + 2) % 5] = 0.3
    return logits, class_indices, class_probabilities


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_smooths_labels(smoothing):
    """With smoothing s, the loss is (1 - s) * label loss + s * mean of class losses."""
    logits, class_indices, class_probabilities = make_logits_and_labels()
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    recipe = make_recipe(6, label_smoothing=smoothing)
    for labels, targets in (
        (class_indices, np.eye(5)[class_indices]),
        (class_probabilities, class_probabilities),
    ):
        label_losses = -(targets * log_probabilities).sum(1)
        mean_losses = -log_probabilities.mean(1)
        expected = (1 - smoothing) * label_losses + smoothing * mean_losses
        losses = compute_losses(recipe, tf.constant(labels), tf.constant(logits))
        np.testing.assert_allclose(losses, expected, rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_treats_each_mixed_class_as_present(smoothing):
    """The target of each class in a mixed image is 1 before label smoothing.

    The loss of an image is the mean over all classes.
    """
    logits, class_indices, class_probabilities = make_logits_and_labels()
    sigmoid = 1 / (1 + np.exp(-logits))
    recipe = make_recipe(6, loss="bce", label_smoothing=smoothing)
    for labels, is_present in (
        (class_indices, np.eye(5)[class_indices]),
        (class_probabilities, class_probabilities > 0),
    ):
        assert is_present.sum(1).tolist() == [labels.ndim] * 6
        target = is_present * (1 - smoothing) + smoothing / 5
        class_losses = -target * np.log(sigmoid) - (1 - target) * np.log(1 - sigmoid)
        losses = compute_losses(recipe, tf.constant(labels), tf.constant(logits))
        np.testing.assert_allclose(losses, class_losses.mean(1), rtol=1e-12)


# Tests with a network of two layers, since TensorFlow traces small networks quickly.


def make_tiny_model(strategy, batch_norm=True):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    with strategy.scope():
        image = keras.Input((8, 8, 1))
        x = layers.Conv2D(4, 3, use_bias=False, name="conv1_conv")(image)
        if batch_norm:
            x = layers.BatchNormalization(momentum=0.9, name="conv1_bn")(x)
        x = layers.Activation("tanh", name="conv1_tanh")(x)
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(3, "softmax", name="predictions")(x)
        return keras.Model(image, x)


def make_batch(count, seed=0):
    """Returns random images, float32 (count, 8, 8, 1), and labels from 0 to 2."""
    random = np.random.default_rng(seed)
    images = random.normal(random.uniform(-2, 2, (count, 1, 1, 1)), 1, (count, 8, 8, 1))
    return images.astype(np.float32), random.integers(0, 3, count).astype(np.int32)


def split_batch(batch, *sizes):
    """Splits images and labels into consecutive parts of the given sizes."""
    ends = np.cumsum(sizes)
    assert ends[-1] == len(batch[1])
    return [
        tuple(array[end - size : end] for array in batch)
        for end, size in zip(ends, sizes, strict=True)
    ]


def make_batches(parts_by_step):
    """Returns an iterator over the batches of all replicas, as `Step` expects it.

    Args:
        parts_by_step: List of (images, labels), one pair per replica, for each step.
    """

    def generate_parts():
        for parts in parts_by_step:
            count = sum(len(labels) for _, labels in parts)
            for images, labels in parts:
                yield images, labels, np.full(len(labels), 1 / count, np.float32)

    images, labels = parts_by_step[0][0]
    specs = (
        tf.TensorSpec((None, *images.shape[1:]), tf.float32),
        tf.TensorSpec((None, *labels.shape[1:]), labels.dtype),
        tf.TensorSpec((None,), tf.float32),
    )
    return iter(tf.data.Dataset.from_generator(generate_parts, output_signature=specs))


PLAIN_RECIPE = recipes.Recipe(1, 8, 0.125, momentum=0.0, weight_decay=0.0)


def make_step(
    strategy_name, recipe, batch_norm=True, rate=0.125, network=None, **execution
):
    strategy = strategies.make_strategy(strategy_name)
    network = network or make_tiny_model(strategy, batch_norm)
    return network, Step(
        network, strategy, recipe, 100, Execution(**execution), rate=rate
    )


def read_trainable(network):
    return flatten(variable.value.numpy() for variable in network.trainable_variables)


def compute_mean_gradient(parts, batch_norm=True):
    """Returns the gradient of the mean loss. Batch statistics are computed per part."""
    network = make_tiny_model(strategies.make_strategy("one_device"), batch_norm)
    variables = [variable.value for variable in network.trainable_variables]
    count = sum(len(labels) for _, labels in parts)
    gradient_sum = 0.0
    for images, labels in parts:
        with tf.GradientTape() as tape:
            log_probabilities = tf.math.log(network(images, training=True))
            loss = (
                -tf.reduce_sum(tf.gather(log_probabilities, labels, batch_dims=1))
                / count
            )
        gradient_sum = gradient_sum + flatten(tape.gradient(loss, variables))
    return gradient_sum


def measure_change(network, step, batches):
    weights_before = read_trainable(network)
    step(batches)
    return read_trainable(network) - weights_before


@pytest.mark.parametrize("batch_norm", [True, False])
def test_accumulated_gradients_equal_the_mean_gradient(use_float64, batch_norm):
    """Parts of 3, 3 and 4 images are normalised with separate batch statistics."""
    batch = make_batch(10)
    recipe = dataclasses.replace(PLAIN_RECIPE, accumulate=3)
    network, step = make_step("one_device", recipe, batch_norm)
    change = measure_change(network, step, make_batches([[batch]]))
    expected = -0.125 * compute_mean_gradient(split_batch(batch, 3, 3, 4), batch_norm)
    np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-9)
    assert step.sums.numpy()[2] == 10
    # Without batch normalisation, dividing the batch does not change the gradient.
    undivided_change = -0.125 * compute_mean_gradient([batch], batch_norm)
    assert np.allclose(change, undivided_change, rtol=1e-6, atol=1e-9) == (
        not batch_norm
    )


@WITH_BOTH_STRATEGIES
def test_gradients_are_clipped_by_their_global_norm(use_float64, strategy_name):
    """The limit applies to one norm, over all replicas and all variables."""
    batch = make_batch(8)
    gradient = compute_mean_gradient([batch])
    norm = math.sqrt((gradient**2).sum())
    parts = [batch] if strategy_name == "one_device" else split_batch(batch, 5, 3)
    for limit in (norm / 3, norm * 3):
        recipe = dataclasses.replace(PLAIN_RECIPE, clip_norm=limit)
        network, step = make_step(strategy_name, recipe)
        change = measure_change(network, step, make_batches([parts]))
        expected = -0.125 * gradient * min(1, limit / norm)
        np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sizes", [(5, 3), (2, 1)])
@pytest.mark.parametrize("sync_bn", [True, False])
def test_batch_normalisation_is_synchronised_on_request(use_float64, sync_bn, sizes):
    """A replica with a single image also has a variance, that of the image's pixels."""
    batch = make_batch(sum(sizes))
    parts = split_batch(batch, *sizes)
    network, step = make_step("mirrored", PLAIN_RECIPE, sync_bn=sync_bn)
    change = measure_change(network, step, make_batches([parts]))
    expected = -0.125 * compute_mean_gradient([batch] if sync_bn else parts)
    np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-9)
    unexpected = -0.125 * compute_mean_gradient(parts if sync_bn else [batch])
    assert not np.allclose(change, unexpected, rtol=1e-3)
    # The momentum is 0.9 and the moving mean starts at 0. After one step, the moving
    # mean is 0.1 times the mean of the batch (synchronised), or 0.1 times the average
    # of the replicas' means (not synchronised).
    kernel = np.asarray(
        make_tiny_model(strategies.make_strategy("one_device")).get_weights()[0]
    )
    means = [
        tf.nn.conv2d(np.float64(images), kernel, 1, "VALID").numpy().mean((0, 1, 2))
        for images, _ in ([batch] if sync_bn else parts)
    ]
    moving_mean = network.get_layer("conv1_bn").moving_mean.value
    for replica_mean in step._strategy.experimental_local_results(moving_mean):
        np.testing.assert_allclose(
            replica_mean, 0.1 * np.mean(means, 0), rtol=1e-6, atol=1e-9
        )


def compute_average(initial_weights, weights_after_steps, decay):
    """Returns the exponential moving average of the weights after the last step."""
    average = initial_weights
    for n, weights in enumerate(weights_after_steps, 1):
        effective_decay = min(decay, (1 + n) / (10 + n))
        average = effective_decay * average + (1 - effective_decay) * weights
    return average


@WITH_BOTH_STRATEGIES
def test_averaged_weights_are_exponential_moving_averages(use_float64, strategy_name):
    """The decay is (1 + n) / (10 + n) in steps n = 1 to 3, and 0.35 in steps 4 to 6."""
    network, step = make_step(
        strategy_name, dataclasses.replace(PLAIN_RECIPE, ema=0.35)
    )
    step.reset_averages()
    weights_after_steps = []

    def read_weights():
        return flatten(variable.numpy() for variable in network.variables)

    initial_weights = read_weights()
    parts = [split_batch(make_batch(8, seed), 4, 4) for seed in range(6)]
    if strategy_name == "one_device":
        parts = [[make_batch(8, seed)] for seed in range(6)]
    batches = make_batches(parts)
    for _ in range(6):
        step(batches)
        weights_after_steps.append(read_weights())
    expected = compute_average(initial_weights, weights_after_steps, 0.35)
    assert np.abs(expected - weights_after_steps[-1]).max() > 1e-3
    with step.load_averaged_weights():
        np.testing.assert_allclose(read_weights(), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(read_weights(), weights_after_steps[-1])


class WeightRecorder(keras.callbacks.Callback):
    """Records the weights after each step and at the start of each epoch."""

    def on_train_begin(self, logs=None):
        self.initial_weights = self.model.get_weights()
        self.weights_after_steps, self.weights_at_epoch_starts = (), ()

    def on_epoch_begin(self, epoch, logs=None):
        self.weights_at_epoch_starts += (self.model.get_weights(),)

    def on_train_batch_end(self, batch, logs=None):
        self.weights_after_steps += (self.model.get_weights(),)


def test_a_run_evaluates_and_saves_averaged_weights(tmp_path):
    recorder, digits = WeightRecorder(), sources.load_dataset("digits")
    rows = train(
        **DEFAULTS,
        epochs=2,
        batch_size=256,
        ema=0.35,
        model_dir=str(tmp_path / "run"),
        callbacks=[recorder],
    )
    assert len(recorder.weights_after_steps) == 12
    saved_model = load_model(str(tmp_path / "run" / "final.keras"))
    expected = compute_average(
        flatten(recorder.initial_weights),
        [flatten(weights) for weights in recorder.weights_after_steps],
        0.35,
    )
    saved_weights = saved_model.get_weights()
    np.testing.assert_allclose(flatten(saved_weights), expected, rtol=1e-4, atol=1e-4)
    assert (
        np.abs(flatten(saved_weights) - flatten(recorder.weights_after_steps[-1])).max()
        > 1e-2
    )
    loss, accuracy = saved_model.evaluate(
        digits.test.images, digits.test.labels, verbose=0
    )
    assert loss == pytest.approx(rows[-1]["val_loss"], rel=1e-4)
    assert accuracy == pytest.approx(rows[-1]["val_accuracy"])
    np.testing.assert_array_equal(
        flatten(recorder.weights_at_epoch_starts[1]),
        flatten(recorder.weights_after_steps[5]),
    )


class StepRecorder(keras.callbacks.Callback):
    """Records the batch indices that `on_train_batch_end` receives.

    An index counts the batches of the current epoch. If one call runs several steps,
    `on_train_batch_end` receives only the index of the last step.
    """

    def on_train_begin(self, logs=None):
        self.batch_indices = ()

    def on_train_batch_end(self, batch, logs=None):
        self.batch_indices += (batch,)


def test_steps_per_execution_does_not_change_the_result(tmp_path):
    """The run has two epochs of 23 steps and a checkpoint every 7 steps."""
    results = []
    for num_steps in (1, 5):
        recorder = StepRecorder()
        folder = tmp_path / str(num_steps)
        train(
            **DEFAULTS,
            epochs=2,
            checkpoint_every=7,
            steps_per_execution=num_steps,
            model_dir=str(folder),
            callbacks=[recorder],
        )
        weights = flatten(load_model(str(folder / "final.keras")).get_weights())
        results.append((weights, (folder / "metrics.csv").read_text()))
    # A call runs 5 steps, or fewer up to a checkpoint or the end of the epoch.
    end_steps = [5, 7, 12, 14, 19, 21, 23, 28, 33, 35, 40, 42, 46]
    assert recorder.batch_indices == tuple((end - 1) % 23 for end in end_steps)
    (weights_1, metrics_1), (weights_5, metrics_5) = results
    np.testing.assert_array_equal(weights_1, weights_5)
    assert metrics_1 == metrics_5


def test_each_image_size_is_used_for_a_third_of_the_run(tmp_path, monkeypatch):
    """Each size is used for a third of the run. Evaluation uses 8 x 8 pixels."""
    dataset_calls, traced_shapes = [], []
    original_dataset = TrainingBatches.dataset
    original_replica_step = Step._replica_step

    def record_dataset(self, start, stop):
        size = self.preprocessing.height, self.preprocessing.width
        dataset_calls.append((start, stop, *size))
        return original_dataset(self, start, stop)

    def record_shapes(self, network, images, *batch):
        traced_shapes.append(tuple(images.shape[1:]))
        assert network.input_shape[1:] == images.shape[1:]
        return original_replica_step(self, network, images, *batch)

    monkeypatch.setattr(TrainingBatches, "dataset", record_dataset)
    monkeypatch.setattr(Step, "_replica_step", record_shapes)
    rows = train(**DEFAULTS, epochs=1, sizes=(4, 6, 8), model_dir=str(tmp_path / "run"))
    # The first call reads the batch for `augmented.png`. The other calls divide the 23
    # steps of the run into parts of 8, 8 and 7 steps.
    assert dataset_calls[0] == (0, 1, 4, 4)
    assert dataset_calls[1:] == [(0, 8, 4, 4), (8, 16, 6, 6), (16, 23, 8, 8)]
    assert list(dict.fromkeys(traced_shapes)) == [(4, 4, 1), (6, 6, 1), (8, 8, 1)]
    model = load_model(str(tmp_path / "run" / "final.keras"))
    assert model.input_shape == (None, 8, 8, 1)
    digits = sources.load_dataset("digits").test
    loss, _ = model.evaluate(digits.images, digits.labels, verbose=0)
    assert loss == pytest.approx(rows[0]["val_loss"], rel=1e-4)


# Tests of mixed precision and of compilation with XLA.


def compute_relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@WITH_BOTH_STRATEGIES
@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_a_step_that_overflows_is_skipped(strategy_name, clip_norm):
    recipe = dataclasses.replace(PLAIN_RECIPE, clip_norm=clip_norm)
    network, step = make_step(strategy_name, recipe, precision="mixed_float16")
    float32_network, float32_step = make_step(strategy_name, recipe)
    sizes = (8,) if strategy_name == "one_device" else (5, 3)
    parts = [split_batch(make_batch(8, seed), *sizes) for seed in range(3)]
    expected = measure_change(float32_network, float32_step, make_batches(parts[2:]))
    list_replica_values = step._strategy.experimental_local_results
    weights_before, batches = read_trainable(network), make_batches(parts)
    step.optimizer.dynamic_scale.assign(2.0**100)
    for exponent in (99, 98):  # Both steps overflow float16 and halve the scale.
        step(batches)
        np.testing.assert_array_equal(read_trainable(network), weights_before)
        for scale in list_replica_values(step.optimizer.dynamic_scale.value):
            assert float(scale) == 2.0**exponent
        assert int(step.optimizer.iterations.numpy()) == 0
    assert np.isfinite(step.sums.numpy()).all()
    step.optimizer.dynamic_scale.assign(2.0**8)
    change = measure_change(network, step, batches)
    assert int(step.optimizer.iterations.numpy()) == 1
    for variable in network.trainable_variables:
        first_value, *other_values = list_replica_values(variable.value)
        for other_value in other_values:
            np.testing.assert_array_equal(first_value, other_value)
    # The change in float16 is close to the change in float32, but not equal to it.
    assert 1e-5 < compute_relative_error(change, expected) < 0.02


def test_bfloat16_is_close_to_float32():
    batch = make_batch(8)
    network, step = make_step("one_device", PLAIN_RECIPE, precision="mixed_bfloat16")
    expected = -0.125 * compute_mean_gradient([batch])
    assert (
        1e-4
        < compute_relative_error(
            measure_change(network, step, make_batches([[batch]])), expected
        )
        < 0.1
    )
    assert {layer.dtype_policy.name for layer in network.layers} == {"float32"}


LOADING_SCRIPT = """
import sys
import keras
model = keras.models.load_model(sys.argv[1])
assert not any(name.startswith("keras_resnet") for name in sys.modules)
for layer in model.layers:
    assert layer.dtype_policy.name == "float32", layer
    assert layer.__module__.startswith("keras."), layer
for variable in model.weights:
    assert variable.dtype == "float32", variable
assert model.predict(keras.ops.zeros((2, 8, 8, 1)), verbose=0).shape == (2, 10)
print("loaded", len(model.layers))
"""


def test_a_run_saves_an_ordinary_keras_model(tmp_path):
    """The files contain standard layers with float32 weights, whatever the options."""
    train(
        **DEFAULTS,
        iterations=3,
        precision="mixed_float16",
        optimizer="lamb",
        learning_rate=0.01,
        ema=0.9,
        stochastic_depth=0.2,
        zero_gamma=True,
        clip_norm=1.0,
        model_dir=str(tmp_path / "run"),
    )
    for name in ("final", "best"):
        path = tmp_path / "run" / f"{name}.keras"
        result = run_python("-W", "error::UserWarning", "-c", LOADING_SCRIPT, path)
        assert "loaded" in result.stdout, result.stderr
        assert "UserWarning" not in result.stderr


def test_compiled_steps_equal_uncompiled_steps():
    batch = make_batch(8)
    network, step = make_step("one_device", PLAIN_RECIPE, jit_compile=True)
    change = measure_change(network, step, make_batches([[batch]]))
    expected = -0.125 * compute_mean_gradient([batch])
    np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-6)
    assert step._take_one_step.experimental_get_tracing_count() == 1


def test_compiled_steps_need_a_single_replica(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        train(**{**DEFAULTS, "strategy": "mirrored"}, jit_compile=True)
    assert "jit_compile with 2 replicas" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# Tests of recipe fields that change the network.


def build_network(**changes):
    keras.utils.set_random_seed(3)
    network, _ = make_run_network(load_some_digits(64), make_recipe(64, **changes))
    return network


def test_stochastic_depth_drops_later_blocks_more_often():
    """The drop probability grows from 0 in the first block to 0.4 in the last."""
    network = build_network(stochastic_depth=0.4)
    images = np.repeat(load_some_digits(1).train.images, 2000, 0)
    drop_layers = [layer for layer in network.layers if layer.name.endswith("_drop")]
    assert [layer.name for layer in drop_layers] == [
        "conv3_block1_drop",
        "conv4_block1_drop",
    ]
    for layer in drop_layers:
        block_index = int(layer.name[4]) - 2
        probability = 0.4 * block_index / 2
        branch_model = keras.Model(network.input, [layer.input, layer.output])
        branch, dropped_branch = (
            np.asarray(output) for output in branch_model(images, training=True)
        )
        is_dropped = ~dropped_branch.any(axis=(1, 2, 3))
        np.testing.assert_allclose(
            dropped_branch[~is_dropped],
            branch[~is_dropped] / (1 - probability),
            rtol=1e-5,
            atol=1e-6,
        )
        standard_error = math.sqrt(probability * (1 - probability) / 2000)
        assert abs(is_dropped.mean() - probability) <= 5 * standard_error
        branch, dropped_branch = (
            np.asarray(output) for output in branch_model(images[:2], training=False)
        )
        np.testing.assert_array_equal(branch, dropped_branch)


def test_zero_gamma_makes_each_block_equal_its_shortcut():
    network, images = build_network(zero_gamma=True), load_some_digits(16).train.images
    names = ("conv1_relu", "conv2_block1_out", "conv3_block1_out", "conv4_block1_out")
    outputs = [network.get_layer(name).output for name in names]
    tensors = keras.Model(network.input, outputs)(images, training=True)
    first_input, *block_outputs = (np.asarray(output) for output in tensors)
    np.testing.assert_array_equal(block_outputs[0], first_input)
    for block_input, block_output in itertools.pairwise(block_outputs):
        channels = block_input.shape[-1]
        expected = np.pad(
            block_input[:, ::2, ::2], [(0, 0)] * 3 + [(channels // 2, channels // 2)]
        )
        np.testing.assert_array_equal(block_output, expected)
    assert first_input.any()


# Tests of recipes that react to the validation accuracy.


class Interrupt(keras.callbacks.Callback):
    """Interrupts a run after `stop_at` batches. Default: never."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.batches = 0
        # Checkpoints save callback attributes, but no functions. A resumed run
        # therefore uses its own `stop_at`, not the value of the interrupted run.
        self.stop_at = lambda: stop_at

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.stop_at():
            raise KeyboardInterrupt


def test_plateaus_divide_the_learning_rate_by_10(tmp_path):
    """The learning rate drops after two epochs without a better accuracy.

    A resumed run has the metrics and weights of an undisturbed run.
    """

    def train_with_plateaus(folder, stop_at=None):
        return train(
            **DEFAULTS,
            epochs=9,
            batch_size=512,
            schedule="plateau",
            warmup=0,
            patience=2,
            learning_rate=1e-6,
            checkpoint_every=2,
            model_dir=str(tmp_path / folder),
            callbacks=[Interrupt(stop_at)],
        )

    rows = train_with_plateaus("undisturbed")
    expected, rate, best_accuracy, stale_epochs = [], 1e-6, -1.0, 0
    for row in rows:
        expected.append(rate)
        stale_epochs = 0 if row["val_accuracy"] > best_accuracy else stale_epochs + 1
        best_accuracy = max(best_accuracy, row["val_accuracy"])
        if stale_epochs == 2:
            rate, stale_epochs = rate / 10, 0
    assert len(set(expected)) >= 3
    np.testing.assert_allclose([row["learning_rate"] for row in rows], expected, 1e-5)
    # The second run is interrupted in the last epoch before the lowest learning rate,
    # and then resumes.
    lowest_epoch = expected.index(min(expected))
    with pytest.raises(KeyboardInterrupt):
        train_with_plateaus("resumed", 3 * (lowest_epoch - 1) + 2)
    assert train_with_plateaus("resumed") == rows
    undisturbed_weights, resumed_weights = (
        load_model(str(tmp_path / name / "final.keras")).get_weights()
        for name in ("undisturbed", "resumed")
    )
    np.testing.assert_array_equal(
        flatten(undisturbed_weights), flatten(resumed_weights)
    )


def test_early_stopping_ends_a_run_after_3_stale_epochs(tmp_path):
    rows = train(
        **DEFAULTS,
        epochs=40,
        batch_size=512,
        learning_rate=1e-9,
        early_stopping=3,
        model_dir=str(tmp_path / "run"),
    )
    accuracies = [row["val_accuracy"] for row in rows]
    assert len(rows) == int(np.argmax(accuracies)) + 1 + 3 < 40
    assert (tmp_path / "run" / "final.keras").exists()


def test_the_evaluator_uses_the_averaged_weights(tmp_path, monkeypatch):
    """Both `best.keras` and `final.keras` contain the weights that were evaluated."""
    evaluated_weights, original_predict = [], Evaluator.predict

    def record_weights(self, *args):
        evaluated_weights.append(flatten(networks[0].get_weights()))
        return original_predict(self, *args)

    networks = []

    class NetworkRecorder(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            networks.append(self.model)

    monkeypatch.setattr(Evaluator, "predict", record_weights)
    train(
        **DEFAULTS,
        iterations=3,
        ema=0.5,
        model_dir=str(tmp_path / "run"),
        callbacks=[NetworkRecorder()],
    )
    (evaluated_weights,) = evaluated_weights
    for name in ("best", "final"):
        saved_weights = load_model(
            str(tmp_path / "run" / f"{name}.keras")
        ).get_weights()
        np.testing.assert_array_equal(flatten(saved_weights), evaluated_weights)
