"""The SavedModel, as TensorFlow alone and TensorFlow Serving run it."""

import base64
import collections
import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from tensorflow.core.protobuf import saved_model_pb2

from export.device.comparison import Disagreement
from export.formats import saved_model
from keras_resnet.data import sources
from keras_resnet.evaluation.classifier import load_classifier
from keras_resnet.support.errors import InputError

DOCUMENT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served(classifier, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("served") / "1")
    saved_model.write_saved_model(classifier, path)
    return path


@pytest.fixture(scope="module")
def signatures(served):
    loaded = tf.saved_model.load(served)
    yield loaded.signatures


@pytest.fixture(scope="module")
def digits():
    return sources.load_dataset("digits").test.images


def test_answers_are_those_of_keras(trained, signatures, digits):
    model = load_classifier(str(trained)).model  # Not folded.
    features = keras.Model(model.input, model.get_layer("avg_pool").output)
    for count in (1, 7):
        images = digits[:count]
        for name, key, expected in (
            ("serving_default", "probabilities", model(images, training=False)),
            ("features", "features", features(images, training=False)),
        ):
            found = signatures[name](image=tf.constant(images))
            assert list(found) == [key]
            np.testing.assert_allclose(found[key], expected, rtol=1e-4, atol=1e-5)


def test_each_weight_is_stored_once(served, classifier):
    """As a constant, in the one function that all signatures call."""
    functions = graph_functions(served)
    sizes = [
        np.prod([d.size for d in node.attr["value"].tensor.tensor_shape.dim], dtype=int)
        for nodes in functions
        for node in nodes
        if node.op == "Const" and node.attr["dtype"].type == tf.float32.as_datatype_enum
    ]
    weights = classifier.model.count_params()
    # Beside them some scalars, and the mean of the pixels.
    assert weights <= sum(sizes) < weights + 50
    assert not any(node.op == "VarHandleOp" for nodes in functions for node in nodes)


def graph_functions(path):
    """The nodes of a SavedModel's graph, and of each function in its library."""
    content = pathlib.Path(path, "saved_model.pb").read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    library = graph.graph_def.library.function
    return [graph.graph_def.node, *(function.node_def for function in library)]


def test_operations(served):
    """Of the paper's network and no others: folding has left no normalisation."""
    functions = [
        collections.Counter(node.op for node in nodes)
        for nodes in graph_functions(served)
    ]
    (network,) = [found for found in functions if found["Conv2D"]]
    blocks = 3
    assert network["Conv2D"] == network["Relu"] == 1 + 2 * blocks
    assert network["BiasAdd"] == network["Conv2D"] + network["MatMul"]
    assert network["MatMul"] == network["Softmax"] == 1
    assert network["AddV2"] == blocks
    # Before the two convolutions with stride 2, and of shortcut A's new channels.
    assert network["Pad"] == 2 + 2
    everywhere = {operation for found in functions for operation in found}
    assert not {each for each in everywhere if "BatchNorm" in each}
    # What a normalisation would be in parts.
    assert not {"Mul", "Rsqrt"} & network.keys()


def encoded(image, format, grow=1):
    image = np.kron(image, np.ones((grow, grow, 1), image.dtype))
    encode = {"png": tf.io.encode_png, "jpeg": tf.io.encode_jpeg}[format]
    return encode(image).numpy()


def test_encoded_images_of_different_sizes(classifier, signatures, digits):
    files = [
        encoded(digits[0], "png"),
        encoded(digits[1], "jpeg", 5),
        encoded(digits[2][:, :6], "png", 3),
    ]
    views = tf.stack([classifier.preprocessing.read(tf.constant(f)) for f in files])
    expected = np.asarray(classifier.model(views, training=False))
    found = signatures["image_bytes"](image_bytes=tf.constant(files))
    order = np.argsort(-expected, axis=1)[:, :5]
    named = np.char.decode(found["classes"].numpy().astype(bytes), "utf-8")
    assert named.tolist() == np.array(classifier.classes)[order].tolist()
    np.testing.assert_allclose(
        found["scores"], np.take_along_axis(expected, order, 1), atol=1e-5
    )


