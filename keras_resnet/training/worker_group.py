"""Communication between the workers of a run, and a stop flag that SIGTERM sets."""

import contextlib
import signal
import threading
from collections.abc import Iterator

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
    """Signals that the run must end after the current step because of SIGTERM."""


class StopFlag:
    """A flag that SIGTERM sets in this process."""

    def __init__(self) -> None:
        self.is_set = False

    @contextlib.contextmanager
    def set_by_sigterm(self) -> Iterator[None]:
        """Installs a SIGTERM handler that sets the flag inside the context.

        Does nothing outside the main thread, as other threads cannot install handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def set_flag(*_: object) -> None:
            self.is_set = True

        original_handler = signal.signal(signal.SIGTERM, set_flag)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, original_handler)
