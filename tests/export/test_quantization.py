"""The repair of a network that int8 breaks, and the look at its layers."""

import csv
import dataclasses

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import keras_resnet
from export import artifacts
from export.device import comparison, runtimes
from export.formats import saved_model, tflite
from export.quantization import debug, equalize, gptq, repair
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import Classifier
from keras_resnet.nets import folding

LIMIT = comparison.LIMITS["int8"]


def badly_scaled(classifier, factor=100.0):
    """The same function; in each block, one channel in eight is that much larger.

    A rectifier lets a positive factor pass, and the convolution after it takes it
    back.
    """
    model = folding.fold(classifier.model)
    names = [layer.name for layer in model.layers]
    for name in names:
        if name.endswith("_1_conv"):
            first, second = model.get_layer(name), name.replace("_1_conv", "_2_conv")
            second = model.get_layer(second)
            factors = np.ones(first.filters)
            factors[::8] = factor
            first.set_weights([each * factors for each in first.get_weights()])
            kernel, bias = second.get_weights()
            second.set_weights([kernel / factors[:, None], bias])
    return dataclasses.replace(classifier, model=model)


def quantised(classifier, digits, folder, format="int8"):
    """Comparison of a file with its Keras model on the held-out images."""
    saved_model.write_static(classifier, str(folder / "static"), "float32")
    path = folder / "int8.tflite"
    row, calibration = tflite.TFLITE_FORMATS[format], digits.train.images[:200]
    path.write_bytes(tflite.convert_to_tflite(str(folder / "static"), row, calibration))
    logits = saved_model.reference_logits(classifier.model, digits.test.images)
    found = runtimes.open_tflite(str(path))(digits.test.images)
    return comparison.compare(found, logits, digits.test.labels)


def test_repair_of_a_badly_scaled_net(classifier, digits, tmp_path):
    """Plain int8 is refused; repaired, it is as good as that of the good net."""
    bad = badly_scaled(classifier)
    np.testing.assert_allclose(
        bad.model(digits.test.images), classifier.model(digits.test.images), atol=1e-4
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "repaired").mkdir()
    with pytest.raises(comparison.Disagreement):
        comparison.judge("int8", quantised(bad, digits, tmp_path / "bad"), LIMIT)
    repaired = repair.repair(bad, digits.train.images[:200])
    compared = quantised(repaired, digits, tmp_path / "repaired")
    comparison.judge("int8", compared, LIMIT)
    assert compared.agreement >= 0.99


@pytest.mark.parametrize(
    "variant, options",
    [
        ("resnet18", {}),
        pytest.param("resnet50", {"stride_on": "3x3"}, marks=pytest.mark.full),
        pytest.param("resnet50v2", {}, marks=pytest.mark.full),
        pytest.param("resnext50_32x4d", {}, marks=pytest.mark.full),
        pytest.param("seresnet50", {}, marks=pytest.mark.full),
        pytest.param("resnet50d", {}, marks=pytest.mark.full),
        ("cifar_resnet8", {"shortcut": "C"}),
        ("cifar_plainnet8", {}),
    ],
)
def test_equalised_computes_the_same(variant, options):
    """Of every kind of network; and it does something to each."""
    size = 8 if variant.startswith("cifar") else 32
    model = keras_resnet.ResNet(
        variant, input_shape=(size, size, 3), classes=5, **options
    )
    draw = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            # As of a trained net: no two channels alike.
            layer.set_weights(
                [draw.uniform(0.2, 2, each.shape) for each in layer.get_weights()]
            )
    images = draw.normal(size=(4, size, size, 3)).astype("float32")
    before = folding.fold(model)
    after = equalize.equalise(model, images)
    assert after is not model
    expected = before(images)
    np.testing.assert_allclose(after(images), expected, atol=1e-4)
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(before.get_weights(), after.get_weights(), strict=True)
    ]
    assert any(changed)


