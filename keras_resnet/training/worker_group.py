"""What the workers of a run agree on, and SIGTERM, which ends one, as a flag."""

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
    """The processes that train one network together, of which this is one.

    Every method that communicates must be called by all workers at the same point.

    Args:
        strategy: The run's strategy.

    Attributes:
        count: Number of workers.
        index: Number of this worker.
        is_chief: Whether this worker writes the run folder.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self.count, self.index = worker_count(strategy), worker_index(strategy)
        self.is_chief = is_chief(strategy)

    def sum(self, values: list[float]) -> list[float]:
        """Adds up numbers over all workers, in float64."""
        if self.count == 1:
            return values
        sums = sum_over_workers(self._strategy, tf.constant(values, tf.float64))
        return sums.numpy().tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any worker."""
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Waits until all workers are here."""
        self.sum([1.0])

    def check_same_step(self, step: int, model_dir: str) -> None:
        """Refuses workers that found different checkpoints.

        Raises:
            InputError: They would go on from different steps.
        """
        count, total, squares = self.sum([1.0, float(step), float(step) ** 2])
        if round(count * squares) != round(total**2):
            raise InputError(
                "The workers found different checkpoints; model_dir must be a folder "
                f"that they share. Received: {model_dir!r}, where this one found step "
                f"{step}"
            )


class Stopped(Exception):
    """The run was told to stop, between two steps."""


class StopSignal:
    """A flag that SIGTERM sets.

    Attributes:
        is_set: Whether this process was told to stop.
    """

    def __init__(self) -> None:
        self.is_set = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handles SIGTERM within; only in the main thread, where Python allows it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: object) -> None:
            self.is_set = True

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
