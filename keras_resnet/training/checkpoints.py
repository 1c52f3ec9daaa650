"""Training checkpoints, from which an interrupted run resumes exactly.

A checkpoint is a `tf.train.Checkpoint` with the weights, the optimizer's variables, the
averaged weights and the sums that `Step` adds up in the current epoch. `Progress` saves
the number of steps and the state of the callbacks as JSON. Nothing is saved about the
batches, which depend only on the seed and the step. Older checkpoints are kept in case
the newest checkpoint is damaged.

`tf.train.CheckpointManager` is not used, because it flushes nothing to the disk. After a
power failure, its newest files and its list of checkpoints may be empty.
"""

import base64
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.evaluation import find_checkpoints
from keras_resnet.support import InputError, first_line, replace_folder_atomically
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
        self.damaged: Sequence[int] = ()  # Indices of damaged training images.
        self._callbacks = callbacks
        self._restored_states: list[dict[str, Any]] = []

    def serialize(self) -> str:
        states = []
        for callback in self._callbacks:
            items = vars(callback).items()
            attributes = {k: v for k, v in items if k != "params" and _is_saveable(v)}
            states.append({"class": type(callback).__name__, "state": attributes})
        state = {"format": FORMAT_NUMBER, "step": self.step, "callbacks": states}
        state["damaged"] = list(self.damaged)
        return json.dumps(state, default=_encode)

    def deserialize(self, string_value: str) -> None:
        state = json.loads(string_value, object_hook=_decode)
        self.step, self._restored_states = state["step"], state["callbacks"]
        self.damaged = state.get("damaged", ())  # Version 0.1.0 did not save these.

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

    The folder `step-8` contains the checkpoint of step 8. It has this name only after
    the whole checkpoint was flushed to the disk.
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
        self._max_to_keep = max_to_keep
        self._newest_step: int | None = None  # Step that was saved or restored last.
        variables = [*network.variables, *network.optimizer.variables]
        self._variables = {
            f"{i:05d} {v.path}": v.value for i, v in enumerate(variables)
        }
        self._others = {
            "averages": step.averages, "sums": step.sums, "progress": progress
        }  # fmt: skip
        self._checkpoint = tf.train.Checkpoint(
            variables=self._variables, **self._others
        )
        _ = self._checkpoint.save_counter  # `restore` expects that the file has it.

    def save(self, step: int) -> None:
        """Writes a checkpoint, then deletes all but the newest `max_to_keep`."""
        if step == self._newest_step:
            return
        path = os.path.join(self._directory, f"step-{step}")
        try:
            with replace_folder_atomically(path) as folder:
                self._checkpoint.write(os.path.join(folder, "state"))
        except (tf.errors.OpError, OSError, InputError) as error:
            raise OSError(
                f"Could not write a checkpoint to {self._directory}. Earlier "
                f"checkpoints are intact. Cause: {first_line(error)}"
            ) from error
        self._newest_step = step
        steps = list(find_checkpoints(self._directory))
        # A later checkpoint is damaged. Otherwise the run would have resumed from it.
        kept_steps = [s for s in steps if s <= step][-self._max_to_keep :]
        for old_step in set(steps).difference(kept_steps):
            shutil.rmtree(f"{self._directory}/step-{old_step}", ignore_errors=True)
            for old_path in pathlib.Path(self._directory).glob(f"step-{old_step}.*"):
                old_path.unlink()

    def find_newest(self) -> str | None:
        """Returns the path of the newest checkpoint, or `None` if there is none."""
        return next(reversed(find_checkpoints(self._directory).values()), None)

    def restore(self) -> bool:
        """Restores the newest intact checkpoint; returns `False` if none exists.

        Raises:
            InputError: If all checkpoints are damaged, or if the newest intact
                checkpoint was written with other callbacks, other software or a newer
                version of keras_resnet.
        """
        paths = list(find_checkpoints(self._directory).values())
        for path in reversed(paths):
            try:
                self._restore_from(path)
                self._newest_step = self._progress.step
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
        for file in pathlib.Path(path).parent.glob(f"{os.path.basename(path)}.*"):
            if not file.is_file():  # Reading a pipe would never end.
                raise ValueError(f"{file} is no regular file")
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
