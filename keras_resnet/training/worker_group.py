"""What the workers of a run agree on."""

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
        self.count = worker_count(strategy)
        self.index = worker_index(strategy)
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

        Args:
            step: Step from which this worker goes on.
            model_dir: The run folder, for the message.

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
