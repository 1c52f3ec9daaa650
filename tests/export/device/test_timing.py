"""Timing of functions, and of artifacts in their own processes."""

import json
import multiprocessing
import os
import shutil
import time

import numpy as np
import pytest

from export.device import timing
from export.device.manifest import describe_files


def test_functions_are_called_in_turn():
    """Every round calls each function twice, and only the second call is timed."""
    calls = []

    def make_sleeper(name, milliseconds):
        def classify(image):
            calls.append(name)
            time.sleep(milliseconds / 1e3)

        return classify

    functions = {"a": make_sleeper("a", 1), "b": make_sleeper("b", 20)}
    medians = timing.time_in_turn(functions, None, rounds=3, warm_up_rounds=2)
    assert calls == ["a", "a", "b", "b"] * 5
    assert 1 <= medians["a"] < 20 <= medians["b"]


def test_peak_memory_excludes_the_parent_process():
    """The child's peak, below the parent's, rises when the child allocates 64 MiB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        peak_before = pool.apply(timing.measure_peak_memory)
        pool.apply(exec, ("bytearray(64 << 20)",))
        peak_after = pool.apply(timing.measure_peak_memory)
    assert 60 < (peak_after - peak_before) / 2**20 < 70
    assert peak_before < timing.measure_peak_memory()


def test_unloadable_artifact_is_named(exported_bundle, tmp_path):
    """The manifest lists the sha256 of the damaged file, so only LiteRT rejects it."""
    folder = shutil.copytree(exported_bundle[0], tmp_path / "copy")
    path = folder / "int8.tflite"
    path.write_bytes(b"\0" * 100)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["artifacts"]["int8"]["files"] = describe_files(
        str(folder), ["int8.tflite"]
    )
    (folder / "manifest.json").write_text(json.dumps(manifest))
    _, skipped = timing.measure_latency(
        str(folder), batch_sizes=(1,), thread_counts=(1,), rounds=1
    )
    assert list(skipped) == ["int8"]


class ExitOnUnpickling(list):
    """A list that ends the process that receives it, like a crash of the runtime."""

    def __reduce__(self):
        return os._exit, (7,)


def test_crash_of_a_process_is_reported(exported_bundle):
    folder, _ = exported_bundle
    path, image = str(folder / "float32.tflite"), np.zeros((1, 8, 8, 1), np.uint8)
    process = timing.TimedProcess("float32", "LiteRT", path, 1, ExitOnUnpickling())
    assert process.problem == "its process ended with exit status 7"
    process = timing.TimedProcess("float32", "LiteRT", path, 1, image)
    assert process.problem is None
    with pytest.raises(OSError, match=r"float32 .* with 3 images.* exit status 7"):
        process.call(ExitOnUnpickling([image] * 3))
    process.stop()
