"""Timing artifacts, each in a process of its own, in turn."""

import itertools
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection

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


def time_in_turn(
    functions: Mapping[str, Callable[[np.ndarray], object]],
    image: np.ndarray,
    rounds: int = 30,
    warm_up: int = 5,
) -> dict[str, float]:
    """Times functions of this process on one image, in turn.

    Args:
        functions: Functions of an image, by name.
        image: The image, uint8, (1, height, width, channels).
        rounds: Number of times that each function is timed.
        warm_up: Number of rounds beforehand that are not timed.

    Returns:
        The median of each function, in milliseconds.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + rounds):
        for name, function in functions.items():
            # The threads of the previous function spin for a while, and its weights
            # fill the caches.
            time.sleep(PAUSE)
            function(image)
            start = time.perf_counter()
            function(image)
            if turn >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


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
        seconds: Time that an artifact may take for all timed calls with a batch. A slow
            artifact is called less often, but at least `FEWEST` times.

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
            runner = Runner(name, row["runtime"], path, number, images[:1])
            if runner.problem:
                missing[name] = runner.problem
            else:
                runners.append(runner)
        rows = [
            row
            for batch in batches
            for row in _in_turn(
                runners, np.resize(images, (batch, *images.shape[1:])), rounds, seconds
            )
        ]
    finally:
        for runner in runners:
            runner.stop()
    order = list(artifacts)
    return sorted(rows, key=lambda row: order.index(row["artifact"])), missing


def _in_turn(
    runners: Sequence["Runner"], images: np.ndarray, rounds: int, seconds: float
) -> Iterator[LatencyRow]:
    """Calls each artifact with the same images in turn, and yields its row."""
    times: dict[Runner, list[float]] = {runner: [] for runner in runners}
    for turn in range(WARM_UP + rounds):
        for runner, values in times.items():
            if len(values) >= FEWEST and sum(values) > 1e3 * seconds:
                continue
            milliseconds = runner.call(images)
            if turn >= WARM_UP:
                values.append(milliseconds)
            time.sleep(PAUSE)
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
    """A process that runs one artifact when it is told to.

    Attributes:
        start: Milliseconds to its first answer.
        peak: Peak memory so far, in bytes.
        problem: Why it could not start; `None` if it has started.
    """

    start: float
    peak: int
    problem: str | None

    def __init__(
        self,
        artifact: str,
        runtime: str,
        path: str,
        threads: int | None,
        image: np.ndarray,
    ) -> None:
        self.artifact, self.threads = artifact, threads or os.cpu_count() or 1
        # A new interpreter, so that this process's memory does not count as its own.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve,
            args=(theirs, runtime, path, self.threads, image),
            daemon=True,
        )
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
