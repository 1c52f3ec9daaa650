"""Recalibration of batch normalisation, compared with NumPy."""

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.data import sources
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.distribution import strategies
from keras_resnet.evaluation import recalibration
from keras_resnet.evaluation.classifier import load_classifier, load_images
from keras_resnet.evaluation.evaluator import Evaluator
from keras_resnet.evaluation.recalibration import recalibrate
from keras_resnet.nets.graph import list_batch_norms

# Keras 3.15 raises this warning when it reads the variables of two replicas.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
PREPROCESSING = Preprocessing(8, 8, 1)


@pytest.fixture(scope="module")
def split():
    """The first 600 training images of digits."""
    return sources.load_dataset("digits").train.take(slice(0, 600))


def build_model(strategy):
    keras.utils.set_random_seed(2)
    with strategy.scope():
        return keras_resnet.ResNet("cifar_resnet8", input_shape=(8, 8, 1))


def read_statistics(model):
    return {
        variable.path: variable.numpy()
        for layer in list_batch_norms(model)
        for variable in (layer.moving_mean, layer.moving_variance)
    }


def read_other_variables(model):
    return {
        variable.path: variable.numpy()
        for variable in model.variables
        if variable.name not in ("moving_mean", "moving_variance")
    }


def convolve(model, images):
    """Computes the 3x3 stem convolution as a sum over the positions of the kernel."""
    kernel = np.float64(model.get_layer("conv1_conv").get_weights()[0])
    padded_images = np.pad(np.float64(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded_images[:, y : y + 8, x : x + 8] @ kernel[y, x]
        for y in range(3)
        for x in range(3)
    )


@pytest.mark.parametrize("strategy_name", ["one_device", "mirrored"])
def test_one_batch_of_all_images_equals_numpy(split, strategy_name):
    """The moving variance is biased: the divisor is the number of values, not n - 1."""
    strategy = strategies.make_strategy(strategy_name)
    model = build_model(strategy)
    assert recalibrate(model, split, PREPROCESSING, 600, strategy) == 600
    outputs = convolve(model, split.images)
    layer = model.get_layer("conv1_bn")
    mean, variance = outputs.mean(axis=(0, 1, 2)), outputs.var(axis=(0, 1, 2), ddof=0)
    np.testing.assert_allclose(layer.moving_mean.numpy(), mean, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, rtol=1e-4)
    # For four images, the biased and the unbiased variance differ measurably.
    small_split = split.take(slice(0, 4))
    assert recalibrate(model, small_split, PREPROCESSING, 600, strategy) == 4
    variance = convolve(model, small_split.images).var(axis=(0, 1, 2), ddof=0)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, rtol=1e-4)


def test_every_layer_gets_the_statistics_of_its_inputs(split):
    """The input of a layer depends on the statistics of all layers before the layer."""
    strategy = strategies.make_strategy("one_device")
    model = build_model(strategy)
    inputs = {layer.name: layer.input for layer in list_batch_norms(model)}
    recalibrate(model, split, PREPROCESSING, 600, strategy)
    # With the recomputed statistics, each layer receives the same inputs in inference
    # mode as in training mode.
    inputs_by_layer = keras.Model(model.input, inputs)(split.images, training=False)
    for layer in list_batch_norms(model):
        values = np.float64(inputs_by_layer[layer.name])
        mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
        largest_deviation = np.sqrt(variance).max()
        actual_mean, actual_variance = (
            layer.moving_mean.numpy(),
            layer.moving_variance.numpy(),
        )
        np.testing.assert_allclose(actual_mean, mean, atol=1e-3 * largest_deviation)
        np.testing.assert_allclose(actual_variance, variance, rtol=1e-3)


def test_ten_batches_give_the_mean_over_all_images(split):
    strategy = strategies.make_strategy("one_device")
    model = build_model(strategy)
    assert recalibrate(model, split, PREPROCESSING, 60, strategy) == 600
    outputs = convolve(model, split.images)
    layer = model.get_layer("conv1_bn")
    np.testing.assert_allclose(
        layer.moving_mean.numpy(), outputs.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-3
    )
    # The variance of a batch is computed around the mean of the batch. The average of
    # these variances is therefore slightly smaller than the variance of all images.
    variance = outputs.var(axis=(0, 1, 2))
    assert (layer.moving_variance.numpy() <= variance * 1.0001).all()
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, rtol=0.05)


def test_previous_statistics_have_no_influence(split):
    strategy = strategies.make_strategy("one_device")
    statistics = []
    for offset in (0, 1e4):
        model = build_model(strategy)
        for layer in list_batch_norms(model):
            layer.moving_mean.assign(layer.moving_mean + offset)
            layer.moving_variance.assign(layer.moving_variance + offset)
        recalibrate(model, split, PREPROCESSING, 150, strategy)
        statistics.append(read_statistics(model))
    for path, values in statistics[0].items():
        np.testing.assert_array_equal(statistics[1][path], values)


