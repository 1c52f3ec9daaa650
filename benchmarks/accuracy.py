"""Accuracy over time with `modern_cifar`, the paper's recipe and a PyTorch loop.

python -m benchmarks.accuracy --data_dir=TFDS

ResNet-20 is trained on the first 10,000 training images of the JPEG `cifar10` dataset
and evaluated on its 10,000 test images. `../shared/tools/prepare_tfds.py` makes this
dataset. Accuracies on this dataset are not comparable with the paper's. Learning-rate
schedules are scaled to ten epochs. The PyTorch loop uses the paper's recipe and the
channels-last layout, and augments whole batches without worker processes. `seconds` is
the training time without evaluation. Runs in `--output` are resumed or reused.
"""

import csv
import dataclasses
import os
import subprocess
import sys
import time

import numpy as np

from benchmarks.side_by_side import RESULTS, run, write_results
from keras_resnet.support import to_csv, to_png, write_file

NUM_EPOCHS, NUM_IMAGES = 10, 10_000
METHODS = ("modern_cifar", "paper_cifar", "pytorch")  # Two recipes, and `torch_loop`.


def load_subset(data_dir):
    """Returns `cifar10` with only its first 10,000 training images."""
    from keras_resnet.data import load_dataset

    dataset = load_dataset("cifar10", data_dir)
    train = dataset.train.take(np.arange(NUM_IMAGES))
    return dataclasses.replace(dataset, name=f"cifar10-{NUM_IMAGES}", train=train)


def train_ours(recipe, dataset, folder, seed, precision):
    """Trains with a recipe of this package and returns a row for each epoch."""
    import keras

    from keras_resnet.training import train

    class Clock(keras.callbacks.Callback):
        """Records training times in attributes, which training checkpoints save."""

        def __init__(self):
            super().__init__()
            self.total, self.ends = 0.0, []

        def on_train_batch_begin(self, batch, logs=None):
            self.begin = time.monotonic()

        def on_train_batch_end(self, batch, logs=None):
            self.total += time.monotonic() - self.begin

        def on_epoch_end(self, epoch, logs=None):
            self.ends.append([epoch + 1, self.total, logs["val_accuracy"]])

    clock = Clock()
    train(
        "resnet20", dataset, recipe=recipe, seed=seed, strategy="one_device",
        model_dir=folder, callbacks=[clock], verbose=2, validation=0.0,
        epochs=NUM_EPOCHS, precision=precision,
    )  # fmt: skip
    keys = ("epoch", "seconds", "val_accuracy")
    return [dict(zip(keys, row, strict=True)) for row in clock.ends]


def train_method(method, dataset, folder, seed, precision):
    """Trains unless the method's CSV file exists. Returns a row for each epoch."""
    path = os.path.join(folder, f"{method}-{seed}.csv")
    if not os.path.exists(path) and method == "pytorch":
        data_path, train = os.path.join(folder, "subset.npz"), dataset.train
        test_arrays = {"test_x": dataset.test.images, "test_y": dataset.test.labels}
        np.savez(data_path, x=train.images, y=train.labels, **test_arrays)
        command = ["benchmarks.torch_loop", data_path, path, str(NUM_EPOCHS), str(seed)]
        subprocess.run([sys.executable, "-m", *command], check=True)
    elif not os.path.exists(path):
        model_dir = os.path.join(folder, f"{method}-{seed}")
        rows = train_ours(method, dataset, model_dir, seed, precision)
        write_file(path, to_csv(rows))
    with open(path, encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def find_first_epoch(rows, accuracy):
    """Returns the epoch and second that first reach `accuracy`, or `(None, None)`."""
    for row in rows:
        if row["val_accuracy"] >= accuracy:
            return int(row["epoch"]), round(row["seconds"])
    return None, None


def draw_curves(rows_by_method):
    """Returns a PNG file of the test accuracy over epochs and over seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epoch_axes, time_axes = figure.subplots(1, 2, sharey=True)
    for method, rows in rows_by_method.items():
        accuracy = [100 * row["val_accuracy"] for row in rows]
        for axes, key in ((epoch_axes, "epoch"), (time_axes, "seconds")):
            axes.plot([row[key] for row in rows], accuracy, marker=".", label=method)
    epoch_axes.set(xlabel="epoch", ylabel="test accuracy (%)")
    time_axes.set(xlabel="seconds of training")
    figure.suptitle("ResNet-20, 10,000 images of the JPEG cifar10, ten epochs")
    for axes in (epoch_axes, time_axes):
        axes.grid(alpha=0.3)
    epoch_axes.legend(frameon=False)
    return to_png(figure)


def main(data_dir, output, seed, precision):
    """Writes `results/accuracy*.csv` and `docs/images/accuracy.png`."""
    os.makedirs(output, exist_ok=True)
    dataset = load_subset(data_dir)
    arguments = dataset, output, seed, precision
    rows_by_method = {m: train_method(m, *arguments) for m in METHODS}
    rows = []
    for method, method_rows in rows_by_method.items():
        row = {"side": method, "seed": seed, "epochs": NUM_EPOCHS, "images": NUM_IMAGES}
        row["final_accuracy"] = method_rows[-1]["val_accuracy"]
        row["seconds"] = round(method_rows[-1]["seconds"])
        for percent in (50, 60, 65, 70):
            epoch, seconds = find_first_epoch(method_rows, percent / 100)
            row |= {f"epochs_to_{percent}": epoch, f"seconds_to_{percent}": seconds}
        rows.append(row)
        write_file(os.path.join(RESULTS, f"accuracy-{method}.csv"), to_csv(method_rows))
    write_results("accuracy", rows)
    write_file("docs/images/accuracy.png", draw_curves(rows_by_method))


if __name__ == "__main__":
    run(
        main,
        data_dir=(None, "Folder of the prepared TFDS datasets."),
        output=("runs/accuracy", "Folder of all runs."),
        seed=(0, "Random seed of all runs."),
        precision=("float32", "Precision of the runs with this package."),
    )