@pytest.mark.parametrize("damaged", [b"", b"no image", "cut"])
def test_a_damaged_image_fails_the_whole_request(signatures, digits, damaged):
    good = encoded(digits[0], "jpeg", 5)
    damaged = good[: len(good) // 2] if damaged == "cut" else damaged
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["image_bytes"](image_bytes=tf.constant([good, damaged, good]))
    # What a caller does then: each file by itself.
    signatures["image_bytes"](image_bytes=tf.constant([good]))


def blocks(language):
    return [part.split("```")[0] for part in DOCUMENT.split(f"```{language}\n")[1:]]


class Server:
    """Answers bodies of TensorFlow Serving's REST predict by its documented rules.

    Row format: `instances` is a list, of values where the signature has one input
    or of objects by the inputs' names; `predictions` likewise. Column format:
    `inputs` and `outputs`. `{"b64": ...}` stands for bytes; strings that come
    back must be UTF-8 unless the output's name ends in `_bytes`.
    """

    def __init__(self, path):
        v1 = tf.compat.v1
        # As the server loads it, with the thread that docs/serving.md recommends.
        config = v1.ConfigProto(inter_op_parallelism_threads=1)
        self.session = v1.Session(graph=tf.Graph(), config=config)
        with self.session.graph.as_default():
            loaded = v1.saved_model.loader.load(self.session, ["serve"], path)
        self.signatures = loaded.signature_def

    def predict(self, body):
        body = json.loads(body, object_hook=self._decoded)
        signature = self.signatures[body.get("signature_name", "serving_default")]
        names = list(signature.inputs)
        if rows := body.get("instances"):
            if not isinstance(rows[0], dict):
                (name,) = names
                rows = [{name: row} for row in rows]
            columns = {name: [row[name] for row in rows] for name in names}
        else:
            columns = body["inputs"]
            if not isinstance(columns, dict):
                columns = {names[0]: columns}
        feeds = {}
        for name, entry in signature.inputs.items():
            dtype = tf.as_dtype(entry.dtype).as_numpy_dtype
            feeds[entry.name] = np.array(columns[name], dtype)
        fetches = {name: entry.name for name, entry in signature.outputs.items()}
        answers = self.session.run(fetches, feeds)
        found = {
            name: np.vectorize(bytes.decode)(values).tolist()
            if values.dtype == object
            else values.tolist()
            for name, values in answers.items()
        }
        if "inputs" in body:
            return {"outputs": found if len(found) > 1 else next(iter(found.values()))}
        if len(found) == 1:
            return {"predictions": next(iter(found.values()))}
        rows = zip(*found.values(), strict=True)
        return {"predictions": [dict(zip(found, row, strict=True)) for row in rows]}

    @staticmethod
    def _decoded(value):
        return base64.b64decode(value["b64"]) if set(value) == {"b64"} else value


@pytest.fixture(scope="module")
def server(served):
    server = Server(served)
    yield server
    server.session.close()


def test_documented_rest_bodies(server, classifier):
    """The bodies as they stand in docs/serving.md, and the forms of the answers."""
    request, answer, columns, outputs, damaged = blocks("json")
    files = [row["b64"] for row in json.loads(request)["instances"]]
    views = tf.stack(
        [classifier.preprocessing.read(tf.constant(base64.b64decode(f))) for f in files]
    )
    expected = np.asarray(classifier.model(views, training=False))
    found = server.predict(request)
    assert form(found) == form(json.loads(answer))
    assert [row["classes"][0] for row in found["predictions"]] == [
        classifier.classes[place] for place in expected.argmax(axis=1)
    ]
    np.testing.assert_allclose(
        [row["scores"][0] for row in found["predictions"]],
        expected.max(axis=1),
        atol=1e-5,
    )
    found = server.predict(columns)
    assert form(found) == form(json.loads(outputs))
    with pytest.raises(tf.errors.InvalidArgumentError):
        server.predict(damaged)


def form(value):
    """Names and types of a body's parts; lists by their first element."""
    if isinstance(value, dict):
        return {name: form(part) for name, part in value.items()}
    return [form(value[0])] if isinstance(value, list) else type(value).__name__


def test_pixels_by_rest(server, classifier, digits):
    body = json.dumps({"instances": digits[:2].tolist()})
    found = server.predict(body)["predictions"]
    expected = classifier.model(digits[:2], training=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def head(x):
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.layers.Dense(10, activation="softmax", name="predictions")(x)


class Own(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def several_inputs():
    image, other = keras.Input((8, 8, 3), name="image"), keras.Input((8, 8, 3))
    return keras.Model([image, other], head(keras.layers.Add()([image, other])))


def chain(*layers, size=8):
    image = x = keras.Input((size, size, 3), name="image")
    for layer in layers:
        x = layer(x)
    return keras.Model(image, head(x), name="mine")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (several_inputs, "one input, the image; export the part of it"),
        (lambda: chain(Own(name="own")), r"Received: mine with own \(Own\)"),
        (
            lambda: chain(keras.layers.Lambda(lambda x: x, name="twist")),
            r"model.export\(PATH\). Received: mine with twist \(Lambda\)",
        ),
        (
            lambda: chain(size=None),
            r"--image_size=224 .*mine with input \(None, None, None, 3\)",
        ),
        (
            lambda: keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)]),
            "ends in the layers avg_pool and predictions",
        ),
    ],
)
def test_what_cannot_be_exported(make, words):
    with pytest.raises(InputError, match=words) as error:
        saved_model.check_model(make())
    assert "\n" not in str(error.value)


def test_what_can_be_exported():
    saved_model.check_model(chain(keras.layers.Conv2D(4, 3)))


def test_signatures_beside_probabilities_are_judged(classifier, digits, tmp_path):
    """Of a SavedModel with other names, and of one with a kernel off by a hundredth."""
    images = digits[:8]
    write = saved_model.write_saved_model
    write(classifier, str(tmp_path / "right"))
    saved_model.check_signatures(str(tmp_path / "right"), classifier, images)
    names = (*classifier.classes[1:], classifier.classes[0])
    write(dataclasses.replace(classifier, classes=names), str(tmp_path / "names"))
    with pytest.raises(Disagreement, match=r"image_bytes .* names other classes"):
        saved_model.check_signatures(str(tmp_path / "names"), classifier, images)
    model = keras.models.clone_model(classifier.model)
    model.set_weights(classifier.model.get_weights())
    kernel = model.get_layer("conv1_conv").kernel
    kernel.assign(kernel * 1.01)
    write(dataclasses.replace(classifier, model=model), str(tmp_path / "off"))
    with pytest.raises(Disagreement, match=r"features .* differs by"):
        saved_model.check_signatures(str(tmp_path / "off"), classifier, images)
