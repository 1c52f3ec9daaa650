"""Pictures that a run leaves."""

import os

import numpy as np

from keras_resnet.support import to_png, write_file


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
