"""What an evaluation leaves to be read and looked at."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet.evaluation.classifier import Classifier
from keras_resnet.evaluation.evaluator import Predictions
from keras_resnet.support import (
    machine,
    to_csv,
    to_png,
    versions,
    write_file,
    write_json,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_report(
    folder: str | os.PathLike[str],
    classifier: Classifier,
    predictions: Predictions,
    **about: Any,
) -> None:
    """Writes `evaluation.json`, `per_class.csv` and `confusion.png`.

    Args:
        folder: Folder of the report; made if it is not there.
        classifier: Network that was evaluated.
        predictions: Predictions of the network.
        **about: Further entries of `evaluation.json`: data set, views and the like.

    Raises:
        OSError: The folder cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    # JSON has no NaN, which a diverged network's loss is.
    summary = predictions.summary().items()
    report: dict[str, Any] = {k: v if math.isfinite(v) else None for k, v in summary}
    settings = classifier.provenance.to_settings()
    report |= {**about, "settings": settings, "versions": versions()}
    report["machine"] = machine()
    write_json(os.path.join(folder, "evaluation.json"), report)
    classes = classifier.classes
    confusion = predictions.confusion(len(classes))
    table, picture = per_class(confusion, classes), draw_confusion(confusion, classes)
    write_file(os.path.join(folder, "per_class.csv"), to_csv(table))
    write_file(os.path.join(folder, "confusion.png"), picture)


def per_class(confusion: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the accuracy of each class that has images, the worst first.

    Args:
        confusion: Counts; see `Predictions.confusion`.
        classes: Names of the classes.

    Returns:
        A dict for each class: class, images, right, accuracy, and the class that it
        is most often taken for, with how often.
    """
    wrong = confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype))
    rows = []
    for i in np.flatnonzero(confusion.sum(axis=1)).tolist():
        images, right = int(confusion[i].sum()), int(confusion[i, i])
        other = int(wrong[i].argmax())
        rows.append(
            {
                "class": classes[i],
                "images": images,
                "right": right,
                "accuracy": round(right / images, 6),
                "taken_for": classes[other] if wrong[i, other] else "",
                "times": int(wrong[i, other]),
            }
        )
    return sorted(rows, key=lambda row: (row["accuracy"], row["class"]))


def predictions_csv(
    predictions: Predictions, names: Sequence[str], classes: Sequence[str]
) -> str:
    """Returns what was said of each image, as CSV, by names of images and classes."""
    ranks = range(1, predictions.classes.shape[1] + 1)
    rows = []
    for i, name in enumerate(names):
        row = {
            "image": name,
            "label": classes[predictions.labels[i]],
            "right": int(predictions.classes[i, 0] == predictions.labels[i]),
            "loss": f"{predictions.losses[i]:.6g}",
        }
        for rank in ranks:
            row[f"class_{rank}"] = classes[predictions.classes[i, rank - 1]]
            row[f"score_{rank}"] = f"{predictions.scores[i, rank - 1]:.6g}"
        rows.append(row)
    return to_csv(rows)


def draw_confusion(confusion: np.ndarray, classes: Sequence[str]) -> bytes:
    """Draws a confusion matrix: rows are right classes, columns those named.

    Colours are logarithmic, so that a few errors show beside many right answers.
    scikit-learn's ConfusionMatrixDisplay chooses the colour of its numbers for linear
    ones, and writes zeros.

    Args:
        confusion: Counts; see `Predictions.confusion`.
        classes: Names of the classes. Those without images that are never named are
            left out.

    Returns:
        The bytes of a PNG.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    seen = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    counts = confusion[np.ix_(seen, seen)]
    names = [classes[i] for i in seen.tolist()] if len(seen) <= 40 else []
    side = min(12.0, 3.2 + 0.32 * len(seen))
    margin = 0.08 * max(map(len, names), default=0)
    size = (side + 0.8 + margin, side + margin)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        np.where(counts > 0, counts, np.nan),
        cmap="Blues",
        norm=LogNorm(0.5, max(2, counts.max())),
        interpolation="nearest",
    )
    axes.set(xlabel="named", ylabel="right class")
    if names:
        _name_classes(axes, names)
    else:
        axes.set(xticks=[], yticks=[], xlabel=f"named ({len(seen)} classes, in order)")
    for y, x in np.argwhere(counts) if len(seen) <= 20 else ():
        colour = "white" if counts[y, x] > counts.max() ** 0.6 else "black"
        place: dict[str, Any] = {"ha": "center", "va": "center"}
        axes.text(x, y, counts[y, x], fontsize=8, color=colour, **place)
    images, right = confusion.sum(), np.trace(confusion)
    axes.set_title(f"{right:,} of {images:,} right, {right / images:.2%}", fontsize=10)
    ticks = [n * 10**power for power in range(6) for n in (1, 2, 5)]
    ticks = [tick for tick in ticks if tick <= counts.max()]
    bar = figure.colorbar(image, label="images", shrink=0.8, ticks=ticks, format="%d")
    bar.minorticks_off()
    return to_png(figure)


def _name_classes(axes: "Axes", names: Sequence[str]) -> None:
    """Writes the names of the classes beside rows and columns."""
    upright = len(names) > 10
    axes.set_xticks(
        range(len(names)),
        names,
        rotation=90 if upright else 45,
        ha="center" if upright else "right",
        rotation_mode="default" if upright else "anchor",
    )
    axes.set_yticks(range(len(names)), names)
