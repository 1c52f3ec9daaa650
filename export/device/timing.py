"""Latency and memory of artifacts, each measured in its own process."""

import itertools
import math
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import TypeVar

import numpy as np

from keras_resnet.support import InputError, StrPath, to_printable

from .manifest import LatencyRow, check_files, read_check, read_manifest
from .runtimes import RUNTIMES

# Pause in seconds before each call, for threads of the previous call to stop spinning.
PAUSE_SECONDS = 0.02

WARM_UP_CALLS = 3  # Untimed calls per artifact and batch size, before the timed calls.
MIN_CALLS = 5  # Minimum number of timed calls, even if they exceed the time limit.

Key = TypeVar("Key")


def time_in_turn(
    functions: Mapping[str, Callable[[np.ndarray], object]],
    image: np.ndarray,
    rounds: int = 30,
    warm_up_rounds: int = 5,
) -> dict[str, float]:
    """Returns the median latency in milliseconds of each function, by name.

    Calls all functions in turn on the same image, uint8, (1, height, width, channels),
    in this process. `rounds` timed rounds follow `warm_up_rounds` untimed ones.
    """

    def time_call(function: Callable[[np.ndarray], object]) -> float:
        function(image)  # Not timed; brings the weights into the CPU caches.
        start = time.perf_counter()
        function(image)
        return 1e3 * (time.perf_counter() - start)

    calls = {name: partial(time_call, function) for name, function in functions.items()}
    times = _call_in_turn(calls, rounds, warm_up_rounds, math.inf)
    return {name: statistics.median(values) for name, values in times.items()}


def _call_in_turn(
    calls: Mapping[Key, Callable[[], float]], rounds: int, warm_up: int, seconds: float
) -> dict[Key, list[float]]:
    """Calls functions in turn and returns their results, in milliseconds, by key.

    Results of the first `warm_up` rounds are dropped. A function is skipped
    after `MIN_CALLS` calls if its calls have taken `seconds` in total.
    """
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for turn in range(warm_up + rounds):
        for key, values in times.items():
            if len(values) >= MIN_CALLS and sum(values) > 1e3 * seconds:
                continue
            time.sleep(PAUSE_SECONDS)
            milliseconds = calls[key]()
            if turn >= warm_up:
                values.append(milliseconds)
    return times


def measure_latency(
    folder: StrPath,
    batch_sizes: Sequence[int] = (1, 16),
    thread_counts: Sequence[int | None] = (1, None),
    rounds: int = 30,
    seconds: float = 30,
) -> tuple[list[LatencyRow], dict[str, str]]:
    """Measures latency, memory and start-up time of every artifact of a bundle.

    Args:
        thread_counts: Numbers of threads to measure; `None` is one for each CPU.
        rounds: Number of timed calls for each artifact and batch size.
        seconds: Time limit for the timed calls of an artifact with one batch size. Slow
            artifacts are called less often, but at least `MIN_CALLS` times.

    Returns:
        A list with one row for each artifact, number of threads and batch size, and a
        dict from each artifact that could not be measured to the reason. A row has the
        median and 95th percentile of the latency in milliseconds, images per second at
        the median, the peak memory of the process so far in MiB, and the time in
        milliseconds from before the runtime's import to the first prediction.

    Raises:
        InputError: If the folder is not a bundle, or the bundle has been changed.
    """
    manifest = read_manifest(folder)
    problems = check_files(folder, manifest)
    # A command that was killed may have left the figure. This command rewrites it.
    problems.pop("latency.png", None)
    if problems:
        name, problem = next(iter(problems.items()))
        raise InputError(f"The bundle {folder} has been changed: {name} {problem}")
    images = read_check(folder, manifest)["image"]
    artifacts = manifest["artifacts"]
    processes: list[TimedProcess] = []
    skipped: dict[str, str] = {}
    try:
        for (name, row), count in itertools.product(artifacts.items(), thread_counts):
            runtime = row["runtime"]
            if runtime is None or runtime not in RUNTIMES:
                unknown = f"this version does not support {runtime}"
                skipped[name] = unknown if runtime else "it runs only in browsers"
                continue
            path = os.path.join(folder, row["path"])
            num_threads = count or os.cpu_count() or 1
            process = TimedProcess(name, runtime, path, num_threads, images[:1])
            if process.problem:
                skipped[name] = process.problem
            else:
                processes.append(process)
        rows: list[LatencyRow] = []
        for batch_size in batch_sizes:
            batch_images = np.resize(images, (batch_size, *images.shape[1:]))
            rows += _measure_batch(processes, batch_images, rounds, seconds)
    finally:
        for process in processes:
            process.stop()
    order = list(artifacts)
    return sorted(rows, key=lambda row: order.index(row["artifact"])), skipped


