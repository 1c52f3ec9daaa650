"""Weights rounded by their joint loss."""

import dataclasses

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from export.formats import saved_model, tflite
from export.quantization import gptq
from keras_resnet.nets import folding


def test_rounded_by_hand():
    """Levels of 1. Two inputs are one: where the first loses 0.4, the second adds it."""
    image = keras.Input((1, 1, 3), name="image")
    layer = layers.Conv2D(1, 1, name="only")
    model = keras.Model(image, layer(image))
    layer.set_weights([np.array([[[[127.0], [2.4], [2.4]]]]), np.array([1.0])])
    images = np.array([[[[9.0, 4.0, 4.0]]], [[[9.0, 7.0, 7.0]]]], "float32")
    found = gptq.round_weights(model, images, batch_size=1)
    kernel, bias = found.get_layer("only").get_weights()
    np.testing.assert_allclose(kernel.ravel(), [127, 2, 3], rtol=1e-6)
    # What remains is 0.2 of inputs whose mean is 5.5.
    np.testing.assert_allclose(bias, [1 - 0.2 * 5.5], rtol=1e-4)


def test_groups_are_rounded_apart():
    """As two convolutions, each of which reads its half of the channels."""
    draw = np.random.default_rng(0)
    images = draw.normal(size=(6, 5, 5, 6)).cumsum(axis=-1).astype("float32")
    kernel = draw.normal(size=(3, 3, 3, 4)).astype("float32")

    def rounded(images, kernel, groups):
        image = keras.Input(images.shape[1:], name="image")
        layer = layers.Conv2D(
            kernel.shape[-1], 3, 2, padding="same", groups=groups, name="only"
        )
        model = keras.Model(image, layer(image))
        layer.set_weights([kernel, np.zeros(kernel.shape[-1])])
        found = gptq.round_weights(model, images, batch_size=4)
        return found.get_layer("only").get_weights()

    whole = rounded(images, kernel, 2)
    halves = [
        rounded(images[..., i : i + 3], kernel[..., o : o + 2], 1)
        for i, o in ((0, 0), (3, 2))
    ]
    for found, *parts in zip(whole, *halves, strict=True):
        np.testing.assert_allclose(found, np.concatenate(parts, axis=-1), rtol=1e-5)


def test_rounded_together(classifier, digits, tmp_path):
    """Half the loss of rounding to the nearest, on images that it has not seen."""
    images, expected = digits.test.images, classifier.model(digits.test.images)

    def nearest(model):
        model = folding.fold(model)
        for layer in model.layers:
            if layer.weights and hasattr(layer, "kernel"):
                kernel, bias = layer.get_weights()
                level = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127
                layer.set_weights([np.round(kernel / level) * level, bias])
        return model

    found = gptq.round_weights(classifier.model, digits.train.images[:200])
    loss, loss_of_nearest = (
        np.square(model(images) - expected).mean()
        for model in (found, nearest(classifier.model))
    )
    assert loss < loss_of_nearest / 2
    # The converter finds the same levels.
    np.testing.assert_allclose(found(images), nearest(found)(images), atol=1e-4)
    static = str(tmp_path / "static")
    saved_model.write_static(
        dataclasses.replace(classifier, model=found), static, "float32"
    )
    row = tflite.TFLITE_FORMATS["float_io"]
    interpreter = Interpreter(
        model_content=tflite.convert_to_tflite(static, row, digits.train.images[:50])
    )
    (weights,) = (
        tensor
        for tensor in interpreter.get_tensor_details()
        if tensor["shape"].tolist() == [10, 64]
    )
    levels = interpreter.get_tensor(weights["index"])
    scales = weights["quantization_parameters"]["scales"]
    kernel = found.get_layer("predictions").get_weights()[0]
    np.testing.assert_allclose(levels * scales[:, None], kernel.T, rtol=1e-5)
