"""Communication between the workers of a run, and a stop flag that signals set."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import tensorflow as tf

from keras_resnet.distribution import (
    is_chief,
    sum_over_workers,
    worker_count,
    worker_index,
)
from keras_resnet.support import InputError


class WorkerGroup:
    """The processes that train one network together, including this process.

    With several workers, all methods communicate. TensorFlow numbers the collective
    operations of each worker and combines operations with the same number. All workers
    must therefore call the same methods in the same order. Otherwise, the workers
    deadlock.

    Attributes:
        count: Number of workers.
        index: Index of this worker, counted from 0.
        is_chief: Whether this worker writes the run folder.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self.count, self.index = worker_count(strategy), worker_index(strategy)
        self.is_chief = is_chief(strategy)

    def sum(self, values: list[float]) -> list[float]:
        """Returns the elementwise sums of all workers' values, added in float64."""
        if self.count == 1:
            return values
        sums = sum_over_workers(self._strategy, tf.constant(values, tf.float64))
        return sums.numpy().tolist()

    def any(self, flag: bool) -> bool:
        """Returns whether at least one worker passes `True`."""
        return self.sum([float(flag)])[0] > 0

    def barrier(self) -> None:
        """Waits until all workers have called this method."""
        self.sum([1.0])

    def check_same_step(self, step: int, model_dir: str) -> None:
        """Checks that all workers resume from the same step.

        All steps are equal if and only if the number of workers times the sum of
        squared steps equals the squared sum of steps. The check needs only `sum`.

        Raises:
            InputError: If the workers have read different checkpoints.
        """
        count, step_sum, square_sum = self.sum([1.0, float(step), float(step) ** 2])
        if round(count * square_sum) != round(step_sum**2):
            raise InputError(
                "All workers must share model_dir and resume from the same step. "
                f"Received: {model_dir!r}, where this worker found step {step}"
            )


class StopRequested(Exception):
    """Signals that the run must end after the current step because of a signal."""


class StopFlag:
    """A flag that SIGTERM or Ctrl-C sets in this process.

    Attributes:
        cause: `"SIGTERM"` or `"Ctrl-C"`, whichever came first; `None` before.
    """

    def __init__(self) -> None:
        self.cause: str | None = None
        self._was_interrupted = False

    @contextlib.contextmanager
    def set_by_signals(self) -> Iterator[None]:
        """Installs signal handlers that set the flag inside the context.

        Ignored signals stay ignored. Does nothing outside the main thread, as other
        threads cannot install handlers.

        Raises:
            KeyboardInterrupt: At the second Ctrl-C.
        """
        with contextlib.ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                for signum in (signal.SIGTERM, signal.SIGINT):
                    handler = signal.getsignal(signum)
                    if handler not in (signal.SIG_IGN, None):
                        stack.callback(signal.signal, signum, handler)
                        signal.signal(signum, self._set)
            yield

    def _set(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if signum == signal.SIGINT:
            if self._was_interrupted:
                raise KeyboardInterrupt(
                    "Stopped at once by a second Ctrl-C. The same command resumes the "
                    "run from its last checkpoint"
                )
            self._was_interrupted = True
            # `print` is not safe in a signal handler.
            with contextlib.suppress(OSError):
                os.write(2, b"Stopping with a checkpoint; Ctrl-C again stops at once\n")
        self.cause = self.cause or ("Ctrl-C" if signum == signal.SIGINT else "SIGTERM")
