"""Recalibration of batch normalisation, compared with NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnet
from keras_resnet.data import sources, splits
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.distribution import strategies
from keras_resnet.evaluation import recalibration
from keras_resnet.evaluation.classifier import load_classifier, load_images
from keras_resnet.evaluation.evaluator import Evaluator
from keras_resnet.evaluation.recalibration import recalibrate
from keras_resnet.nets.graph import list_batch_norms
from keras_resnet.support.errors import InputError

PREPROCESSING = Preprocessing(8, 8, 1)


@pytest.fixture(scope="module")
def split():
    """The first 600 training images of digits."""
    return sources.load_dataset("digits").train.take(slice(0, 600))


def build_model(strategy):
    """Returns a network with three blocks, the second of which subsamples."""
    keras.utils.set_random_seed(2)
    with strategy.scope():
        return keras_resnet.ResNet(
            "cifar_resnet8", blocks=(1, 1), input_shape=(8, 8, 1)
        )


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


def test_one_batch_of_all_images_equals_numpy(split):
    """The moving variance is biased: the divisor is the number of values, not n - 1."""
    strategy = strategies.make_strategy("mirrored")
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


def test_every_layer_gets_the_statistics_of_its_inputs(split, tmp_path):
    """The input of a layer depends on the statistics of all layers before the layer.

    Nothing else changes, and the previous statistics have no influence.
    """
    strategy = strategies.make_strategy("one_device")
    model = build_model(strategy)
    norms = list_batch_norms(model)
    momenta = [0.9 + i / 100 for i in range(len(norms))]
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    variables_before = read_other_variables(model)
    recalibrate(model, split, PREPROCESSING, 600, strategy)
    for path, values in read_other_variables(model).items():
        np.testing.assert_array_equal(values, variables_before[path])
    assert [layer.momentum for layer in norms] == momenta
    assert not any(layer.synchronized for layer in norms)
    # With the recomputed statistics, each layer receives the same inputs in inference
    # mode as in training mode.
    inputs = {layer.name: layer.input for layer in norms}
    inputs_by_layer = keras.Model(model.input, inputs)(split.images, training=False)
    for layer in norms:
        values = np.float64(inputs_by_layer[layer.name])
        mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
        largest_deviation = np.sqrt(variance).max()
        actual_mean, actual_variance = (
            layer.moving_mean.numpy(),
            layer.moving_variance.numpy(),
        )
        np.testing.assert_allclose(actual_mean, mean, atol=1e-3 * largest_deviation)
        np.testing.assert_allclose(actual_variance, variance, rtol=1e-3)
    # The recomputed statistics are saved with the network.
    model.save(tmp_path / "net.keras")
    loaded_model = keras.models.load_model(tmp_path / "net.keras")
    for actual, expected in zip(
        loaded_model.get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)

    statistics = read_statistics(model)
    for layer in norms:
        layer.moving_mean.assign(layer.moving_mean + 1e4)
        layer.moving_variance.assign(layer.moving_variance + 1e4)
    recalibrate(model, split, PREPROCESSING, 600, strategy)
    for path, values in read_statistics(model).items():
        np.testing.assert_array_equal(values, statistics[path])


def test_ten_batches_give_the_mean_over_all_images(split):
    """Each of two replicas has a copy of every statistic. All copies are compared."""
    copies_by_strategy = []
    for name in ("mirrored", "one_device"):
        strategy = strategies.make_strategy(name)
        model = build_model(strategy)
        variables_before = read_other_variables(model)
        assert recalibrate(model, split, PREPROCESSING, 60, strategy) == 600
        for path, values in read_other_variables(model).items():
            np.testing.assert_array_equal(values, variables_before[path])
        assert not any(layer.synchronized for layer in list_batch_norms(model))
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
    for path, (expected,) in copies_by_strategy[1].items():
        copies = copies_by_strategy[0][path]
        assert len(copies) == 2
        for actual in copies:
            np.testing.assert_allclose(
                actual,
                expected,
                rtol=1e-5,
                atol=1e-5 * np.abs(expected).max(),
                err_msg=path,
            )
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


def test_only_full_batches_are_used(split):
    strategy = strategies.make_strategy("mirrored")
    model = build_model(strategy)
    small_split = split.take(slice(0, 101))
    for batch_size, num_images in ((40, 80), (1000, 100)):
        assert (
            recalibrate(model, small_split, PREPROCESSING, batch_size, strategy)
            == num_images
        )
    with pytest.raises(InputError, match=r"Each of 2 replicas.* Received: 1 training"):
        recalibrate(model, split.take([0]), PREPROCESSING, 40, strategy)


def test_the_seed_selects_the_images(split, monkeypatch):
    monkeypatch.setattr(recalibration, "MAX_BATCHES", 2)
    strategy = strategies.make_strategy("one_device")
    means = []
    for seed in (0, 0, 1):
        model = build_model(strategy)
        num_images = recalibrate(model, split, PREPROCESSING, 50, strategy, seed=seed)
        assert num_images == 100  # `MAX_BATCHES` batches.
        means.append(model.get_layer("conv1_bn").moving_mean.numpy())
    np.testing.assert_array_equal(means[0], means[1])
    assert not np.array_equal(means[0], means[2])


def test_recalibration_restores_the_accuracy(trained_run):
    """The moving means of a trained network are shifted and then recomputed."""
    strategy = strategies.make_strategy("one_device")
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


def test_damaged_images_are_refused():
    content = tf.io.encode_jpeg(np.zeros((8, 8, 3), np.uint8)).numpy()
    images = np.array([content, content[:-60]] * 4, object)
    split = splits.Split(images, np.zeros(8, np.int32))
    strategy = strategies.make_strategy("one_device")
    model = keras_resnet.ResNet("cifar_resnet8", blocks=(1,), input_shape=(8, 8, 3))
    with pytest.raises(InputError, match="4 of 8 images cannot be decoded"):
        recalibrate(model, split, Preprocessing(8, 8, 3), 8, strategy)
