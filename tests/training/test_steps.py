"""The training step, compared with formulas in NumPy and between strategies."""

import dataclasses
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.data import TrainingBatches, sources, splits
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.distribution import strategies
from keras_resnet.nets import Head, build_network
from keras_resnet.nets.graph import list_layers
from keras_resnet.spec import RunOptions, recipes
from keras_resnet.spec.execution import Execution
from keras_resnet.spec.variants import find_variant
from keras_resnet.support.errors import InputError
from keras_resnet.training.network import make_network
from keras_resnet.training.resolution import resolve_run
from keras_resnet.training.run import train
from keras_resnet.training.step import Step, compute_losses

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


def make_batches_of_digits(images, recipe, num_replicas):
    return TrainingBatches(
        split=images.train, preprocessing=Preprocessing(8, 8, 1), recipe=recipe,
        replicas=num_replicas, seed=0, num_classes=10,
    )  # fmt: skip


def take_steps(strategy_name, images, recipe, num_steps):
    """Trains a new residual network with two stages for `num_steps` steps.

    Returns:
        The network, its initial weights, its final weights and its `Step`.
    """
    strategy = strategies.make_strategy(strategy_name)
    num_replicas = strategy.num_replicas_in_sync
    variant = find_variant("cifar_resnet8").replace(blocks=(1, 1), width=4)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        network = build_network(variant, "net", Head(classes=10), input_shape=(8, 8, 1))
    initial_weights = network.get_weights()
    step = Step(network, strategy, recipe, 4000)
    step.reset_averages()
    batches = make_batches_of_digits(images, recipe, num_replicas).dataset(0, num_steps)
    batches = iter(batches)
    for _ in range(num_steps):
        step(batches)
    assert not any(
        layer.synchronized
        for layer in list_layers(network)
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    return network, initial_weights, network.get_weights(), step


def test_two_replicas_equal_one_device(use_float64):
    """Five steps with synchronised batch normalisation give the same weights.

    The number of replicas does not change mixup, CutMix, LAMB, clipping and averages.
    Each epoch has batches of 16, 16, 16 and 10 images, of which one replica takes 6.
    """
    recipe = make_recipe(
        16, mixup=0.8, cutmix=1.0, ema=0.9, optimizer="lamb", clip_norm=0.5,
        label_smoothing=0.1,
    )  # fmt: skip
    images = load_some_digits(58)
    (_, initial_weights, single_weights, single_step), (_, _, weights, step) = (
        take_steps(name, images, recipe, 5) for name in ("one_device", "mirrored")
    )
    assert np.abs(flatten(single_weights) - flatten(initial_weights)).max() > 0.1
    np.testing.assert_allclose(
        flatten(weights), flatten(single_weights), rtol=0, atol=1e-9
    )
    single_averages, averages = (
        flatten([average.read_value() for average in s.averages])
        for s in (single_step, step)
    )
    np.testing.assert_allclose(averages, single_averages, atol=1e-8)
    single_sums, sums = single_step.sums.numpy(), step.sums.numpy()
    np.testing.assert_allclose(sums, single_sums, rtol=1e-8)
    assert sums.shape == (4,) and list(sums[2:]) == [58 + 16, 5]
    assert float(single_step.stop_flag) == float(step.stop_flag) == 0


def test_two_replicas_omit_a_last_batch_of_one_image():
    batches = make_batches_of_digits(load_some_digits(33), make_recipe(16), 2)
    assert [len(labels) for _, labels, _ in batches.dataset(0, 5)] == [8] * (2 * 5)


def test_step_equals_the_sgd_of_the_paper(use_float64):
    """The paper uses momentum, and adds the weight decay of kernels to the gradient.

    A stage rate of 0.5 multiplies the learning rate by 0.5**k, k stages before the head.
    """
    images = load_some_digits(32)
    recipe = make_recipe(16, weight_decay=0.01, stage_rate=0.5)
    network, initial_weights, final_weights, _ = take_steps(
        "one_device", images, recipe, 2
    )
    batches = make_batches_of_digits(images, recipe, 1).dataset(0, 2)
    network.set_weights(initial_weights)
    variables = network.trainable_variables
    velocities = [0.0] * len(variables)
    distances_to_head = {"conv1": 3, "conv2": 2, "conv3": 1, "predictions": 0}
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
            k = distances_to_head[variable.path.split("/")[0].split("_")[0]]
            variable.assign(weight - 0.1 * 0.5**k * velocities[i])
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


def make_tiny_model(strategy):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    with strategy.scope():
        image = keras.Input((8, 8, 1))
        x = layers.Conv2D(4, 3, use_bias=False, name="conv1_conv")(image)
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


def make_step(strategy_name, recipe, **execution):
    strategy = strategies.make_strategy(strategy_name)
    network = make_tiny_model(strategy)
    return network, Step(network, strategy, recipe, 100, Execution(**execution), 0.125)


def read_trainable(network):
    return flatten(variable.value.numpy() for variable in network.trainable_variables)


def compute_mean_gradient(parts):
    """Returns the gradient of the mean loss. Batch statistics are computed per part."""
    network = make_tiny_model(strategies.make_strategy("one_device"))
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


def test_accumulated_gradients_equal_the_mean_gradient(use_float64):
    """Parts of 3, 3 and 4 images are normalised with separate batch statistics."""
    batch = make_batch(10)
    recipe = dataclasses.replace(PLAIN_RECIPE, accumulate=3)
    network, step = make_step("one_device", recipe)
    change = measure_change(network, step, make_batches([[batch]]))
    expected = -0.125 * compute_mean_gradient(split_batch(batch, 3, 3, 4))
    np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-9)
    assert step.sums.numpy()[2] == 10
    assert not np.allclose(change, -0.125 * compute_mean_gradient([batch]), rtol=1e-3)


