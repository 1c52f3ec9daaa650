"""Command `export.latency` on an exported bundle."""

import json
import os
import re
import shutil

import pytest
from conftest import assert_one_line, run_python
from matplotlib.image import imread

from export import verify


@pytest.fixture
def bundle_copy(exported_bundle, tmp_path):
    return shutil.copytree(exported_bundle[0], tmp_path / "copy")


def read_manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_every_artifact_is_measured(bundle_copy):
    process = run_python(
        "-m", "export.latency", bundle_copy, "--rounds=2", "--batches=1,3"
    )
    assert process.returncode == 0, process.stderr
    manifest = read_manifest(bundle_copy)
    rows = manifest["latency"]["rows"]
    assert {(row["artifact"], row["threads"], row["batch"]) for row in rows} == {
        (name, threads, batch)
        for name in manifest["artifacts"]
        for threads in (1, os.cpu_count())
        for batch in (1, 3)
    }
    for row in rows:
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["images_per_s"] == pytest.approx(
            1e3 * row["batch"] / row["median_ms"], rel=0.01
        )
        assert row["start_ms"] > 0 and row["calls"] == 2
        line = rf"(?m)^{row['artifact']} +{row['threads']} +{row['batch']} +{row['median_ms']:.2f} "
        assert re.search(line, process.stdout)
        assert re.search(
            line, (bundle_copy / "MODEL_CARD.md").read_text(encoding="utf-8")
        )
    # TensorFlow's libraries need hundreds of MiB of memory, LiteRT's only a few.
    peaks = {row["artifact"]: row["peak_mib"] for row in rows}
    assert peaks["saved_model"] > 200 > peaks["float32"]
    assert imread(bundle_copy / "latency.png").shape[2] == 4
    assert verify.verify(str(bundle_copy))[1], (
        "the measured bundle must pass verification"
    )


@pytest.mark.parametrize(
    ("flag", "status"), [("--rounds=0", 2), ("--batches=1,x", 2), ("--threads=-1", 2)]
)
def test_invalid_flags_are_rejected(exported_bundle, flag, status):
    process = run_python("-m", "export.latency", exported_bundle[0], flag)
    assert process.returncode == status
    assert "must be a whole number of at least 1" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_changed_bundle_is_not_measured(bundle_copy):
    (bundle_copy / "labels.txt").write_text("x")
    process = run_python("-m", "export.latency", bundle_copy)
    assert_one_line(process, "has been changed", "labels.txt")
