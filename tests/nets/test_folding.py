"""Folded networks beside those that they were made of, for every kind."""

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.nets.folding import fold
from keras_resnet.nets.graph import flat_layers

BOTTLENECK = {"classes": 10, "stride_on": "3x3"}
KINDS = {
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
LONG = ("bottleneck", "grouped", "dilated")


def kinds(model):
    return [type(layer).__name__ for layer in flat_layers(model)]


def scramble(model):
    """Gives every normalisation statistics and parameters of its own."""
    rng = np.random.default_rng(0)
    for layer in flat_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            # The last of a branch small, so that deep nets stay within bounds.
            most = 0.3 if layer.name.endswith(("_2_bn", "_3_bn")) else 1.5
            shape = layer.gamma.shape
            layer.gamma.assign(rng.uniform(-most, most, shape))
            layer.beta.assign(rng.normal(0, 0.3, shape))
            layer.moving_mean.assign(rng.normal(0, 0.3, shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, shape))
        elif isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
            layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))


def network(name, size=32, channels=3, **variation):
    """A net that takes raw pixels and gives logits."""
    image = keras.Input((size, size, channels), name="image")
    normalised = keras.layers.Normalization(
        mean=(123.7, 116.3, 103.5)[:channels],
        variance=(3400.0, 3260.0, 3290.0)[:channels],
        name="normalization",
    )(image)
    model = keras_resnet.ResNet(
        name, input_tensor=normalised, classifier_activation=None, **variation
    )
    scramble(model)
    return model


def images(model, count=2):
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


def difference(model, folded):
    """Largest difference of any logit, over the largest logit."""
    expected, found = (
        np.asarray(m(images(model), training=False)) for m in (model, folded)
    )
    assert expected.std() > 1e-3 * np.abs(expected).max()
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.full if k in LONG else ()) for k in KINDS],
)
def test_every_kind_computes_the_same(kind):
    keras.utils.set_random_seed(0)
    name, variation = KINDS[kind]
    model = network(name, **variation)
    before = model.get_weights()
    folded = fold(model)
    assert difference(model, folded) < 1e-5
    names = [layer.name for layer in model.layers]
    norms = [
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    # Where a sum is normalised and not a convolution.
    stay = [n for n in norms if "preact" in n or n == "post_bn"]
    left_out = {*norms, *(n for n in names if n.endswith("_drop"))} - {*stay}
    assert {layer.name for layer in folded.layers} == {*names} - left_out
    assert bool(stay) == ("preact" in variation)
    assert (folded.name, folded.input.name) == (model.name, "image")
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_the_scale_of_the_pixels_is_in_the_first_kernel():
    model = network("cifar_resnet8", 8)
    layer = fold(model).get_layer("normalization")
    np.testing.assert_array_equal(np.ravel(layer.variance), 1)
    # Padded by zeros, which stand for the mean: a white image on black ground.
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    np.testing.assert_allclose(
        fold(model)(white), model(white, training=False), rtol=1e-4, atol=1e-5
    )


def test_mixed_precision_becomes_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network("cifar_resnet8", 8)
    finally:
        keras.config.set_dtype_policy("float32")
    exact = network("cifar_resnet8", 8)
    exact.set_weights(model.get_weights())
    folded = fold(model)
    assert {layer.compute_dtype for layer in folded.layers} == {"float32"}
    assert difference(exact, folded) < 1e-5


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet1202", "plainnet1202"])
def test_1202_layers(name):
    """Sub-models are folded in their places."""
    model = network(name, 8)
    for layer in flat_layers(model):  # Without growth along 600 blocks.
        if name == "resnet1202" and layer.name.endswith("_2_bn"):
            layer.gamma.assign(layer.gamma * 0.1)
            layer.beta.assign(layer.beta * 0.01)
    folded = fold(model)
    assert difference(model, folded) < 1e-5
    assert "BatchNormalization" not in kinds(folded)
    assert kinds(folded).count("Conv2D") == 1201


def test_what_is_shared_stays():
    """A convolution that something else reads too, or that is called twice."""
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
    scramble(model)
    folded = fold(model)
    assert kinds(folded).count("BatchNormalization") == 3
    pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    for found, expected in zip(folded(pixels), model(pixels), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_is_not_plain_stays():
    """Another axis, an activation between, and several inputs."""
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 1)(keras.layers.Add()([a, b]))
    x = keras.layers.BatchNormalization(axis=1)(x)
    x = keras.layers.Conv2D(8, 1, activation="relu")(x)
    x = keras.layers.BatchNormalization(scale=False, center=False)(x)
    model = keras.Model([a, b], x)
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
    folded = fold(model)
    assert kinds(folded) == kinds(model)
    pixels = rng.normal(size=(2, 2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(folded([*pixels]), model([*pixels]), rtol=1e-6)


def test_without_scale_and_centre():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3)(image)
    model = keras.Model(
        image, keras.layers.BatchNormalization(scale=False, center=False)(x)
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
    pixels = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(fold(model)(pixels), model(pixels), rtol=1e-4, atol=1e-5)
    assert kinds(fold(model)) == ["InputLayer", "Conv2D"]


def test_a_model_without_a_graph_is_returned():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    model = Own()
    assert fold(model) is model
