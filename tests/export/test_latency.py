"""Command `export.latency` on an exported bundle."""

import json
import os
import re
import sys

import pytest
from conftest import assert_one_line, run_python
from matplotlib.image import imread

from export import latency, verify
from export.device import timing
from export.device.manifest import describe_files


def read_manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture
def small_bundle(exported_bundle, tmp_path):
    """Returns a function that copies a bundle with only some of its artifacts."""

    def copy(*names):
        folder = tmp_path / "copy"
        manifest = read_manifest(exported_bundle[0])
        rows = {name: manifest["artifacts"][name] for name in names}
        files = [
            *manifest["files"],
            *(p for row in rows.values() for p in row["files"]),
        ]
        for path in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes((exported_bundle[0] / path).read_bytes())
        manifest = {**manifest, "artifacts": rows}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return copy


def test_artifacts_that_can_run_are_measured(small_bundle):
    """LiteRT rejects a damaged file, even if the manifest lists the file's sha256."""
    folder = small_bundle("float32", "float16", "int8")
    (folder / "int8.tflite").write_bytes(b"\0" * 100)
    manifest = read_manifest(folder)
    files = describe_files(str(folder), ["int8.tflite"])
    manifest["artifacts"]["int8"]["files"] = files
    manifest["artifacts"]["float16"]["runtime"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    process = run_python("-m", "export.latency", folder, "--rounds=2", "--batches=1,3")
    assert process.returncode == 0, process.stderr
    assert "Not measured: float16 (it runs only in browsers)" in process.stdout
    assert re.search(r"(?m)^Not measured: int8 \(.+\)$", process.stdout)
    rows = read_manifest(folder)["latency"]["rows"]
    assert [(row["artifact"], row["threads"], row["batch"]) for row in rows] == [
        ("float32", threads, batch)
        for batch in (1, 3)
        for threads in (1, os.cpu_count())
    ]
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for row in rows:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["images_per_s"] == pytest.approx(
            1e3 * row["batch"] / row["median_ms"], rel=0.01
        )
        assert row["start_ms"] > 0 and row["calls"] == 2
        assert row["peak_mib"] < 200
        line = rf"(?m)^{row['artifact']} +{row['threads']} +{row['batch']} +{row['median_ms']:.2f} "
        assert re.search(line, process.stdout) and re.search(line, card)
    assert imread(folder / "latency.png").shape[2] == 4


def test_figure_is_omitted_without_matplotlib(small_bundle, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder = small_bundle("dynamic")
    assert not latency.main([str(folder), "--rounds=1", "--batches=2", "--threads=1"])
    (row,) = read_manifest(folder)["latency"]["rows"]
    assert (row["artifact"], row["threads"], row["batch"]) == ("dynamic", 1, 2)
    assert "latency.png is not drawn" in capsys.readouterr().out
    findings, passed = verify.verify(str(folder))
    assert passed, f"the measured bundle must pass verification: {findings}"


@pytest.mark.clients
def test_saved_model_needs_more_memory_than_tflite_files(small_bundle):
    """TensorFlow's libraries need hundreds of MiB of memory, LiteRT's only a few."""
    folder = small_bundle("saved_model", "float32")
    rows, _ = timing.measure_latency(folder, (1,), (1,), rounds=2)
    peaks = {row["artifact"]: row["peak_mib"] for row in rows}
    assert peaks["saved_model"] > 200 > peaks["float32"]


@pytest.mark.parametrize("flag", ["--rounds=0", "--batches=1,x", "--threads=-1"])
def test_invalid_flags_are_rejected(flag, capsys):
    with pytest.raises(SystemExit) as error:
        latency.main(["bundle", flag])
    assert error.value.code == 2
    assert "must be a whole number from 1 to 1,000,000" in capsys.readouterr().err


def test_a_changed_bundle_is_not_measured(small_bundle):
    folder = small_bundle("float32")
    (folder / "labels.txt").write_text("x")
    process = run_python("-m", "export.latency", folder)
    assert_one_line(process, "has been changed", "labels.txt")
