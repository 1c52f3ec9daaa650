"""Timing of functions, and of artifacts in their own processes."""

import multiprocessing
import os
import time

import numpy as np
import pytest

from export.device import timing


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


def test_slow_functions_are_called_less_often(monkeypatch):
    """A function is called until its calls exceed the limit, but at least 5 times."""
    monkeypatch.setattr(timing, "PAUSE_SECONDS", 0)
    durations = {"fast": 1.0, "slow": 150.0, "slowest": 900.0}  # In milliseconds.
    calls = {name: lambda name=name: durations[name] for name in durations}
    times = timing._call_in_turn(calls, rounds=20, warm_up=1, seconds=1)
    # 7 calls of 150 ms are the first to exceed one second.
    assert times == {"fast": [1.0] * 20, "slow": [150.0] * 7, "slowest": [900.0] * 5}


def test_peak_memory_excludes_the_parent_process():
    """The child's peak, below the parent's, rises when the child allocates 64 MiB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        peak_before = pool.apply(timing.measure_peak_memory)
        pool.apply(exec, ("bytearray(64 << 20)",))
        peak_after = pool.apply(timing.measure_peak_memory)
    assert 60 < (peak_after - peak_before) / 2**20 < 70
    assert peak_before < timing.measure_peak_memory()


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
