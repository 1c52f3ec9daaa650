"""The training step, against formulas worked in numpy, and one device."""

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
from keras_resnet.nets.graph import flat_layers
from keras_resnet.spec import RunOptions, recipes
from keras_resnet.spec.execution import Execution
from keras_resnet.spec.run_spec import steps_per_epoch
from keras_resnet.support.errors import InputError
from keras_resnet.training.network import make_network
from keras_resnet.training.resolution import resolve_run
from keras_resnet.training.run import train
from keras_resnet.training.step import Step, loss_of
from keras_resnet.weights.formats import load_model

# Keras 3.15 reading the variables of two replicas.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
BOTH = pytest.mark.parametrize("name", ["one_device", "mirrored"])
SMALL = {"model": "cifar_resnet8", "strategy": "one_device", "verbose": 0}


@pytest.fixture
def float64():
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def flat(arrays):
    return np.concatenate([np.ravel(a) for a in arrays])


def some_digits(count):
    digits = sources.load_dataset("digits")
    train = splits.Split(digits.train.images[:count], digits.train.labels[:count])
    return splits.Dataset("digits", digits.classes, train, digits.test, digits.shape)


def constant(batch_size, **changes):
    """A recipe with a constant learning rate of 0.1, for at least a few steps."""
    changes = {"epochs": 1000, "schedule": "steps", "warmup": 0.0, **changes}
    return dataclasses.replace(
        recipes.RECIPES["digits"], batch_size=batch_size, learning_rate=0.1, **changes
    )


def make(images, recipe, model="cifar_resnet8"):
    """Makes a run's network; returns it and the images."""
    options = RunOptions.of(model, images, shortcut="A", recipe="digits")
    spec, images, preprocessing = resolve_run(options, Execution(), 1)
    spec = dataclasses.replace(spec, recipe=recipe)
    return make_network(spec, images, preprocessing, None)


