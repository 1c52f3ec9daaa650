"""Cross-layer equalisation."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_resnet
from export.quantization import equalize
from keras_resnet.nets import folding


@pytest.mark.parametrize(
    "variant, options",
    [
        ("resnet18", {"blocks": (1, 1, 1, 1)}),
        pytest.param("resnet50", {"stride_on": "3x3"}, marks=pytest.mark.full),
        pytest.param("resnet50v2", {}, marks=pytest.mark.full),
        pytest.param("resnext50_32x4d", {}, marks=pytest.mark.full),
        pytest.param("seresnet50", {}, marks=pytest.mark.full),
        pytest.param("resnet50d", {}, marks=pytest.mark.full),
        ("cifar_resnet8", {"shortcut": "C"}),
        ("cifar_plainnet8", {}),
    ],
)
def test_equalisation_preserves_outputs(variant, options):
    """Equalisation changes the weights of a network, but not its outputs."""
    size = 8 if variant.startswith("cifar") else 32
    keras.utils.set_random_seed(0)
    model = keras_resnet.ResNet(
        variant,
        input_shape=(size, size, 3),
        classes=5,
        classifier_activation=None,
        **options,
    )
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            # As in a trained network, the channels get different ranges to equalise.
            layer.set_weights(
                [random.uniform(0.2, 2, values.shape) for values in layer.get_weights()]
            )
        if "_se_" in layer.name:
            # Larger weights would saturate the sigmoids of squeeze and excitation, and
            # float32 rounding errors could change the sigmoids' outputs from 0 to 1.
            layer.set_weights([values / 100 for values in layer.get_weights()])
    images = random.normal(size=(4, size, size, 3)).astype("float32")
    folded_model = folding.fold(model)
    equalised_model = equalize.equalise(model, images)
    assert equalised_model is not model
    logits, expected = equalised_model(images).numpy(), folded_model(images).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    softmax = keras.ops.softmax
    np.testing.assert_allclose(softmax(logits), softmax(expected), atol=1e-4)
    are_changed = [
        not np.array_equal(a, b)
        for a, b in zip(
            folded_model.get_weights(), equalised_model.get_weights(), strict=True
        )
    ]
    assert any(are_changed)


def test_output_of_the_network_is_not_scaled():
    """Scaling the first layer would change the output, because no later layer undoes it."""
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="first")(image)
    model = keras.Model(image, layers.Add()([x, layers.Conv2D(4, 1, name="second")(x)]))
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    equalised_model = equalize.equalise(model, images)
    np.testing.assert_allclose(equalised_model(images), model(images), rtol=1e-5)


def test_factors_equal_a_calculation_by_hand():
    """Two channels are divided by factors that are calculated by hand.

    A factor is sqrt(relative range of the activations / relative range of the weights).
    """
    image = keras.Input((1, 1, 1), name="image")
    first_layer = layers.Conv2D(2, 1, activation="relu", name="first")
    second_layer = layers.Conv2D(1, 1, name="second")
    model = keras.Model(image, second_layer(first_layer(image)))
    first_layer.set_weights([np.array([[[[1.0, 16.0]]]]), np.array([2.0, 0.0])])
    second_layer.set_weights([np.array([[[[4.0], [1.0]]]]), np.array([3.0])])
    # All pixels are 2, so the activations are 4 and 32 (relative: 1/8 and 1). The
    # weights of the second layer are 4 and 1 (relative: 1 and 1/4). The factors are
    # therefore sqrt(1/8) and sqrt(4).
    images = np.full((1, 1, 1, 1), 2.0, "float32")
    equalised_model = equalize.equalise(model, images)
    kernel, bias = equalised_model.get_layer("first").get_weights()
    np.testing.assert_allclose(kernel.ravel(), [8**0.5, 8.0], rtol=1e-6)
    np.testing.assert_allclose(bias, [2 * 8**0.5, 0.0], rtol=1e-6)
    kernel, bias = equalised_model.get_layer("second").get_weights()
    np.testing.assert_allclose(kernel.ravel(), [4 / 8**0.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(bias, [3.0])
