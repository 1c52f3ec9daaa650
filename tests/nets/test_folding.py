"""Folded networks compute the same function as the original networks."""

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.nets.folding import fold
from keras_resnet.nets.graph import flat_layers

BOTTLENECK = {"classes": 10, "stride_on": "3x3"}
NETWORKS = {
    "basic": ("resnet18", {"classes": 10}),
    "bottleneck": ("resnet50", BOTTLENECK),
    "plain": ("cifar_plainnet8", {}),
    "shortcut A": ("cifar_resnet8", {"shortcut": "A"}),
    "shortcut B": ("cifar_resnet8", {"shortcut": "B"}),
    "shortcut C": ("cifar_resnet8", {"shortcut": "C"}),
    "dilated": ("resnet18", {"classes": 10, "output_stride": 8}),
    "pre-activation": ("cifar_resnet8", {"preact": True}),
    "deep stem, averaged shortcut": (
        "resnet18",
        {"classes": 10, "stem": "deep", "avg_down": True},
    ),
    "squeeze and excitation": ("cifar_resnet8", {"se": True}),
    "grouped": ("resnet50", {**BOTTLENECK, "groups": 32, "group_width": 4}),
    "stochastic depth": ("cifar_resnet8", {"stochastic_depth": 0.5}),
}
SLOW = ("bottleneck", "grouped", "dilated")


def layer_types(model):
    return [type(layer).__name__ for layer in flat_layers(model)]


def randomise(model):
    """Draws random statistics and parameters for all batch normalisations."""
    rng = np.random.default_rng(0)
    for layer in flat_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            # Small scales at the ends of branches keep deep networks from overflowing.
            limit = 0.3 if layer.name.endswith(("_2_bn", "_3_bn")) else 1.5
            shape = layer.gamma.shape
            layer.gamma.assign(rng.uniform(-limit, limit, shape))
            layer.beta.assign(rng.normal(0, 0.3, shape))
            layer.moving_mean.assign(rng.normal(0, 0.3, shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, shape))
        elif isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
            layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))


def build(name, size=32, channels=3, **variation):
    """Builds a network from raw pixels to logits."""
    image = keras.Input((size, size, channels), name="image")
    normalised = keras.layers.Normalization(
        mean=(123.7, 116.3, 103.5)[:channels],
        variance=(3400.0, 3260.0, 3290.0)[:channels],
        name="normalization",
    )(image)
    model = keras_resnet.ResNet(
        name, input_tensor=normalised, classifier_activation=None, **variation
    )
    randomise(model)
    return model


def make_images(model, count=2):
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


def max_difference(model, folded):
    """Returns the largest difference of a logit, divided by the largest logit."""
    expected, logits = (
        np.asarray(m(make_images(model), training=False)) for m in (model, folded)
    )
    assert expected.std() > 1e-3 * np.abs(expected).max()
    return np.abs(logits - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.full if k in SLOW else ()) for k in NETWORKS],
)
def test_folded_network_has_the_same_logits(kind):
    keras.utils.set_random_seed(0)
    name, variation = NETWORKS[kind]
    model = build(name, **variation)
    original_weights = model.get_weights()
    folded = fold(model)
    assert max_difference(model, folded) < 1e-5
    names = [layer.name for layer in model.layers]
    norms = [
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    # Batch normalisations after a sum are not folded.
    unfolded = [n for n in norms if "preact" in n or n == "post_bn"]
    removed = {*norms, *(n for n in names if n.endswith("_drop"))} - {*unfolded}
    assert {layer.name for layer in folded.layers} == {*names} - removed
    assert bool(unfolded) == ("preact" in variation)
    assert (folded.name, folded.input.name) == (model.name, "image")
    for weights, original in zip(model.get_weights(), original_weights, strict=True):
        np.testing.assert_array_equal(weights, original)


def test_first_kernel_contains_the_scale_of_the_pixels():
    model = build("cifar_resnet8", 8)
    layer = fold(model).get_layer("normalization")
    np.testing.assert_array_equal(np.ravel(layer.variance), 1)
    # White pixels differ from the padded zeros, which stand for the mean.
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    np.testing.assert_allclose(
        fold(model)(white), model(white, training=False), rtol=1e-4, atol=1e-5
    )


def test_mixed_precision_becomes_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build("cifar_resnet8", 8)
    finally:
        keras.config.set_dtype_policy("float32")
    float32_model = build("cifar_resnet8", 8)
    float32_model.set_weights(model.get_weights())
    folded = fold(model)
    assert {layer.compute_dtype for layer in folded.layers} == {"float32"}
    assert max_difference(float32_model, folded) < 1e-5


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet1202", "plainnet1202"])
def test_1202_layers(name):
    """Sub-models of very deep networks are folded too."""
    model = build(name, 8)
    for layer in flat_layers(model):  # Prevent growth of activations over 600 blocks.
        if name == "resnet1202" and layer.name.endswith("_2_bn"):
            layer.gamma.assign(layer.gamma * 0.1)
            layer.beta.assign(layer.beta * 0.01)
    folded = fold(model)
    assert max_difference(model, folded) < 1e-5
    assert "BatchNormalization" not in layer_types(folded)
    assert layer_types(folded).count("Conv2D") == 1201


def test_shared_convolutions_are_not_folded():
    """A shared convolution is called twice, or two layers read its output."""
    image = keras.Input((8, 8, 3), name="image")
    conv = keras.layers.Conv2D(4, 3, padding="same", name="a_conv")
    x = conv(image)
    read_twice = keras.layers.Add()([x, keras.layers.BatchNormalization()(x)])
    conv = keras.layers.Conv2D(4, 3, padding="same", name="b_conv")
    called_twice = [
        keras.layers.BatchNormalization()(conv(y)) for y in (read_twice, read_twice)
    ]
    outputs = keras.layers.Add()(called_twice)
    model = keras.Model(image, [outputs, x])
    randomise(model)
    folded = fold(model)
    assert layer_types(folded).count("BatchNormalization") == 3
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    for output, expected in zip(folded(images), model(images), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


def test_other_patterns_are_not_folded():
    """The model has another axis, an activation in between, and several inputs."""
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 1)(keras.layers.Add()([a, b]))
    x = keras.layers.BatchNormalization(axis=1)(x)
    x = keras.layers.Conv2D(8, 1, activation="relu")(x)
    x = keras.layers.BatchNormalization(scale=False, center=False)(x)
    model = keras.Model([a, b], x)
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
    folded = fold(model)
    assert layer_types(folded) == layer_types(model)
    images = rng.normal(size=(2, 2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(folded([*images]), model([*images]), rtol=1e-6)


def test_batch_normalisation_without_scale_and_centre():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3)(image)
    model = keras.Model(
        image, keras.layers.BatchNormalization(scale=False, center=False)(x)
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(fold(model)(images), model(images), rtol=1e-4, atol=1e-5)
    assert layer_types(fold(model)) == ["InputLayer", "Conv2D"]


def test_model_without_a_graph_is_returned():
    class SubclassedModel(keras.Model):
        def call(self, inputs):
            return inputs

    model = SubclassedModel()
    assert fold(model) is model
