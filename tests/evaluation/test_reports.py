"""Evaluation reports, compared with scikit-learn and with values computed by hand."""

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
from keras_resnet.support import to_csv, to_printable
from keras_resnet.training.figures import draw_batch


def make_random_predictions(num_classes, num_images, k=5, accuracy=0.7):
    """Returns random predictions of the k most probable classes for each image.

    The most probable class is correct with the probability `accuracy`.
    """
    random = np.random.default_rng(num_classes)
    labels = random.integers(0, num_classes, num_images).astype(np.int32)
    top_k = np.stack([random.permutation(num_classes)[:k] for _ in range(num_images)])
    for row, label in zip(top_k, labels, strict=True):
        if random.random() < accuracy:
            row[list(row).index(label) if label in row else 0] = row[0]
            row[0] = label
    probabilities = random.dirichlet(np.ones(num_classes), num_images)
    scores = -np.sort(-probabilities, axis=1)[:, :k]
    losses = random.exponential(1, num_images)
    return Predictions(
        labels, top_k.astype(np.int32), np.float32(scores), np.float32(losses)
    )


def make_classifier(classes):
    return Classifier(
        "net",
        None,
        tuple(classes),
        Preprocessing(8, 8, 1),
        Provenance("resnet20", "imagenet"),
    )


@pytest.mark.parametrize("num_classes", [3, 10, 1000])
def test_confusion_equals_scikit_learn(num_classes):
    predictions = make_random_predictions(num_classes, 700, k=3)
    expected = confusion_matrix(
        predictions.labels, predictions.classes[:, 0], labels=np.arange(num_classes)
    )
    np.testing.assert_array_equal(predictions.confusion_matrix(num_classes), expected)


def test_classes_are_ranked_by_accuracy_and_show_the_main_error():
    confusion = np.array(
        [
            [5, 1, 2, 0, 0],  # cat: 5 of 8 correct, 2 predicted as bird
            [0, 4, 0, 0, 0],  # dog: 4 of 4 correct
            [1, 1, 0, 0, 2],  # bird: 0 of 4 correct, 2 predicted as owl
            [0, 0, 0, 0, 0],  # fox: no images
            [0, 0, 0, 3, 5],  # owl: 5 of 8 correct, 3 predicted as fox
        ]
    )
    rows = reports.rank_classes(confusion, ("cat", "dog", "bird", "fox", "owl"))
    assert [tuple(row.values()) for row in rows] == [
        ("bird", 4, 0, 0.0, "owl", 2),
        ("cat", 8, 5, 0.625, "bird", 2),
        ("owl", 8, 5, 0.625, "fox", 3),
        ("dog", 4, 4, 1.0, "", 0),
    ]
    columns = ["class", "images", "right", "accuracy", "taken_for", "times"]
    assert [list(row) for row in rows] == [columns] * 4


def test_the_csv_file_contains_all_predictions():
    predictions = make_random_predictions(12, 40)
    classes = [f"class {i}" for i in range(9)] + ["a, b", 'the "last"', "a\nline"]
    names = [f"folder/{i}, {i}.jpg" for i in range(40)]
    csv_text = reports.format_predictions(predictions, names, classes)
    classes[-1] = r"a\nline"  # Line breaks are escaped.
    rows = list(csv.DictReader(io.StringIO(csv_text, newline="")))
    assert len(rows) == 40
    for i, row in enumerate(rows):
        assert row["image"] == names[i]
        assert row["label"] == classes[predictions.labels[i]]
        assert row["right"] == str(
            int(predictions.labels[i] == predictions.classes[i, 0])
        )
        assert float(row["loss"]) == pytest.approx(predictions.losses[i], rel=1e-5)
        for rank in range(5):
            assert row[f"class_{rank + 1}"] == classes[predictions.classes[i, rank]]
            score = float(row[f"score_{rank + 1}"])
            assert score == pytest.approx(predictions.scores[i, rank], rel=1e-5)
    assert len(rows[0]) == 4 + 2 * 5


def test_the_csv_file_of_three_classes_has_three_scores():
    csv_text = reports.format_predictions(
        make_random_predictions(3, 4, k=3), "abcd", "xyz"
    )
    header = csv_text.splitlines()[0].split(",")
    assert header[-1] == "score_3"
    assert len(header) == 4 + 2 * 3


@pytest.mark.parametrize("num_classes", [1, 3, 12, 60])
def test_the_confusion_figure_fits_into_its_image(num_classes):
    predictions = make_random_predictions(num_classes, 20 * num_classes, k=1)
    names = [f"class number {i}" for i in range(num_classes)]
    png = reports.draw_confusion(predictions.confusion_matrix(num_classes), names)
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert 300 < min(pixels.shape) <= max(pixels.shape) < 2000
    # The outermost pixels are white, so no text is cut off.
    for border in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert border.min() == 255


