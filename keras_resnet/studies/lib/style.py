"""Common style of all figures: legible in print and similar to the paper's figures."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Item = TypeVar("Item")
Floats = Sequence[float] | np.ndarray

# Palette by Okabe and Ito, which colour-blind readers can distinguish. The colours are
# ordered from dark to light, so that curves also differ in black-and-white print.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# Label and colour of each kind of network. Variant names contain the keys.
KINDS = {"plain": ("plain", "#D55E00"), "res": ("residual", "#0072B2")}


def new_figure(
    *titles: str,
    rows: int = 1,
    width: float = 4.6,
    height: float = 3.6,
    share_y: bool = False,
) -> tuple[Figure, np.ndarray]:
    """Makes a figure with a grid of axes. The grid has one column for each title.

    Each axes is `width` inches wide and `height` inches high. `share_y` makes all axes
    of a row use one y scale. Returns the figure and an array of its axes, which has the
    shape (rows, titles), or (titles,) if there is a single row.
    """
    columns = len(titles)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=share_y and "row", squeeze=False)
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=10)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes if rows > 1 else axes[0]


def pair_with_colours(values: Iterable[Item]) -> list[tuple[Item, str]]:
    """Pairs each value with one of `COLOURS`, which repeat after the last colour."""
    return list(zip(values, itertools.cycle(COLOURS), strict=False))


def draw_curves(
    axes: Axes,
    x: Sequence[float] | None,
    runs: Sequence[Floats] | np.ndarray,
    label: str | None,
    colour: str,
    dashed: bool = False,
) -> None:
    """Draws the mean curve of several runs, and a band from their minimum to maximum.

    `runs` has the shape (runs, points). `x` contains the positions of the points, by
    default 1, 2, 3 and so on. If `dashed` is true, the curve is thin and dashed, like
    the training errors in the paper's figures.
    """
    runs = np.asarray(runs, float)
    if x is None:
        x = range(1, runs.shape[1] + 1)
        axes.locator_params("x", integer=True)
    style: dict[str, Any] = {"ls": "--", "lw": 1} if dashed else {"ls": "-", "lw": 2}
    axes.plot(x, runs.mean(axis=0), color=colour, label=label, **style)
    if len(runs) > 1:
        low, high = runs.min(axis=0), runs.max(axis=0)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)


def draw_points(
    axes: Axes,
    x: Sequence[float] | Sequence[str],
    values_by_position: Sequence[Floats],
    label: str,
    colour: str,
    ls: str = "-",
) -> None:
    """Draws the mean of several runs at each position, and each run as a small dot.

    `x` contains the positions, which are numbers or names. `values_by_position` has the
    shape (positions, runs). `ls` is the style of the line that connects the means.
    """
    means = [np.mean(values) for values in values_by_position]
    axes.plot(x, means, color=colour, marker="o", ls=ls, label=label)
    for position, values in zip(x, values_by_position, strict=True):
        positions: list[Any] = [position] * len(values)
        axes.plot(positions, values, ".", color=colour, alpha=0.4, ms=5)


def add_legends(*axes: Axes, **options: Any) -> None:
    """Adds a frameless legend to each axes. `options` are passed to `Axes.legend`."""
    for panel in axes:
        panel.legend(frameon=False, fontsize=8, title_fontsize=8, **options)
