"""Comparison of int8 with float32, layer by layer."""

import csv

import pytest
from badly_scaled import scale_channels_badly

from export.formats import saved_model
from export.quantization import debug


def test_layer_by_layer(classifier, digits, tmp_path):
    """The comparison names the layer in which a badly scaled network loses accuracy."""
    rows = {}
    calibration, images = digits.train.images[:200], digits.test.images[:8]
    for name, network in {
        "good": classifier,
        "bad": scale_channels_badly(classifier),
    }.items():
        static = str(tmp_path / name)
        saved_model.write_static_model(network, static, "float32")
        rows[name] = debug.compare_layers(static, network.model, calibration, images)
    layer_names = [row.layer for row in rows["good"]]
    assert layer_names[0] == "normalization" and layer_names[-1] == "predictions"
    for name in ("conv1_relu", "conv2_block1_1_relu", "conv4_block1_out", "avg_pool"):
        assert layer_names.count(name) == 1
    good, bad = (
        {row.layer: row._asdict() for row in rows[name]} for name in ("good", "bad")
    )
    assert min(row["sqnr_db"] for row in good.values()) > 20
    assert min(row["cosine"] for row in good.values()) > 0.99
    # Both networks are equal up to the first badly scaled layer.
    assert bad["conv1_relu"] == pytest.approx(good["conv1_relu"])
    assert bad["conv2_block1_2_conv"]["sqnr_db"] < 15


def test_report_files_match_the_printed_table(classifier, digits, tmp_path, capsys):
    static, calibration = str(tmp_path / "static"), digits.train.images[:50]
    saved_model.write_static_model(classifier, static, "float32")
    debug.write_layer_report(
        static, classifier.model, calibration, digits.test.images, str(tmp_path)
    )
    printed = capsys.readouterr().out.splitlines()
    with open(tmp_path / "quantization.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(printed) == 1 + len(rows)
    for line, row in zip(printed[1:], rows, strict=True):
        assert line.split()[0] == row["layer"]
        assert float(line.split()[3]) == pytest.approx(float(row["sqnr_db"]), abs=0.06)
    assert (tmp_path / "quantization.png").read_bytes().startswith(b"\x89PNG")
