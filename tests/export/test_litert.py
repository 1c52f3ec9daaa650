"""`.tflite` files of a bundle in LiteRT: batch sizes and both Python interfaces."""

import re
import shutil

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from conftest import run_python

from export.device import clients


@pytest.fixture(scope="module")
def folder(exported_bundle, digits, tmp_path_factory):
    """Copy of a bundle, with the first 16 test images in `pixels.npy`."""
    folder = tmp_path_factory.mktemp("copied") / "demo"
    shutil.copytree(exported_bundle[0], folder)
    np.save(folder / "pixels.npy", digits.test.images[:16])
    return folder


@pytest.fixture(scope="module")
def expected(trained_run, digits):
    """Probabilities of the Keras model for all test images."""
    model = keras.models.load_model(trained_run / "final.keras")
    return model.predict(digits.test.images, verbose=0)


@pytest.mark.parametrize("format", ["float32", "float16", "dynamic", "int8"])
def test_signature_takes_any_batch_size(folder, digits, format):
    images = digits.test.images[:50]
    path = str(folder / f"{format}.tflite")
    runner = Interpreter(path).get_signature_runner("serving_default")
    outputs = [runner(image=image[None])["probabilities"] for image in images]
    one_by_one = np.concatenate(outputs)
    # The batch size shrinks and grows. For 16 and 3, the last batch has only 2 images.
    for batch_size in (16, 3, 50, 1, 2):
        starts = range(0, len(images), batch_size)
        batches = [
            runner(image=images[i : i + batch_size])["probabilities"] for i in starts
        ]
        assert len(batches[0]) == batch_size
        np.testing.assert_allclose(
            np.concatenate(batches), one_by_one, rtol=0, atol=1e-6
        )
    # High accuracy proves that the rows of a batch keep their order.
    assert (one_by_one.argmax(axis=1) == digits.test.labels[:50]).mean() >= 0.9


def test_interpreter_accepts_a_resized_batch(folder, digits, expected):
    """C++ and Java programs call the same methods of the interpreter in this order."""
    interpreter = Interpreter(str(folder / "float32.tflite"))
    (input_details,) = interpreter.get_input_details()
    (output_details,) = interpreter.get_output_details()
    assert input_details["shape"].tolist() == [1, 8, 8, 1]
    interpreter.resize_tensor_input(input_details["index"], [7, 8, 8, 1])
    interpreter.allocate_tensors()
    interpreter.set_tensor(input_details["index"], digits.test.images[:7])
    interpreter.invoke()
    actual = interpreter.get_tensor(output_details["index"])
    np.testing.assert_allclose(actual, expected[:7], atol=1e-5)


def run_example(client, folder):
    """Runs an example of the model card in a process without TensorFlow and Keras."""
    example = clients.CLIENTS[client].format_code("int8.tflite", 10)
    code = (
        "import sys; sys.modules.update(tensorflow=None, keras=None)\n"
        "import numpy as np; pixels = np.load('pixels.npy')\n"
        f"{example}\nnp.save('probabilities.npy', probabilities)"
    )
    process = run_python("-c", code, cwd=folder, env={"PYTHONPATH": ""})
    assert process.returncode == 0, process.stderr
    return np.load(folder / "probabilities.npy"), process.stdout


def test_card_example_for_litert_prints_the_predictions(folder, expected):
    actual, stdout = run_example("litert", folder)
    np.testing.assert_allclose(actual, expected[:16], rtol=0, atol=0.3)
    printed_classes = re.findall(r"\('(\d)',", stdout)
    assert printed_classes == [str(label) for label in expected[:16].argmax(axis=1)]


def test_card_example_for_compiled_model_agrees_with_interpreter(folder):
    """CompiledModel, the newer interface of LiteRT, agrees with the interpreter."""
    actual, _ = run_example("compiled_model", folder)
    runner = Interpreter(str(folder / "int8.tflite")).get_signature_runner()
    expected = runner(image=np.load(folder / "pixels.npy"))["probabilities"]
    np.testing.assert_allclose(actual, expected[:1], rtol=0, atol=1e-6)