@pytest.mark.parametrize("strategy_name", ["one_device", "mirrored"])
def test_only_the_statistics_change(split, strategy_name, tmp_path):
    strategy = strategies.make_strategy(strategy_name)
    model = build_model(strategy)
    variables_before, statistics_before = (
        read_other_variables(model),
        read_statistics(model),
    )
    for layer, i in zip(list_batch_norms(model), range(10), strict=False):
        layer.momentum = 0.9 + i / 100
    recalibrate(model, split, PREPROCESSING, 100, strategy)
    for path, values in read_other_variables(model).items():
        np.testing.assert_array_equal(values, variables_before[path])
    for path, values in read_statistics(model).items():
        assert not np.array_equal(values, statistics_before[path]), path
    for layer, i in zip(list_batch_norms(model), range(10), strict=False):
        assert layer.momentum == 0.9 + i / 100
        assert layer.synchronized is False
    # The recomputed statistics are saved with the network.
    model.save(tmp_path / "net.keras")
    loaded_model = keras.models.load_model(tmp_path / "net.keras")
    for actual, expected in zip(
        loaded_model.get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)


def test_two_replicas_compute_the_statistics_of_one_device(split):
    """Each replica has its own copy of every statistic. All copies are compared."""
    copies_by_strategy = []
    for name in ("one_device", "mirrored"):
        strategy = strategies.make_strategy(name)
        model = build_model(strategy)
        assert recalibrate(model, split, PREPROCESSING, 200, strategy) == 600
        copies_by_strategy.append(
            {
                variable.path: [
                    actual.numpy()
                    for actual in strategy.experimental_local_results(variable.value)
                ]
                for layer in list_batch_norms(model)
                for variable in (layer.moving_mean, layer.moving_variance)
            }
        )
    assert {
        len(replica_values) for replica_values in copies_by_strategy[1].values()
    } == {2}
    for path, (expected,) in copies_by_strategy[0].items():
        for actual in copies_by_strategy[1][path]:
            np.testing.assert_allclose(
                actual,
                expected,
                rtol=1e-5,
                atol=1e-5 * np.abs(expected).max(),
                err_msg=path,
            )


def test_frozen_layers_keep_their_statistics(split):
    strategy = strategies.make_strategy("one_device")
    model = build_model(strategy)
    frozen_layer = model.get_layer("conv2_block1_1_bn")
    frozen_layer.trainable = False
    statistics_before = read_statistics(model)
    recalibrate(model, split, PREPROCESSING, 200, strategy)
    for path, values in read_statistics(model).items():
        is_frozen = path.startswith("conv2_block1_1_bn/")
        assert np.array_equal(values, statistics_before[path]) == is_frozen, path


def test_only_full_batches_up_to_a_maximum_number_are_used(split, monkeypatch):
    strategy = strategies.make_strategy("mirrored")
    model = build_model(strategy)
    small_split = split.take(slice(0, 101))
    for batch_size, num_images in ((40, 80), (100, 100), (1000, 100)):
        assert (
            recalibrate(model, small_split, PREPROCESSING, batch_size, strategy)
            == num_images
        )
    monkeypatch.setattr(recalibration, "MAX_BATCHES", 3)
    assert recalibrate(model, split, PREPROCESSING, 50, strategy) == 150


def test_the_seed_selects_the_images(split, monkeypatch):
    monkeypatch.setattr(recalibration, "MAX_BATCHES", 1)
    strategy = strategies.make_strategy("one_device")
    means = []
    for seed in (0, 0, 1):
        model = build_model(strategy)
        recalibrate(model, split, PREPROCESSING, 50, strategy, seed=seed)
        means.append(model.get_layer("conv1_bn").moving_mean.numpy())
    np.testing.assert_array_equal(means[0], means[1])
    assert not np.array_equal(means[0], means[2])


@pytest.mark.parametrize("strategy_name", ["one_device", "mirrored"])
def test_recalibration_restores_the_accuracy(trained_run, strategy_name):
    """The moving means of a trained network are shifted and then recomputed."""
    strategy = strategies.make_strategy(strategy_name)
    with strategy.scope():
        classifier = load_classifier(str(trained_run))
    dataset, model = load_images(classifier), classifier.model
    evaluator = Evaluator(model, dataset.test, classifier.preprocessing, 360, strategy)
    accuracy = evaluator()["accuracy"]
    assert accuracy > 0.9
    for layer in list_batch_norms(model):
        layer.moving_mean.assign(layer.moving_mean + 5)
    assert evaluator()["accuracy"] < 0.5
    recalibrate(model, dataset.train, classifier.preprocessing, 256, strategy)
    assert evaluator()["accuracy"] >= accuracy - 0.03
