"""Training checkpoints, from which an interrupted run resumes exactly.

A checkpoint is a `tf.train.Checkpoint` with the weights, the optimizer's variables, the
averaged weights and the sums that `Step` adds up in the current epoch. `Progress` saves
the number of steps and the state of the callbacks as JSON. Nothing is saved about the
batches, which depend only on the seed and the step. Older checkpoints are kept in case
the newest checkpoint is damaged.
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

# Format number of the JSON text in which `Progress` is saved.
FORMAT_NUMBER = 1

# Errors that TensorFlow raises if a checkpoint is damaged or has other variables.
_ERRORS = (tf.errors.OpError, AssertionError, RuntimeError, ValueError, LookupError)


class Progress(tf.train.experimental.PythonState):
    """Number of steps and state of the callbacks, which checkpoints save as JSON."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        super().__init__()
        self.step = 0
        self._callbacks = callbacks
        self._restored_states: list[dict[str, Any]] = []

    def serialize(self) -> str:
        states = []
        for callback in self._callbacks:
            items = vars(callback).items()
            attributes = {k: v for k, v in items if k != "params" and _is_saveable(v)}
            states.append({"class": type(callback).__name__, "state": attributes})
        state = {"format": FORMAT_NUMBER, "step": self.step, "callbacks": states}
        return json.dumps(state, default=_encode)

    def deserialize(self, string_value: str) -> None:
        state = json.loads(string_value, object_hook=_decode)
        self.step, self._restored_states = state["step"], state["callbacks"]

    def restore_callbacks(self) -> None:
        """Restores callback attributes, some of which `on_epoch_begin` has reset."""
        for callback, state in zip(self._callbacks, self._restored_states, strict=True):
            vars(callback).update(state["state"])

    def check_callbacks(self) -> None:
        """Raises an `InputError` if the checkpoint was written with other callbacks."""
        old_names = [state["class"] for state in self._restored_states]
        new_names = [type(callback).__name__ for callback in self._callbacks]
        if old_names != new_names:
            raise InputError(
                "A run must resume with the callbacks that it began with: "
                f"{', '.join(old_names)}. Received: {', '.join(new_names)}"
            )


def _is_saveable(value: Any) -> bool:
    """Returns whether checkpoints save callback attributes with this value."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_saveable(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_is_saveable, value))
    number_types = int | float | np.ndarray | np.integer | np.floating | np.bool_
    return value is None or isinstance(value, str | number_types)


def _encode(array: np.ndarray | np.generic) -> Any:
    if isinstance(array, np.generic):
        return array.item()
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"array": content, "dtype": array.dtype.name, "shape": array.shape}


def _decode(value: dict[str, Any]) -> Any:
    if value.keys() != {"array", "dtype", "shape"}:
        return value
    array = np.frombuffer(base64.b64decode(value["array"]), value["dtype"])
    return array.reshape(value["shape"]).copy()


class Checkpoints:
    """Writes and reads the checkpoints of a run; keeps only the newest `max_to_keep`.

    Raises:
        InputError: If the file that lists the checkpoints is damaged.
    """

    def __init__(
        self,
        directory: str,
        network: keras.Model,
        step: Step,
        progress: Progress,
        max_to_keep: int = 2,
    ) -> None:
        self._directory, self._progress = directory, progress
        variables = [*network.variables, *network.optimizer.variables]
        self._variables = {
            f"{i:05d} {v.path}": v.value for i, v in enumerate(variables)
        }
        self._others = {
            "averages": step.averages, "sums": step.sums, "progress": progress
        }  # fmt: skip
        checkpoint = tf.train.Checkpoint(variables=self._variables, **self._others)
        checkpoint_list_path = os.path.join(directory, "checkpoint")
        try:
            self._manager = tf.train.CheckpointManager(
                checkpoint, directory, max_to_keep=max_to_keep, checkpoint_name="step"
            )
            has_checkpoints = bool(self._manager.checkpoints)
        except ValueError:  # Raised if the file that lists the checkpoints is empty.
            has_checkpoints = False
        if os.path.exists(checkpoint_list_path) and not has_checkpoints:
            raise InputError(
                f"The list of checkpoints {checkpoint_list_path} is damaged. "
                f"Remove {directory} to start the run again"
            )

    def save(self, step: int) -> None:
        """Writes a checkpoint, then deletes all but the newest `max_to_keep`."""
        try:
            self._manager.save(step)
        except tf.errors.OpError as error:
            raise OSError(
                f"Could not write a checkpoint to {self._directory}. Earlier "
                f"checkpoints are intact. Cause: {error.message.splitlines()[0]}"
            ) from error

    def find_newest(self) -> str | None:
        """Returns the path of the newest checkpoint, or `None` if there is none."""
        paths = reversed(self._manager.checkpoints)
        return next((path for path in paths if os.path.exists(f"{path}.index")), None)

    def restore(self) -> bool:
        """Restores the newest intact checkpoint; returns `False` if none exists.

        Raises:
            InputError: If all checkpoints are damaged, or if the newest intact
                checkpoint was written with other callbacks, other software or a newer
                version of keras_resnet.
        """
        paths = self._manager.checkpoints
        for path in reversed(paths):
            try:
                self._restore_from(path)
                return True
            except InputError:
                raise
            except _ERRORS as error:
                reason = first_line(error)
                if path == paths[0]:
                    raise InputError(
                        f"The checkpoint {path} is damaged or belongs to another "
                        "network, and no earlier checkpoint is intact. Remove "
                        f"{self._directory} to start the run again. Cause: {reason}"
                    ) from error
                print(
                    f"The checkpoint {path} is damaged; an older checkpoint is tried. "
                    f"Cause: {reason}",
                    file=sys.stderr,
                )
        return False

    def _restore_from(self, path: str) -> None:
        key = "progress/.ATTRIBUTES/py_state"
        reader = tf.train.load_checkpoint(path)
        if not reader.has_tensor(key):
            raise InputError(f"The checkpoint {path} was not written by keras_resnet")
        format_number = json.loads(reader.get_tensor(key)).get("format", 1)
        if format_number > FORMAT_NUMBER:
            raise InputError(
                f"The checkpoint {path} has format {format_number}, from a newer "
                f"keras_resnet. Update keras_resnet to read formats above {FORMAT_NUMBER}"
            )
        # Keras numbers the seed generators of a process, so their names in the file differ
        # if the run was interrupted in this process. Replace them by the names in the file.
        keys = [key for key in reader.get_variable_to_shape_map() if "seed_gen" in key]
        names = [key.split("/")[1].replace(".S", "/") for key in keys]
        file_names = {name[:20]: name for name in names}  # By "00012 seed_generator".
        variables = {file_names.get(n[:20], n): v for n, v in self._variables.items()}
        checkpoint = tf.train.Checkpoint(variables=variables, **self._others)
        checkpoint.restore(path).expect_partial().assert_consumed()
        self._progress.check_callbacks()
