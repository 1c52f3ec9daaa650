"""Exported ONNX files in ONNX Runtime."""

import collections
import dataclasses
import importlib.util
import json

import keras
import numpy as np
import pytest

from export.device import runtimes
from export.device.comparison import compare
from export.formats import onnx_model, saved_model
from keras_resnet.data import sources
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import Classifier
from keras_resnet.nets.folding import fold
from keras_resnet.nets.graph import list_layers
from keras_resnet.spec import Provenance
from keras_resnet.support.errors import InputError
from keras_resnet.zoo import ResNet

# The tests import ONNX themselves, so that other tests need not wait for it.
pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(
        not (
            importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")
        ),
        reason="needs the extra onnx",
    ),
]


@pytest.fixture(scope="module")
def onnx_path(classifier, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("onnx") / "model.onnx")
    onnx_model.write_onnx(path, classifier)
    return path


def load_model(path):
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


def count_operations(path):
    nodes = load_model(path).graph.node
    return collections.Counter(node.op_type for node in nodes)


def test_files_have_the_documented_inputs_and_outputs(onnx_path):
    assert runtimes.describe_onnx(onnx_path) == {
        "serving_default": {
            "inputs": {"image": ["uint8", [-1, 8, 8, 1]]},
            "outputs": {"probabilities": ["float32", [-1, 10]]},
        }
    }
    model = load_model(onnx_path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]


def test_file_contains_classes_and_preprocessing(onnx_path, classifier):
    metadata = {
        p.key: json.loads(p.value) for p in load_model(onnx_path).metadata_props
    }
    assert tuple(metadata["classes"]) == classifier.classes
    assert metadata["preprocessing"] == dataclasses.asdict(classifier.preprocessing)


def test_onnx_runtime_agrees_with_keras(onnx_path, classifier):
    split = sources.load_dataset("digits").test
    classify = runtimes.open_onnx(onnx_path)
    logits = saved_model.compute_reference_logits(classifier.model, split.images)
    # `classify` must accept different batch sizes.
    parts = [classify(split.images[:1]), classify(split.images[1:])]
    comparison = compare(np.concatenate(parts), logits, split.labels)
    assert comparison.logit_difference < 1e-5
    assert comparison.agreement == 1


def test_graph_has_no_needless_nodes(onnx_path):
    """The only Transpose is at the input. Both Pad nodes add channels in shortcut A."""
    assert count_operations(onnx_path) == {
        "Cast": 1, "Transpose": 1, "Sub": 1, "Conv": 7, "Relu": 7, "Add": 3,
        "MaxPool": 2, "Pad": 2, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
        "Softmax": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "num_pads"),
    [
        ("resnet18", {}, 0),
        pytest.param("resnet18", {"shortcut": "A"}, 3, marks=pytest.mark.full),
        pytest.param("resnet18", {"shortcut": "C"}, 0, marks=pytest.mark.full),
        pytest.param("resnet50", {"stride_on": "1x1"}, 0, marks=pytest.mark.full),
        # The first max pooling does not follow a ReLU, so it needs a Pad node.
        pytest.param("resnet50v2", {}, 1, marks=pytest.mark.full),
        pytest.param("resnet50", {"stem": "deep", "avg_down": True}, 0, marks=pytest.mark.full),
        pytest.param("resnet50", {"se": True}, 0, marks=pytest.mark.full),
        pytest.param("resnext50_32x4d", {}, 0, marks=pytest.mark.full),
        pytest.param("resnet50", {"output_stride": 8}, 0, marks=pytest.mark.full),
        pytest.param("plainnet18", {}, 0, marks=pytest.mark.full),
        pytest.param("cifar_plainnet8", {}, 0, marks=pytest.mark.full),
        # A network with more than 60 blocks contains sub-models.
        pytest.param("cifar_resnet200", {}, 2, marks=pytest.mark.full),
        pytest.param("cifar_resnet20", {"preact": True}, 2, marks=pytest.mark.full),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_folded", [False, True])
def test_every_variant_agrees_with_keras(name, options, num_pads, is_folded, tmp_path):
    """All variants agree for an odd image size, which stride 2 does not divide."""
    size = 15 if name.startswith("cifar") else 35
    classifier = make_random_classifier(name, size, options)
    if is_folded:
        classifier = dataclasses.replace(classifier, model=fold(classifier.model))
    path = str(tmp_path / "model.onnx")
    onnx_model.write_onnx(path, classifier)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, *classifier.preprocessing.shape), np.uint8)
    logits = saved_model.compute_reference_logits(classifier.model, pixels)
    comparison = compare(runtimes.open_onnx(path)(pixels), logits, np.zeros(3))
    assert comparison.logit_difference < 1e-5
    counts = count_operations(path)
    assert (counts["Pad"], counts["Transpose"]) == (num_pads, 1)
    layer_counts = collections.Counter(
        type(layer) for layer in list_layers(classifier.model)
    )
    assert counts["Conv"] == layer_counts[keras.layers.Conv2D]
    assert counts["BatchNormalization"] == layer_counts[keras.layers.BatchNormalization]


def make_random_classifier(name, size, options):
    """Returns a classifier with random weights, whose predictions differ by image."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((size, size, 3), name="image")
    normalised_image = keras.layers.Normalization(
        mean=(123.7, 116.3, 103.5), variance=(3409.0, 3260.0, 3291.0)
    )(pixels)
    model = ResNet(name, input_tensor=normalised_image, classes=10, **options)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.ndim == 1 and "normalization" not in variable.path:
            minimum = 0.2 if variable.name in ("gamma", "moving_variance") else -0.2
            variable.assign(random.uniform(minimum, 0.4, variable.shape))
    return Classifier(
        name,
        model,
        tuple(map(str, range(10))),
        Preprocessing(size, size, 3, 1.0, "bilinear"),
        Provenance("net"),
    )


def test_padding_may_differ_between_sides(tmp_path):
    """Each side of the image and of the channels has a different padding."""
    keras.utils.set_random_seed(0)
    image = x = keras.Input((8, 8, 3), name="image")
    for layer in (
        keras.layers.ZeroPadding2D(((1, 2), (0, 3))),
        keras.layers.Conv2D(4, 3, strides=2),
        keras.layers.ZeroPadding2D(((0, 0), (1, 2)), data_format="channels_first"),
        keras.layers.ZeroPadding2D(((2, 0), (0, 1))),
        keras.layers.MaxPooling2D(3, 2),
        keras.layers.GlobalAveragePooling2D(name="avg_pool"),
        keras.layers.Dense(10, activation="softmax", name="predictions"),
    ):
        x = layer(x)
    classes, preprocessing = tuple("0123456789"), Preprocessing(8, 8, 3)
    classifier = Classifier(
        "net", keras.Model(image, x), classes, preprocessing, Provenance("net")
    )
    onnx_model.write_onnx(str(tmp_path / "model.onnx"), classifier)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    logits = saved_model.compute_reference_logits(classifier.model, pixels)
    probabilities = runtimes.open_onnx(str(tmp_path / "model.onnx"))(pixels)
    assert compare(probabilities, logits, np.zeros(4)).logit_difference < 1e-5


def test_unsupported_layers_are_rejected(classifier):
    model = classifier.model
    doubled_output = keras.layers.Lambda(lambda x: 2 * x, name="twice")(model.output)
    changed_classifier = dataclasses.replace(
        classifier, model=keras.Model(model.input, doubled_output)
    )
    with pytest.raises(InputError, match="Received: twice, Lambda"):
        onnx_model.to_onnx(changed_classifier)
