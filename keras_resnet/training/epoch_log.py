"""Loss and accuracy of a training epoch: reading, checking and printing them."""

import math
import time
from collections.abc import Mapping

import keras

from keras_resnet.training.checkpoints import Checkpoints
from keras_resnet.training.step import Step

# Minimum time between two reads of the sums, in seconds. A read waits for the device.
READING_INTERVAL = 0.1


class EpochLog:
    """Mean training loss and accuracy of an epoch up to now.

    Args:
        step: Training step, whose sums are read.
        checkpoints: Checkpoints of the run, which error messages refer to.
        first_step: Number of steps of the run before this epoch.
    """

    def __init__(self, step: Step, checkpoints: Checkpoints, first_step: int) -> None:
        self._step, self._checkpoints = step, checkpoints
        self._first_step, self._read_at = first_step, -math.inf
        self._logs: dict[str, float] = {}

    def recent(self) -> dict[str, float]:
        """Returns logs that are at most READING_INTERVAL seconds old."""
        if time.monotonic() - self._read_at > READING_INTERVAL:
            self.read()
        return self._logs

    def read(self) -> dict[str, float]:
        """Waits for the device, then returns the logs up to the last step.

        Raises:
            FloatingPointError: If the loss of a step is not finite.
        """
        loss, num_correct, count, finite_steps = self._step.sums.numpy().tolist()
        if not math.isfinite(loss):
            rate = current_learning_rate(self._step.optimizer)
            raise FloatingPointError(
                f"The loss of step {self._first_step + int(finite_steps) + 1} is not "
                f"finite, at a learning rate of about {rate:.3g}; "
                f"{describe_last_checkpoint(self._checkpoints)}"
            )
        self._read_at = time.monotonic()
        self._logs = {"loss": loss / count, "accuracy": num_correct / count}
        return self._logs


def current_learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the learning rate of the next step."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def describe_last_checkpoint(checkpoints: Checkpoints) -> str:
    """Returns the end of an error message, which names the last checkpoint."""
    path = checkpoints.newest()
    clause = f"the last good checkpoint is {path}" if path else "no checkpoint exists"
    return f"{clause}. A lower learning_rate may help"


def format_epoch(
    epoch: int,
    epochs: int,
    logs: Mapping[str, float],
    images_per_second: float,
    seconds_left: float,
) -> str:
    """Returns the progress line of an epoch; `epoch` is counted from 1."""
    values = " - ".join(f"{name}: {value:.4f}" for name, value in logs.items())
    return (
        f"epoch {epoch}/{epochs} - {values} - {images_per_second:.0f} images/s - "
        f"{format_duration(seconds_left)} left"
    )


def format_duration(seconds: float) -> str:
    """Returns a duration as text, such as 3:05 (minutes) or 2:03:05 (hours)."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
