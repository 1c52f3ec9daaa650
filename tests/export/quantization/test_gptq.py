"""Rounding of weights by GPTQ."""

import dataclasses

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from export.formats import saved_model, tflite
from export.quantization import gptq
from keras_resnet.nets import folding


@pytest.mark.parametrize(
    ("pixels", "weights", "rounded_weights", "bias"),
    [
        # The second of two equal inputs compensates for the rounding error of the
        # first: 2.4 is rounded to 2, so the second weight grows from 2.4 to 2.8. Both
        # inputs have the mean 5.5, and the sum of their weights grows by 0.2.
        ([[4, 4], [7, 7]], [2.4, 2.4], [2, 3], 1 - 0.2 * 5.5),
        # The input with the larger variance is rounded first, from 2.4 to 2. The other
        # input has half of its values, so its weight grows by almost 0.8, to 2.9.
        ([[4, 8], [7, 14]], [2.1, 2.4], [3, 2], 1 - 0.9 * 5.5 + 0.4 * 11),
    ],
)
def test_rounding_equals_a_calculation_by_hand(pixels, weights, rounded_weights, bias):
    """The quantisation step is 1, because the largest weight is 127."""
    image = keras.Input((1, 1, 3), name="image")
    layer = layers.Conv2D(1, 1, name="only")
    model = keras.Model(image, layer(image))
    layer.set_weights([np.reshape([127.0, *weights], (1, 1, 3, 1)), np.array([1.0])])
    images = np.float32([[[[9, *values]]] for values in pixels])
    rounded_model = gptq.round_weights(model, images, batch_size=1)
    kernel, actual_bias = rounded_model.get_layer("only").get_weights()
    np.testing.assert_allclose(kernel.ravel(), [127, *rounded_weights], rtol=1e-6)
    np.testing.assert_allclose(actual_bias, [bias], rtol=1e-4)


def test_groups_are_rounded_separately():
    """A grouped convolution is rounded like separate convolutions for the groups."""
    random = np.random.default_rng(0)
    images = random.normal(size=(6, 5, 5, 6)).cumsum(axis=-1).astype("float32")
    kernel = random.normal(size=(3, 3, 3, 4)).astype("float32")

    def round_kernel(images, kernel, groups):
        image = keras.Input(images.shape[1:], name="image")
        layer = layers.Conv2D(
            kernel.shape[-1], 3, 2, padding="same", groups=groups, name="only"
        )
        model = keras.Model(image, layer(image))
        layer.set_weights([kernel, np.zeros(kernel.shape[-1])])
        rounded_model = gptq.round_weights(model, images, batch_size=4)
        return rounded_model.get_layer("only").get_weights()

    grouped_weights = round_kernel(images, kernel, 2)
    weights_by_group = [
        round_kernel(images[..., i : i + 3], kernel[..., o : o + 2], 1)
        for i, o in ((0, 0), (3, 2))
    ]
    for array, *parts in zip(grouped_weights, *weights_by_group, strict=True):
        np.testing.assert_allclose(array, np.concatenate(parts, axis=-1), rtol=1e-5)


def round_to_nearest(kernel):
    """Rounds a kernel to multiples of 1/127 of the largest weight of each output."""
    step = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127
    return np.round(kernel / step) * step


def test_gptq_loses_less_than_rounding_to_nearest(classifier, digits, tmp_path):
    """On test images, GPTQ has less than half the squared error of rounding to nearest.

    The TFLite converter does not change the weights that GPTQ has rounded.
    """
    images, expected = digits.test.images, classifier.model(digits.test.images)
    nearest_model = folding.fold(classifier.model)  # A copy; it is folded already.
    for layer in nearest_model.layers:
        if layer.weights and hasattr(layer, "kernel"):
            kernel, bias = layer.get_weights()
            layer.set_weights([round_to_nearest(kernel), bias])
    rounded_model = gptq.round_weights(classifier.model, digits.train.images[:100])
    gptq_error, nearest_error = (
        np.square(model(images) - expected).mean()
        for model in (rounded_model, nearest_model)
    )
    assert gptq_error < nearest_error / 2
    # The converter rounds to nearest, which does not change rounded weights.
    for layer in rounded_model.layers:
        if layer.weights and hasattr(layer, "kernel"):
            kernel = layer.get_weights()[0]
            step = np.abs(kernel).max() / 127
            np.testing.assert_allclose(
                round_to_nearest(kernel), kernel, atol=step / 100
            )
    folder = str(tmp_path / "static")
    saved_model.write_static_model(
        dataclasses.replace(classifier, model=rounded_model), folder, "float32"
    )
    row = tflite.TFLITE_FORMATS["float_io"]
    interpreter = Interpreter(
        model_content=tflite.convert_to_tflite(folder, row, digits.train.images[:50])
    )
    (dense_details,) = (
        tensor
        for tensor in interpreter.get_tensor_details()
        if tensor["shape"].tolist() == [10, 64]
    )
    integers = interpreter.get_tensor(dense_details["index"])
    scales = dense_details["quantization_parameters"]["scales"]
    kernel = rounded_model.get_layer("predictions").get_weights()[0]
    np.testing.assert_allclose(integers * scales[:, None], kernel.T, rtol=1e-5)
