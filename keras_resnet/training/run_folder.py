"""The run folder, which a training run writes.

run.json        settings, classes, preprocessing, versions, commit and machine
augmented.png   images of the first training batch, after augmentation
metrics.csv     losses and accuracies, one row for each epoch
curves.png      figure of the losses and errors
best.keras      network of the epoch with the highest validation accuracy; this
                accuracy is slightly optimistic, as it is a maximum over the epochs
final.keras     network at the end of training; the run has ended if this file is intact
                and has the hash that run.json notes
checkpoints/    training checkpoints, which are deleted when the run has ended
tensorboard/    event files, if the run has the option `tensorboard`

python -m keras_resnet.runs              # lists all runs below runs/, best first
python -m keras_resnet.runs --csv DIR... # prints the runs in or below DIR as CSV
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import lzma
import os
import pathlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_resnet.evaluation import (
    RunRecord,
    find_checkpoints,
    read_record,
    write_record,
)
from keras_resnet.spec import FREE_ON_RESUME, RunSpec
from keras_resnet.support import (
    InputError,
    StrPath,
    flush_to_disk,
    remove_partial_files,
    to_csv,
    write_file,
)
from keras_resnet.training.figures import draw_curves
from keras_resnet.weights import save_model


@contextlib.contextmanager
def open_run_folder(model_dir: str, record: RunRecord) -> Iterator[None]:
    """Creates a run folder with `run.json`; locks the folder inside the context.

    Raises:
        InputError: If the folder cannot be written, if another process has locked it,
            or if the run has ended.
    """
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(model_dir, exist_ok=True)
            for parent in pathlib.Path(os.path.abspath(model_dir)).parents:
                flush_to_disk(parent)
            stack.enter_context(lock_folder(model_dir))
            if has_ended(model_dir, record.spec, record.classes):
                raise InputError(
                    f"Another process has completed the run in {model_dir}"
                )
            remove_leftovers(model_dir)
            write_record(model_dir, record)
        except OSError as error:
            raise InputError(
                "model_dir must be a writable folder. "
                f"Received: {model_dir!r} ({error.strerror or error})"
            ) from None
        yield


@contextlib.contextmanager
def lock_folder(folder: StrPath) -> Iterator[None]:
    """Locks a run folder inside the context, if the file system supports locks.

    Only one process at a time can therefore train into the folder. The operating system
    releases the lock of a killed process.

    Raises:
        InputError: If another process has locked the folder.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no `fcntl`.
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # Some network file systems lack locks.
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"Another process is training into {os.fspath(folder)!r}"
                ) from None
        yield
    finally:
        os.close(handle)  # Closing the folder releases the lock.


def continue_run(
    model_dir: str, spec: RunSpec
) -> tuple[RunSpec, list[tuple[int, str, int]]]:
    """Returns the settings of a run and `RunRecord.devices`.

    If the folder contains checkpoints, the run keeps the format that it began with.
    """
    record = read_record(model_dir)
    checkpoints = find_checkpoints(os.path.join(model_dir, "checkpoints"))
    if record is None or not checkpoints:
        return spec, []
    old_spec, devices = record.spec, record.devices
    if (old_spec.strategy, old_spec.replicas) != (spec.strategy, spec.replicas):
        devices = devices or [(0, old_spec.strategy, old_spec.replicas)]
        devices = [*devices, (max(checkpoints), spec.strategy, spec.replicas)]
    return dataclasses.replace(spec, format=old_spec.format), devices


