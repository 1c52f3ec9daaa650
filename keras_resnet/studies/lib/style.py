"""Common style of all figures, similar to the paper's and legible in print."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Value = TypeVar("Value")
Values = Sequence[float] | np.ndarray

# Colours by Okabe and Ito, which colour-blind readers can distinguish. They are ordered
# from dark to light, so that the order is also visible in black and white.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# Label and colour of each kind of network. The keys are parts of variant names.
KINDS = {"plain": ("plain", "#D55E00"), "res": ("residual", "#0072B2")}


def new_figure(
    *titles: str,
    rows: int = 1,
    width: float = 4.6,
    height: float = 3.6,
    share_y: bool = False,
) -> tuple[Figure, np.ndarray]:
    """Makes a figure with one column of axes for each title, in one or several rows.

    `width` and `height` are the size of each axes in inches. With `share_y`, the axes
    of a row share their y axis. Returns the figure and its axes, which have the shape
    (titles,) for a single row, else (rows, titles).
    """
    columns = len(titles)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(
        rows, columns, sharey="row" if share_y else False, squeeze=False
    )
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=10)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes if rows > 1 else axes[0]


def pair_with_colours(values: Iterable[Value]) -> list[tuple[Value, str]]:
    """Pairs each value with a colour; colours repeat if there are more values."""
    return list(zip(values, itertools.cycle(COLOURS), strict=False))


def draw_curves(
    axes: Axes,
    x: Sequence[float] | None,
    runs: Sequence[Values] | np.ndarray,
    label: str | None,
    colour: str,
    training: bool = False,
) -> None:
    """Draws the mean of `runs`, (runs, points), and a band from minimum to maximum.

    `x`, (points,), defaults to 1, 2, 3 and so on. If `training` is true, the line is
    thin and dashed, like the training errors in the paper's figures.
    """
    runs = np.asarray(runs, float)
    if x is None:
        x = range(1, runs.shape[1] + 1)
        axes.locator_params("x", integer=True)
    style: dict[str, Any] = {"ls": "--", "lw": 1} if training else {"ls": "-", "lw": 2}
    axes.plot(x, runs.mean(axis=0), color=colour, label=label, **style)
    if len(runs) > 1:
        low, high = runs.min(axis=0), runs.max(axis=0)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)


def draw_points(
    axes: Axes,
    x: Sequence[float] | Sequence[str],
    runs: Sequence[Values],
    label: str,
    colour: str,
    line: str = "-",
) -> None:
    """Draws the mean of several runs at each position, and each run as a small dot.

    The positions `x` are numbers or names. `line` is the line style between the means,
    which is empty if the positions have no order.
    """
    means = [np.mean(values) for values in runs]
    axes.plot(x, means, color=colour, marker="o", ls=line, label=label)
    for position, values in zip(x, runs, strict=True):
        positions: list[Any] = [position] * len(values)
        axes.plot(positions, values, ".", color=colour, alpha=0.4, ms=5)


def add_legends(*axes: Axes, **options: Any) -> None:
    """Adds a legend without a frame to each of the axes."""
    for panel in axes:
        panel.legend(frameon=False, fontsize=8, title_fontsize=8, **options)
