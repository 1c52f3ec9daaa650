"""Loss and accuracy during a training epoch, and progress lines."""

import math
import time
from collections.abc import Mapping

import keras

from keras_resnet.training.checkpoints import Checkpoints
from keras_resnet.training.step import Step

# Minimum seconds between two reads of `Step.sums`. A read waits for the device.
READING_INTERVAL = 0.1


class EpochLog:
    """Mean training loss and accuracy over the completed steps of an epoch.

    Args:
        step: Training step, whose `sums` are read.
        checkpoints: Checkpoints of the run. Error messages name the newest checkpoint.
        first_step: Number of steps of the run before this epoch.
    """

    def __init__(self, step: Step, checkpoints: Checkpoints, first_step: int) -> None:
        self._step, self._checkpoints = step, checkpoints
        self._first_step, self._read_at = first_step, -math.inf
        self._logs: dict[str, float] = {}

    def read_recent(self) -> dict[str, float]:
        """Returns the result of `read`, which is cached for `READING_INTERVAL`."""
        if time.monotonic() - self._read_at > READING_INTERVAL:
            self.read()
        return self._logs

    def read(self) -> dict[str, float]:
        """Returns a dict with the mean "loss" and "accuracy"; waits for the device.

        Raises:
            FloatingPointError: If the loss of a step is not finite.
        """
        loss, num_correct, num_images, num_steps = self._step.sums.numpy().tolist()
        if not math.isfinite(loss):
            rate = read_learning_rate(self._step.optimizer)
            raise FloatingPointError(
                f"The loss of step {self._first_step + int(num_steps) + 1} is not "
                f"finite. The learning rate is about {rate:.3g}; "
                f"{describe_last_checkpoint(self._checkpoints)}"
            )
        self._read_at = time.monotonic()
        self._logs = {"loss": loss / num_images, "accuracy": num_correct / num_images}
        return self._logs


def read_learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the learning rate of the next step."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def describe_last_checkpoint(checkpoints: Checkpoints) -> str:
    """Returns the end of an error message, with the newest checkpoint and advice."""
    path = checkpoints.find_newest()
    clause = f"the last good checkpoint is {path}" if path else "no checkpoint exists"
    return f"{clause}. A lower learning_rate may help"


def format_epoch(
    epoch: int,
    num_epochs: int,
    logs: Mapping[str, float],
    images_per_second: float,
    seconds_left: float,
) -> str:
    """Returns the progress line of an epoch. `epoch` is counted from 1."""
    values = " - ".join(f"{name}: {value:.4f}" for name, value in logs.items())
    return (
        f"epoch {epoch}/{num_epochs} - {values} - {images_per_second:.0f} images/s - "
        f"{format_duration(seconds_left)} left"
    )


def format_duration(seconds: float) -> str:
    """Formats a duration as minutes:seconds or hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