def take_steps(strategy, images, recipe, steps, model="cifar_resnet8"):
    """Trains for some steps; returns the weights before and after."""
    strategy = strategies.make_strategy(strategy)
    replicas = strategy.num_replicas_in_sync
    preprocessing = Preprocessing(8, 8, 1)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        network, images = make(images, recipe, model)
    before = network.get_weights()
    per_epoch = steps_per_epoch(
        len(images.train), recipe.batch_size, recipe.shares(replicas)
    )
    step = Step(network, strategy, recipe, recipe.epochs * per_epoch)
    step.average()
    batches = TrainingBatches(
        split=images.train,
        preprocessing=preprocessing,
        recipe=recipe,
        replicas=replicas,
        seed=0,
        classes=10,
    ).dataset(0, steps)
    batches = iter(batches)
    for _ in range(steps):
        step(batches)
    assert not any(
        layer.synchronized
        for layer in flat_layers(network)
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    return network, before, network.get_weights(), step


@pytest.mark.parametrize(
    "model", ["cifar_resnet8", pytest.param("resnet20", marks=pytest.mark.full)]
)
def test_two_replicas_equal_one_device(float64, model):
    """Ten steps of batches of 16, 16, 16 and 3, batch normalisation synchronised."""
    images, recipe = some_digits(51), constant(16)
    _, before, alone, step = take_steps("one_device", images, recipe, 10, model)
    _, same, shared, step_too = take_steps("mirrored", images, recipe, 10, model)
    np.testing.assert_array_equal(flat(before), flat(same))
    assert np.abs(flat(alone) - flat(before)).max() > 0.1
    assert np.abs(flat(alone) - flat(shared)).max() <= 1e-9
    counted, counted_too = step.sums.numpy(), step_too.sums.numpy()
    np.testing.assert_allclose(counted, counted_too, rtol=1e-9)
    assert counted[2] == 2 * 51 + 2 * 16
    assert counted.shape == (4,) and counted[3] == 10
    assert float(step.asked) == float(step_too.asked) == 0


def test_two_replicas_equal_one_device_with_all_that_mixes_a_batch(float64):
    """Mixup, CutMix, LAMB, clipping and averages; batches of 16, 16, 16 and 4."""
    recipe = constant(
        16, mixup=0.8, cutmix=1.0, ema=0.9, optimizer="lamb", clip_norm=0.5,
        label_smoothing=0.1,
    )  # fmt: skip
    images = some_digits(52)
    _, before, alone, step = take_steps("one_device", images, recipe, 5)
    _, _, shared, step_too = take_steps("mirrored", images, recipe, 5)
    assert np.abs(flat(alone) - flat(before)).max() > 0.1
    np.testing.assert_allclose(flat(shared), flat(alone), atol=1e-8)
    averages, averages_too = (
        flat([a.read_value() for a in each.averages]) for each in (step, step_too)
    )
    np.testing.assert_allclose(averages_too, averages, atol=1e-8)
    np.testing.assert_allclose(step.sums.numpy(), step_too.sums.numpy(), rtol=1e-8)


def test_two_replicas_have_one_devices_first_gradients():
    images, recipe = some_digits(64), constant(32, momentum=0.0)
    _, before, alone, _ = take_steps("one_device", images, recipe, 1)
    _, _, shared, _ = take_steps("mirrored", images, recipe, 1)
    expected, found = flat(alone) - flat(before), flat(shared) - flat(before)
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


def test_a_last_image_for_two_replicas_is_left_out():
    images = some_digits(33)
    _, _, after, step = take_steps("mirrored", images, constant(16), 5)
    assert np.isfinite(flat(after)).all()
    assert step.sums.numpy()[2] == 5 * 16


def test_step_is_the_papers_sgd(float64):
    """Momentum and a decay that is part of the gradient, of kernels alone."""
    images, recipe = some_digits(32), constant(16, weight_decay=0.01)
    network, before, after, _ = take_steps("one_device", images, recipe, 2)
    batches = TrainingBatches(
        split=images.train,
        preprocessing=Preprocessing(8, 8, 1),
        recipe=recipe,
        replicas=1,
        seed=0,
    ).dataset(0, 2)
    network.set_weights(before)
    variables = network.trainable_variables
    velocity = [0.0] * len(variables)
    for pixels, labels, _ in batches:
        with tf.GradientTape() as tape:
            logits = tf.math.log(network(pixels, training=True))
            loss = -tf.reduce_mean(tf.gather(logits, labels, batch_dims=1))
        gradients = tape.gradient(loss, [v.value for v in variables])
        for i, (variable, gradient) in enumerate(
            zip(variables, gradients, strict=True)
        ):
            weight = np.asarray(variable)
            is_kernel = weight.ndim > 1
            velocity[i] = (
                0.9 * velocity[i] + gradient.numpy() + 0.01 * is_kernel * weight
            )
            variable.assign(weight - 0.1 * velocity[i])
    np.testing.assert_allclose(flat(after), flat(network.get_weights()), atol=1e-7)


# Losses, as PyTorch's documentation and the papers write them.


def some_logits():
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (6, 5))
    hard = random.integers(0, 5, 6).astype(np.int32)
    soft = np.zeros((6, 5))
    soft[np.arange(6), hard] = 0.7
    soft[np.arange(6), (hard + 2) % 5] = 0.3
    return logits, hard, soft


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    """(1 - s) of the label's, and s of the mean over all classes."""
    logits, hard, soft = some_logits()
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    recipe = constant(6, label_smoothing=smoothing)
    for labels, shares in ((hard, np.eye(5)[hard]), (soft, soft)):
        expected = -(1 - smoothing) * (shares * logs).sum(1) - smoothing * logs.mean(1)
        found = loss_of(recipe, tf.constant(labels), tf.constant(logits))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy(smoothing):
    """Every class of a mixed image is a yes; then smoothed; the mean over classes."""
    logits, hard, soft = some_logits()
    sigmoid = 1 / (1 + np.exp(-logits))
    recipe = constant(6, loss="bce", label_smoothing=smoothing)
    for labels, yes in ((hard, np.eye(5)[hard]), (soft, soft > 0)):
        assert yes.sum(1).tolist() == [labels.ndim] * 6
        target = yes * (1 - smoothing) + smoothing / 5
        each = -target * np.log(sigmoid) - (1 - target) * np.log(1 - sigmoid)
        found = loss_of(recipe, tf.constant(labels), tf.constant(logits))
        np.testing.assert_allclose(found, each.mean(1), rtol=1e-12)


# A net of two layers, for which a step takes no time to trace.


def tiny(strategy, norm=True):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    with strategy.scope():
        image = keras.Input((8, 8, 1))
        x = layers.Conv2D(4, 3, use_bias=False, name="conv1_conv")(image)
        if norm:
            x = layers.BatchNormalization(momentum=0.9, name="conv1_bn")(x)
        x = layers.Activation("tanh", name="conv1_tanh")(x)
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(3, "softmax", name="predictions")(x)
        return keras.Model(image, x)