def test_the_confusion_figure_omits_classes_without_images():
    counts = np.array([[30, 2], [1, 40]])
    sparse_counts = np.zeros((500, 500), int)
    sparse_counts[np.ix_([7, 300], [7, 300])] = counts
    names = [f"class {i}" for i in range(500)]
    expected = reports.draw_confusion(counts, ["class 7", "class 300"])
    assert reports.draw_confusion(sparse_counts, names) == expected


HOSTILE_NAMES = (
    "$\\frac{",
    "a\x1b[31m",
    "=cmd()",
    "<script>",
    "x" * 9999,
    "$$$",
    "a\nb",
)


def test_figures_accept_any_class_names():
    """Formulas and control characters are shown as text. Long names are cut."""
    confusion = np.ones((7, 7), int)
    with Image.open(
        io.BytesIO(reports.draw_confusion(confusion, HOSTILE_NAMES))
    ) as image:
        assert max(image.size) < 2000
    images, labels = np.zeros((7, 4, 4, 3), np.uint8), np.arange(7)
    assert draw_batch(images, labels, HOSTILE_NAMES) == draw_batch(
        images, labels, [to_printable(name)[:40] for name in HOSTILE_NAMES]
    )


def test_the_csv_files_contain_no_formulas_and_control_characters():
    rows = reports.rank_classes(np.ones((7, 7), int), HOSTILE_NAMES)
    text = to_csv(rows) + reports.format_predictions(
        make_random_predictions(7, 40), ["\x1b]0;title\x07.jpg"] * 40, HOSTILE_NAMES
    )
    assert text.replace("\n", "").isprintable()
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert "'=cmd()" in cells and r"a\nb" in cells
    assert not [cell for cell in cells if cell[:1] in "=+@"[: len(cell)]]


@pytest.mark.parametrize(("num_classes", "has_names"), [(2, True), (41, False)])
def test_the_confusion_figure_names_at_most_40_classes(num_classes, has_names):
    confusion = np.eye(num_classes, dtype=int)
    figures = {
        reports.draw_confusion(confusion, [letter] * num_classes) for letter in "ab"
    }
    assert len(figures) == (2 if has_names else 1)


def test_cells_of_the_confusion_figure_are_darker_for_more_images():
    """Cells without images are white. Each row contains the images of one class."""
    confusion = np.array([[1, 0, 100], [0, 10, 0], [0, 0, 1000]])
    png = reports.draw_confusion(confusion, "abc")
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int).sum(axis=-1)
    # The longest dark lines are the frame of the axes, which encloses the cells.
    frame = []
    for axis in (0, 1):
        num_dark_pixels = (pixels < 100).sum(axis=axis)
        frame_lines = np.flatnonzero(num_dark_pixels > 0.95 * num_dark_pixels.max())
        frame.append((frame_lines[0], frame_lines[-1]))
    (left, right), (top, bottom) = frame
    # The colours are read beside the numbers, which are at the centres of the cells.
    positions = (np.arange(3) + 0.25) / 3
    y = np.int32(top + positions * (bottom - top))
    x = np.int32(left + positions * (right - left))
    cell_colours = pixels[np.ix_(y, x)]
    assert (cell_colours[confusion == 0] == 3 * 255).all()
    colours_by_count = cell_colours[confusion > 0][np.argsort(confusion[confusion > 0])]
    assert (np.diff([3 * 255, *colours_by_count]) < -20).all()


def test_a_report_consists_of_three_files(tmp_path):
    """The second report replaces the files of the first report in the same folder."""
    classes = [f"class {i}" for i in range(10)] + ["Käse, frisch"]
    predictions = make_random_predictions(11, 300)
    folder = tmp_path / "new" / "report"
    for views in ("single", "10crop"):
        reports.write_report(
            folder, make_classifier(classes), predictions, dataset="digits", views=views
        )
        assert sorted(path.name for path in folder.iterdir()) == [
            "confusion.png",
            "evaluation.json",
            "per_class.csv",
        ]
        record = json.loads((folder / "evaluation.json").read_text("utf-8"))
        hits = predictions.classes == predictions.labels[:, None]
        assert record["accuracy"] == hits[:, 0].mean()
        assert record["top5_accuracy"] == hits.any(axis=1).mean()
        assert record["loss"] == pytest.approx(predictions.losses.mean(), rel=1e-6)
        assert record["images"] == 300
        assert (record["dataset"], record["views"]) == ("digits", views)
        assert record["settings"] == {"model": "resnet20", "weights": "imagenet"}
        assert record["versions"]["numpy"] == np.__version__
        assert record["machine"]

    with open(folder / "per_class.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    confusion = confusion_matrix(predictions.labels, predictions.classes[:, 0])
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


def test_a_report_cannot_be_written_into_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        reports.write_report(
            tmp_path / "file", make_classifier("abc"), make_random_predictions(3, 9, 3)
        )
