"""Tests of measurements on networks whose results can be computed by hand."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_resnet.studies.lib import probes
from keras_resnet.support import derive_seed
from keras_resnet.zoo import ResNet

# Kernels and input image of a network with two channels and two classes.
BRANCH = np.array([[2.0, 0.0], [1.0, 3.0]])
HEAD = np.array([[1.0, -1.0], [0.5, 0.5]])
PIXELS = np.array([[[[3, 1]]]], np.uint8)


def make_linear_network(shortcut):
    """Returns a network of one block and a dense layer with the kernel HEAD.

    The block computes x @ BRANCH, plus x if it has a shortcut. All values are positive,
    so the ReLUs have no effect.
    """
    image = keras.Input((1, 1, 2), name="image")
    x = layers.Activation("relu", name="conv1_relu")(image)
    y = layers.Conv2D(2, 1, use_bias=False, name="conv2_block1_1_conv")(x)
    if shortcut:
        y = layers.Add(name="conv2_block1_add")([x, y])
    y = layers.Activation("relu", name="conv2_block1_out")(y)
    flat = layers.Flatten(name="flat")(y)
    network = keras.Model(image, layers.Dense(2, "softmax", name="predictions")(flat))
    network.get_layer("conv2_block1_1_conv").kernel.assign(BRANCH[None, None])
    network.get_layer("predictions").kernel.assign(HEAD)
    return network


@pytest.mark.parametrize("shortcut", [False, True])
def test_gradient_norms_of_a_linear_network_equal_hand_computed_norms(shortcut):
    x = PIXELS[0, 0, 0].astype(float)
    logits = x @ (BRANCH + shortcut * np.eye(2)) @ HEAD
    probabilities = np.exp(logits) / np.exp(logits).sum()
    # Gradient of the cross-entropy at the output of the block. The label is class 1.
    output_gradient = HEAD @ (probabilities - [0, 1])
    terms = {"branch": BRANCH @ output_gradient, "shortcut": shortcut * output_gradient}
    terms |= {"gradient": terms["branch"] + terms["shortcut"]}
    terms |= {"kernel": np.outer(x, output_gradient)}
    network = make_linear_network(shortcut)
    (row,) = probes.make_gradient_meter(network, PIXELS, np.array([1]))()
    expected = {name: np.linalg.norm(term) for name, term in terms.items()}
    assert row == pytest.approx({"block": 1, **expected}, rel=1e-5)


def test_a_meter_uses_the_current_weights_and_does_not_change_them(digits):
    keras.utils.set_random_seed(0)
    network = ResNet("cifar_resnet8", input_shape=(8, 8, 1), classifier_activation=None)
    original_weights = network.get_weights()
    images, labels = digits.train.images[:8], digits.train.labels[:8]
    measure = probes.make_gradient_meter(network, images, labels)
    rows = measure()
    assert [row["block"] for row in rows] == [1, 2, 3]
    assert measure() == rows
    for original, current in zip(original_weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(original, current)
    for row in rows:  # Triangle inequality for a sum of two terms.
        assert row["gradient"] <= 1.0001 * (row["branch"] + row["shortcut"])
    # The gradients are those of the training mode, with the statistics of the batch.
    names = [f"conv{stage}_block1_1_conv" for stage in (2, 3, 4)]
    kernels = [network.get_layer(name).kernel.value for name in names]
    with tf.GradientTape() as tape:
        logits = network(images.astype("float32"), training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        loss = tf.reduce_mean(losses)
    norms = [np.linalg.norm(g) for g in tape.gradient(loss, kernels)]
    assert [row["kernel"] for row in rows] == pytest.approx(norms, rel=1e-3)
    last_norm = network.get_layer("conv4_block1_2_bn")
    last_norm.gamma.assign(np.zeros(last_norm.gamma.shape))
    *_, row = measure()
    assert row["branch"] == 0 and row["gradient"] == pytest.approx(row["shortcut"])


def test_both_terms_are_measured_with_projections(digits):
    network = ResNet("cifar_resnet8", input_shape=(8, 8, 1), shortcut="C")
    measure = probes.make_gradient_meter(
        network, digits.train.images[:4], digits.train.labels[:4]
    )
    for row in measure():
        assert row["shortcut"] > 0 and row["branch"] > 0
        assert row["gradient"] <= 1.0001 * (row["branch"] + row["shortcut"])


def test_chain_rule_error_is_small_and_shows_a_wrong_jacobian(monkeypatch):
    assert max(map(probes.chain_rule_error, range(5))) < 1e-6
    # With linear layers, the Jacobians for tanh layers are wrong, and the derivative by
    # finite differences is F @ G + G.
    linear_numpy = types.SimpleNamespace(**vars(np))
    linear_numpy.tanh = lambda x: x
    monkeypatch.setattr(probes, "np", linear_numpy)
    for seed in range(3):
        rng = np.random.default_rng(derive_seed(seed, "chain rule"))
        (g, f), x = rng.normal(size=(2, 5, 5)), rng.normal(size=5)
        wrong_g = (1 - (g @ x) ** 2)[:, None] * g
        wrong_f = (1 - (f @ g @ x) ** 2)[:, None] * f
        wrong = wrong_f @ wrong_g + wrong_g
        expected = np.abs(f @ g + g - wrong).max() / np.abs(wrong).max()
        assert probes.chain_rule_error(seed) == pytest.approx(expected, rel=1e-5)


def test_responses_are_standard_deviations_after_batch_normalisation():
    image = keras.Input((2, 2, 1), name="image")
    first_norm = layers.BatchNormalization(epsilon=0, name="conv1_bn")(image)
    shortcut = layers.BatchNormalization(name="conv2_block1_0_bn")(first_norm)
    second_norm = layers.BatchNormalization(epsilon=0, name="conv2_block1_2_bn")(
        first_norm
    )
    network = keras.Model(image, layers.Add()([shortcut, second_norm]))
    for name, gamma, variance in (("conv1_bn", 3, 1), ("conv2_block1_2_bn", 1, 4)):
        layer = network.get_layer(name)
        layer.gamma.assign([gamma])
        layer.moving_variance.assign([variance])
    images = np.array([0, 0, 0, 0, 2, 2, 2, 2], np.uint8).reshape(2, 2, 2, 1)
    # The standard deviation is 1 for the pixels, 3 after the first layer and 3 / 2
    # after the second layer.
    assert probes.measure_responses(network, images) == pytest.approx([3, 1.5])


def test_a_probe_scales_kernels_and_freezes_batch_norm(digits):
    network = ResNet("cifar_resnet8", input_shape=(8, 8, 1))
    kernel = network.get_layer("conv1_conv").kernel.numpy()
    for normalised in (True, False):
        probe = probes.GradientProbe(digits.train.take(slice(8)), (), 0.5, normalised)
        probe.set_model(network)
        probe.on_train_begin()
        kernel = kernel / 2
        np.testing.assert_array_equal(network.get_layer("conv1_conv").kernel, kernel)
        # 9 kernels or projections, bias and kernel of the dense layer.
        num_norm_weights = 2 * 7 if normalised else 0
        assert len(network.trainable_weights) == 7 + 2 + num_norm_weights
