"""`.tflite` files in LiteRT: signatures, batch sizes and both Python interfaces."""

import re

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from conftest import run_python, write_artifacts

import keras_resnet
from export.device import clients
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import Classifier, load_classifier
from keras_resnet.spec import Provenance

FORMATS = ("float32", "float16", "dynamic", "int8")


@pytest.fixture(scope="module")
def tflite_files_and_model(trained_run, digits, tmp_path_factory):
    """Folder with `.tflite` files of a trained network, and the Keras model."""
    folder = tmp_path_factory.mktemp("converted")
    classifier = load_classifier(str(trained_run))
    write_artifacts(classifier, folder, FORMATS, digits.train.images[:100])
    (folder / "labels.txt").write_text("0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n")
    np.save(folder / "pixels.npy", digits.test.images[:16])
    return folder, classifier.model


def assert_equal_for_batch_sizes(path, images, batch_sizes):
    """Asserts equal probabilities for all batch sizes, and returns them."""
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    outputs = [runner(image=image[None])["probabilities"] for image in images]
    expected = np.concatenate(outputs)
    for batch_size in batch_sizes:
        starts = range(0, len(images), batch_size)
        batches = [
            runner(image=images[i : i + batch_size])["probabilities"] for i in starts
        ]
        assert len(batches[0]) == batch_size
        np.testing.assert_allclose(np.concatenate(batches), expected, rtol=0, atol=1e-6)
    return expected


@pytest.mark.parametrize(
    ("format", "limit"),
    [("float32", 1e-5), ("float16", 0.02), ("dynamic", 0.3), ("int8", 0.3)],
)
def test_signature_takes_any_batch_size(tflite_files_and_model, digits, format, limit):
    folder, model = tflite_files_and_model
    images = digits.test.images[:50]
    # The batch size shrinks and grows. For 16 and 3, the last batch has only 2 images.
    actual = assert_equal_for_batch_sizes(
        folder / f"{format}.tflite", images, (16, 3, 50, 1, 2)
    )
    np.testing.assert_allclose(actual, np.asarray(model(images)), rtol=0, atol=limit)
    # High accuracy proves that the rows of a batch keep their order.
    assert (actual.argmax(axis=1) == digits.test.labels[:50]).mean() >= 0.9


def test_interpreter_accepts_a_resized_batch(tflite_files_and_model, digits):
    """C++ and Java programs call the same methods of the interpreter in this order."""
    folder, model = tflite_files_and_model
    images = digits.test.images[:7]
    interpreter = Interpreter(str(folder / "float32.tflite"))
    (input_details,) = interpreter.get_input_details()
    (output_details,) = interpreter.get_output_details()
    assert input_details["shape"].tolist() == [1, 8, 8, 1]
    interpreter.resize_tensor_input(input_details["index"], [7, 8, 8, 1])
    interpreter.allocate_tensors()
    interpreter.set_tensor(input_details["index"], images)
    interpreter.invoke()
    actual = interpreter.get_tensor(output_details["index"])
    np.testing.assert_allclose(actual, np.asarray(model(images)), atol=1e-5)


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


def test_card_example_for_litert_prints_the_predictions(tflite_files_and_model, digits):
    folder, model = tflite_files_and_model
    actual, stdout = run_example("litert", folder)
    expected = np.asarray(model(digits.test.images[:16]))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.3)
    printed_classes = re.findall(r"\('(\d)',", stdout)
    assert printed_classes == [str(label) for label in expected.argmax(axis=1)]


def test_card_example_for_compiled_model_agrees_with_interpreter(
    tflite_files_and_model,
):
    """CompiledModel, the newer interface of LiteRT, agrees with the interpreter."""
    folder, _ = tflite_files_and_model
    actual, _ = run_example("compiled_model", folder)
    runner = Interpreter(str(folder / "int8.tflite")).get_signature_runner()
    expected = runner(image=np.load(folder / "pixels.npy"))["probabilities"]
    np.testing.assert_allclose(actual, expected[:1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        # The last stage has 1x1 outputs. For these, the converter folds a batch size
        # of 1 into the graph, unless the SavedModel leaves the batch size open.
        ("cifar_resnet8", 4, {"shortcut": "A"}),
        *(
            pytest.param(*row, marks=pytest.mark.full)
            for row in (
                ("resnet18", 32, {"shortcut": "A"}),
                ("resnet18", 32, {"shortcut": "B"}),
                ("resnet18", 64, {"shortcut": "C"}),
                ("plainnet18", 32, {}),
                ("resnet50", 32, {"stride_on": "3x3"}),
                ("resnet50v2", 32, {}),
                ("resnet18d", 32, {}),
                ("seresnet18", 32, {}),
                ("resnext50_32x4d", 64, {}),
            )
        ),
    ],
)
def test_every_architecture_takes_any_batch_size(tmp_path, name, size, options):
    shape = (size, size, 3)
    image = keras.Input(shape, name="image")
    pixels = keras.layers.Normalization(mean=[128] * 3, variance=[64**2] * 3)(image)
    model = keras_resnet.ResNet(name, input_tensor=pixels, classes=10, **options)
    classes, preprocessing = tuple("0123456789"), Preprocessing(*shape)
    classifier = Classifier(name, model, classes, preprocessing, Provenance(name))
    images = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    write_artifacts(classifier, tmp_path, ("float32", "int8"), images)
    actual = assert_equal_for_batch_sizes(
        tmp_path / "float32.tflite", images, (2, 6, 3)
    )
    np.testing.assert_allclose(actual, np.asarray(model(images)), rtol=0, atol=1e-3)
    assert_equal_for_batch_sizes(tmp_path / "int8.tflite", images, (2, 6, 3))
