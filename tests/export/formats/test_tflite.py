"""The `.tflite` formats: what is in the files, and what clients get of them."""

import collections
import dataclasses

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from export.formats import saved_model, tflite
from keras_resnet.data import sources
from keras_resnet.evaluation.classifier import load_classifier
from keras_resnet.nets import folding

BUILTIN = {value: name for name, value in vars(schema.BuiltinOperator).items()}
TYPE = {value: name for name, value in vars(schema.TensorType).items()}
# CIFAR ResNet-8 at 8x8: three blocks, two of them with shortcut A.
NET = {
    "SUB": 1, "CONV_2D": 7, "ADD": 3, "AVERAGE_POOL_2D": 2, "PAD": 4, "MEAN": 1,
    "FULLY_CONNECTED": 1, "SOFTMAX": 1,
}  # fmt: skip


class File:
    """What the flatbuffer itself says."""

    def __init__(self, path):
        self.model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
        (self.graph,) = self.model.subgraphs

    def operators(self):
        """(name, operator) of each; a custom or flex one would be named CUSTOM."""
        for operator in self.graph.operators:
            code = self.model.operatorCodes[operator.opcodeIndex]
            yield BUILTIN[max(code.builtinCode, code.deprecatedBuiltinCode)], operator

    def counts(self):
        return collections.Counter(name for name, _ in self.operators())

    def types(self):
        return {TYPE[tensor.type] for tensor in self.graph.tensors}


@pytest.fixture(scope="session")
def digits():
    return sources.load_dataset("digits")


@pytest.fixture(scope="session")
def files(trained, digits, tmp_path_factory):
    """Each format's file, by its name."""
    folder = tmp_path_factory.mktemp("tflite")
    classifier = load_classifier(str(trained))
    classifier = dataclasses.replace(classifier, model=folding.fold(classifier.model))
    for pixels in ("uint8", "float32"):
        saved_model.write_static(classifier, str(folder / pixels), pixels)
    for name, row in tflite.TFLITE_FORMATS.items():
        static = str(folder / row.pixels)
        content = tflite.convert_to_tflite(static, row, digits.train.images[:200])
        (folder / f"{name}.tflite").write_bytes(content)
    return {name: folder / f"{name}.tflite" for name in tflite.TFLITE_FORMATS}


@pytest.fixture(scope="session")
def expected(trained, digits):
    return np.asarray(load_classifier(str(trained)).model(digits.test.images))


@pytest.mark.parametrize(
    "name, more",
    [
        ("float32", {"CAST": 1}),
        # A kernel and a bias each of 7 convolutions and the classifier; the mean
        # of one channel.
        ("float16", {"CAST": 1, "DEQUANTIZE": 17}),
        ("dynamic", {"CAST": 1}),
        ("int8", {"QUANTIZE": 1, "DEQUANTIZE": 1}),
        ("int8_io", {}),
        ("float_io", {"QUANTIZE": 1, "DEQUANTIZE": 1}),
        ("int16x8", {"CAST": 1, "QUANTIZE": 1, "DEQUANTIZE": 1}),
    ],
)
def test_operations(files, name, more):
    """All of them: nothing custom, no flex, no batch normalisation, one SUB."""
    assert File(files[name]).counts() == NET | more


CONTRACT = {
    "float32": (np.uint8, None, np.float32, None),
    "float16": (np.uint8, None, np.float32, None),
    "dynamic": (np.uint8, None, np.float32, None),
    "int8": (np.uint8, (1, 0), np.float32, None),
    "int8_io": (np.int8, (1, -128), np.int8, (1 / 256, -128)),
    "float_io": (np.float32, None, np.float32, None),
    "int16x8": (np.uint8, None, np.float32, None),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_contract(files, name):
    """Names, types, shapes and scales that clients rely on."""
    interpreter = Interpreter(str(files[name]))
    assert list(interpreter.get_signature_list()) == ["serving_default"]
    runner = interpreter.get_signature_runner("serving_default")
    entry = runner.get_input_details()["image"]
    answer = runner.get_output_details()["probabilities"]
    assert entry["shape"].tolist() == [1, 8, 8, 1]
    assert answer["shape"].tolist() == [1, 10]
    taken, levels, given, shares = CONTRACT[name]
    assert (entry["dtype"], answer["dtype"]) == (taken, given)
    assert entry["quantization"] == (levels or (0, 0))
    assert answer["quantization"] == pytest.approx(shares or (0, 0))


def test_conversion_is_quiet(trained, digits, tmp_path, capfd):
    """TensorFlow's C++ parts would write to standard error, past Python."""
    static, row = str(tmp_path / "static"), tflite.TFLITE_FORMATS["int8"]
    saved_model.write_static(load_classifier(str(trained)), static, row.pixels)
    capfd.readouterr()
    tflite.convert_to_tflite(static, row, digits.train.images[:20])
    assert capfd.readouterr().err == ""


def test_integers_only(files):
    """Nothing that a microcontroller without floating point could not do."""
    assert File(files["int8_io"]).types() == {"INT8", "INT32"}


def test_weights_have_a_scale_for_each_channel(files):
    file = File(files["int8"])
    kernels = [
        file.graph.tensors[operator.inputs[1]]
        for name, operator in file.operators()
        if name in ("CONV_2D", "FULLY_CONNECTED")
    ]
    assert len(kernels) == 8
    for kernel in kernels:
        assert TYPE[kernel.type] == "INT8"
        assert len(kernel.quantization.scale) == kernel.shape[0]
        assert set(kernel.quantization.zeroPoint) == {0}


def answers(path, images):
    """As a client computes them that reads the contract, by its formulas."""
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    entry = runner.get_input_details()["image"]
    given = images.astype(np.int16) - 128 if entry["dtype"] == np.int8 else images
    found = runner(image=given.astype(entry["dtype"]))["probabilities"]
    return (found + 128.0) / 256 if found.dtype == np.int8 else found


@pytest.mark.parametrize("name", tflite.TFLITE_FORMATS)
def test_agrees_with_keras(files, digits, expected, name):
    """In one batch of all images: the graph can be resized."""
    found = answers(files[name], digits.test.images)
    same = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
    difference = np.abs(found - expected).max()
    assert same == 1 if name == "float32" else same >= 0.995
    assert difference < {"float32": 1e-5, "float16": 0.01}.get(name, 0.15)


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_batch_of_one_is_the_same(files, digits, name):
    images = digits.test.images[:20]
    one_by_one = [answers(files[name], image[None])[0] for image in images]
    np.testing.assert_allclose(answers(files[name], images), one_by_one, atol=1e-6)


def test_sizes(files):
    """Bytes for each weight, 4, 2 and 1, of 77,850 or so."""
    size = {name: path.stat().st_size for name, path in files.items()}
    assert 0.5 < size["float16"] / size["float32"] < 0.6
    for name in ("dynamic", "int8", "int8_io", "float_io"):
        assert 0.25 < size[name] / size["float32"] < 0.4, name


def test_pixels_are_levels(trained, digits, tmp_path):
    """One level of the input is one of a pixel, however dark the images."""
    classifier = load_classifier(str(trained))
    saved_model.write_static(classifier, str(tmp_path / "static"), "float32")
    dark = digits.train.images[:50] // 4
    before = dark.copy()
    content = tflite.convert_to_tflite(
        str(tmp_path / "static"), tflite.TFLITE_FORMATS["int8_io"], dark
    )
    (entry,) = Interpreter(model_content=content).get_input_details()
    assert entry["quantization"] == (1, -128)
    np.testing.assert_array_equal(dark, before)
