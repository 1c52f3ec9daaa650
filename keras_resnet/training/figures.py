"""Pictures that a run leaves, as the bytes of a PNG."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_resnet.support import to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Number of images that `draw_batch` shows, and of those in a row.
MOST_IMAGES, IMAGES_IN_A_ROW = 32, 8


def draw_curves(rows: Sequence[dict[str, float]]) -> bytes:
    """Draws loss and error of a run, as in the paper's Figure 6.

    Args:
        rows: One row for each epoch, as in `metrics.csv`.
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
    return _finish(figure)


def _finish(figure: "Figure") -> bytes:
    """Adds grids and legends to plots, and returns the PNG."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return to_png(figure)


def draw_batch(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> bytes:
    """Draws the first images of a training batch with their labels.

    Args:
        images: uint8, (batch, height, width, channels).
        labels: Class numbers, (batch,), or shares of each class, (batch, classes).
        classes: Name of each class.
    """
    from matplotlib.figure import Figure

    count = min(len(images), MOST_IMAGES)
    rows = -(-count // IMAGES_IN_A_ROW)
    figure = Figure(figsize=(12, 1.75 * rows + 0.1), layout="constrained")
    grid = figure.subplots(rows, IMAGES_IN_A_ROW, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.axis("off")
        if place < count:
            axes.imshow(images[place].squeeze(), cmap="gray", vmin=0, vmax=255)
            axes.set_title(_title(labels[place], classes), fontsize=8)
    return to_png(figure)


def _title(label: np.ndarray, classes: Sequence[str]) -> str:
    """Returns the class of an image, or the two largest shares of a mixed one."""
    if label.ndim == 0:
        return classes[int(label)]
    first, second = np.argsort(-label, kind="stable")[:2]
    title = f"{label[first]:.0%} {classes[first]}"
    if label[second] > 0:
        title += f"\n{label[second]:.0%} {classes[second]}"
    return title


def draw_range(rates: Sequence[float], losses: Sequence[float], best: float) -> bytes:
    """Draws the result of a learning-rate range test.

    Args:
        rates: Learning rates that were tried, ascending.
        losses: Smoothed training loss at each.
        best: Rate at which the loss fell fastest.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(best, linestyle="--", color="tab:red", label=f"steepest at {best:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss")
    axes.set_ylim(0.9 * min(losses), 1.5 * losses[0])
    return _finish(figure)
