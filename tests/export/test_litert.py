"""`.tflite` files in LiteRT: signatures by name, one image or many, two interfaces."""

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
def converted(trained, digits, tmp_path_factory):
    """The folder of a trained net's files, and its Keras model."""
    folder = tmp_path_factory.mktemp("converted")
    classifier = load_classifier(str(trained))
    write_artifacts(classifier, folder, FORMATS, digits.train.images[:100])
    (folder / "labels.txt").write_text("0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n")
    np.save(folder / "pixels.npy", digits.test.images[:16])
    return folder, classifier.model


def assert_resizes(path, images, sizes):
    """One image at a time, and any number, give the same; returns it."""
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    single = [runner(image=image[None])["probabilities"] for image in images]
    expected = np.concatenate(single)
    for size in sizes:
        parts = range(0, len(images), size)
        found = [runner(image=images[i : i + size])["probabilities"] for i in parts]
        assert [len(part) for part in found[:1]] == [size]
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-6)
    return expected


@pytest.mark.parametrize(
    ("format", "limit"),
    [("float32", 1e-5), ("float16", 0.02), ("dynamic", 0.3), ("int8", 0.3)],
)
def test_by_signature_at_any_batch(converted, digits, format, limit):
    folder, model = converted
    images = digits.test.images[:50]
    # Up and down, and a last part that is smaller.
    found = assert_resizes(folder / f"{format}.tflite", images, (16, 3, 50, 1, 2))
    np.testing.assert_allclose(found, np.asarray(model(images)), rtol=0, atol=limit)
    # The same images are likeliest; rows of one batch are not mixed up.
    assert (found.argmax(axis=1) == digits.test.labels[:50]).mean() >= 0.9


def test_resized_by_hand(converted, digits):
    """As C++ and Java clients do it: resize, allocate, set, invoke, get."""
    folder, model = converted
    images = digits.test.images[:7]
    interpreter = Interpreter(str(folder / "float32.tflite"))
    (entry,) = interpreter.get_input_details()
    (answer,) = interpreter.get_output_details()
    assert entry["shape"].tolist() == [1, 8, 8, 1]
    interpreter.resize_tensor_input(entry["index"], [7, 8, 8, 1])
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], images)
    interpreter.invoke()
    found = interpreter.get_tensor(answer["index"])
    np.testing.assert_allclose(found, np.asarray(model(images)), atol=1e-5)


def run_lines(client, folder):
    """Runs lines of the model card in a process without TensorFlow or Keras."""
    lines = clients.CLIENTS[client].lines("int8.tflite", 10)
    code = (
        "import sys; sys.modules.update(tensorflow=None, keras=None)\n"
        "import numpy as np; pixels = np.load('pixels.npy')\n"
        f"{lines}\nnp.save('probabilities.npy', probabilities)"
    )
    result = run_python("-c", code, cwd=folder, env={"PYTHONPATH": ""})
    assert result.returncode == 0, result.stderr
    return np.load(folder / "probabilities.npy"), result.stdout


def test_the_card_s_lines_for_litert(converted, digits):
    folder, model = converted
    found, printed = run_lines("litert", folder)
    expected = np.asarray(model(digits.test.images[:16]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.3)
    names = re.findall(r"\('(\d)',", printed)
    assert names == [str(label) for label in expected.argmax(axis=1)]


def test_the_card_s_lines_for_compiled_model(converted):
    """LiteRT's newer interface, on the CPU, gives what its interpreter gives."""
    folder, _ = converted
    found, _ = run_lines("compiled_model", folder)
    runner = Interpreter(str(folder / "int8.tflite")).get_signature_runner()
    expected = runner(image=np.load(folder / "pixels.npy"))["probabilities"]
    np.testing.assert_allclose(found, expected[:1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        # A last stage of one position, where the converter bakes a batch of 1 into
        # the sums unless the SavedModel leaves the batch open.
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
def test_every_kind_of_network_resizes(tmp_path, name, size, options):
    shape = (size, size, 3)
    image = keras.Input(shape, name="image")
    pixels = keras.layers.Normalization(mean=[128] * 3, variance=[64**2] * 3)(image)
    model = keras_resnet.ResNet(name, input_tensor=pixels, classes=10, **options)
    classes, preprocessing = tuple("0123456789"), Preprocessing(*shape)
    classifier = Classifier(name, model, classes, preprocessing, Provenance(name))
    images = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    write_artifacts(classifier, tmp_path, ("float32", "int8"), images)
    found = assert_resizes(tmp_path / "float32.tflite", images, (2, 6, 3))
    np.testing.assert_allclose(found, np.asarray(model(images)), rtol=0, atol=1e-3)
    assert_resizes(tmp_path / "int8.tflite", images, (2, 6, 3))
