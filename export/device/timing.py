"""Timing artifacts, each in a process of its own, in turn."""

import multiprocessing
import os
import signal
import statistics
import sys
import time

import numpy as np

from keras_resnet.support import InputError, progress_bar

from .manifest import check_files, read_manifest
from .runtimes import RUNTIMES, MissingRuntime

# Between two calls: thread pools spin a while after theirs.
PAUSE = 0.02


WARM_UP = 3


FEWEST = 5


def time_in_turn(functions, image, rounds=30, warm_up=5):
    """Times functions of this process on one image, in turn.

    Args:
        functions: a dict of functions of uint8 images (1, height, width, channels).
        image: what to call them with.
        rounds: number of times that each is timed.
        warm_up: number of calls beforehand that are not.

    Returns:
        A dict of the medians, in milliseconds.
    """
    times = {name: [] for name in functions}
    for turn in range(warm_up + rounds):
        for name, classify in functions.items():
            # Thread pools of the one before spin a while, and its weights fill the
            # caches.
            time.sleep(PAUSE)
            classify(image)
            start = time.perf_counter()
            classify(image)
            if turn >= warm_up:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def measure(folder, batches=(1, 16), threads=(1, None), rounds=30, seconds=30):
    """Measures every artifact of a bundle.

    Args:
        folder: of the bundle.
        batches: numbers of images in a call.
        threads: numbers of threads; `None` is one for each CPU.
        rounds: number of times that each is called, with each batch.
        seconds: that an artifact may take for all calls with a batch; a slow one is
            called less often, but five times at least.

    Returns:
        A list of dicts, one for each artifact, number of threads and batch: the median
        and the 95th percentile of a call in milliseconds, images a second at that
        median, the process's peak of memory so far in MiB, and the milliseconds
        from before the runtime was imported to the first answer; and a dict from
        artifacts that were not measured to the reason.

    Raises:
        InputError: it is no bundle, or not the one that was exported.
    """
    manifest = read_manifest(folder)
    if problems := check_files(folder, manifest):
        name, what = next(iter(problems.items()))
        raise InputError(f"{folder} is not as it was exported: {name} {what}")
    with np.load(os.path.join(folder, "check.npz")) as check:
        images = check["image"]
    runners, missing = [], {}
    count = len(manifest["artifacts"]) * len(threads)
    try:
        with progress_bar("loading", count) as advance:
            for name, row in manifest["artifacts"].items():
                for number in threads:
                    advance()
                    if row["runtime"] is None:
                        missing[name] = "a browser runs it"
                        continue
                    path = os.path.join(folder, row["path"])
                    runner = _Runner(name, row["runtime"], path, number, images[:1])
                    if runner.problem:
                        missing[name] = runner.problem
                    else:
                        runners.append(runner)
        with progress_bar("measuring", len(batches) * (WARM_UP + rounds)) as advance:
            rows = [
                row
                for batch in batches
                for row in _in_turn(
                    runners, np.resize(images, (batch, *images.shape[1:])),
                    rounds, seconds, advance,
                )
            ]  # fmt: skip
    finally:
        for runner in runners:
            runner.stop()
    order = list(manifest["artifacts"])
    return sorted(rows, key=lambda row: order.index(row["artifact"])), missing


def _in_turn(runners, images, rounds, seconds, advance):
    """Calls each artifact with the same images in turn; its rows."""
    times = {runner: [] for runner in runners}
    for turn in range(WARM_UP + rounds):
        for runner, found in times.items():
            if len(found) >= FEWEST and sum(found) > 1e3 * seconds:
                continue
            milliseconds = runner.call(images)
            if turn >= WARM_UP:
                found.append(milliseconds)
            time.sleep(PAUSE)
        advance()
    for runner, found in times.items():
        median = statistics.median(found)
        yield {
            "artifact": runner.artifact,
            "threads": runner.threads,
            "batch": len(images),
            "median_ms": round(median, 3),
            "p95_ms": round(float(np.percentile(found, 95)), 3),
            "images_per_s": round(1e3 * len(images) / median, 2),
            "peak_mib": round(runner.peak / 2**20, 1),
            "start_ms": round(runner.start, 1),
            "calls": len(found),
        }


class _Runner:
    """A process that runs one artifact when it is told to.

    Attributes:
        start: milliseconds to its first answer.
        peak: most memory so far, in bytes.
        problem: why it could not start, or nothing.
    """

    def __init__(self, artifact, runtime, path, threads, image):
        self.artifact, self.threads = artifact, threads or os.cpu_count()
        # A new interpreter: none of this process's memory counts as its own.
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

    def call(self, images):
        """Milliseconds of one call."""
        self.connection.send(images)
        try:
            milliseconds, self.peak = self.connection.recv()
        except EOFError:
            raise OSError(
                f"{self.artifact} could not be measured with {len(images)} images at a "
                f"time: its process ended with status {self._status()}"
            ) from None
        return milliseconds

    def stop(self):
        self.connection.close()
        self.process.join(5)
        self.process.kill()

    def _status(self):
        self.process.join()
        return self.process.exitcode


def _serve(connection, runtime, path, threads, image):
    """Runs an artifact for the process at the other end, until that hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other end.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    start = time.perf_counter()
    try:
        classify = RUNTIMES[runtime].open(path, threads)
        classify(image)
    except (MissingRuntime, ImportError, OSError, ValueError, RuntimeError) as error:
        connection.send((None, None, " ".join(str(error).split())))
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


def peak_memory():
    """Returns the most memory that this process has had, in bytes."""
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