def some_images(count, seed=0):
    random = np.random.default_rng(seed)
    images = random.normal(random.uniform(-2, 2, (count, 1, 1, 1)), 1, (count, 8, 8, 1))
    return images.astype(np.float32), random.integers(0, 3, count).astype(np.int32)


def split(batch, *sizes):
    """The parts of a batch, of these sizes."""
    ends = np.cumsum(sizes)
    assert ends[-1] == len(batch[1])
    return [
        tuple(each[end - size : end] for each in batch)
        for end, size in zip(ends, sizes, strict=True)
    ]


def feed(steps):
    """What `Step` takes: of each step a part for each replica."""

    def parts():
        for step in steps:
            count = sum(len(labels) for _, labels in step)
            for images, labels in step:
                yield images, labels, np.full(len(labels), 1 / count, np.float32)

    images, labels = steps[0][0]
    specs = (
        tf.TensorSpec((None, *images.shape[1:]), tf.float32),
        tf.TensorSpec((None, *labels.shape[1:]), labels.dtype),
        tf.TensorSpec((None,), tf.float32),
    )
    return iter(tf.data.Dataset.from_generator(parts, output_signature=specs))


PLAIN = recipes.Recipe(1, 8, 0.125, momentum=0.0, weight_decay=0.0)


def step_of(name, recipe, norm=True, rate=0.125, network=None, **execution):
    strategy = strategies.make_strategy(name)
    network = network or tiny(strategy, norm)
    return network, Step(
        network, strategy, recipe, 100, Execution(**execution), rate=rate
    )


def trainable(network):
    return flat(v.value.numpy() for v in network.trainable_variables)


def mean_gradient(parts, norm=True, labels_to_loss=None):
    """Of the mean loss over parts of a batch, each normalised by itself."""
    network = tiny(strategies.make_strategy("one_device"), norm)
    variables = [v.value for v in network.trainable_variables]
    count = sum(len(labels) for _, labels in parts)
    total = 0.0
    for images, labels in parts:
        with tf.GradientTape() as tape:
            logs = tf.math.log(network(images, training=True))
            loss = -tf.reduce_sum(tf.gather(logs, labels, batch_dims=1)) / count
        total = total + flat(tape.gradient(loss, variables))
    return total


def moved(network, step, batches):
    before = trainable(network)
    step(batches)
    return trainable(network) - before


@pytest.mark.parametrize("norm", [True, False])
def test_accumulated_gradients(float64, norm):
    """Of ten images in three parts: 3, 3 and 4, each normalised by itself."""
    batch = some_images(10)
    recipe = dataclasses.replace(PLAIN, accumulate=3)
    network, step = step_of("one_device", recipe, norm)
    found = moved(network, step, feed([[batch]]))
    expected = -0.125 * mean_gradient(split(batch, 3, 3, 4), norm)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert step.sums.numpy()[2] == 10
    # Without normalisation parts make no difference; with it they do.
    at_once = -0.125 * mean_gradient([batch], norm)
    assert np.allclose(found, at_once, rtol=1e-6, atol=1e-9) == (not norm)


@BOTH
def test_clipping(float64, name):
    """The norm is that of the whole batch's gradient, of all variables together."""
    batch = some_images(8)
    gradient = mean_gradient([batch])
    norm = math.sqrt((gradient**2).sum())
    parts = [batch] if name == "one_device" else split(batch, 5, 3)
    for limit in (norm / 3, norm * 3):
        recipe = dataclasses.replace(PLAIN, clip_norm=limit)
        network, step = step_of(name, recipe)
        found = moved(network, step, feed([parts]))
        expected = -0.125 * gradient * min(1, limit / norm)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("sizes", [(5, 3), (2, 1)])
