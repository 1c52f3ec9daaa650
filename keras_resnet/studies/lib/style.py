"""How the figures of all studies look: as the paper's, and legible in print."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Value = TypeVar("Value")
Values = Sequence[float] | np.ndarray

# Okabe and Ito's, which colour-blind readers tell apart, from dark to light: they
# keep their order in a black and white print.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# By the kind in a network's name: in words, and the colour.
KINDS = {"plain": ("plain", "#D55E00"), "res": ("residual", "#0072B2")}


def new_figure(
    *titles: str,
    rows: int = 1,
    width: float = 4.6,
    height: float = 3.6,
    share_y: bool = False,
) -> tuple[Figure, np.ndarray]:
    """Makes a figure with axes for each title, or several rows of them.

    Width and height, in inches, are of each axes; those of a row may share their y axis.
    Returns the figure, and its axes: (titles,), or (rows, titles) of several rows.
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


def with_colours(values: Iterable[Value]) -> list[tuple[Value, str]]:
    """Returns pairs of each value and a colour."""
    return list(zip(values, itertools.cycle(COLOURS), strict=False))


def draw_curves(
    axes: Axes,
    x: Sequence[float] | None,
    runs: Sequence[Values] | np.ndarray,
    label: str | None,
    colour: str,
    training: bool = False,
) -> None:
    """Draws the mean of runs (runs, points), and the band that they all lie in.

    Places are `x`, (points,); `None` counts from 1. A line of `training` is thin and
    dashed, as the paper's training errors.
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
    """Draws the mean of several runs at each place, with all of them as small dots.

    Places are numbers or names. The style `line` is empty where names have no order.
    """
    means = [np.mean(values) for values in runs]
    axes.plot(x, means, color=colour, marker="o", ls=line, label=label)
    for place, values in zip(x, runs, strict=True):
        places: list[Any] = [place] * len(values)
        axes.plot(places, values, ".", color=colour, alpha=0.4, ms=5)


def add_legends(*axes: Axes, **options: Any) -> None:
    """Adds a legend without a frame to axes."""
    for panel in axes:
        panel.legend(frameon=False, fontsize=8, title_fontsize=8, **options)
