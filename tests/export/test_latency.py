"""The latency program, on a real bundle."""

import json
import multiprocessing
import os
import shutil
import time

import numpy as np
import pytest
from conftest import assert_one_line, run_python
from matplotlib.image import imread

from export import latency, verify
from export.device import timing
from export.device.manifest import describe_files


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported[0], tmp_path / "copy")


def read(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_every_artifact_is_measured(copied):
    result = run_python("-m", "export.latency", copied, "--rounds=2", "--batches=1,3")
    assert result.returncode == 0, result.stderr
    manifest = read(copied)
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
        line = f"{row['artifact']:<16}{row['threads']:>8}{row['batch']:>6}"
        assert line in result.stdout
        assert line in (copied / "MODEL_CARD.md").read_text(encoding="utf-8")
    # TensorFlow's own libraries are some hundreds of MiB; LiteRT's a few.
    peaks = {row["artifact"]: row["peak_mib"] for row in rows}
    assert peaks["saved_model"] > 200 > peaks["float32"]
    assert imread(copied / "latency.png").shape[2] == 4
    assert verify.verify(str(copied))[1], "the bundle is whole after it"


def test_percentiles_and_turns():
    """Functions that sleep: each is called in turn, the warm-up is not counted."""
    calls = []

    def sleeper(name, milliseconds):
        def classify(image):
            calls.append(name)
            time.sleep(milliseconds / 1e3)

        return classify

    functions = {"a": sleeper("a", 1), "b": sleeper("b", 20)}
    found = timing.time_in_turn(functions, None, rounds=3, warm_up=2)
    assert calls == ["a", "a", "b", "b"] * 5
    assert 1 <= found["a"] < 20 <= found["b"]


def test_peak_of_memory_is_the_process_s_own():
    """64 MiB more than before, and nothing of what the parent had."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        before = pool.apply(timing.peak_memory)
        pool.apply(exec, ("bytearray(64 << 20)",))
        after = pool.apply(timing.peak_memory)
    assert 60 < (after - before) / 2**20 < 70
    assert before < timing.peak_memory()


def test_wilson():
    """Wilson's interval by hand: n = 100, 90 right, z = 1.96."""
    low, high = latency.wilson(90, 100)
    z2 = 1.96**2
    half = 1.96 * np.sqrt(0.9 * 0.1 / 100 + z2 / 40000)
    middle = 0.9 + z2 / 200
    assert low == pytest.approx((middle - half) / (1 + z2 / 100))
    assert high == pytest.approx((middle + half) / (1 + z2 / 100))


def test_an_artifact_that_cannot_be_loaded_is_named(copied):
    """Its sha256 made to fit: a file that LiteRT does not read."""
    path = copied / "int8.tflite"
    path.write_bytes(b"\0" * 100)
    manifest = read(copied)
    manifest["artifacts"]["int8"]["files"] = describe_files(
        str(copied), ["int8.tflite"]
    )
    (copied / "manifest.json").write_text(json.dumps(manifest))
    _, missing = timing.measure(str(copied), batches=(1,), threads=(1,), rounds=1)
    assert list(missing) == ["int8"]


class Deadly(list):
    """Images at which the process that receives them ends, as by a runtime's fault."""

    def __reduce__(self):
        return os._exit, (7,)


def test_a_process_that_dies_is_told_of(exported):
    folder, _ = exported
    path, image = str(folder / "float32.tflite"), np.zeros((1, 8, 8, 1), np.uint8)
    runner = timing._Runner("float32", "LiteRT", path, 1, Deadly())
    assert runner.problem == "its process ended with status 7"
    runner = timing._Runner("float32", "LiteRT", path, 1, image)
    assert runner.problem is None
    with pytest.raises(OSError, match=r"float32 .* with 3 images .* with status 7"):
        runner.call(Deadly([image] * 3))
    runner.stop()


@pytest.mark.parametrize(
    ("flag", "status"),
    [("--rounds=0", 2), ("--batches=1,x", 2), ("--threads=-1", 2)],
)
def test_wrong_flags(exported, flag, status):
    result = run_python("-m", "export.latency", exported[0], flag)
    assert result.returncode == status
    assert "must be a whole number of at least 1" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_changed_bundle_is_not_measured(copied):
    (copied / "labels.txt").write_text("x")
    result = run_python("-m", "export.latency", copied)
    assert_one_line(result, "not as it was exported", "labels.txt")