def _measure_batch(
    processes: Sequence["TimedProcess"], images: np.ndarray, rounds: int, seconds: float
) -> Iterator[LatencyRow]:
    """Calls all artifacts in turn on the same images, and yields a row for each."""
    calls = {process: partial(process.call, images) for process in processes}
    times = _call_in_turn(calls, rounds, WARM_UP_CALLS, seconds)
    for process, values in times.items():
        median = statistics.median(values)
        yield {
            "artifact": process.artifact,
            "threads": process.threads,
            "batch": len(images),
            "median_ms": round(median, 3),
            "p95_ms": round(float(np.percentile(values, 95)), 3),
            "images_per_s": round(1e3 * len(images) / median, 2),
            "peak_mib": round(process.peak_bytes / 2**20, 1),
            "start_ms": round(process.start_ms, 1),
            "calls": len(values),
        }


class TimedProcess:
    """A process that loads one artifact and runs it on request."""

    start_ms: float  # Time in ms from the runtime's import to the first prediction.
    peak_bytes: int  # Peak memory of the process so far.
    problem: str | None  # Reason why the artifact could not be loaded, if any.

    def __init__(
        self, artifact: str, runtime: str, path: str, threads: int, image: np.ndarray
    ) -> None:
        self.artifact, self.threads = artifact, threads
        # The peak memory of a forked process would include the parent's memory.
        context = multiprocessing.get_context("spawn")
        self.connection, remote_end = context.Pipe()
        args = remote_end, runtime, path, threads, image
        self.process = context.Process(target=_serve_batches, args=args, daemon=True)
        self.process.start()
        remote_end.close()
        try:
            self.start_ms, self.peak_bytes, self.problem = self.connection.recv()
        except EOFError:
            self.problem = f"its process ended with exit status {self._exit_status()}"

    def call(self, images: np.ndarray) -> float:
        """Runs the artifact on `images` once and returns the time in milliseconds."""
        self.connection.send(images)
        try:
            milliseconds, self.peak_bytes = self.connection.recv()
        except EOFError:
            raise OSError(
                f"{self.artifact} could not be measured with {len(images)} images. "
                f"Its process ended with exit status {self._exit_status()}"
            ) from None
        return milliseconds

    def stop(self) -> None:
        """Ends the process by closing the pipe, or kills it after five seconds."""
        self.connection.close()
        self.process.join(5)
        self.process.kill()

    def _exit_status(self) -> int | None:
        self.process.join()
        return self.process.exitcode


def _serve_batches(
    connection: Connection, runtime: str, path: str, num_threads: int, image: np.ndarray
) -> None:
    """Loads an artifact in the child process and times the artifact on each batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent handles Ctrl-C.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    start = time.perf_counter()
    try:
        classify = RUNTIMES[runtime].open(path, num_threads)
        classify(image)
    except Exception as error:  # Runtimes raise errors of their own types.
        reason = " ".join(str(error).split()) or type(error).__name__
        connection.send((0.0, 0, to_printable(reason)))
        return
    connection.send((1e3 * (time.perf_counter() - start), measure_peak_memory(), None))
    while True:
        try:
            images = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        classify(images)
        connection.send((1e3 * (time.perf_counter() - start), measure_peak_memory()))


def measure_peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            # getrusage would include the parent's memory before the fork.
            return next(
                1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM")
            )
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
