"""Comparison of new artifacts with the Keras model, and repair for int8."""

import dataclasses

import keras
import numpy as np
import pytest
from badly_scaled import scale_channels_badly

import keras_resnet
from export.artifacts import Source
from export.device.comparison import Disagreement
from export.making import make_artifact
from export.quantization import REPAIR_DESCRIPTION
from export.reference import get_reference
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import Classifier
from keras_resnet.nets import folding
from keras_resnet.spec import Provenance


@pytest.fixture(scope="module")
def reference(classifier, digits):
    return get_reference(digits, 360, classifier, share_images=False)


@pytest.fixture(scope="module")
def source(classifier, digits, tmp_path_factory):
    """The trained network with 50 calibration images, and folders to write to."""
    folders = [str(tmp_path_factory.mktemp(name)) for name in ("bundle", "scratch")]
    return Source(classifier, digits.train.images[:50], *folders)


@pytest.mark.parametrize("name", ["saved_model", "float32"])
def test_wrong_logits_are_rejected(source, reference, name):
    """One logit differs by 0.01, which changes no predicted class."""
    logits = reference.logits + 0.01 * np.eye(10)[4]
    np.testing.assert_array_equal(
        logits.argmax(axis=1), reference.logits.argmax(axis=1)
    )
    with pytest.raises(
        Disagreement,
        match=f"{name}.* the limit is 1e-04. No bundle was written; to omit {name}",
    ):
        make_artifact(name, source, dataclasses.replace(reference, logits=logits))


def test_wrong_classes_are_rejected(source, reference):
    logits = np.roll(reference.logits, 1, axis=1)
    with pytest.raises(Disagreement, match=r"the limit is 99\.5%\. No bundle"):
        make_artifact("float16", source, dataclasses.replace(reference, logits=logits))


def test_badly_scaled_network_is_repaired_once(source, classifier, reference, capsys):
    """Without repair, the int8 file of this network exceeds the limit."""
    bad_classifier = scale_channels_badly(classifier, factor=1e4)
    np.testing.assert_allclose(
        bad_classifier.model(reference.images),
        classifier.model(reference.images),
        atol=1e-4,
    )
    bad_source = dataclasses.replace(
        source, classifier=bad_classifier, static_models={}
    )
    row, classify = make_artifact("int8", bad_source, reference)
    assert "Repairing the network: channels equalised" in capsys.readouterr().out
    assert row["repair"] == REPAIR_DESCRIPTION
    assert row["agreement"] >= 0.99
    assert classify(reference.images).shape == (360, 10)
    # A network that exceeds the limit after a repair is rejected.
    repaired_source = dataclasses.replace(bad_source, repair="repaired before")
    with pytest.raises(Disagreement, match=r"int8 .* to omit int8, set --formats"):
        make_artifact("int8", repaired_source, reference)


@pytest.mark.full
@pytest.mark.parametrize("options", [{"preact": True}, {"se": True}])
def test_preact_and_se_blocks_agree_with_keras_in_int8(source, digits, options):
    """The int8_io files agree with Keras, with and without repair."""
    keras.utils.set_random_seed(0)
    pixels = digits.train.images
    image = keras.Input((8, 8, 1), name="image")
    normalised_image = keras.layers.Normalization(
        mean=[pixels.mean()], variance=[pixels.var()], name="normalization"
    )(image)
    model = keras_resnet.ResNet(
        "cifar_resnet8", input_tensor=normalised_image, classes=10, **options
    )
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(pixels, digits.train.labels, epochs=8, verbose=0)
    classes, preprocessing = tuple("0123456789"), Preprocessing(8, 8, 1)
    classifier = Classifier(
        "net", folding.fold(model), classes, preprocessing, Provenance("net")
    )
    source = dataclasses.replace(source, classifier=classifier, static_models={})
    reference = get_reference(digits, 360, classifier, share_images=False)
    assert (reference.logits.argmax(axis=1) == reference.labels).sum() > 340
    for tested_source in (source, source.with_repaired_network()):
        row, _ = make_artifact("int8_io", tested_source, reference)
        assert row.get("repair", "") == tested_source.repair
        assert row["agreement"] >= 0.99
