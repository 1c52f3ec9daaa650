"""What a run says of its steps: loss and accuracy, checked and printed."""

import math
import time
from collections.abc import Mapping

import keras

from keras_resnet.training.checkpoints import Checkpoints
from keras_resnet.training.step import Step

# Seconds between two readings of the sums, each of which waits for the device.
READING_INTERVAL = 0.1


class EpochLog:
    """Loss and accuracy of the training images of an epoch so far.

    Args:
        step: Step, whose sums are read.
        checkpoints: Checkpoints of which messages name the last.
        first_step: Number of steps of the run before this epoch.
    """

    def __init__(self, step: Step, checkpoints: Checkpoints, first_step: int) -> None:
        self._step, self._checkpoints = step, checkpoints
        self._first_step, self._read_at = first_step, -math.inf
        self._logs: dict[str, float] = {}

    def recent(self) -> dict[str, float]:
        """Returns the logs, at most READING_INTERVAL seconds old."""
        if time.monotonic() - self._read_at > READING_INTERVAL:
            self.read()
        return self._logs

    def read(self) -> dict[str, float]:
        """Returns the logs as they are now.

        Raises:
            FloatingPointError: The loss of a step is no longer a number.
        """
        loss, right, count, good_steps = self._step.sums.numpy().tolist()
        if not math.isfinite(loss):
            rate = current_rate(self._step.optimizer)
            raise FloatingPointError(
                f"The loss of step {self._first_step + int(good_steps) + 1} is no longer "
                f"a number, at a learning rate of about {rate:.3g}; "
                f"{last_good(self._checkpoints)}"
            )
        self._read_at = time.monotonic()
        self._logs = {"loss": loss / count, "accuracy": right / count}
        return self._logs


def current_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the learning rate of the next step."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def last_good(checkpoints: Checkpoints) -> str:
    """Says where a run can be taken up again after its loss went astray."""
    path = checkpoints.newest()
    last = (
        f"the last good checkpoint is {path}"
        if path
        else "there is no checkpoint before it"
    )
    return f"{last}. A lower learning_rate may help"


def format_epoch(
    epoch: int,
    epochs: int,
    logs: Mapping[str, float],
    images_per_second: float,
    seconds_left: float,
) -> str:
    """Returns one line of the results of an epoch, counted from 1."""
    values = " - ".join(f"{name}: {value:.4f}" for name, value in logs.items())
    return (
        f"epoch {epoch}/{epochs} - {values} - {images_per_second:.0f} images/s - "
        f"{format_duration(seconds_left)} left"
    )


def format_duration(seconds: float) -> str:
    """Returns a duration as minutes or hours, such as 3:05 or 2:03:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
