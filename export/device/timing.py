"""Timing artifacts, each in a process of its own, in turn."""

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

from keras_resnet.support import InputError

from .manifest import Folder, LatencyRow, check_files, read_manifest
from .runtimes import RUNTIMES, MissingRuntime

# Seconds between two calls: the threads of the previous call spin for a while.
PAUSE = 0.02

# Number of calls of each artifact, with each batch, that are not timed.
WARM_UP = 3

# Smallest number of timed calls, however long they take.
FEWEST = 5

Key = TypeVar("Key")


def time_in_turn(
    functions: Mapping[str, Callable[[np.ndarray], object]],
    image: np.ndarray,
    rounds: int = 30,
    warm_up: int = 5,
) -> dict[str, float]:
    """Returns the median milliseconds of functions of this process, by name.

    They are called in turn on one image, uint8, (1, height, width, channels), and timed
    in each of the rounds after the warm-up.
    """

    def call(function: Callable[[np.ndarray], object]) -> float:
        function(image)  # The weights of the previous function fill the caches.
        start = time.perf_counter()
        function(image)
        return 1e3 * (time.perf_counter() - start)

    calls = {name: partial(call, function) for name, function in functions.items()}
    times = _take_turns(calls, rounds, warm_up, math.inf)
    return {name: statistics.median(values) for name, values in times.items()}


def _take_turns(
    calls: Mapping[Key, Callable[[], float]], rounds: int, warm_up: int, seconds: float
) -> dict[Key, list[float]]:
    """Returns the milliseconds that calls return, each until its time is used up."""
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for turn in range(warm_up + rounds):
        for key, values in times.items():
            if len(values) >= FEWEST and sum(values) > 1e3 * seconds:
                continue
            time.sleep(PAUSE)
            milliseconds = calls[key]()
            if turn >= warm_up:
                values.append(milliseconds)
    return times


def measure(
    folder: Folder,
    batches: Sequence[int] = (1, 16),
    threads: Sequence[int | None] = (1, None),
    rounds: int = 30,
    seconds: float = 30,
) -> tuple[list[LatencyRow], dict[str, str]]:
    """Measures every artifact of a bundle.

    Args:
        folder: The bundle.
        batches: Numbers of images in a call.
        threads: Numbers of threads; `None` is one for each CPU.
        rounds: Number of timed calls of each artifact, with each batch.
        seconds: Time for all timed calls of an artifact with a batch. A slow one is
            called less often, but at least `FEWEST` times.

    Returns:
        A row for each artifact, number of threads and batch: median and 95th percentile
        of a call in milliseconds, images per second at that median, the process's
        peak memory so far in MiB, and the milliseconds from before the runtime was
        imported to the first answer. And a dict from artifacts that were not
        measured to the reason.

    Raises:
        InputError: The folder is not a bundle, or not as it was exported.
    """
    manifest = read_manifest(folder)
    if problems := check_files(folder, manifest):
        name, problem = next(iter(problems.items()))
        raise InputError(f"{folder} is not as it was exported: {name} {problem}")
    with np.load(os.path.join(folder, "check.npz")) as check:
        images = check["image"]
    artifacts = manifest["artifacts"]
    runners: list[Runner] = []
    missing: dict[str, str] = {}
    try:
        for (name, row), number in itertools.product(artifacts.items(), threads):
            if row["runtime"] is None:
                missing[name] = "a browser runs it"
                continue
            path = os.path.join(folder, row["path"])
            count = number or os.cpu_count() or 1
            runner = Runner(name, row["runtime"], path, count, images[:1])
            if runner.problem:
                missing[name] = runner.problem
            else:
                runners.append(runner)
        rows: list[LatencyRow] = []
        for batch in batches:
            pixels = np.resize(images, (batch, *images.shape[1:]))
            rows += _in_turn(runners, pixels, rounds, seconds)
    finally:
        for runner in runners:
            runner.stop()
    order = list(artifacts)
    return sorted(rows, key=lambda row: order.index(row["artifact"])), missing


def _in_turn(
    runners: Sequence["Runner"], images: np.ndarray, rounds: int, seconds: float
) -> Iterator[LatencyRow]:
    """Calls each artifact with the same images in turn, and yields its row."""
    calls = {runner: partial(runner.call, images) for runner in runners}
    times = _take_turns(calls, rounds, WARM_UP, seconds)
    for runner, values in times.items():
        median = statistics.median(values)
        yield {
            "artifact": runner.artifact,
            "threads": runner.threads,
            "batch": len(images),
            "median_ms": round(median, 3),
            "p95_ms": round(float(np.percentile(values, 95)), 3),
            "images_per_s": round(1e3 * len(images) / median, 2),
            "peak_mib": round(runner.peak / 2**20, 1),
            "start_ms": round(runner.start, 1),
            "calls": len(values),
        }


class Runner:
    """A process that runs one artifact when it is told to."""

    start: float  # Milliseconds to its first answer.
    peak: int  # Peak memory so far, in bytes.
    problem: str | None  # Why it could not start.

    def __init__(
        self, artifact: str, runtime: str, path: str, threads: int, image: np.ndarray
    ) -> None:
        self.artifact, self.threads = artifact, threads
        # A new interpreter, so that this process's memory does not count as its own.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        given = theirs, runtime, path, threads, image
        self.process = context.Process(target=_serve, args=given, daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.start, self.peak, self.problem = self.connection.recv()
        except EOFError:
            self.problem = f"its process ended with status {self._status()}"

    def call(self, images: np.ndarray) -> float:
        """Returns the milliseconds of one call."""
        self.connection.send(images)
        try:
            milliseconds, self.peak = self.connection.recv()
        except EOFError:
            raise OSError(
                f"{self.artifact} could not be measured with {len(images)} images at a "
                f"time: its process ended with status {self._status()}"
            ) from None
        return milliseconds

    def stop(self) -> None:
        """Ends the process."""
        self.connection.close()
        self.process.join(5)
        self.process.kill()

    def _status(self) -> int | None:
        self.process.join()
        return self.process.exitcode


def _serve(
    connection: Connection, runtime: str, path: str, threads: int, image: np.ndarray
) -> None:
    """Runs an artifact for the process at the other end, until that hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other end.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    start = time.perf_counter()
    try:
        classify = RUNTIMES[runtime].open(path, threads)
        classify(image)
    except (MissingRuntime, ImportError, OSError, ValueError, RuntimeError) as error:
        connection.send((0.0, 0, " ".join(str(error).split())))
        return
    connection.send((1e3 * (time.perf_counter() - start), peak_memory(), None))
    while True:
        try:
            images = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        classify(images)
        connection.send((1e3 * (time.perf_counter() - start), peak_memory()))


def peak_memory() -> int:
    """Returns the peak memory of this process, in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            # getrusage would count what the parent had when it forked.
            return next(
                1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM")
            )
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
