"""Comparison of int8 and float32 outputs, layer by layer."""

import pytest
from badly_scaled import scale_channels_badly

from export.formats import saved_model
from export.quantization import debug


def test_report_shows_where_accuracy_is_lost(classifier, digits, tmp_path):
    """A badly scaled layer has a low SQNR, but the layers before this layer do not."""
    errors_by_name = {}
    calibration, images = digits.train.images[:50], digits.test.images[:8]
    for name, tested_classifier in {
        "good": classifier,
        "bad": scale_channels_badly(classifier),
    }.items():
        folder = str(tmp_path / name)
        saved_model.write_static_model(tested_classifier, folder, "float32")
        errors_by_name[name] = debug.compare_layers(
            folder, tested_classifier.model, calibration, images
        )
    layer_names = [row.layer for row in errors_by_name["good"]]
    assert layer_names[0] == "normalization" and layer_names[-1] == "predictions"
    for name in ("conv1_relu", "conv2_block1_1_relu", "conv4_block1_out", "avg_pool"):
        assert layer_names.count(name) == 1
    good_rows, bad_rows = (
        {row.layer: row._asdict() for row in errors_by_name[name]}
        for name in ("good", "bad")
    )
    assert min(row["sqnr_db"] for row in good_rows.values()) > 20
    assert min(row["cosine"] for row in good_rows.values()) > 0.99
    # conv1_relu is before the first badly scaled layer, so its errors do not change.
    assert bad_rows["conv1_relu"] == pytest.approx(good_rows["conv1_relu"])
    assert bad_rows["conv2_block1_2_conv"]["sqnr_db"] < 15
