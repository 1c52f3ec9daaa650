"""Rounding of weights by GPTQ."""

import dataclasses

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from export.formats import saved_model, tflite
from export.quantization import gptq
from keras_resnet.nets import folding


def test_rounding_equals_a_calculation_by_hand():
    """The second of two equal inputs compensates for the rounding error of the first.

    The quantisation step is 1. The weight of the first input is rounded from 2.4 to 2.
    The weight of the second input therefore grows from 2.4 to 2.8 and is rounded to 3.
    """
    image = keras.Input((1, 1, 3), name="image")
    layer = layers.Conv2D(1, 1, name="only")
    model = keras.Model(image, layer(image))
    layer.set_weights([np.array([[[[127.0], [2.4], [2.4]]]]), np.array([1.0])])
    images = np.array([[[[9.0, 4.0, 4.0]]], [[[9.0, 7.0, 7.0]]]], "float32")
    rounded_model = gptq.round_weights(model, images, batch_size=1)
    kernel, bias = rounded_model.get_layer("only").get_weights()
    np.testing.assert_allclose(kernel.ravel(), [127, 2, 3], rtol=1e-6)
    # Both inputs have the mean 5.5, and the sum of their weights has grown by 0.2.
    np.testing.assert_allclose(bias, [1 - 0.2 * 5.5], rtol=1e-4)


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


def test_gptq_loses_less_than_rounding_to_nearest(classifier, digits, tmp_path):
    """On test images, GPTQ has less than half the squared error of rounding to nearest.

    The TFLite converter does not change the weights that GPTQ has rounded.
    """
    images, expected = digits.test.images, classifier.model(digits.test.images)

    def round_to_nearest(model):
        model = folding.fold(model)
        for layer in model.layers:
            if layer.weights and hasattr(layer, "kernel"):
                kernel, bias = layer.get_weights()
                step = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127
                layer.set_weights([np.round(kernel / step) * step, bias])
        return model

    rounded_model = gptq.round_weights(classifier.model, digits.train.images[:200])
    gptq_error, nearest_error = (
        np.square(model(images) - expected).mean()
        for model in (rounded_model, round_to_nearest(classifier.model))
    )
    assert gptq_error < nearest_error / 2
    # The converter rounds to nearest, which does not change rounded weights.
    rounded_twice = round_to_nearest(rounded_model)
    np.testing.assert_allclose(rounded_model(images), rounded_twice(images), atol=1e-4)
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