@pytest.mark.parametrize("sync", [True, False])
def test_each_replica_normalises_its_own_part_or_all_the_batch(float64, sync, sizes):
    """Of a single image the positions of its map still have a variance."""
    batch = some_images(sum(sizes))
    parts = split(batch, *sizes)
    network, step = step_of("mirrored", PLAIN, sync_bn=sync)
    found = moved(network, step, feed([parts]))
    expected = -0.125 * mean_gradient([batch] if sync else parts)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    other = -0.125 * mean_gradient(parts if sync else [batch])
    assert not np.allclose(found, other, rtol=1e-3)
    # The statistics: 0.9 of what was there, and 0.1 of the batch's, or of the mean
    # of the replicas'.
    kernel = np.asarray(tiny(strategies.make_strategy("one_device")).get_weights()[0])
    means = [
        tf.nn.conv2d(np.float64(images), kernel, 1, "VALID").numpy().mean((0, 1, 2))
        for images, _ in ([batch] if sync else parts)
    ]
    moving = network.get_layer("conv1_bn").moving_mean.value
    for copy in step._strategy.experimental_local_results(moving):
        np.testing.assert_allclose(copy, 0.1 * np.mean(means, 0), rtol=1e-6, atol=1e-9)


def recursion(start, after, decay):
    """The average after each step, and what it is made of, by hand."""
    average = start
    for n, weights in enumerate(after, 1):
        share = min(decay, (1 + n) / (10 + n))
        average = share * average + (1 - share) * weights
    return average


