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

# Errors of TensorFlow at a checkpoint that is damaged or of another network.
_DAMAGE = (tf.errors.OpError, AssertionError, RuntimeError, ValueError, LookupError)


class Progress(tf.train.experimental.PythonState):
    """The step, and the plain attributes of callbacks: no variables of TensorFlow."""

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        super().__init__()
        self.step = 0
        self._callbacks = callbacks
        self._restored: list[dict[str, Any]] = []

    def serialize(self) -> str:
        states = []
        for callback in self._callbacks:
            items = vars(callback).items()
            plain = {k: v for k, v in items if k != "params" and _is_plain(v)}
            states.append({"class": type(callback).__name__, "state": plain})
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
    """Writes and reads the checkpoints of a run.

    Args:
        directory: Folder of the checkpoints.
        network: Network with the run's optimizer.
        step: Step, whose sums and averages are kept.
        progress: Number of steps, and the callbacks.
        keep: Number of checkpoints that are kept, the last ones.

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
        noted = reversed(self._manager.checkpoints)
        return next((path for path in noted if os.path.exists(f"{path}.index")), None)

    def restore(self) -> bool:
        """Reads the newest checkpoint that is whole; returns whether there is one.

        One that was damaged after it was written is passed over for the one before.

        Raises:
            InputError: None of them can be read, or one is of something else.
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
                        f"none before it is whole; remove {self._directory} to begin "
                        f"anew ({reason})"
                    ) from error
                print(
                    f"The checkpoint {path} is damaged; taking the one before ({reason})",
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
                f"keras_resnet; this one reads up to {FORMAT}"
            )
        self._manager.checkpoint.restore(path).expect_partial().assert_consumed()
        self._progress.check_callbacks()
