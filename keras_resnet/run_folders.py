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
import dataclasses
import io
import json
import os
import pathlib
import shutil
import sys

import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.files import commit, machine, to_png, versions, write_file
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.weights import save_model


def read_record(folder):
    """Returns the contents of a folder's `run.json`; `None` if there is none."""
    path = os.path.join(folder, "run.json")
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        Preprocessing(**record["preprocessing"])
        if not isinstance(record["settings"], dict) or not record["classes"]:
            raise KeyError
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise InputError(
            f"{path} is damaged, or was not written by this version of keras_resnet"
        ) from None
    return record


def write_record(folder, settings, classes, preprocessing):
    """Writes `run.json`: settings, versions, commit, machine."""
    record = {
        "settings": settings,
        "classes": classes,
        "preprocessing": dataclasses.asdict(preprocessing),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "command": sys.argv,
    }
    write_file(
        os.path.join(folder, "run.json"),
        json.dumps(record, indent=2, ensure_ascii=False) + "\n",
    )


@contextlib.contextmanager
def locked(folder):
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


def draw_curves(rows):
    """Draws loss and error of a run, as in the paper's Figure 6.

    Args:
        rows: one dict for each epoch, as in `metrics.csv`.

    Returns:
        The bytes of a PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for prefix, label, style in (("", "training", "--"), ("val_", "held out", "-")):
        left.plot(epochs, [row[f"{prefix}loss"] for row in rows], style, label=label)
        error = [100 * (1 - row[f"{prefix}accuracy"]) for row in rows]
        right.plot(epochs, error, style, label=label)
    left.set(xlabel="epoch", ylabel="cross-entropy loss", yscale="log")
    right.set(xlabel="epoch", ylabel="error (%)")
    right.set_ylim(0, max(2.0, min(100.0, 3 * max(error[len(error) // 4 :]))))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return to_png(figure)


def write_batch(folder, images, labels, classes):
    """Draws the first images of a training batch, up to 32 of them.

    Args:
        folder: that gets `augmented.png`.
        images: uint8 array (batch, height, width, channels).
        labels: int array (batch,), or float array (batch, classes).
        classes: name of each class.
    """
    from matplotlib.figure import Figure

    count = min(len(images), 32)
    rows = -(-count // 8)
    figure = Figure(figsize=(12, 1.75 * rows + 0.1), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, 8, squeeze=False).flat):
        axes.axis("off")
        if place >= count:
            continue
        axes.imshow(images[place].squeeze(), cmap="gray", vmin=0, vmax=255)
        if labels.ndim == 1:
            title = classes[labels[place]]
        else:
            first, second = np.argsort(-labels[place], kind="stable")[:2]
            title = f"{labels[place, first]:.0%} {classes[first]}"
            if labels[place, second] > 0:
                title += f"\n{labels[place, second]:.0%} {classes[second]}"
        axes.set_title(title, fontsize=8)
    _write_figure(os.path.join(folder, "augmented.png"), figure)


def write_range(folder, rates, losses, best):
    """Writes what a learning-rate range test found.

    Args:
        folder: that gets `find_lr.csv` and `find_lr.png`.
        rates: learning rates that were tried, ascending.
        losses: the smoothed loss at each.
        best: the rate at which the loss fell fastest.
    """
    from matplotlib.figure import Figure

    os.makedirs(folder, exist_ok=True)
    lines = [f"{rate:.6g},{loss:.6g}" for rate, loss in zip(rates, losses, strict=True)]
    write_file(
        os.path.join(folder, "find_lr.csv"),
        "\n".join(["learning_rate,loss", *lines]) + "\n",
    )
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(best, linestyle="--", color="tab:red", label=f"steepest at {best:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss")
    axes.set_ylim(0.9 * min(losses), 1.5 * losses[0])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _write_figure(os.path.join(folder, "find_lr.png"), figure)


def _write_figure(path, figure):
    write_file(path, to_png(figure))
