"""Content and predictions of the `.tflite` formats."""

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
# Operations of CIFAR ResNet-8 at 8x8, which has three blocks, two with shortcut A.
OPERATIONS = {
    "SUB": 1, "CONV_2D": 7, "ADD": 3, "AVERAGE_POOL_2D": 2, "PAD": 4, "MEAN": 1,
    "FULLY_CONNECTED": 1, "SOFTMAX": 1,
}  # fmt: skip


class File:
    """The FlatBuffer of a `.tflite` file."""

    def __init__(self, path):
        self.model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
        (self.graph,) = self.model.subgraphs

    def operators(self):
        """Yields (name, operator); the name of custom and Flex operators is CUSTOM."""
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
def files(trained_run, digits, tmp_path_factory):
    """Paths of the files by format."""
    folder = tmp_path_factory.mktemp("tflite")
    classifier = load_classifier(str(trained_run))
    classifier = dataclasses.replace(classifier, model=folding.fold(classifier.model))
    for pixels in ("uint8", "float32"):
        saved_model.write_static_model(classifier, str(folder / pixels), pixels)
    for name, row in tflite.TFLITE_FORMATS.items():
        static = str(folder / row.pixel_dtype)
        content = tflite.convert_to_tflite(static, row, digits.train.images[:200])
        (folder / f"{name}.tflite").write_bytes(content)
    return {name: folder / f"{name}.tflite" for name in tflite.TFLITE_FORMATS}


@pytest.fixture(scope="session")
def expected(trained_run, digits):
    return np.asarray(load_classifier(str(trained_run)).model(digits.test.images))


@pytest.mark.parametrize(
    "name, more",
    [
        ("float32", {"CAST": 1}),
        # 7 convolutions and a dense layer have a kernel and a bias each. The 17th
        # tensor is the mean of the only channel.
        ("float16", {"CAST": 1, "DEQUANTIZE": 17}),
        ("dynamic", {"CAST": 1}),
        ("int8", {"QUANTIZE": 1, "DEQUANTIZE": 1}),
        ("int8_io", {}),
        ("float_io", {"QUANTIZE": 1, "DEQUANTIZE": 1}),
        ("int16x8", {"CAST": 1, "QUANTIZE": 1, "DEQUANTIZE": 1}),
    ],
)
def test_operations(files, name, more):
    """There are no custom or Flex operations and no batch normalisation."""
    assert File(files[name]).counts() == OPERATIONS | more


# Dtype and quantisation (scale, zero point) of the input and of the output.
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
    """Names, dtypes, shapes and scales are those that clients rely on."""
    interpreter = Interpreter(str(files[name]))
    assert list(interpreter.get_signature_list()) == ["serving_default"]
    runner = interpreter.get_signature_runner("serving_default")
    image = runner.get_input_details()["image"]
    output = runner.get_output_details()["probabilities"]
    assert image["shape"].tolist() == [1, 8, 8, 1]
    assert output["shape"].tolist() == [1, 10]
    input_dtype, input_scale, output_dtype, output_scale = CONTRACT[name]
    assert (image["dtype"], output["dtype"]) == (input_dtype, output_dtype)
    assert image["quantization"] == (input_scale or (0, 0))
    assert output["quantization"] == pytest.approx(output_scale or (0, 0))


def test_conversion_is_quiet(trained_run, digits, tmp_path, capfd):
    """Conversion hides the messages of TensorFlow's C++ code on standard error."""
    static, row = str(tmp_path / "static"), tflite.TFLITE_FORMATS["int8"]
    saved_model.write_static_model(
        load_classifier(str(trained_run)), static, row.pixel_dtype
    )
    capfd.readouterr()
    tflite.convert_to_tflite(static, row, digits.train.images[:20])
    assert capfd.readouterr().err == ""


def test_integers_only(files):
    """int8_io runs on microcontrollers without floating point."""
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


def predict(path, images):
    """Returns probabilities, converted by the scales and zero points in `CONTRACT`."""
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    dtype = runner.get_input_details()["image"]["dtype"]
    pixels = images.astype(np.int16) - 128 if dtype == np.int8 else images
    outputs = runner(image=pixels.astype(dtype))["probabilities"]
    return (outputs + 128.0) / 256 if outputs.dtype == np.int8 else outputs


@pytest.mark.parametrize("name", tflite.TFLITE_FORMATS)
def test_agrees_with_keras(files, digits, expected, name):
    """Predictions agree in a batch of all images, so the graph can be resized."""
    probabilities = predict(files[name], digits.test.images)
    agreement = (probabilities.argmax(axis=1) == expected.argmax(axis=1)).mean()
    difference = np.abs(probabilities - expected).max()
    assert agreement == 1 if name == "float32" else agreement >= 0.995
    assert difference < {"float32": 1e-5, "float16": 0.01}.get(name, 0.15)


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_batch_of_one_is_the_same(files, digits, name):
    images = digits.test.images[:20]
    one_by_one = [predict(files[name], image[None])[0] for image in images]
    np.testing.assert_allclose(predict(files[name], images), one_by_one, atol=1e-6)


def test_sizes(files):
    """Each of about 77,850 weights takes 4, 2 or 1 bytes."""
    size = {name: path.stat().st_size for name, path in files.items()}
    assert 0.5 < size["float16"] / size["float32"] < 0.6
    for name in ("dynamic", "int8", "int8_io", "float_io"):
        assert 0.25 < size[name] / size["float32"] < 0.4, name


def test_input_steps_are_pixel_steps(trained_run, digits, tmp_path):
    """The input's quantisation step is 1, even if all calibration images are dark."""
    classifier = load_classifier(str(trained_run))
    saved_model.write_static_model(classifier, str(tmp_path / "static"), "float32")
    dark = digits.train.images[:50] // 4
    original = dark.copy()
    content = tflite.convert_to_tflite(
        str(tmp_path / "static"), tflite.TFLITE_FORMATS["int8_io"], dark
    )
    (image,) = Interpreter(model_content=content).get_input_details()
    assert image["quantization"] == (1, -128)
    np.testing.assert_array_equal(dark, original)