def has_ended(model_dir: str, spec: RunSpec, classes: tuple[str, ...]) -> bool:
    """Returns whether the run in the folder has ended.

    Raises:
        InputError: If the run in the folder has settings other than `spec`, if the
            folder contains files but no run, or if the run has ended but its network is
            damaged.
    """
    record = read_record(model_dir)
    if record is None:
        names = os.listdir(model_dir) if os.path.isdir(model_dir) else []
        # A process may have been killed before it had written `run.json`.
        if not all(name.startswith(".run.json.") for name in names):
            raise InputError(
                "model_dir must be new, empty or the run folder of the same run. "
                f"Received: {model_dir!r}, which holds other files"
            )
        return False
    result_names = ("metrics.csv", "checkpoints", "final.keras")
    if not any(os.path.exists(os.path.join(model_dir, name)) for name in result_names):
        return False  # The run has no results yet, so its settings may change.
    old_settings = {**record.spec.to_settings(), "classes": list(record.classes)}
    new_settings = {**spec.to_settings(), "classes": list(classes)}
    effects = record.spec.list_replica_effects(spec.replicas)
    free_names = (*FREE_ON_RESUME, *(() if effects else ("strategy", "replicas")))
    differences = [
        f"{name} (began with {old_settings[name]!r}, now {new_settings[name]!r})"
        for name in old_settings
        if old_settings[name] != new_settings[name] and name not in free_names
    ]
    if differences:
        raise InputError(
            f"The run in {model_dir} began with other settings. Repeat them, or choose "
            f"another model_dir. Different: {', '.join(differences)}"
            + (f". Replicas matter because of {', '.join(effects)}" if effects else "")
        )
    path, noted_digest = os.path.join(model_dir, "final.keras"), record.final_sha256
    digest = _hash_network(path)
    is_old = record.spec.format == 1  # Version 0.1.0 noted no hash.
    if digest and digest == (noted_digest or (is_old and digest)):
        return True
    must_exist = noted_digest or (is_old and os.path.lexists(path) and not digest)
    if must_exist and not find_checkpoints(os.path.join(model_dir, "checkpoints")):
        raise InputError(
            f"The run in {model_dir} has ended, but its final.keras is damaged or "
            "missing, and no checkpoint exists. Restore the file, or remove the folder "
            "to start the run again"
        )
    return False


def _hash_network(path: str) -> str | None:
    """Returns the SHA-256 hash of a `.keras` file, or `None` if it is not intact."""
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            archive.getinfo("model.weights.h5")
            json.loads(archive.comment or b"{}")  # The metadata may be truncated.
            if archive.testzip():  # The name of a damaged member.
                return None
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, LookupError,
            RuntimeError, ValueError):  # fmt: skip
        return None


def finish_run(model_dir: str, record: RunRecord) -> None:
    """Notes the hash of `final.keras` in `run.json`, then removes the checkpoints.

    Raises:
        OSError: If `final.keras` is not intact, or `run.json` cannot be written.
    """
    path = os.path.join(model_dir, "final.keras")
    if not (digest := _hash_network(path)):
        raise OSError(errno.EIO, "The written file is damaged", path)
    write_record(model_dir, dataclasses.replace(record, final_sha256=digest))
    remove_leftovers(model_dir, remove_checkpoints=True)


def remove_leftovers(folder: StrPath, remove_checkpoints: bool = False) -> None:
    """Removes partially written files, and the folder `checkpoints` on request.

    Other processes may write reports into the folder, whose partial files are kept.
    """
    remove_partial_files(folder, FILE_NAMES)
    checkpoints = pathlib.Path(folder, "checkpoints")
    if remove_checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    for path in checkpoints.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


# Files in a run folder that only the process that trains writes.
FILE_NAMES = ("run.json", "augmented.png", "metrics.csv", "curves.png", "best.keras",
              "final.keras")  # fmt: skip

# Columns of metrics.csv. `loss` and `accuracy` are means over the training images of an
# epoch. `val_loss` and `val_accuracy` are means over the validation split after that
# epoch. `learning_rate` is the learning rate of the first step after that epoch.
COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


class RunFolder(keras.callbacks.Callback):
    """Writes `metrics.csv`, `best.keras` and, at the end, `curves.png`.

    `metrics.csv` is rewritten after each epoch from `rows`, which the checkpoints
    contain. A resumed run therefore writes the same file as an uninterrupted run. If
    `writes` is false, as on all workers but the chief, only `rows` is updated.
    """

    def __init__(self, path: StrPath, writes: bool = True) -> None:
        super().__init__()
        # Checkpoints save attributes that are strings, but no `Path`. With a string, a
        # run whose folder was moved would resume in the old folder.
        self.path = pathlib.Path(path)
        # Checkpoints save attributes that are booleans, but no functions. With a
        # boolean, a worker that restores the chief's checkpoint would begin to write.
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
    """Saves a network with Keras's SGD in place of the optimizer of the run.

    Keras cannot load the optimizer of the run without this package.
    """
    optimizer = getattr(network, "optimizer", None)
    # Without a given name, Keras would add a counter to the name of the optimizer, and
    # equal runs would write different files.
    network.optimizer = keras.optimizers.SGD(name="sgd")
    try:
        save_model(network, path)
    finally:
        network.optimizer = optimizer