def test_equalised_by_hand():
    """Two channels, by the formula: a factor is the root of range over weight."""
    image = keras.Input((1, 1, 1), name="image")
    first = layers.Conv2D(2, 1, activation="relu", name="first")
    second = layers.Conv2D(1, 1, name="second")
    model = keras.Model(image, second(first(image)))
    first.set_weights([np.array([[[[1.0, 16.0]]]]), np.array([2.0, 0.0])])
    second.set_weights([np.array([[[[4.0], [1.0]]]]), np.array([3.0])])
    # On an image of 2: activations 4 and 32, relative 1/8 and 1; weights that read
    # them relative 1 and 1/4: factors sqrt(1/8) and sqrt(4).
    images = np.full((1, 1, 1, 1), 2.0, "float32")
    found = equalize.equalise(model, images)
    kernel, bias = found.get_layer("first").get_weights()
    np.testing.assert_allclose(kernel.ravel(), [8**0.5, 8.0], rtol=1e-6)
    np.testing.assert_allclose(bias, [2 * 8**0.5, 0.0], rtol=1e-6)
    kernel, bias = found.get_layer("second").get_weights()
    np.testing.assert_allclose(kernel.ravel(), [4 / 8**0.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(bias, [3.0])


def test_layer_by_layer(classifier, digits, tmp_path):
    """Where a layer is bad the report says so, by the paper's name."""
    rows = {}
    calibration, images = digits.train.images[:200], digits.test.images[:8]
    for name, net in {"good": classifier, "bad": badly_scaled(classifier)}.items():
        static = str(tmp_path / name)
        saved_model.write_static(net, static, "float32")
        rows[name] = debug.debug_quantization(static, net.model, calibration, images)
    layers_of = [row["layer"] for row in rows["good"]]
    assert layers_of[0] == "normalization" and layers_of[-1] == "predictions"
    for name in ("conv1_relu", "conv2_block1_1_relu", "conv4_block1_out", "avg_pool"):
        assert layers_of.count(name) == 1
    good, bad = ({row["layer"]: row for row in rows[name]} for name in ("good", "bad"))
    assert min(row["sqnr_db"] for row in good.values()) > 20
    assert min(row["cosine"] for row in good.values()) > 0.99
    # Up to the first that is badly scaled they are the same network.
    assert bad["conv1_relu"] == pytest.approx(good["conv1_relu"])
    assert bad["conv2_block1_2_conv"]["sqnr_db"] < 15


def test_debug_writes_what_it_prints(classifier, digits, tmp_path, capsys):
    source = artifacts.Source(
        classifier, digits.train.images[:50], str(tmp_path), str(tmp_path)
    )
    debug.write_debug(source, digits.test.images, str(tmp_path))
    printed = capsys.readouterr().out.splitlines()
    with open(tmp_path / "quantization.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(printed) == 1 + len(rows)
    for line, row in zip(printed[1:], rows, strict=True):
        assert line.split()[0] == row["layer"]
        assert float(line.split()[3]) == pytest.approx(float(row["sqnr_db"]), abs=0.06)
    assert (tmp_path / "quantization.png").read_bytes().startswith(b"\x89PNG")


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


@pytest.mark.full
@pytest.mark.parametrize("variation", [{"preact": True}, {"se": True}])
def test_other_kinds_of_block(digits, tmp_path, variation):
    """Pre-activation, squeeze and excitation: integers only, and as good as Keras."""
    keras.utils.set_random_seed(0)
    pixels = digits.train.images
    image = keras.Input((8, 8, 1), name="image")
    normalised = layers.Normalization(
        mean=[pixels.mean()], variance=[pixels.var()], name="normalization"
    )(image)
    model = keras_resnet.ResNet(
        "cifar_resnet8", input_tensor=normalised, classes=10, **variation
    )
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(pixels, digits.train.labels, epochs=8, verbose=0)
    classifier = Classifier(
        "net", folding.fold(model), tuple("0123456789"), Preprocessing(8, 8, 1), {}
    )
    for repaired in (False, True):
        if repaired:
            classifier = repair.repair(classifier, pixels[:200])
        folder = tmp_path / str(repaired)
        folder.mkdir()
        compared = quantised(classifier, digits, folder, "int8_io")
        assert compared.keras_right > 340
        comparison.judge("int8_io", compared, LIMIT)
        assert compared.agreement >= 0.99
