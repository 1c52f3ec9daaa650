"""The run folder: what a training run leaves behind.

run.json        settings, classes, preprocessing, versions, commit, machine
augmented.png   images of the first training batch, as the network gets them
metrics.csv     one row for each epoch
curves.png      the same as a picture
best.keras      highest accuracy on the held-out images, which chooses it:
                its accuracy there is a little flattering
final.keras     the end of training; its presence says that the run is done
checkpoints/    while it runs: what it resumes from
tensorboard/    where the run was asked for it

python -m keras_resnet.runs              # lists all below runs/, the best first
python -m keras_resnet.runs --csv DIR... # these, or those below them, as CSV
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import keras

from keras_resnet.evaluation import RunRecord, read_record, write_record
from keras_resnet.spec import FREE_FIELDS, RunSpec
from keras_resnet.support import (
    InputError,
    Path,
    remove_partial_files,
    to_csv,
    write_file,
)
from keras_resnet.training.figures import draw_curves
from keras_resnet.weights import save_model


@contextlib.contextmanager
def open_run_folder(model_dir: str, record: RunRecord) -> Iterator[None]:
    """Makes a run folder with its record; no other process trains into it within.

    Raises:
        InputError: The folder cannot be written, another process is in it, or the run
            has ended.
    """
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(model_dir, exist_ok=True)
            stack.enter_context(locked_folder(model_dir))
            if os.path.exists(os.path.join(model_dir, "final.keras")):
                raise InputError(f"The run in {model_dir} has ended by now")
            remove_leftovers(model_dir)
            write_record(model_dir, record)
        except OSError as error:
            raise InputError(
                "model_dir must be a folder that can be written. "
                f"Received: {model_dir!r} ({error.strerror or error})"
            ) from None
        yield


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a run folder, where the system has such locks.

    Raises:
        InputError: Another process is in it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # Some network file systems have none.
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"Another process is training into {os.fspath(folder)!r}"
                ) from None
        yield
    finally:
        os.close(handle)  # This releases the lock, as the end of the process would.


def has_ended(model_dir: str, spec: RunSpec, classes: tuple[str, ...]) -> bool:
    """Whether a folder holds the end of this run.

    Raises:
        InputError: The folder is of a run with other settings, or holds other files.
    """
    record = read_record(model_dir)
    if record is None:
        if os.path.isdir(model_dir) and os.listdir(model_dir):
            raise InputError(
                "model_dir must be a new or empty folder, or that of the same run. "
                f"Received: {model_dir!r}, which holds other files"
            )
        return False
    results = ("metrics.csv", "checkpoints", "final.keras")
    if not any(os.path.exists(os.path.join(model_dir, name)) for name in results):
        return False  # Nothing but the record: the run has not begun.
    began = {**record.spec.to_settings(), "classes": list(record.classes)}
    now = {**spec.to_settings(), "classes": list(classes)}
    differ = [
        f"{name} (began with {began[name]!r}, now {now[name]!r})"
        for name in began
        if began[name] != now[name] and name not in FREE_FIELDS
    ]
    if differ:
        raise InputError(
            f"The run in {model_dir} began with other settings; repeat them, or choose "
            f"another model_dir. Different: {', '.join(differ)}"
        )
    return os.path.exists(os.path.join(model_dir, "final.keras"))


def remove_leftovers(folder: Path, ended: bool = False) -> None:
    """Removes what a killed process left half written in a run folder.

    Args:
        folder: A folder that nothing else writes to.
        ended: Whether the run has ended, so that its checkpoints can go too.
    """
    remove_partial_files(folder)
    if ended:
        shutil.rmtree(os.path.join(folder, "checkpoints"), ignore_errors=True)


# Of metrics.csv: means over the epoch, means over the validation split after it, and
# the rate of the step that follows.
COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


class RunFolder(keras.callbacks.Callback):
    """Keeps `metrics.csv` and `best.keras`, and draws `curves.png` at the end.

    `metrics.csv` is written whole after each epoch, from the rows in the checkpoint:
    a resumed run leaves the same file as an undisturbed one. Of several workers one
    `writes`.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        super().__init__()
        # A `Path`, not a `str`, so that it stays out of the checkpoint and a moved
        # folder resumes in place.
        self.path = pathlib.Path(path)
        # A function, which stays out of the checkpoint too: a worker that restores the
        # chief's checkpoint must not begin to write.
        self.writes = lambda: writes
        self.rows: list[dict[str, float]] = []
        self.best = -1.0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.rows.append({"epoch": epoch + 1, **logs})
        if not self.writes():
            return
        write_file(self.path / "metrics.csv", to_csv(self.rows, COLUMNS))
        if logs["val_accuracy"] > self.best:
            self.best = logs["val_accuracy"]
            save_network(self.model, str(self.path / "best.keras"))

    def on_train_end(self, logs: Any = None) -> None:
        if self.writes() and self.rows:
            write_file(self.path / "curves.png", draw_curves(self.rows))


def save_network(network: keras.Model, path: str) -> None:
    """Saves a network without the run's optimizer, which Keras alone cannot load."""
    optimizer = getattr(network, "optimizer", None)
    # With a name. Keras would number them, and the files of two runs would differ.
    network.optimizer = keras.optimizers.SGD(name="sgd")
    try:
        save_model(network, path)
    finally:
        network.optimizer = optimizer