@BOTH
def test_averaged_weights(float64, name):
    """Three steps by the formula of 0.4, then one by the recipe's."""
    network, step = step_of(name, dataclasses.replace(PLAIN, ema=0.35))
    step.average()
    weights, after = lambda: flat(v.numpy() for v in network.variables), []
    start = weights()
    parts = [split(some_images(8, seed), 4, 4) for seed in range(6)]
    if name == "one_device":
        parts = [[some_images(8, seed)] for seed in range(6)]
    batches = feed(parts)
    for _ in range(6):
        step(batches)
        after.append(weights())
    expected = recursion(start, after, 0.35)
    assert np.abs(expected - after[-1]).max() > 1e-3
    with step.evaluated():
        np.testing.assert_allclose(weights(), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(weights(), after[-1])


class Weights(keras.callbacks.Callback):
    """Keeps the weights after each step, and where each epoch begins and ends."""

    def on_train_begin(self, logs=None):
        self.start = self.model.get_weights()
        self.after, self.begun = (), ()

    def on_epoch_begin(self, epoch, logs=None):
        self.begun += (self.model.get_weights(),)

    def on_train_batch_end(self, batch, logs=None):
        self.after += (self.model.get_weights(),)


def test_a_run_evaluates_and_saves_averages_and_goes_on_without(tmp_path):
    spy, digits = Weights(), sources.load_dataset("digits")
    rows = train(
        **SMALL,
        epochs=2,
        batch_size=256,
        ema=0.35,
        model_dir=str(tmp_path / "run"),
        callbacks=[spy],
    )
    assert len(spy.after) == 12
    saved = load_model(str(tmp_path / "run" / "final.keras"))
    expected = recursion(flat(spy.start), [flat(w) for w in spy.after], 0.35)
    found = saved.get_weights()
    np.testing.assert_allclose(flat(found), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(flat(found) - flat(spy.after[-1])).max() > 1e-2
    loss, accuracy = saved.evaluate(digits.test.images, digits.test.labels, verbose=0)
    assert loss == pytest.approx(rows[-1]["val_loss"], rel=1e-4)
    assert accuracy == pytest.approx(rows[-1]["val_accuracy"])
    np.testing.assert_array_equal(flat(spy.begun[1]), flat(spy.after[5]))


class Calls(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.ends = ()

    def on_train_batch_end(self, batch, logs=None):
        self.ends += (batch,)


def test_several_steps_at_once_are_the_same_steps(tmp_path):
    """Of two epochs of 23 steps, with a checkpoint after every 7."""
    found = []
    for several in (1, 5):
        spy = Calls()
        folder = tmp_path / str(several)
        train(
            **SMALL,
            epochs=2,
            checkpoint_every=7,
            steps_per_execution=several,
            model_dir=str(folder),
            callbacks=[spy],
        )
        weights = flat(load_model(str(folder / "final.keras")).get_weights())
        found.append((weights, (folder / "metrics.csv").read_text()))
    # Up to a checkpoint or the end of an epoch, and never beyond.
    ends = [5, 7, 12, 14, 19, 21, 23, 28, 33, 35, 40, 42, 46]
    assert spy.ends == tuple((end - 1) % 23 for end in ends)
    (one, metrics), (five, same_metrics) = found
    np.testing.assert_array_equal(one, five)
    assert metrics == same_metrics


def test_training_images_of_several_sizes(tmp_path, monkeypatch):
    """Three sizes for a third of the run each; evaluation is at the network's."""
    asked, seen = [], []
    dataset, replica_step = TrainingBatches.dataset, Step._replica_step

    def spy(self, start, stop):
        size = self.preprocessing.height, self.preprocessing.width
        asked.append((start, stop, *size))
        return dataset(self, start, stop)

    def traced(self, network, images, *batch):
        seen.append(tuple(images.shape[1:]))
        assert network.input_shape[1:] == images.shape[1:]
        return replica_step(self, network, images, *batch)

    monkeypatch.setattr(TrainingBatches, "dataset", spy)
    monkeypatch.setattr(Step, "_replica_step", traced)
    rows = train(**SMALL, epochs=1, sizes=(4, 6, 8), model_dir=str(tmp_path / "run"))
    # After the picture of the first batch: 8, 8 and 7 of 23 steps.
    assert asked[0] == (0, 1, 4, 4)
    assert asked[1:] == [(0, 8, 4, 4), (8, 16, 6, 6), (16, 23, 8, 8)]
    assert list(dict.fromkeys(seen)) == [(4, 4, 1), (6, 6, 1), (8, 8, 1)]
    model = load_model(str(tmp_path / "run" / "final.keras"))
    assert model.input_shape == (None, 8, 8, 1)
    digits = sources.load_dataset("digits").test
    loss, _ = model.evaluate(digits.images, digits.labels, verbose=0)
    assert loss == pytest.approx(rows[0]["val_loss"], rel=1e-4)


# Precision and compilation.


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@BOTH
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_step_that_overflows_is_left_out(name, clip):
    recipe = dataclasses.replace(PLAIN, clip_norm=clip)
    network, step = step_of(name, recipe, precision="mixed_float16")
    full, full_step = step_of(name, recipe)
    sizes = (8,) if name == "one_device" else (5, 3)
    parts = [split(some_images(8, seed), *sizes) for seed in range(3)]
    expected = moved(full, full_step, feed(parts[2:]))
    copies = step._strategy.experimental_local_results
    before, batches = trainable(network), feed(parts)
    step.optimizer.dynamic_scale.assign(2.0**100)
    for halved in (99, 98):  # 2^100 is no number of half precision.
        step(batches)
        np.testing.assert_array_equal(trainable(network), before)
        for copy in copies(step.optimizer.dynamic_scale.value):
            assert float(copy) == 2.0**halved
        assert int(step.optimizer.iterations.numpy()) == 0
    assert np.isfinite(step.sums.numpy()).all()
    step.optimizer.dynamic_scale.assign(2.0**8)
    found = moved(network, step, batches)
    assert int(step.optimizer.iterations.numpy()) == 1
    for variable in network.trainable_variables:
        first, *others = copies(variable.value)
        for other in others:
            np.testing.assert_array_equal(first, other)
    # In half precision: about right, and not exactly.
    assert 1e-5 < relative(found, expected) < 0.02


def test_bfloat16_is_about_right():
    batch = some_images(8)
    network, step = step_of("one_device", PLAIN, precision="mixed_bfloat16")
    expected = -0.125 * mean_gradient([batch])
    assert 1e-4 < relative(moved(network, step, feed([[batch]])), expected) < 0.1
    assert {layer.dtype_policy.name for layer in network.layers} == {"float32"}


PLAIN_KERAS = """
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


def test_what_a_run_saves_is_an_ordinary_network(tmp_path):
    """Of mixed precision, LAMB, averages and stochastic depth nothing is left."""
    train(
        **SMALL,
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
        result = run_python("-W", "error::UserWarning", "-c", PLAIN_KERAS, path)
        assert "loaded" in result.stdout, result.stderr
        assert "UserWarning" not in result.stderr


def test_compiled_steps_are_the_same():
    batch = some_images(8)
    network, step = step_of("one_device", PLAIN, jit_compile=True)
    found = moved(network, step, feed([[batch]]))
    expected = -0.125 * mean_gradient([batch])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert step._one.experimental_get_tracing_count() == 1


def test_compiled_steps_are_for_one_replica(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        train(**{**SMALL, "strategy": "mirrored"}, jit_compile=True)
    assert "jit_compile with 2 replicas" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# What a recipe changes in the network.


def built(**changes):
    keras.utils.set_random_seed(3)
    built_network, _ = make(some_digits(64), constant(64, **changes))
    return built_network


def test_stochastic_depth():
    """Of three blocks the first stays always, the last goes with the probability."""
    network, images = built(stochastic_depth=0.4), some_digits(1).train.images
    images = np.repeat(images, 2000, 0)
    drops = [layer for layer in network.layers if layer.name.endswith("_drop")]
    assert [d.name for d in drops] == ["conv3_block1_drop", "conv4_block1_drop"]
    for layer in drops:
        place = int(layer.name[4]) - 2
        probability = 0.4 * place / 2
        parts = keras.Model(network.input, [layer.input, layer.output])
        branch, kept = (np.asarray(each) for each in parts(images, training=True))
        gone = ~kept.any(axis=(1, 2, 3))
        np.testing.assert_allclose(
            kept[~gone], branch[~gone] / (1 - probability), rtol=1e-5, atol=1e-6
        )
        spread = math.sqrt(probability * (1 - probability) / 2000)
        assert abs(gone.mean() - probability) <= 5 * spread
        branch, kept = (np.asarray(e) for e in parts(images[:2], training=False))
        np.testing.assert_array_equal(branch, kept)


def test_with_zero_gamma_a_block_begins_as_its_shortcut():
    network, images = built(zero_gamma=True), some_digits(16).train.images
    names = ("conv1_relu", "conv2_block1_out", "conv3_block1_out", "conv4_block1_out")
    outputs = [network.get_layer(name).output for name in names]
    found = keras.Model(network.input, outputs)(images, training=True)
    x, *after = (np.asarray(each) for each in found)
    np.testing.assert_array_equal(after[0], x)
    for before, out in itertools.pairwise(after):
        channels = before.shape[-1]
        expected = np.pad(
            before[:, ::2, ::2], [(0, 0)] * 3 + [(channels // 2, channels // 2)]
        )
        np.testing.assert_array_equal(out, expected)
    assert x.any()


# Recipes that react to how a run goes.


class Cut(keras.callbacks.Callback):
    """Interrupts a run."""

    def __init__(self, at=None):
        super().__init__()
        self.batches, self.at = 0, lambda: at  # Stays out of the checkpoint.

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.at():
            raise KeyboardInterrupt


def test_plateau(tmp_path):
    """The rate is a tenth after two epochs without a better accuracy; resumed too."""

    def run(folder, at=None):
        return train(
            **SMALL,
            epochs=9,
            batch_size=512,
            schedule="plateau",
            warmup=0,
            patience=2,
            learning_rate=1e-6,
            checkpoint_every=2,
            model_dir=str(tmp_path / folder),
            callbacks=[Cut(at)],
        )

    rows = run("whole")
    expected, rate, best, waited = [], 1e-6, -1.0, 0
    for row in rows:
        expected.append(rate)
        waited = 0 if row["val_accuracy"] > best else waited + 1
        best = max(best, row["val_accuracy"])
        if waited == 2:
            rate, waited = rate / 10, 0
    assert len(set(expected)) >= 3
    np.testing.assert_allclose([row["learning_rate"] for row in rows], expected, 1e-5)
    # In the epoch after the last one before the rate falls.
    first = expected.index(min(expected))
    with pytest.raises(KeyboardInterrupt):
        run("cut", 3 * (first - 1) + 2)
    assert run("cut") == rows
    whole, cut = (
        load_model(str(tmp_path / name / "final.keras")).get_weights()
        for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(flat(whole), flat(cut))


def test_early_stopping(tmp_path):
    rows = train(
        **SMALL,
        epochs=40,
        batch_size=512,
        learning_rate=1e-9,
        early_stopping=3,
        model_dir=str(tmp_path / "run"),
    )
    found = [row["val_accuracy"] for row in rows]
    assert len(rows) == int(np.argmax(found)) + 1 + 3 < 40
    assert (tmp_path / "run" / "final.keras").exists()


def test_the_evaluator_sees_the_averages(tmp_path, monkeypatch):
    """And so does `best.keras`."""
    judged, predict = [], Evaluator.predict

    def spy(self, *args):
        judged.append(flat(network_of[0].get_weights()))
        return predict(self, *args)

    network_of = []

    class Take(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            network_of.append(self.model)

    monkeypatch.setattr(Evaluator, "predict", spy)
    train(
        **SMALL,
        iterations=3,
        ema=0.5,
        model_dir=str(tmp_path / "run"),
        callbacks=[Take()],
    )
    (judged,) = judged
    for name in ("best", "final"):
        saved = load_model(str(tmp_path / "run" / f"{name}.keras")).get_weights()
        np.testing.assert_array_equal(flat(saved), judged)
