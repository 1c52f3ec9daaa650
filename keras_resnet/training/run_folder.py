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
import csv
import io
import os
import pathlib
import shutil

import keras

from keras_resnet.support import InputError, write_file
from keras_resnet.training.figures import draw_curves
from keras_resnet.weights import save_model


@contextlib.contextmanager
def locked_folder(folder):
    """Keeps a second process out of a run folder, where the system has such locks.

    Raises:
        InputError: another process is in it.
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
        os.close(handle)  # The lock goes with it, and with the process.


def remove_leftovers(folder, ended=False):
    """Removes what a killed process left half written in a run folder.

    Args:
        folder: that nothing else writes to.
        ended: whether the run has ended, so that its checkpoints can go too.
    """
    for ending in ("*.part", "*.part.keras"):
        for path in pathlib.Path(folder).glob(ending):
            path.unlink(missing_ok=True)
    if ended:
        shutil.rmtree(os.path.join(folder, "checkpoints"), ignore_errors=True)


# Of metrics.csv: means over the epoch, means over the held-out images after it,
# and the rate of the step that follows.
COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


class RunFolder(keras.callbacks.Callback):
    """Keeps `metrics.csv` and `best.keras`, and draws `curves.png` at the end.

    `metrics.csv` is written whole after each epoch, from the rows that the
    checkpoint carries: a resumed run leaves the same file as an undisturbed one.

    Args:
        path: of the run folder.
        writes: whether this process does; of several workers one.
    """

    def __init__(self, path, writes=True):
        super().__init__()
        # A Path: no plain value, so that a folder that was moved stays where it is.
        self.path = pathlib.Path(path)
        # Not a plain value, which a worker would be given back from the checkpoint
        # of the one that writes.
        self.writes = lambda: writes
        self.rows = []
        self.best = -1.0

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"epoch": epoch + 1, **logs})
        if not self.writes():
            return
        text = io.StringIO()
        writer = csv.DictWriter(
            text, COLUMNS, lineterminator="\n", extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(self.rows)
        write_file(os.path.join(self.path, "metrics.csv"), text.getvalue())
        if logs["val_accuracy"] > self.best:
            self.best = logs["val_accuracy"]
            save_network(self.model, os.path.join(self.path, "best.keras"))

    def on_train_end(self, logs=None):
        if not self.writes() or not self.rows:
            return
        write_file(os.path.join(self.path, "curves.png"), draw_curves(self.rows))


def save_network(network, path):
    """Saves a network without its optimizer, which is the run's and no standard one."""
    kept = getattr(network, "optimizer", None)
    # With a name: Keras would number them, and the files of two runs would differ.
    network.optimizer = keras.optimizers.SGD(name="sgd")
    try:
        save_model(network, path)
    finally:
        network.optimizer = kept
