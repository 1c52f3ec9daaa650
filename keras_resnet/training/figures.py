"""Figures of a training run, encoded as PNG."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_resnet.support import to_png, to_printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Maximum number of images that `draw_batch` draws, and number of images per row.
MAX_IMAGES, IMAGES_PER_ROW = 32, 8


def draw_curves(rows: Sequence[dict[str, float]]) -> bytes:
    """Plots loss and error by epoch. `rows` are the rows of `metrics.csv`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_ax, error_ax = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    # As in the paper's Fig. 6, curves are dashed for training, solid for validation.
    for prefix, label, style in (("", "training", "--"), ("val_", "validation", "-")):
        loss_ax.plot(epochs, [row[f"{prefix}loss"] for row in rows], style, label=label)
        errors = [100 * (1 - row[f"{prefix}accuracy"]) for row in rows]
        error_ax.plot(epochs, errors, style, label=label)
    loss_ax.set(xlabel="epoch", ylabel="cross-entropy loss", yscale="log")
    error_ax.set(xlabel="epoch", ylabel="error (%)")
    error_ax.set_ylim(0, max(2.0, min(100.0, 3 * max(errors[len(errors) // 4 :]))))
    return _finish_plots(figure)


def _finish_plots(figure: "Figure") -> bytes:
    """Adds a grid and a legend to each plot; returns the figure as PNG."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return to_png(figure)


def draw_batch(images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> bytes:
    """Draws the first images of a training batch and their labels.

    Args:
        images: uint8, (batch, height, width, channels).
        labels: Class indices, (batch,), or class probabilities, (batch, classes).
        classes: Names of the classes.
    """
    from matplotlib.figure import Figure

    num_images = min(len(images), MAX_IMAGES)
    num_rows = -(-num_images // IMAGES_PER_ROW)
    figure = Figure(figsize=(12, 1.75 * num_rows + 0.1), layout="constrained")
    all_axes = figure.subplots(num_rows, IMAGES_PER_ROW, squeeze=False)
    for i, axes in enumerate(all_axes.flat):
        axes.axis("off")
        if i < num_images:
            axes.imshow(images[i].squeeze(), cmap="gray", vmin=0, vmax=255)
            title = _format_label(labels[i], classes)
            axes.set_title(title, fontsize=8, y=1, parse_math=False)
    return to_png(figure)


def _format_label(label: np.ndarray, classes: Sequence[str]) -> str:
    """Returns the class name, or the two most probable classes of a mixed image."""
    classes = [to_printable(name)[:40] for name in classes]
    if label.ndim == 0:
        return classes[int(label)]
    index, second_index = np.argsort(-label, kind="stable")[:2]
    title = f"{label[index]:.0%} {classes[index]}"
    if label[second_index] > 0:
        title += f"\n{label[second_index]:.0%} {classes[second_index]}"
    return title


def draw_rates(rates: Sequence[float], losses: Sequence[float], best: float) -> bytes:
    """Plots the result of a learning-rate range test.

    Args:
        rates: Learning rates in ascending order.
        losses: Smoothed training loss at each learning rate.
        best: Learning rate at which the loss fell fastest.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(best, linestyle="--", color="tab:red", label=f"steepest at {best:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss")
    axes.set_ylim(0.9 * min(losses), 1.5 * losses[0])
    return _finish_plots(figure)
