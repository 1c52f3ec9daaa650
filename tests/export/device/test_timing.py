"""Timing of functions and of artifacts in processes of their own."""

import json
import multiprocessing
import os
import shutil
import time

import numpy as np
import pytest

from export.device import timing
from export.device.manifest import describe_files


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


def test_an_artifact_that_cannot_be_loaded_is_named(exported, tmp_path):
    """Its sha256 made to fit: a file that LiteRT does not read."""
    copied = shutil.copytree(exported[0], tmp_path / "copy")
    path = copied / "int8.tflite"
    path.write_bytes(b"\0" * 100)
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
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
    runner = timing.Runner("float32", "LiteRT", path, 1, Deadly())
    assert runner.problem == "its process ended with status 7"
    runner = timing.Runner("float32", "LiteRT", path, 1, image)
    assert runner.problem is None
    with pytest.raises(OSError, match=r"float32 .* with 3 images .* with status 7"):
        runner.call(Deadly([image] * 3))
    runner.stop()
