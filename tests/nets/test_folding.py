"""`fold` returns networks with fewer layers that compute the same function."""

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.nets import resnet
from keras_resnet.nets.folding import fold
from keras_resnet.nets.graph import list_layers

SMALL = {"classes": 10, "blocks": (1, 1), "width": 16}
NETWORKS = {
    "basic, dilated": ("resnet18", {**SMALL, "blocks": (1, 1, 1), "output_stride": 8}),
    "bottleneck, grouped, shortcut C": (
        "resnet50",
        {**SMALL, "groups": 4, "group_width": 32, "shortcut": "C"},
    ),
    "deep stem, averaged shortcut, squeeze and excitation": (
        "resnet18",
        {**SMALL, "stem": "deep", "avg_down": True, "se": True},
    ),
    "plain": ("cifar_plainnet8", {}),
    "pre-activation": ("cifar_resnet8", {"preact": True}),
    "shortcut A, stochastic depth": ("cifar_resnet8", {"stochastic_depth": 0.5}),
}


def list_layer_types(model):
    """Returns the class names of all layers, such as `"Conv2D"`."""
    return [type(layer).__name__ for layer in list_layers(model)]


def randomise_weights(model):
    """Sets batch normalisation weights and convolution biases to random values."""
    rng = np.random.default_rng(0)
    for layer in list_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            # Small scales in the last layer of each branch keep the sums finite.
            limit = 0.3 if layer.name.endswith(("_2_bn", "_3_bn")) else 1.5
            shape = layer.gamma.shape
            layer.gamma.assign(rng.uniform(-limit, limit, shape))
            layer.beta.assign(rng.normal(0, 0.3, shape))
            layer.moving_mean.assign(rng.normal(0, 0.3, shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, shape))
        elif isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
            layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))


def build_network(name, size=32, channels=3, **variation):
    """Builds a network with random weights that maps raw pixels to logits."""
    image = keras.Input((size, size, channels), name="image")
    normalised_image = keras.layers.Normalization(
        mean=(123.7, 116.3, 103.5)[:channels],
        variance=(3400.0, 3260.0, 3290.0)[:channels],
        name="normalization",
    )(image)
    model = keras_resnet.ResNet(
        name, input_tensor=normalised_image, classifier_activation=None, **variation
    )
    randomise_weights(model)
    return model


def make_images(model, num_images=2):
    shape = (num_images, *model.input_shape[1:])
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


