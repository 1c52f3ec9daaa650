"""How the figures of all studies look: as the paper's, and legible in print."""

import itertools

import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's, which colour-blind readers tell apart, from dark to light: they
# keep their order in a black and white print.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


PLAIN, RESIDUAL = "#D55E00", "#0072B2"


# By the kind in a network's name: in words, and the colour.
KINDS = {"plain": ("plain", PLAIN), "res": ("residual", RESIDUAL)}


def new_figure(*titles, rows=1, width=4.6, height=3.6, share_y=False):
    """Makes a figure with a row of axes, or several rows below each other.

    Args:
        *titles: of the axes of the first row.
        rows: their number.
        width: of each axes, in inches.
        height: of each axes, in inches.
        share_y: whether those of a row have one y axis.

    Returns:
        The figure, and its axes: an array (titles,), or (rows, titles) of several rows.
    """
    size = (width * len(titles), height * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(
        rows, len(titles), sharey="row" if share_y else False, squeeze=False
    )
    for each, title in zip(axes[0], titles, strict=True):
        each.set_title(title, fontsize=10)
    for each in axes.flat:
        each.grid(alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes if rows > 1 else axes[0]


def with_colours(values):
    """Returns pairs of each value and a colour."""
    return list(zip(values, itertools.cycle(COLOURS), strict=False))


def draw_curves(axes, x, runs, label, colour, training=False):
    """Draws the mean of several runs, and the band that they all lie in.

    Args:
        axes: to draw on.
        x: (points,); `None` counts from 1.
        runs: (runs, points).
        label: of the line.
        colour: of the line.
        training: thin and dashed as the paper's training errors, not bold.
    """
    runs = np.asarray(runs, float)
    if x is None:
        x = range(1, runs.shape[1] + 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
    style = {"ls": "--", "lw": 1} if training else {"ls": "-", "lw": 2}
    axes.plot(x, runs.mean(axis=0), color=colour, label=label, **style)
    if len(runs) > 1:
        low, high = runs.min(axis=0), runs.max(axis=0)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)


def draw_points(axes, x, runs, label, colour, line="-"):
    """Draws the mean of several runs at some places, with all of them as small dots.

    Args:
        axes: to draw on.
        x: places, or names of them.
        runs: values of all runs, for each place.
        label: of the line.
        colour: of the line.
        line: its style; none between names that have no order.
    """
    means = [np.mean(each) for each in runs]
    axes.plot(x, means, color=colour, marker="o", ls=line, label=label)
    for place, each in zip(x, runs, strict=True):
        axes.plot([place] * len(each), each, ".", color=colour, alpha=0.4, ms=5)


def add_legends(*axes, **options):
    """Adds a legend without a frame to each of some axes."""
    for each in axes:
        each.legend(frameon=False, fontsize=8, title_fontsize=8, **options)
