"""The SavedModel in TensorFlow and in an imitation of TensorFlow Serving."""

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
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import load_classifier
from keras_resnet.support.errors import InputError

SERVE_GUIDE = (ROOT / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def export_dir(classifier, tmp_path_factory):
    """Folder of the SavedModel."""
    path = str(tmp_path_factory.mktemp("served") / "1")
    saved_model.write_saved_model(classifier, path)
    return path


@pytest.fixture(scope="module")
def signatures(export_dir):
    loaded = tf.saved_model.load(export_dir)
    yield loaded.signatures


@pytest.fixture(scope="module")
def digits():
    return sources.load_dataset("digits").test.images


def test_outputs_agree_with_keras(trained_run, signatures, digits):
    model = load_classifier(str(trained_run)).model  # The network before folding.
    feature_model = keras.Model(model.input, model.get_layer("avg_pool").output)
    for num_images in (1, 7):
        images = digits[:num_images]
        for name, key, expected in (
            ("serving_default", "probabilities", model(images, training=False)),
            ("features", "features", feature_model(images, training=False)),
        ):
            outputs = signatures[name](image=tf.constant(images))
            assert list(outputs) == [key]
            np.testing.assert_allclose(outputs[key], expected, rtol=1e-4, atol=1e-5)


def test_each_weight_is_stored_once(export_dir, classifier):
    """All signatures call one function, whose constants include the weights."""
    node_lists = read_graph_nodes(export_dir)
    constant_sizes = [
        np.prod([d.size for d in node.attr["value"].tensor.tensor_shape.dim], dtype=int)
        for nodes in node_lists
        for node in nodes
        if node.op == "Const" and node.attr["dtype"].type == tf.float32.as_datatype_enum
    ]
    num_weights = classifier.model.count_params()
    # The other constants are a few scalars and the mean of the pixels.
    assert num_weights <= sum(constant_sizes) < num_weights + 50
    assert not any(node.op == "VarHandleOp" for nodes in node_lists for node in nodes)


def read_graph_nodes(path):
    """Returns the nodes of a SavedModel's graph and of each function in its library."""
    content = pathlib.Path(path, "saved_model.pb").read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    library = graph.graph_def.library.function
    return [graph.graph_def.node, *(function.node_def for function in library)]


def test_graph_has_only_the_operations_of_the_paper(export_dir):
    """Batch normalisation is folded into the convolutions."""
    function_counts = [
        collections.Counter(node.op for node in nodes)
        for nodes in read_graph_nodes(export_dir)
    ]
    (network_counts,) = [counts for counts in function_counts if counts["Conv2D"]]
    num_blocks = 3
    assert network_counts["Conv2D"] == network_counts["Relu"] == 1 + 2 * num_blocks
    assert (
        network_counts["BiasAdd"] == network_counts["Conv2D"] + network_counts["MatMul"]
    )
    assert network_counts["MatMul"] == network_counts["Softmax"] == 1
    assert network_counts["AddV2"] == num_blocks
    # Two Pad nodes precede convolutions with stride 2. Two Pad nodes add the zero
    # channels of shortcut A.
    assert network_counts["Pad"] == 2 + 2
    operations = {operation for counts in function_counts for operation in counts}
    assert not {operation for operation in operations if "BatchNorm" in operation}
    # These operations would mean that batch normalisation is decomposed, not folded.
    assert not {"Mul", "Rsqrt"} & network_counts.keys()


def encode_image(image, format, factor=1):
    """Returns the bytes of an image file. The image is enlarged by `factor`."""
    image = np.kron(image, np.ones((factor, factor, 1), image.dtype))
    encode = {"png": tf.io.encode_png, "jpeg": tf.io.encode_jpeg}[format]
    return encode(image).numpy()


def test_encoded_images_of_any_size_are_classified(classifier, signatures, digits):
    files = [
        encode_image(digits[0], "png"),
        encode_image(digits[1], "jpeg", 5),
        encode_image(digits[2][:, :6], "png", 3),
    ]
    images = tf.stack([classifier.preprocessing.read(tf.constant(f)) for f in files])
    expected = np.asarray(classifier.model(images, training=False))
    outputs = signatures["image_bytes"](image_bytes=tf.constant(files))
    top_indices = np.argsort(-expected, axis=1)[:, :5]
    names = np.char.decode(outputs["classes"].numpy().astype(bytes), "utf-8")
    assert names.tolist() == np.array(classifier.classes)[top_indices].tolist()
    np.testing.assert_allclose(
        outputs["scores"], np.take_along_axis(expected, top_indices, 1), atol=1e-5
    )


def test_two_classes_are_returned_in_descending_order(tmp_path, classifier, digits):
    """The signature returns five classes, or all if the network has fewer."""
    small_classifier = dataclasses.replace(
        classifier,
        model=make_model(classes=2),
        classes=("cat", "dog"),
        preprocessing=Preprocessing(8, 8, 3),
    )
    saved_model.write_saved_model(small_classifier, str(tmp_path / "1"))
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    files = tf.constant([encode_image(image, "png") for image in digits[:3]])
    outputs = loaded.signatures["image_bytes"](image_bytes=files)
    assert {tuple(sorted(row)) for row in outputs["classes"].numpy()} == {
        (b"cat", b"dog")
    }
    scores = outputs["scores"].numpy()
    assert (scores[:, 0] >= scores[:, 1]).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_a_damaged_image_fails_the_whole_request(signatures, digits, content):
    intact = encode_image(digits[0], "jpeg", 5)
    content = intact[: len(intact) // 2] if content == "cut" else content
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["image_bytes"](image_bytes=tf.constant([intact, content, intact]))
    # The intact file alone succeeds, so one request per file finds the damaged file.
    signatures["image_bytes"](image_bytes=tf.constant([intact]))


def find_code_blocks(language):
    return [part.split("```")[0] for part in SERVE_GUIDE.split(f"```{language}\n")[1:]]


class Server:
    """Imitates the REST API of TensorFlow Serving by its documented rules.

    In the row format, `instances` is a list of values (if the signature has one input)
    or of objects whose keys are the inputs' names. The response contains `predictions`,
    a list of the same form. In the column format, `inputs` and `outputs` are used
    instead. `{"b64": ...}` represents bytes. Output strings must be UTF-8 unless the
    output's name ends in `_bytes`.
    """

    def __init__(self, path):
        v1 = tf.compat.v1
        # docs/how-to/serve.md recommends this setting for the server.
        config = v1.ConfigProto(inter_op_parallelism_threads=1)
        self.session = v1.Session(graph=tf.Graph(), config=config)
        with self.session.graph.as_default():
            loaded = v1.saved_model.loader.load(self.session, ["serve"], path)
        self.signatures = loaded.signature_def

    def predict(self, body):
        body = json.loads(body, object_hook=self._decode_bytes)
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
        for name, tensor_info in signature.inputs.items():
            dtype = tf.as_dtype(tensor_info.dtype).as_numpy_dtype
            feeds[tensor_info.name] = np.array(columns[name], dtype)
        fetches = {
            name: tensor_info.name for name, tensor_info in signature.outputs.items()
        }
        arrays = self.session.run(fetches, feeds)
        outputs = {
            name: np.vectorize(bytes.decode)(values).tolist()
            if values.dtype == object
            else values.tolist()
            for name, values in arrays.items()
        }
        if "inputs" in body:
            columns = outputs if len(outputs) > 1 else next(iter(outputs.values()))
            return {"outputs": columns}
        if len(outputs) == 1:
            return {"predictions": next(iter(outputs.values()))}
        rows = zip(*outputs.values(), strict=True)
        return {"predictions": [dict(zip(outputs, row, strict=True)) for row in rows]}

    @staticmethod
    def _decode_bytes(value):
        return base64.b64decode(value["b64"]) if set(value) == {"b64"} else value


@pytest.fixture(scope="module")
def server(export_dir):
    server = Server(export_dir)
    yield server
    server.session.close()


def test_documented_rest_requests_give_documented_responses(server, classifier):
    """The responses have the keys and types of the examples in docs/how-to/serve.md."""
    request, response, column_request, column_response, damaged_request = (
        find_code_blocks("json")
    )
    files = [row["b64"] for row in json.loads(request)["instances"]]
    images = tf.stack(
        [classifier.preprocessing.read(tf.constant(base64.b64decode(f))) for f in files]
    )
    expected = np.asarray(classifier.model(images, training=False))
    actual = server.predict(request)
    assert describe_form(actual) == describe_form(json.loads(response))
    assert [row["classes"][0] for row in actual["predictions"]] == [
        classifier.classes[index] for index in expected.argmax(axis=1)
    ]
    np.testing.assert_allclose(
        [row["scores"][0] for row in actual["predictions"]],
        expected.max(axis=1),
        atol=1e-5,
    )
    actual = server.predict(column_request)
    assert describe_form(actual) == describe_form(json.loads(column_response))
    with pytest.raises(tf.errors.InvalidArgumentError):
        server.predict(damaged_request)


def describe_form(value):
    """Returns a JSON value with leaves replaced by types, and lists cut to one item."""
    if isinstance(value, dict):
        return {name: describe_form(part) for name, part in value.items()}
    return (
        [describe_form(value[0])] if isinstance(value, list) else type(value).__name__
    )


def test_pixels_sent_by_rest_are_classified_like_keras(server, classifier, digits):
    body = json.dumps({"instances": digits[:2].tolist()})
    predictions = server.predict(body)["predictions"]
    expected = classifier.model(digits[:2], training=False)
    np.testing.assert_allclose(predictions, expected, atol=1e-5)


def add_head(x, classes=10):
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.layers.Dense(classes, activation="softmax", name="predictions")(x)


class CustomLayer(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def make_two_input_model():
    image, second_image = keras.Input((8, 8, 3), name="image"), keras.Input((8, 8, 3))
    return keras.Model(
        [image, second_image], add_head(keras.layers.Add()([image, second_image]))
    )


def make_model(*layers, size=8, classes=10):
    image = x = keras.Input((size, size, 3), name="image")
    for layer in layers:
        x = layer(x)
    return keras.Model(image, add_head(x, classes), name="mine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_two_input_model, "one input, the image.* Received: .* with inputs image"),
        (
            lambda: make_model(CustomLayer(name="own")),
            r"Received: mine with own \(CustomLayer\)",
        ),
        (
            lambda: make_model(keras.layers.Lambda(lambda x: x, name="twist")),
            r"model.export\(PATH\). Received: mine with twist \(Lambda\)",
        ),
        (
            lambda: make_model(size=None),
            r"--image_size=224.* mine with input \(None, None, None, 3\)",
        ),
        (
            lambda: keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)]),
            r"layers 'avg_pool' and 'predictions' \(activation: softmax\)",
        ),
    ],
)
def test_unsupported_models_are_rejected(make, message):
    with pytest.raises(InputError, match=message) as error:
        saved_model.check_model(make())
    assert "\n" not in str(error.value)


def test_a_supported_model_is_accepted():
    saved_model.check_model(make_model(keras.layers.Conv2D(4, 3)))


def test_check_signatures_detects_wrong_names_and_weights(
    classifier, export_dir, digits
):
    """One classifier has rotated class names, another a kernel multiplied by 1.01."""
    saved_model.check_signatures(export_dir, classifier, digits[:8])
    names = (*classifier.classes[1:], classifier.classes[0])
    renamed_classifier = dataclasses.replace(classifier, classes=names)
    with pytest.raises(Disagreement, match=r"'image_bytes' .* different classes"):
        saved_model.check_signatures(export_dir, renamed_classifier, digits[:8])
    model = keras.models.clone_model(classifier.model)
    model.set_weights(classifier.model.get_weights())
    kernel = model.get_layer("conv1_conv").kernel
    kernel.assign(kernel * 1.01)
    changed_classifier = dataclasses.replace(classifier, model=model)
    with pytest.raises(
        Disagreement, match=r"'features' .* differ by \d.* limit is 1e-04"
    ):
        saved_model.check_signatures(export_dir, changed_classifier, digits[:8])