@pytest.mark.parametrize(
    ("strategy_name", "relative_limit"), [("mirrored", 1 / 3), ("one_device", 3)]
)
def test_gradients_are_clipped_by_their_global_norm(
    use_float64, strategy_name, relative_limit
):
    """The limit applies to one norm, over all replicas and all variables."""
    batch = make_batch(8)
    gradient = compute_mean_gradient([batch])
    limit = relative_limit * math.sqrt((gradient**2).sum())
    parts = [batch] if strategy_name == "one_device" else split_batch(batch, 5, 3)
    recipe = dataclasses.replace(PLAIN_RECIPE, clip_norm=limit)
    network, step = make_step(strategy_name, recipe)
    change = measure_change(network, step, make_batches([parts]))
    expected = -0.125 * gradient * min(1, relative_limit)
    np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("sync_bn", "sizes"), [(True, (2, 1)), (False, (5, 3))])
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


def test_averaged_weights_are_exponential_moving_averages(use_float64):
    """The decay is (1 + n) / (10 + n) in steps n = 1 to 3, and 0.35 in steps 4 to 6."""
    recipe = dataclasses.replace(PLAIN_RECIPE, ema=0.35)
    network, step = make_step("mirrored", recipe)
    step.reset_averages()

    def read_weights():
        return flatten(variable.numpy() for variable in network.variables)

    expected = read_weights()
    batches = make_batches(
        [split_batch(make_batch(8, seed), 4, 4) for seed in range(6)]
    )
    for n in range(1, 7):
        step(batches)
        decay = min(0.35, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * read_weights()
    last_weights = read_weights()
    assert np.abs(expected - last_weights).max() > 1e-3
    with step.load_averaged_weights():
        np.testing.assert_allclose(read_weights(), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(read_weights(), last_weights)


def test_the_first_loss_of_nan_ends_the_count_of_steps():
    """After a NaN, the sums stay NaN and the step count stays that of the finite steps."""
    _, step = make_step("one_device", PLAIN_RECIPE)
    images, labels = make_batch(8)
    good_batch, bad_batch = (images, labels), (images * np.nan, labels)
    batches = make_batches([[good_batch], [bad_batch], [good_batch]])
    for _ in range(3):
        step(batches)
    assert np.isnan(step.sums[0]) and step.sums[3] == 1
    assert not step.has_finite_weights()
    step.clear_sums()
    assert not step.sums.numpy().any()


# Tests of mixed precision and of compilation with XLA.


def compute_relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("strategy_name", "clip_norm"), [("one_device", 0.0), ("mirrored", 0.01)]
)
def test_a_step_that_overflows_is_skipped(strategy_name, clip_norm):
    recipe = dataclasses.replace(PLAIN_RECIPE, clip_norm=clip_norm)
    network, step = make_step(strategy_name, recipe, precision="mixed_float16")
    sizes = (8,) if strategy_name == "one_device" else (5, 3)
    parts = [split_batch(make_batch(8, seed), *sizes) for seed in range(3)]
    gradient = compute_mean_gradient([make_batch(8, 2)])
    expected = -0.125 * gradient
    if clip_norm:
        expected *= clip_norm / np.linalg.norm(gradient)
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


def test_compiled_steps_equal_uncompiled_steps():
    batch = make_batch(8)
    network, step = make_step("one_device", PLAIN_RECIPE, jit_compile=True)
    change = measure_change(network, step, make_batches([[batch]]))
    expected = -0.125 * compute_mean_gradient([batch])
    np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-6)
    # The moving variance starts at 1 and averages the biased variance of the batch.
    kernel = make_tiny_model(step._strategy).get_weights()[0]
    variance = tf.nn.conv2d(batch[0], kernel, 1, "VALID").numpy().var((0, 1, 2))
    moving_variance = network.get_layer("conv1_bn").moving_variance.numpy()
    np.testing.assert_allclose((moving_variance - 0.9) / 0.1, variance, rtol=1e-3)
    assert step._take_one_step.experimental_get_tracing_count() == 1


def test_compiled_steps_need_a_single_replica(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        train(**{**DEFAULTS, "strategy": "mirrored"}, jit_compile=True)
    assert "jit_compile with 2 replicas" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


# Tests of recipe fields that change the network.


def build_network_of_recipe(**changes):
    keras.utils.set_random_seed(3)
    options = RunOptions.from_keywords("cifar_resnet8", **changes)
    spec, images, preprocessing = resolve_run(options, Execution(), 1)
    return make_network(spec, images, preprocessing, None)[0]


def test_stochastic_depth_drops_later_blocks_more_often():
    """The drop probability grows from 0 in the first block to 0.4 in the last."""
    network = build_network_of_recipe(stochastic_depth=0.4)
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
    network, images = (
        build_network_of_recipe(zero_gamma=True),
        load_some_digits(16).train.images,
    )
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
