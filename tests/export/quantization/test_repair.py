"""Repair of networks that lose too much accuracy in int8."""

import keras
import numpy as np
import pytest
from badly_scaled import scale_channels_badly
from keras import layers

import keras_resnet
from export.device import comparison, runtimes
from export.formats import saved_model, tflite
from export.quantization import repair
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import Classifier
from keras_resnet.nets import folding
from keras_resnet.spec import Provenance

LIMIT = comparison.LIMITS["int8"]


def convert_and_compare(classifier, digits, folder, format="int8"):
    """Converts a network and compares the `.tflite` file with Keras on test images."""
    saved_model.write_static_model(classifier, str(folder / "static"), "float32")
    path = folder / "int8.tflite"
    row, calibration = tflite.TFLITE_FORMATS[format], digits.train.images[:200]
    path.write_bytes(tflite.convert_to_tflite(str(folder / "static"), row, calibration))
    logits = saved_model.compute_reference_logits(classifier.model, digits.test.images)
    probabilities = runtimes.open_tflite(str(path))(digits.test.images)
    return comparison.compare(probabilities, logits, digits.test.labels)


def test_repair_of_a_badly_scaled_network_meets_the_limit(classifier, digits, tmp_path):
    """Without repair, the int8 file of this network exceeds the limit."""
    bad_classifier = scale_channels_badly(classifier)
    np.testing.assert_allclose(
        bad_classifier.model(digits.test.images),
        classifier.model(digits.test.images),
        atol=1e-4,
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "repaired").mkdir()
    with pytest.raises(comparison.Disagreement):
        comparison.check_limit(
            "int8", convert_and_compare(bad_classifier, digits, tmp_path / "bad"), LIMIT
        )
    repaired_classifier = repair.repair_network(
        bad_classifier, digits.train.images[:200]
    )
    metrics = convert_and_compare(repaired_classifier, digits, tmp_path / "repaired")
    comparison.check_limit("int8", metrics, LIMIT)
    assert metrics.agreement >= 0.99


@pytest.mark.full
@pytest.mark.parametrize("options", [{"preact": True}, {"se": True}])
def test_preact_and_se_blocks_agree_with_keras_in_int8(digits, tmp_path, options):
    """The int8_io files agree with Keras, with and without repair."""
    keras.utils.set_random_seed(0)
    pixels = digits.train.images
    image = keras.Input((8, 8, 1), name="image")
    normalised_image = layers.Normalization(
        mean=[pixels.mean()], variance=[pixels.var()], name="normalization"
    )(image)
    model = keras_resnet.ResNet(
        "cifar_resnet8", input_tensor=normalised_image, classes=10, **options
    )
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(pixels, digits.train.labels, epochs=8, verbose=0)
    classifier = Classifier(
        "net",
        folding.fold(model),
        tuple("0123456789"),
        Preprocessing(8, 8, 1),
        Provenance("net"),
    )
    for is_repaired in (False, True):
        if is_repaired:
            classifier = repair.repair_network(classifier, pixels[:200])
        folder = tmp_path / str(is_repaired)
        folder.mkdir()
        metrics = convert_and_compare(classifier, digits, folder, "int8_io")
        assert metrics.keras_right > 340
        comparison.check_limit("int8_io", metrics, LIMIT)
        assert metrics.agreement >= 0.99
