"""Recalibrated batch normalisation, against NumPy over the images."""

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
from keras_resnet.nets.graph import batch_norms

# Keras 3.15 reading the variables of two replicas.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
PIXELS = Preprocessing(8, 8, 1)


@pytest.fixture(scope="module")
def split():
    return sources.load_dataset("digits").train.take(slice(0, 600))


def build(strategy):
    keras.utils.set_random_seed(2)
    with strategy.scope():
        return keras_resnet.ResNet("cifar_resnet8", input_shape=(8, 8, 1))


def statistics(model):
    return {
        variable.path: variable.numpy()
        for layer in batch_norms(model)
        for variable in (layer.moving_mean, layer.moving_variance)
    }


def others(model):
    return {
        variable.path: variable.numpy()
        for variable in model.variables
        if variable.name not in ("moving_mean", "moving_variance")
    }


def conv1(model, images):
    """The 3x3 convolution before the first batch normalisation, tap by tap."""
    kernel = np.float64(model.get_layer("conv1_conv").get_weights()[0])
    padded = np.pad(np.float64(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, y : y + 8, x : x + 8] @ kernel[y, x]
        for y in range(3)
        for x in range(3)
    )


@pytest.mark.parametrize("name", ["one_device", "mirrored"])
def test_one_batch_of_all_equals_numpy(split, name):
    """The variance is the biased one, divided by the number of values."""
    strategy = strategies.make_strategy(name)
    model = build(strategy)
    assert recalibrate(model, split, PIXELS, 600, strategy) == 600
    values = conv1(model, split.images)
    norm = model.get_layer("conv1_bn")
    mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2), ddof=0)
    np.testing.assert_allclose(norm.moving_mean.numpy(), mean, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(norm.moving_variance.numpy(), variance, rtol=1e-4)
    # Few enough values to tell it from the unbiased one.
    few = split.take(slice(0, 4))
    assert recalibrate(model, few, PIXELS, 600, strategy) == 4
    variance = conv1(model, few.images).var(axis=(0, 1, 2), ddof=0)
    np.testing.assert_allclose(norm.moving_variance.numpy(), variance, rtol=1e-4)


def test_deeper_statistics_are_those_of_training_mode(split):
    """Each layer's input is what the batch's own statistics make of it."""
    strategy = strategies.make_strategy("one_device")
    model = build(strategy)
    inputs = {la.name: la.input for la in batch_norms(model)}
    recalibrate(model, split, PIXELS, 600, strategy)
    # With these statistics, inference now does what training did.
    reached = keras.Model(model.input, inputs)(split.images, training=False)
    for layer in batch_norms(model):
        values = np.float64(reached[layer.name])
        mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
        scale = np.sqrt(variance).max()
        found_mean, found_variance = (
            layer.moving_mean.numpy(),
            layer.moving_variance.numpy(),
        )
        np.testing.assert_allclose(found_mean, mean, atol=1e-3 * scale)
        np.testing.assert_allclose(found_variance, variance, rtol=1e-3)


def test_mean_over_batches(split):
    """Full batches of all images: the mean of their means is that of all."""
    strategy = strategies.make_strategy("one_device")
    model = build(strategy)
    assert recalibrate(model, split, PIXELS, 60, strategy) == 600
    values = conv1(model, split.images)
    norm = model.get_layer("conv1_bn")
    np.testing.assert_allclose(
        norm.moving_mean.numpy(), values.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-3
    )
    # Each batch's variance is about its own mean, so theirs is a little smaller.
    variance = values.var(axis=(0, 1, 2))
    assert (norm.moving_variance.numpy() <= variance * 1.0001).all()
    np.testing.assert_allclose(norm.moving_variance.numpy(), variance, rtol=0.05)


def test_what_was_there_before_counts_for_nothing(split):
    strategy = strategies.make_strategy("one_device")
    found = []
    for wrong in (0, 1e4):
        model = build(strategy)
        for layer in batch_norms(model):
            layer.moving_mean.assign(layer.moving_mean + wrong)
            layer.moving_variance.assign(layer.moving_variance + wrong)
        recalibrate(model, split, PIXELS, 150, strategy)
        found.append(statistics(model))
    for path, values in found[0].items():
        np.testing.assert_array_equal(found[1][path], values)


@pytest.mark.parametrize("name", ["one_device", "mirrored"])
def test_weights_and_attributes_stay(split, name, tmp_path):
    strategy = strategies.make_strategy(name)
    model = build(strategy)
    weights, before = others(model), statistics(model)
    for layer, momentum in zip(batch_norms(model), range(10), strict=False):
        layer.momentum = 0.9 + momentum / 100
    recalibrate(model, split, PIXELS, 100, strategy)
    for path, values in others(model).items():
        np.testing.assert_array_equal(values, weights[path])
    for path, values in statistics(model).items():
        assert not np.array_equal(values, before[path]), path
    for layer, momentum in zip(batch_norms(model), range(10), strict=False):
        assert layer.momentum == 0.9 + momentum / 100
        assert layer.synchronized is False
    # What it computes is saved with it.
    model.save(tmp_path / "net.keras")
    again = keras.models.load_model(tmp_path / "net.keras")
    for found, expected in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_two_replicas_equal_one_device(split):
    """Both replicas' copies of each statistic."""
    found = []
    for name in ("one_device", "mirrored"):
        strategy = strategies.make_strategy(name)
        model = build(strategy)
        assert recalibrate(model, split, PIXELS, 200, strategy) == 600
        found.append(
            {
                variable.path: [
                    copy.numpy()
                    for copy in strategy.experimental_local_results(variable.value)
                ]
                for layer in batch_norms(model)
                for variable in (layer.moving_mean, layer.moving_variance)
            }
        )
    assert {len(copies) for copies in found[1].values()} == {2}
    for path, (expected,) in found[0].items():
        for copy in found[1][path]:
            np.testing.assert_allclose(
                copy,
                expected,
                rtol=1e-5,
                atol=1e-5 * np.abs(expected).max(),
                err_msg=path,
            )


def test_frozen_layers_keep_their_statistics(split):
    strategy = strategies.make_strategy("one_device")
    model = build(strategy)
    frozen = model.get_layer("conv2_block1_1_bn")
    frozen.trainable = False
    before = statistics(model)
    recalibrate(model, split, PIXELS, 200, strategy)
    for path, values in statistics(model).items():
        kept = path.startswith("conv2_block1_1_bn/")
        assert np.array_equal(values, before[path]) == kept, path


def test_number_of_images(split, monkeypatch):
    """Whole batches only, and no more of them than there is use for."""
    strategy = strategies.make_strategy("mirrored")
    model = build(strategy)
    few = split.take(slice(0, 101))
    for batch_size, used in ((40, 80), (100, 100), (1000, 100)):
        assert recalibrate(model, few, PIXELS, batch_size, strategy) == used
    monkeypatch.setattr(recalibration, "RECALIBRATION_BATCHES", 3)
    assert recalibrate(model, split, PIXELS, 50, strategy) == 150


def test_the_seed_decides_which_images(split, monkeypatch):
    monkeypatch.setattr(recalibration, "RECALIBRATION_BATCHES", 1)
    strategy = strategies.make_strategy("one_device")
    found = []
    for seed in (0, 0, 1):
        model = build(strategy)
        recalibrate(model, split, PIXELS, 50, strategy, seed=seed)
        found.append(model.get_layer("conv1_bn").moving_mean.numpy())
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("name", ["one_device", "mirrored"])
def test_accuracy_comes_back(trained, name):
    """Of a trained net whose statistics were wrecked."""
    strategy = strategies.make_strategy(name)
    with strategy.scope():
        classifier = load_classifier(str(trained))
    images, model = load_images(classifier), classifier.model
    evaluate = Evaluator(model, images.test, classifier.preprocessing, 360, strategy)
    before = evaluate()["accuracy"]
    assert before > 0.9
    for layer in batch_norms(model):
        layer.moving_mean.assign(layer.moving_mean + 5)
    assert evaluate()["accuracy"] < 0.5
    recalibrate(model, images.train, classifier.preprocessing, 256, strategy)
    assert evaluate()["accuracy"] >= before - 0.03
