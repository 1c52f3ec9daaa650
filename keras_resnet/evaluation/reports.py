"""Files that report an evaluation: JSON, CSV and a figure of the confusion matrix."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet import support
from keras_resnet.evaluation.classifier import Classifier
from keras_resnet.evaluation.evaluator import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_report(
    folder: str | os.PathLike[str],
    classifier: Classifier,
    predictions: Predictions,
    **details: Any,
) -> None:
    """Writes `evaluation.json`, `per_class.csv` and `confusion.png` into a folder.

    The folder is created if necessary. `details` are further entries of
    `evaluation.json`, such as the dataset.

    Raises:
        OSError: If the files cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    # JSON cannot represent NaN, the loss of a diverged network, so null replaces NaN.
    summary = predictions.summarise().items()
    report: dict[str, Any] = {k: v if math.isfinite(v) else None for k, v in summary}
    settings = classifier.provenance.to_settings()
    report |= {**details, "settings": settings, "versions": support.find_versions()}
    report["machine"] = support.describe_machine()
    classes = classifier.classes
    confusion = predictions.confusion_matrix(len(classes))
    rows, figure = rank_classes(confusion, classes), draw_confusion(confusion, classes)
    # All files are written at once, after the slow drawing of the figure.
    support.write_json(os.path.join(folder, "evaluation.json"), report)
    support.write_file(os.path.join(folder, "per_class.csv"), support.to_csv(rows))
    support.write_file(os.path.join(folder, "confusion.png"), figure)


def rank_classes(confusion: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the accuracy of each class that has images, in ascending order.

    Args:
        confusion: Image counts; see `Predictions.confusion_matrix`.

    Returns:
        A dict per class, which is a row of `per_class.csv`. `"right"` is the number and
        `"accuracy"` the fraction of correctly classified images. `"taken_for"` is the
        most frequent wrong prediction, which was made for `"times"` images.
    """
    errors = confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype))
    rows = []
    for i in np.flatnonzero(confusion.sum(axis=1)).tolist():
        num_images, num_correct = int(confusion[i].sum()), int(confusion[i, i])
        wrong_class = int(errors[i].argmax())
        rows.append(
            {
                "class": classes[i],
                "images": num_images,
                "right": num_correct,
                "accuracy": round(num_correct / num_images, 6),
                "taken_for": classes[wrong_class] if errors[i, wrong_class] else "",
                "times": int(errors[i, wrong_class]),
            }
        )
    return sorted(rows, key=lambda row: (row["accuracy"], row["class"]))


def format_predictions(
    predictions: Predictions, image_names: Sequence[str], classes: Sequence[str]
) -> str:
    """Returns CSV text with a header and one row for each image.

    A row contains the name of the image, the correct class, whether the prediction is
    correct, the loss, and the names and scores of the most probable classes.
    """
    ranks = range(1, predictions.classes.shape[1] + 1)
    rows = []
    for i, name in enumerate(image_names):
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
    return support.to_csv(rows)


def draw_confusion(confusion: np.ndarray, classes: Sequence[str]) -> bytes:
    """Draws a confusion matrix of correct classes (rows) and predictions (columns).

    The colour scale is logarithmic, so that few errors are visible next to many correct
    predictions. scikit-learn's ConfusionMatrixDisplay is not used, because it
    chooses the colour of the numbers for a linear scale and also prints zeros.

    Args:
        confusion: Image counts; see `Predictions.confusion_matrix`.
        classes: Names of the classes. A class is omitted if it has no images and is
            never predicted.

    Returns:
        Content of a PNG file.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    indices = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    counts = confusion[np.ix_(indices, indices)]
    names = [support.to_printable(classes[i])[:40] for i in indices.tolist()]
    names = names if len(names) <= 40 else []
    width = min(12.0, 3.2 + 0.32 * len(indices))  # Width of the matrix in inches.
    margin = 0.08 * max(map(len, names), default=0)  # Inches for class names.
    figure_size = (width + 0.8 + margin, width + margin)
    figure = Figure(figsize=figure_size, layout="constrained")
    axes = figure.subplots()
    norm, cells = LogNorm(0.5, max(2, counts.max())), np.where(counts, counts, np.nan)
    image = axes.imshow(cells, cmap="Blues", norm=norm, interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="correct class")
    if names:
        _label_axes(axes, names)
    else:
        axes.set(xticks=[], yticks=[], xlabel=f"predicted class, {len(indices)} in all")
    for y, x in np.argwhere(counts) if len(indices) <= 20 else ():
        colour = "white" if counts[y, x] > counts.max() ** 0.6 else "black"
        alignment: dict[str, Any] = {"ha": "center", "va": "center"}
        axes.text(x, y, counts[y, x], fontsize=8, color=colour, **alignment)
    total, hits = confusion.sum(), np.trace(confusion)
    axes.set_title(f"{hits:,} of {total:,} correct, {hits / total:.2%}", fontsize=10)
    ticks = [n * 10**power for power in range(6) for n in (1, 2, 5)]
    ticks = [tick for tick in ticks if tick <= counts.max()]
    bar = figure.colorbar(image, label="images", shrink=0.8, ticks=ticks, format="%d")
    bar.minorticks_off()
    return support.to_png(figure)


def _label_axes(axes: "Axes", names: Sequence[str]) -> None:
    """Labels rows and columns. The labels of more than 10 columns are vertical."""
    style: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    if len(names) > 10:
        style = {"rotation": 90, "ha": "center"}
    axes.set_xticks(range(len(names)), names, parse_math=False, **style)
    axes.set_yticks(range(len(names)), names, parse_math=False)
