"""Training checkpoints, from which an interrupted run resumes exactly.

A checkpoint is a `tf.train.Checkpoint` with the weights, the optimizer's variables, the
averaged weights and the sums of the epoch so far. `Progress` adds the number of steps
and the state of the callbacks as JSON. Batches depend only on the seed and the step, so
they need no state. More than one checkpoint is kept in case the newest is damaged.
"""

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

# Version of the JSON text that `Progress` writes.
FORMAT = 1

# Errors that TensorFlow raises for damaged checkpoints and for those of other networks.
_DAMAGE = (tf.errors.OpError, AssertionError, RuntimeError, ValueError, LookupError)


class Progress(tf.train.experimental.PythonState):
    """Number of steps and state of the callbacks, which checkpoints save as JSON."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        super().__init__()
        self.step = 0
        self._callbacks = callbacks
        self._restored: list[dict[str, Any]] = []

    def serialize(self) -> str:
        states = []
        for callback in self._callbacks:
            items = vars(callback).items()
            attributes = {k: v for k, v in items if k != "params" and _is_plain(v)}
            states.append({"class": type(callback).__name__, "state": attributes})
        state = {"format": FORMAT, "step": self.step, "callbacks": states}
        return json.dumps(state, default=_encode)

    def deserialize(self, string_value: str) -> None:
        state = json.loads(string_value, object_hook=_decode)
        self.step, self._restored = state["step"], state["callbacks"]

    def restore_callbacks(self) -> None:
        """Restores the callbacks' attributes, after `on_epoch_begin` has reset some."""
        for callback, saved in zip(self._callbacks, self._restored, strict=True):
            vars(callback).update(saved["state"])

    def check_callbacks(self) -> None:
        """Raises an `InputError` if the checkpoint was written with other callbacks."""
        old_names = [saved["class"] for saved in self._restored]
        new_names = [type(callback).__name__ for callback in self._callbacks]
        if old_names != new_names:
            raise InputError(
                "A run must resume with the callbacks that it began with, "
                f"{', '.join(old_names)}. Received: {', '.join(new_names)}"
            )


def _is_plain(value: Any) -> bool:
    """Returns whether a checkpoint saves a callback's attribute of this value."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    numbers = int | float | np.ndarray | np.integer | np.floating | np.bool_
    return value is None or isinstance(value, str | numbers)


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
    """Writes and reads the checkpoints of a run, and keeps the newest `keep` of them.

    Raises:
        InputError: If TensorFlow's list of checkpoints is damaged.
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
        list_path = os.path.join(directory, "checkpoint")
        try:
            self._manager = tf.train.CheckpointManager(
                checkpoint, directory, max_to_keep=keep, checkpoint_name="step"
            )
            has_checkpoints = bool(self._manager.checkpoints)
        except ValueError:  # The list is empty.
            has_checkpoints = False
        if os.path.exists(list_path) and not has_checkpoints:
            raise InputError(
                f"{list_path}, which lists the checkpoints, is damaged; remove "
                f"{directory} to start the run again"
            )

    def save(self, step: int) -> None:
        """Writes a checkpoint. Older ones are deleted only after it is complete."""
        try:
            self._manager.save(step)
        except tf.errors.OpError as error:
            raise OSError(
                f"Could not write a checkpoint to {self._directory}; the previous one "
                f"is intact: {error.message.splitlines()[0]}"
            ) from error

    def newest(self) -> str | None:
        """Returns the path of the newest checkpoint, or `None` if there is none."""
        paths = reversed(self._manager.checkpoints)
        return next((path for path in paths if os.path.exists(f"{path}.index")), None)

    def restore(self) -> bool:
        """Restores the newest intact checkpoint; returns whether there is one.

        Raises:
            InputError: If all checkpoints are damaged, or if one is of another run.
        """
        paths = self._manager.checkpoints
        for path in reversed(paths):
            try:
                self._read(path)
                return True
            except InputError:
                raise
            except _DAMAGE as error:
                reason = first_line(error)
                if path == paths[0]:
                    raise InputError(
                        f"The checkpoint {path} is damaged or of another network, and "
                        f"no earlier one is intact; remove {self._directory} to start "
                        f"the run again ({reason})"
                    ) from error
                print(
                    f"The checkpoint {path} is damaged; taking an older one ({reason})",
                    file=sys.stderr,
                )
        return False

    def _read(self, path: str) -> None:
        key = "progress/.ATTRIBUTES/py_state"
        reader = tf.train.load_checkpoint(path)
        if not reader.has_tensor(key):
            raise InputError(f"The checkpoint {path} was not written by keras_resnet")
        format_number = json.loads(reader.get_tensor(key)).get("format", 1)
        if format_number > FORMAT:
            raise InputError(
                f"The checkpoint {path} has format {format_number}, from a newer "
                f"keras_resnet; this version reads formats up to {FORMAT}"
            )
        self._manager.checkpoint.restore(path).expect_partial().assert_consumed()
        self._progress.check_callbacks()
