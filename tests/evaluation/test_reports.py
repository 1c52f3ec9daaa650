"""Reports, against scikit-learn, counts by hand and what is read back."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation import reports
from keras_resnet.evaluation.classifier import Classifier
from keras_resnet.evaluation.evaluator import Predictions
from keras_resnet.spec import Provenance


def guesses(classes, images, top=5, right=0.7):
    """Predictions drawn at random, of which a share is right."""
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, images).astype(np.int32)
    ranked = np.stack([random.permutation(classes)[:top] for _ in range(images)])
    for row, label in zip(ranked, labels, strict=True):
        if random.random() < right:
            row[list(row).index(label) if label in row else 0] = row[0]
            row[0] = label
    scores = -np.sort(-random.dirichlet(np.ones(classes), images), axis=1)[:, :top]
    losses = random.exponential(1, images)
    return Predictions(
        labels, ranked.astype(np.int32), np.float32(scores), np.float32(losses)
    )


def classifier(classes):
    return Classifier(
        "net",
        None,
        tuple(classes),
        Preprocessing(8, 8, 1),
        Provenance("resnet20", "imagenet"),
    )


@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_confusion_equals_scikit_learns(classes):
    found = guesses(classes, 700, top=3)
    expected = confusion_matrix(
        found.labels, found.classes[:, 0], labels=np.arange(classes)
    )
    np.testing.assert_array_equal(found.confusion(classes), expected)


def test_per_class_by_hand():
    confusion = np.array(
        [
            [5, 1, 2, 0, 0],  # cat: 5 of 8, twice taken for a bird
            [0, 4, 0, 0, 0],  # dog: 4 of 4
            [1, 1, 0, 0, 2],  # bird: 0 of 4, twice taken for an owl
            [0, 0, 0, 0, 0],  # fox: no image
            [0, 0, 0, 3, 5],  # owl: 5 of 8, three times taken for a fox
        ]
    )
    rows = reports.per_class(confusion, ("cat", "dog", "bird", "fox", "owl"))
    assert [tuple(row.values()) for row in rows] == [
        ("bird", 4, 0, 0.0, "owl", 2),
        ("cat", 8, 5, 0.625, "bird", 2),
        ("owl", 8, 5, 0.625, "fox", 3),
        ("dog", 4, 4, 1.0, "", 0),
    ]
    names = ["class", "images", "right", "accuracy", "taken_for", "times"]
    assert [list(row) for row in rows] == [names] * 4


def test_predictions_csv_read_back():
    found = guesses(12, 40)
    classes = [f"class {i}" for i in range(9)] + ["a, b", 'the "last"', "a\nline"]
    names = [f"folder/{i}, {i}.jpg" for i in range(40)]
    text = reports.predictions_csv(found, names, classes)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 40
    for i, row in enumerate(rows):
        assert row["image"] == names[i]
        assert row["label"] == classes[found.labels[i]]
        assert row["right"] == str(int(found.labels[i] == found.classes[i, 0]))
        assert float(row["loss"]) == pytest.approx(found.losses[i], rel=1e-5)
        for rank in range(5):
            assert row[f"class_{rank + 1}"] == classes[found.classes[i, rank]]
            score = float(row[f"score_{rank + 1}"])
            assert score == pytest.approx(found.scores[i, rank], rel=1e-5)
    assert len(rows[0]) == 4 + 2 * 5


def test_predictions_csv_of_fewer_than_five_classes():
    text = reports.predictions_csv(guesses(3, 4, top=3), "abcd", "xyz")
    header = text.splitlines()[0].split(",")
    assert header[-1] == "score_3"
    assert len(header) == 4 + 2 * 3


@pytest.mark.parametrize("classes", [1, 3, 12, 60, 1000])
def test_draw_confusion(classes):
    found = guesses(classes, 20 * classes, top=1)
    names = [f"class number {i}" for i in range(classes)]
    png = reports.draw_confusion(found.confusion(classes), names)
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert 300 < min(pixels.shape) <= max(pixels.shape) < 2000
    # Nothing touches the edges, so nothing is cut off.
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255


def test_draw_confusion_leaves_out_classes_that_do_not_occur():
    few = np.array([[30, 2], [1, 40]])
    many = np.zeros((500, 500), int)
    many[np.ix_([7, 300], [7, 300])] = few
    names = [f"class {i}" for i in range(500)]
    expected = reports.draw_confusion(few, ["class 7", "class 300"])
    assert reports.draw_confusion(many, names) == expected


def test_draw_confusion_draws_each_count():
    """Rows are right classes; the more images the darker, and white without any."""
    confusion = np.array([[1, 0, 100], [0, 10, 0], [0, 0, 1000]])
    png = reports.draw_confusion(confusion, "abc")
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int).sum(axis=-1)
    # The frame has the longest dark lines.
    sides = []
    for axis in (0, 1):
        dark = (pixels < 100).sum(axis=axis)
        lines = np.flatnonzero(dark > 0.95 * dark.max())
        sides.append((lines[0], lines[-1]))
    (left, right), (top, bottom) = sides
    # A quarter into each cell, where there is no number.
    quarters = (np.arange(3) + 0.25) / 3
    y = np.int32(top + quarters * (bottom - top))
    x = np.int32(left + quarters * (right - left))
    cells = pixels[np.ix_(y, x)]
    assert (cells[confusion == 0] == 3 * 255).all()
    brightness = cells[confusion > 0][np.argsort(confusion[confusion > 0])]
    assert (np.diff([3 * 255, *brightness]) < -20).all()


def test_write_report(tmp_path):
    """The three files and no others, each whole, also where they were before."""
    classes = [f"class {i}" for i in range(10)] + ["Käse, frisch"]
    found = guesses(11, 300)
    folder = tmp_path / "new" / "report"
    for views in ("single", "10crop"):
        reports.write_report(
            folder, classifier(classes), found, dataset="digits", views=views
        )
        assert sorted(path.name for path in folder.iterdir()) == [
            "confusion.png",
            "evaluation.json",
            "per_class.csv",
        ]
        record = json.loads((folder / "evaluation.json").read_text("utf-8"))
        hits = found.classes == found.labels[:, None]
        assert record["accuracy"] == hits[:, 0].mean()
        assert record["top5_accuracy"] == hits.any(axis=1).mean()
        assert record["loss"] == pytest.approx(found.losses.mean(), rel=1e-6)
        assert record["images"] == 300
        assert (record["dataset"], record["views"]) == ("digits", views)
        assert record["settings"] == {"model": "resnet20", "weights": "imagenet"}
        assert record["versions"]["numpy"] == np.__version__
        assert record["machine"]

    with open(folder / "per_class.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    confusion = confusion_matrix(found.labels, found.classes[:, 0])
    assert {row["class"] for row in rows} == set(classes)
    for row in rows:
        counts = confusion[classes.index(row["class"])]
        assert int(row["images"]) == counts.sum()
        assert int(row["right"]) == counts[classes.index(row["class"])]
        assert float(row["accuracy"]) == pytest.approx(
            int(row["right"]) / int(row["images"]), abs=1e-6
        )
    accuracies = [float(row["accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies)
    expected = reports.draw_confusion(confusion, classes)
    assert (folder / "confusion.png").read_bytes() == expected


def test_write_report_where_it_cannot(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        reports.write_report(tmp_path / "file", classifier("abc"), guesses(3, 9, 3))
