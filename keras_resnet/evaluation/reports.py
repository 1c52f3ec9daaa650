"""What an evaluation leaves to be read and looked at."""

import json
import os

import numpy as np

from keras_resnet.support import machine, to_csv, to_png, versions, write_file


def write_report(folder, classifier, predictions, **about):
    """Writes `evaluation.json`, `per_class.csv` and `confusion.png`.

    Args:
        folder: made if it is not there.
        classifier: a `keras_resnet.classifiers.Classifier`.
        predictions: a `keras_resnet.evaluation.Predictions`.
        **about: noted in `evaluation.json`: data set, views and the like.

    Raises:
        OSError: the folder cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    record = {
        **predictions.summary(),
        **about,
        "settings": classifier.settings,
        "versions": versions(),
        "machine": machine(),
    }
    write_file(
        os.path.join(folder, "evaluation.json"),
        json.dumps(record, indent=2, ensure_ascii=False) + "\n",
    )
    confusion = predictions.confusion(len(classifier.classes))
    write_file(
        os.path.join(folder, "per_class.csv"),
        to_csv(per_class(confusion, classifier.classes)),
    )
    write_file(
        os.path.join(folder, "confusion.png"),
        draw_confusion(confusion, classifier.classes),
    )


def per_class(confusion, classes):
    """Accuracy of each class that has images, the worst first.

    Args:
        confusion: see `keras_resnet.evaluation.Predictions`.
        classes: their names.

    Returns:
        A list of dicts: class, images, right, accuracy, and the class that it is
        most often taken for, with how often.
    """
    wrong = confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype))
    rows = []
    for i in np.flatnonzero(confusion.sum(axis=1)):
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


def predictions_csv(predictions, names, classes):
    """What was said of each image, as CSV.

    Args:
        predictions: a `keras_resnet.evaluation.Predictions`.
        names: of the images.
        classes: their names.
    """
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


def draw_confusion(confusion, classes):
    """Draws a confusion matrix: rows are right classes, columns those named.

    Args:
        confusion: see `keras_resnet.evaluation.Predictions`.
        classes: their names. Those without images and never named are left out.

    Returns:
        The bytes of a PNG.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    seen = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    counts = confusion[np.ix_(seen, seen)]
    count = len(seen)
    legible = count <= 40
    side = min(12.0, 3.2 + 0.32 * count)
    margin = 0.08 * max(len(classes[i]) for i in seen) if legible else 0
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
    if not legible:
        axes.set(xticks=[], yticks=[], xlabel=f"named ({count} classes, in order)")
    else:
        names = [classes[i] for i in seen]
        axes.set_xticks(
            range(count),
            names,
            rotation=90 if count > 10 else 45,
            ha="center" if count > 10 else "right",
            rotation_mode="default" if count > 10 else "anchor",
        )
        axes.set_yticks(range(count), names)
        if count <= 20:
            for y, x in np.argwhere(counts):
                dark = counts[y, x] > counts.max() ** 0.6
                axes.text(
                    x,
                    y,
                    counts[y, x],
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
    images, right = confusion.sum(), np.trace(confusion)
    axes.set_title(f"{right:,} of {images:,} right, {right / images:.2%}", fontsize=10)
    ticks = [n * 10**power for power in range(6) for n in (1, 2, 5)]
    ticks = [tick for tick in ticks if tick <= counts.max()]
    bar = figure.colorbar(image, label="images", shrink=0.8, ticks=ticks, format="%d")
    bar.minorticks_off()
    return to_png(figure)
