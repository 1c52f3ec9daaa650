"""Table of artifacts: selection of formats, and conversion of all architectures."""

import os
import re

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from conftest import ROOT, run_python, write_artifacts
from hypothesis import assume, given
from hypothesis import strategies as st

from export.artifacts import ARTIFACTS, resolve_formats
from export.device import comparison
from export.device.runtimes import RUNTIMES
from export.formats import saved_model
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import Classifier
from keras_resnet.nets.graph import list_layers
from keras_resnet.spec import VARIANTS, Provenance
from keras_resnet.support.errors import InputError
from keras_resnet.zoo import ResNet

# Formats that --formats accepts, in the order in which bundles list them.
FORMATS = [
    "saved_model", "float32", "float16", "dynamic", "int8", "int8_io", "float_io",
    "int16x8", "onnx", "openvino", "openvino_int8", "web",
]  # fmt: skip


@given(st.lists(st.sampled_from(FORMATS), min_size=1))
def test_formats_have_any_order_and_duplicates(names):
    """The web page also needs the files in float16 and int8 that it runs."""
    expected = {*names, *(("float16", "int8") if "web" in names else ())}
    assert resolve_formats(names) == sorted(expected, key=FORMATS.index)


@given(st.lists(st.sampled_from(FORMATS)), st.text(), st.lists(st.text()))
def test_unknown_formats_are_rejected(known_names, name, other_names):
    assume(name not in FORMATS)
    with pytest.raises(InputError, match=r"Unknown format.* Accepted: saved_model, "):
        resolve_formats([*known_names, name, *other_names])


def test_formats_have_a_default_and_must_not_be_empty():
    assert resolve_formats(None) == FORMATS[:5]
    with pytest.raises(InputError, match=r"formats must not be empty.* saved_model"):
        resolve_formats([])


def make_untrained_classifier(name, size, **options):
    """Builds an untrained network with batch normalisation statistics of random images.

    Returns:
        The network as a `Classifier`, the images, and the network's logits for them.
    """
    images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    keras.utils.set_random_seed(0)
    pixels = keras.Input((size, size, 3), name="image")
    normalised_pixels = keras.layers.Rescaling(1 / 64, -2.0)(pixels)
    model = ResNet(name, input_tensor=normalised_pixels, classes=10, **options)
    for layer in list_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # Moving statistics become those of the next batch.
    model(images, training=True)
    preprocessing = Preprocessing(size, size, 3)
    classifier = Classifier(
        name, model, tuple("0123456789"), preprocessing, Provenance(name)
    )
    return classifier, images, saved_model.compute_reference_logits(model, images)


def assert_equal_for_batch_sizes(path, images):
    """Asserts that a `.tflite` file gives equal probabilities for all batch sizes."""
    runner = Interpreter(path).get_signature_runner("serving_default")
    outputs = [runner(image=image[None])["probabilities"] for image in images]
    expected = np.concatenate(outputs)
    for batch_size in (2, len(images), 3):  # The last batch of 3 has only 2 images.
        starts = range(0, len(images), batch_size)
        batches = [
            runner(image=images[i : i + batch_size])["probabilities"] for i in starts
        ]
        assert len(batches[0]) == batch_size
        np.testing.assert_allclose(np.concatenate(batches), expected, rtol=0, atol=1e-6)


def check_architecture(folder, name, size, formats, **options):
    """Exports an untrained network and asserts that artifacts agree with Keras.

    int8 artifacts only have to run with any batch size, because rounding dominates in
    untrained networks.
    """
    classifier, images, logits = make_untrained_classifier(name, size, **options)
    # If the logits did not depend on the image, the test would prove nothing.
    assert np.ptp(logits, axis=0).max() > 0.05 * np.abs(logits).max()
    paths = write_artifacts(classifier, folder, formats, images)
    for artifact, path in paths.items():
        runtime = RUNTIMES[ARTIFACTS[artifact].runtime]
        probabilities = runtime.predict(runtime.open(path), images)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=0.02)
        if artifact != "saved_model":
            assert_equal_for_batch_sizes(path, images)
        if artifact in ("saved_model", "float32"):
            labels = logits.argmax(axis=1)
            difference = comparison.compare(probabilities, logits, labels)
            comparison.check_limit(artifact, difference, comparison.LIMITS["float32"])
        elif artifact == "float16":
            # Rounding may change the prediction if two classes are almost tied.
            runner_up, highest = np.sort(logits, axis=1)[:, -2:].T
            is_clear = highest - runner_up > 0.01 * np.abs(logits).max()
            predictions = probabilities.argmax(axis=1)
            assert (predictions == logits.argmax(axis=1))[is_clear].all(), artifact


@pytest.mark.parametrize(
    ("name", "size", "formats", "options"),
    [
        # The last stage has 1x1 outputs. For these, the converter folds a batch size
        # of 1 into the graph, unless the SavedModel leaves the batch size open.
        ("cifar_plainnet8", 4, ["float32", "int8"], {}),
        ("resnet50", 16, ["saved_model", "float32"], {"shortcut": "C"}),
        ("resnet50v2", 16, ["float32", "int8"], {"se": True}),
    ],
)
def test_artifacts_of_small_networks_agree_with_keras(
    tmp_path, name, size, formats, options
):
    """The networks are untrained and cover plain, bottleneck and pre-activation blocks."""
    if name.startswith("resnet"):
        options = {"stem": "cifar", "blocks": (1, 1), "width": 16, **options}
    check_architecture(tmp_path, name, size, formats, **options)


# Variants with features that the small networks above lack.
SLOW_VARIANTS = [("resnet18", "B"), ("seresnet18", None)]
# Pairs of variant and shortcut: all shortcuts for the paper's variants, else one.
ALL_VARIANTS = [
    pytest.param(
        name,
        shortcut,
        marks=pytest.mark.slow
        if (name, shortcut) in SLOW_VARIANTS
        else pytest.mark.full,
    )
    for name in VARIANTS
    for shortcut in ("ABC" if re.fullmatch(r"resnet\d+", name) else [None])
]


@pytest.mark.parametrize(("name", "shortcut"), ALL_VARIANTS)
def test_artifacts_of_all_variants_agree_with_keras(name, shortcut, tmp_path):
    """The networks are untrained, and their images have 32x32 pixels.

    Each network is tested in its own process, because TensorFlow never frees loaded
    networks. A dozen of them would take 20 GB.
    """
    formats = ["saved_model", "float32", "int8"]
    if (name, shortcut) not in SLOW_VARIANTS:
        formats.append("float16")
    arguments = f"{str(tmp_path)!r}, {name!r}, 32, {formats}, shortcut={shortcut!r}"
    code = f"import test_artifacts as t; t.check_architecture({arguments})"
    paths = os.pathsep.join(map(str, [ROOT, ROOT / "tests", ROOT / "tests/export"]))
    process = run_python("-c", code, timeout=1800, env={"PYTHONPATH": paths})
    assert process.returncode == 0, process.stderr