def compute_difference(model, folded_model):
    """Returns the largest difference between the logits of two models.

    The difference is relative to the largest absolute logit of `model`.
    """
    expected, logits = (
        np.asarray(m(make_images(model), training=False)) for m in (model, folded_model)
    )
    assert expected.std() > 1e-3 * np.abs(expected).max()
    return np.abs(logits - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("kind", NETWORKS)
def test_folded_network_has_the_same_logits(kind):
    keras.utils.set_random_seed(0)
    name, variation = NETWORKS[kind]
    model = build_network(name, **variation)
    original_weights = model.get_weights()
    folded_model = fold(model)
    assert compute_difference(model, folded_model) < 1e-5
    layer_names = [layer.name for layer in model.layers]
    norm_names = [
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    # Batch normalisations after a sum remain, because no convolution precedes them.
    kept_norm_names = [n for n in norm_names if "preact" in n or n == "post_bn"]
    removed_names = {*norm_names, *(n for n in layer_names if n.endswith("_drop"))} - {
        *kept_norm_names
    }
    assert {layer.name for layer in folded_model.layers} == {
        *layer_names
    } - removed_names
    assert bool(kept_norm_names) == ("preact" in variation)
    assert (folded_model.name, folded_model.input.name) == (model.name, "image")
    for array, original_array in zip(
        model.get_weights(), original_weights, strict=True
    ):
        np.testing.assert_array_equal(array, original_array)


def test_first_kernel_contains_the_scale_of_the_pixels():
    model = build_network("cifar_resnet8", 8)
    layer = fold(model).get_layer("normalization")
    np.testing.assert_array_equal(np.ravel(layer.variance), 1)
    # The padding zeros represent the mean pixel. White pixels differ from the mean, so
    # the logits would show a wrong padding.
    white_image = np.full((1, 8, 8, 3), 255, np.uint8)
    np.testing.assert_allclose(
        fold(model)(white_image),
        model(white_image, training=False),
        rtol=1e-4,
        atol=1e-5,
    )


def test_statistics_of_an_adapted_normalisation_are_folded():
    normalization = keras.layers.Normalization(name="normalization")
    pixels = np.random.default_rng(0).normal(100, 50, (4, 8, 8, 3))
    normalization.adapt(pixels)
    model = keras_resnet.ResNet(
        "cifar_resnet8", input_tensor=normalization(keras.Input((8, 8, 3)))
    )
    folded_model = fold(model)
    layer = folded_model.get_layer("normalization")
    np.testing.assert_allclose(
        np.ravel(layer.mean), pixels.mean(axis=(0, 1, 2)), rtol=1e-5
    )
    np.testing.assert_array_equal(np.ravel(layer.variance), 1)
    assert compute_difference(model, folded_model) < 1e-5


def test_mixed_precision_becomes_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_network("cifar_resnet8", 8)
    finally:
        keras.config.set_dtype_policy("float32")
    float32_model = build_network("cifar_resnet8", 8)
    float32_model.set_weights(model.get_weights())
    folded_model = fold(model)
    assert {layer.compute_dtype for layer in folded_model.layers} == {"float32"}
    assert compute_difference(float32_model, folded_model) < 1e-5


@pytest.mark.parametrize("kind", ["res", "plain"])
def test_sub_models_are_folded(kind, monkeypatch):
    """`fold` also folds sub-models, which networks with more than 60 blocks contain."""
    monkeypatch.setattr(resnet, "_MAX_BLOCKS_PER_MODEL", 1)
    model = build_network(f"cifar_{kind}net8", 8)
    folded_model = fold(model)
    assert compute_difference(model, folded_model) < 1e-5
    sub_models = [la for la in folded_model.layers if isinstance(la, keras.Model)]
    assert len(sub_models) == 3
    assert "BatchNormalization" not in list_layer_types(folded_model)
    assert list_layer_types(folded_model).count("Conv2D") == 7


def test_shared_convolutions_are_not_folded():
    """A convolution is not folded if it has two calls or two layers read its output."""
    image = keras.Input((8, 8, 3), name="image")
    conv = keras.layers.Conv2D(4, 3, padding="same", name="a_conv")
    x = conv(image)
    sum_of_both = keras.layers.Add()([x, keras.layers.BatchNormalization()(x)])
    conv = keras.layers.Conv2D(4, 3, padding="same", name="b_conv")
    outputs_of_two_calls = [
        keras.layers.BatchNormalization()(conv(y)) for y in (sum_of_both, sum_of_both)
    ]
    outputs = keras.layers.Add()(outputs_of_two_calls)
    model = keras.Model(image, [outputs, x])
    randomise_weights(model)
    folded_model = fold(model)
    assert list_layer_types(folded_model).count("BatchNormalization") == 3
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    for output, expected in zip(folded_model(images), model(images), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


def test_other_patterns_are_not_folded():
    """Batch normalisations with `axis=1` or after an activation are not folded."""
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 1)(keras.layers.Add()([a, b]))
    x = keras.layers.BatchNormalization(axis=1)(x)
    x = keras.layers.Conv2D(8, 1, activation="relu")(x)
    x = keras.layers.BatchNormalization(scale=False, center=False)(x)
    model = keras.Model([a, b], x)
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
    folded_model = fold(model)
    assert list_layer_types(folded_model) == list_layer_types(model)
    images = rng.normal(size=(2, 2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(folded_model([*images]), model([*images]), rtol=1e-6)


def test_batch_normalisation_without_scale_and_centre_is_folded():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3)(image)
    model = keras.Model(
        image, keras.layers.BatchNormalization(scale=False, center=False)(x)
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.get_weights()])
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(fold(model)(images), model(images), rtol=1e-4, atol=1e-5)
    assert list_layer_types(fold(model)) == ["InputLayer", "Conv2D"]


def test_model_without_a_graph_is_returned_unchanged():
    class SubclassedModel(keras.Model):
        def call(self, inputs):
            return inputs

    model = SubclassedModel()
    assert fold(model) is model
