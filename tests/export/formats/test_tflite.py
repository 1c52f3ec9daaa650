"""Content and predictions of the `.tflite` formats."""

import collections
import pathlib

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from conftest import write_artifacts

from export.formats import saved_model, tflite
from keras_resnet.evaluation.classifier import load_classifier

OP_NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items()}
TYPE_NAMES = {value: name for name, value in vars(schema.TensorType).items()}
# Number of operations in CIFAR ResNet-8 at 8x8. Two of three blocks have shortcut A.
OPERATION_COUNTS = {
    "SUB": 1, "CONV_2D": 7, "ADD": 3, "AVERAGE_POOL_2D": 2, "PAD": 4, "MEAN": 1,
    "FULLY_CONNECTED": 1, "SOFTMAX": 1,
}  # fmt: skip


class TFLiteFile:
    """Parsed FlatBuffer of a `.tflite` file with one subgraph."""

    def __init__(self, path):
        self.model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
        (self.graph,) = self.model.subgraphs

    def list_operators(self):
        """Yields (name, operator). The name of custom and Flex operators is CUSTOM."""
        for operator in self.graph.operators:
            entry = self.model.operatorCodes[operator.opcodeIndex]
            yield (
                OP_NAMES[max(entry.builtinCode, entry.deprecatedBuiltinCode)],
                operator,
            )

    def count_operators(self):
        return collections.Counter(name for name, _ in self.list_operators())

    def find_types(self):
        return {TYPE_NAMES[tensor.type] for tensor in self.graph.tensors}


@pytest.fixture(scope="module")
def files(exported_bundle, trained_run, digits, tmp_path_factory):
    """Paths of `.tflite` files by format: those of a bundle, and those on request."""
    folder, _ = exported_bundle
    paths = {name: folder / f"{name}.tflite" for name in tflite.TFLITE_FORMATS}
    other_names = [name for name, path in paths.items() if not path.exists()]
    assert other_names == ["int8_io", "float_io", "int16x8"]
    classifier, folder = load_classifier(str(trained_run)), tmp_path_factory.mktemp("x")
    calibration = digits.train.images[:50]
    other_paths = write_artifacts(classifier, folder, other_names, calibration)
    return paths | {name: pathlib.Path(path) for name, path in other_paths.items()}


@pytest.fixture(scope="module")
def expected(trained_run, digits):
    """Probabilities of the Keras model for the test images."""
    model = keras.models.load_model(trained_run / "final.keras")
    return model.predict(digits.test.images, verbose=0)


@pytest.mark.parametrize(
    "name, extra_counts",
    [
        ("float32", {"CAST": 1}),
        # 7 convolutions and a dense layer have a kernel and a bias each. The 17th
        # float16 tensor is the mean that the network subtracts from the pixels.
        ("float16", {"CAST": 1, "DEQUANTIZE": 17}),
        ("dynamic", {"CAST": 1}),
        ("int8", {"QUANTIZE": 1, "DEQUANTIZE": 1}),
        ("int8_io", {}),
        ("float_io", {"QUANTIZE": 1, "DEQUANTIZE": 1}),
        ("int16x8", {"CAST": 1, "QUANTIZE": 1, "DEQUANTIZE": 1}),
    ],
)
def test_files_have_only_the_expected_operations(files, name, extra_counts):
    """The files have no custom or Flex operations and no batch normalisation."""
    assert TFLiteFile(files[name]).count_operators() == OPERATION_COUNTS | extra_counts


# Dtype and (scale, zero point) of the input, then of the output, for each format.
INTERFACES = {
    "float32": (np.uint8, None, np.float32, None),
    "float16": (np.uint8, None, np.float32, None),
    "dynamic": (np.uint8, None, np.float32, None),
    "int8": (np.uint8, (1, 0), np.float32, None),
    "int8_io": (np.int8, (1, -128), np.int8, (1 / 256, -128)),
    "float_io": (np.float32, None, np.float32, None),
    "int16x8": (np.uint8, None, np.float32, None),
}


@pytest.mark.parametrize("name", INTERFACES)
def test_interfaces_have_names_dtypes_shapes_and_scales(files, name):
    interpreter = Interpreter(str(files[name]))
    assert list(interpreter.get_signature_list()) == ["serving_default"]
    runner = interpreter.get_signature_runner("serving_default")
    image = runner.get_input_details()["image"]
    output = runner.get_output_details()["probabilities"]
    assert image["shape"].tolist() == [1, 8, 8, 1]
    assert output["shape"].tolist() == [1, 10]
    input_dtype, input_params, output_dtype, output_params = INTERFACES[name]
    assert (image["dtype"], output["dtype"]) == (input_dtype, output_dtype)
    assert image["quantization"] == (input_params or (0, 0))
    assert output["quantization"] == pytest.approx(output_params or (0, 0))


def test_int8_io_has_only_integer_tensors(files):
    assert TFLiteFile(files["int8_io"]).find_types() == {"INT8", "INT32"}


def test_weights_have_a_scale_for_each_channel(files):
    file = TFLiteFile(files["int8"])
    kernels = [
        file.graph.tensors[operator.inputs[1]]
        for name, operator in file.list_operators()
        if name in ("CONV_2D", "FULLY_CONNECTED")
    ]
    assert len(kernels) == 8
    for kernel in kernels:
        assert TYPE_NAMES[kernel.type] == "INT8"
        assert len(kernel.quantization.scale) == kernel.shape[0]
        assert set(kernel.quantization.zeroPoint) == {0}


def predict(path, images):
    """Returns float probabilities, dequantised as specified in `INTERFACES`."""
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    dtype = runner.get_input_details()["image"]["dtype"]
    pixels = images.astype(np.int16) - 128 if dtype == np.int8 else images
    outputs = runner(image=pixels.astype(dtype))["probabilities"]
    return (outputs + 128.0) / 256 if outputs.dtype == np.int8 else outputs


@pytest.mark.parametrize("name", tflite.TFLITE_FORMATS)
def test_every_format_agrees_with_keras(files, digits, expected, name):
    """All images form one batch, which proves that LiteRT can enlarge the batch."""
    probabilities = predict(files[name], digits.test.images)
    agreement = (probabilities.argmax(axis=1) == expected.argmax(axis=1)).mean()
    difference = np.abs(probabilities - expected).max()
    assert agreement == 1 if name == "float32" else agreement >= 0.995
    assert difference < {"float32": 1e-5, "float16": 0.01}.get(name, 0.15)


def test_files_have_the_size_of_their_weights(files):
    """A weight takes 4 bytes in float32, 2 in float16 and 1 in int8."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    assert 0.5 < sizes["float16"] / sizes["float32"] < 0.6
    for name in ("dynamic", "int8", "int8_io", "float_io"):
        assert 0.25 < sizes[name] / sizes["float32"] < 0.4, name


def test_dark_images_give_an_input_scale_of_1(classifier, digits, tmp_path, capfd):
    """The input's quantisation step is 1, and the conversion changes no image.

    TensorFlow's C++ code writes no messages to standard error.
    """
    static_dir, row = str(tmp_path / "static"), tflite.TFLITE_FORMATS["int8_io"]
    saved_model.write_static_model(classifier, static_dir, row.pixel_dtype)
    dark_images = digits.train.images[:50] // 4
    originals = dark_images.copy()
    capfd.readouterr()
    content = tflite.convert_to_tflite(static_dir, row, dark_images)
    assert capfd.readouterr().err == ""
    (image,) = Interpreter(model_content=content).get_input_details()
    assert image["quantization"] == (1, -128)
    np.testing.assert_array_equal(dark_images, originals)
