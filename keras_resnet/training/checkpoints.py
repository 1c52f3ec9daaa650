"""Checkpoints of a run: everything that it needs to go on as if never cut short."""

import base64
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.support import InputError, first_line
from keras_resnet.training.step import Step

# Of what Progress writes; a higher one is a newer version's.
FORMAT = 1


class Progress(tf.train.experimental.PythonState):
    """What a checkpoint holds beside variables: the step, and the callbacks.

    Args:
        callbacks: Keras callbacks, whose plain attributes it holds.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        super().__init__()
        self.step = 0
        self._callbacks = callbacks
        self._restored: list[dict[str, Any]] = []

    def serialize(self) -> str:
        states = [
            {
                "class": type(callback).__name__,
                "state": {
                    key: value
                    for key, value in vars(callback).items()
                    if key != "params" and _is_plain(value)
                },
            }
            for callback in self._callbacks
        ]
        state = {"format": FORMAT, "step": self.step, "callbacks": states}
        return json.dumps(state, default=_encode)

    def deserialize(self, string_value: str) -> None:
        state = json.loads(string_value, object_hook=_decode)
        self.step, self._restored = state["step"], state["callbacks"]

    def restore_callbacks(self) -> None:
        """Gives the callbacks the state they had; after `on_epoch_begin`."""
        for callback, saved in zip(self._callbacks, self._restored, strict=True):
            vars(callback).update(saved["state"])

    def check_callbacks(self) -> None:
        """Refuses other callbacks than those that the checkpoint is of."""
        began = [saved["class"] for saved in self._restored]
        now = [type(callback).__name__ for callback in self._callbacks]
        if began != now:
            raise InputError(
                "A run resumes with the callbacks it began with, "
                f"{', '.join(began)}. Received: {', '.join(now)}"
            )


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint holds an attribute of a callback."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(
        value,
        str | bool | int | float | np.ndarray | np.integer | np.floating | np.bool_,
    )


def _encode(array: np.ndarray | np.generic) -> Any:
    if isinstance(array, np.generic):
        return array.item()
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"array": content, "dtype": array.dtype.name, "shape": array.shape}


def _decode(value: dict[str, Any]) -> Any:
    if value.keys() != {"array", "dtype", "shape"}:
        return value
    content = np.frombuffer(base64.b64decode(value["array"]), value["dtype"])
    return content.reshape(value["shape"]).copy()


class Checkpoints:
    """Writes and reads the checkpoints of a run.

    Args:
        directory: the folder that they are in.
        network: a `keras.Model`, with the run's optimizer.
        step: the `keras_resnet.steps.Step` whose sums and averages belong to it.
        progress: a `Progress`.
        keep: how many of the last are kept.

    Raises:
        InputError: TensorFlow's note of which there are is damaged.
    """

    def __init__(
        self,
        directory: str,
        network: keras.Model,
        step: Step,
        progress: Progress,
        keep: int = 2,
    ) -> None:
        self._directory, self._progress = directory, progress
        variables = [*network.variables, *network.optimizer.variables]
        checkpoint = tf.train.Checkpoint(
            variables={f"{i:05d} {v.path}": v.value for i, v in enumerate(variables)},
            averages=step.averages,
            sums=step.sums,
            progress=progress,
        )
        note = os.path.join(directory, "checkpoint")
        try:
            self._manager = tf.train.CheckpointManager(
                checkpoint, directory, max_to_keep=keep, checkpoint_name="step"
            )
            names_some = bool(self._manager.checkpoints)
        except ValueError:  # The note is empty.
            names_some = False
        if os.path.exists(note) and not names_some:
            raise InputError(
                f"{note}, which names the checkpoints, is damaged; remove {directory} "
                "to begin anew"
            )

    def save(self, step: int) -> None:
        """Writes a checkpoint; those before stay until it is whole."""
        try:
            self._manager.save(step)
        except tf.errors.OpError as error:
            raise OSError(
                f"Could not write a checkpoint to {self._directory}; the one before is "
                f"whole: {error.message.splitlines()[0]}"
            ) from error

    def newest(self) -> str | None:
        """Returns the path of the newest checkpoint, `None` if there is none."""
        return next(iter(self._noted()), None)

    def restore(self) -> bool:
        """Reads the newest checkpoint that is whole; returns whether there is one.

        Of those that TensorFlow noted as written to the end. One that was damaged
        later is passed over for the one before.

        Raises:
            InputError: none of them can be read, or one is of something else.
        """
        paths = list(reversed(self._manager.checkpoints))
        for number, path in enumerate(paths):
            try:
                self._read(path)
            except (
                tf.errors.OpError,
                AssertionError,
                RuntimeError,
                ValueError,
                LookupError,
            ) as error:
                if isinstance(error, InputError):
                    raise
                reason = first_line(error)
                if number + 1 == len(paths):
                    raise InputError(
                        f"The checkpoint {path} is damaged or of another network, and "
                        f"none before it is whole; remove {self._directory} to begin "
                        f"anew ({reason})"
                    ) from error
                print(
                    f"The checkpoint {path} is damaged; taking the one before ({reason})",
                    file=sys.stderr,
                )
            else:
                return True
        return False

    def _noted(self) -> list[str]:
        """The paths of those that were written to the end, the newest first."""
        noted = reversed(self._manager.checkpoints)
        return [path for path in noted if os.path.exists(f"{path}.index")]

    def _read(self, path: str) -> None:
        key = "progress/.ATTRIBUTES/py_state"
        reader = tf.train.load_checkpoint(path)
        if not reader.has_tensor(key):
            raise InputError(f"The checkpoint {path} was not written by keras_resnet")
        format_number = json.loads(reader.get_tensor(key))["format"]
        if format_number > FORMAT:
            raise InputError(
                f"The checkpoint {path} has format {format_number}, from a newer keras_resnet; "
                f"this one reads up to {FORMAT}"
            )
        status = self._manager.checkpoint.restore(path).expect_partial()
        status.assert_consumed()
        self._progress.check_callbacks()
