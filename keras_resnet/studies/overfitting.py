"""Overfitting: effects of depth, augmentation and wrong labels on the test error."""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from keras_resnet.studies import lib

# Whether images are augmented, fraction of wrong labels. ImageNet has about 1 %.
VARIANTS = (("yes", 0.0), ("no", 0.0), ("yes", 0.01), ("yes", 0.05), ("yes", 0.2))
LEARNT = ("corrected", "memorised")  # Columns on training images with wrong labels.
CEILING = ("test_wrong", "test_error", "measured_error")  # Two terms and their sum.


def jobs(options: lib.Options) -> lib.Rows:
    return [
        {"depth": depth, "augmented": augmented, "wrong": fraction, "seed": seed}
        for seed in range(options.seeds)
        for depth in options.depths
        for augmented, fraction in VARIANTS
    ]


def corrupt_labels(
    labels: np.ndarray, num_classes: int, fraction: float, seed: tuple[int, int]
) -> np.ndarray:
    """Returns labels, (n,), with a fraction replaced by other classes at random."""
    random, corrupted = np.random.default_rng(seed), labels.copy()
    chosen = random.choice(len(labels), round(fraction * len(labels)), replace=False)
    corrupted[chosen] += random.integers(1, num_classes, len(chosen), labels.dtype)
    return corrupted % num_classes


def compute_errors(
    predicted: np.ndarray, truth: np.ndarray, labels: np.ndarray, training: np.ndarray
) -> dict[str, float]:
    """Compares predictions with true and with partly wrong labels, in %.

    All arrays have the shape (images,): the predicted classes, the true classes, the
    partly wrong labels, and whether the image was trained on.
    """

    def percentage(mask: np.ndarray, subset: np.ndarray) -> float:
        return round(100 * float(mask[subset].mean()), 4) if subset.any() else 0.0

    test, wrong = ~training, truth != labels
    return {
        "training_error": percentage(predicted != labels, training),
        "test_error": percentage(predicted != truth, test),
        "measured_error": percentage(predicted != labels, test),
        "test_wrong": percentage(wrong, test),
        "memorised": percentage(predicted == labels, training & wrong),
        "corrected": percentage(predicted == truth, training & wrong),
    }


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Returns the errors of the trained network on images without augmentation."""
    from keras_resnet.evaluation import load_classifier

    model, fraction, seed = f"cifar_resnet{job['depth']}", job["wrong"], job["seed"]
    images = options.load()
    both, num_classes = images.train + images.test, len(images.classes)
    train = corrupt_labels(images.train.labels, num_classes, fraction, (seed, 0))
    test = corrupt_labels(images.test.labels, num_classes, fraction, (seed, 1))
    changes: dict[str, Any] = {}
    if job["augmented"] == "no":
        changes = {"pad": 0.0, "flip": False}
    if fraction:
        settings = {"": model, **options.settings, "wrong": fraction, "seed": seed}
        changes["folder"] = f"{options.folder}/runs/{lib.file_stem(settings)}"
        corrupted = dataclasses.replace(images.train, labels=train)
        changes["dataset"] = dataclasses.replace(images, train=corrupted)
    network = load_classifier(options.train(model, seed, **changes)).model
    predicted = lib.predict_probabilities({"": network}, both.images).argmax(axis=-1)
    labels, training = np.concatenate([train, test]), np.arange(len(both)) < len(train)
    return [compute_errors(predicted, both.labels, labels, training)]


def select_seeds(
    rows: lib.Rows, column: str, depth: int, wrong: float = 0.0, augmented: str = "yes"
) -> np.ndarray:
    """Returns a column of all seeds. `gap` is measured minus training error."""
    if column == "gap":
        columns = ("measured_error", "training_error")
        return np.subtract(
            *(select_seeds(rows, c, depth, wrong, augmented) for c in columns)
        )
    where = {"depth": depth, "wrong": wrong, "augmented": augmented}
    return np.array(lib.select_column(rows, column, **where))


def draw(rows: lib.Rows) -> Figure:
    titles = ("test minus training error", "errors with wrong labels")
    figure, (left, right) = lib.new_figure(*titles)
    depths, wrong = (lib.distinct_values(rows, column) for column in ("depth", "wrong"))
    percent, most, deepest = [100 * value for value in wrong], wrong[-1], depths[-1]
    lines = {"augmented": (0, "yes"), "not augmented": (0, "no")}
    lines[f"{most:.0%} wrong labels"] = (most, "yes")
    for label, colour in lib.pair_with_colours(lines):
        runs = [select_seeds(rows, "gap", depth, *lines[label]) for depth in depths]
        lib.draw_points(left, depths, runs, label, colour)
    left.set(xlabel="layers", ylabel="difference (points)", xticks=depths)
    for column, colour in lib.pair_with_colours(("training", "test", "measured")):
        runs = [select_seeds(rows, f"{column}_error", deepest, w) for w in wrong]
        lib.draw_points(right, percent, runs, column, colour)
    right.plot(percent, percent, "k:", label="percentage of wrong labels")
    right.set(xlabel="wrong labels (%)", ylabel=f"error with {deepest} layers (%)")
    lib.add_legends(left, right)
    return figure


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    depths, wrong = (lib.distinct_values(rows, column) for column in ("depth", "wrong"))
    deepest, most = depths[-1], wrong[-1]

    def points(values: np.ndarray) -> str:
        return lib.mean_and_deviation(values, " points")

    shallow, deep = (select_seeds(rows, "gap", depth) for depth in (depths[0], deepest))
    plain = select_seeds(rows, "gap", deepest, 0, "no")
    tests = {w: [select_seeds(rows, "test_error", d, w) for d in depths] for w in wrong}
    rises = {w: np.subtract(tests[w], tests[0]).ravel() for w in wrong[1:]}
    risen = ", ".join(f"{points(rise)} with {w:.0%}" for w, rise in rises.items())
    learnt = [select_seeds(rows, column, deepest, most) for column in LEARNT]
    corrected, memorised = map(lib.mean_and_deviation, learnt)
    terms = np.array([[row[c] for c in CEILING] for row in rows if row["wrong"]])
    differences = abs(terms @ [1, 1, -1])
    less = all(max(rise) < 100 * w for w, rise in rises.items())
    results = (
        f"gap {points(shallow)} with {depths[0]} layers, {points(deep)} with {deepest}",
        f"gap {points(plain)} without augmentation, {points(deep)} with it",
        f"increase by {risen} wrong labels; training images with wrong labels: {corrected} "
        f"predicted correctly, {memorised} as labelled (fraction {most:.0%})",
        f"difference {points(differences)}, at most {max(differences):.2f}",
    )
    holds = (min(deep - shallow) > 0, min(plain - deep) > 0, less, max(differences) < 1)
    return list(zip(results, map(bool, holds), strict=True))


STUDY = lib.Study(
    name="overfitting", title="Depth, augmentation and wrong labels",
    claim="The network with 1202 layers has the training error of the one with 110 layers but "
    "a higher test error, so it overfits (section 4.2). Left: this gap. Right: wrong labels; the "
    "test error uses the true labels, the measured error partly wrong ones (arXiv:1611.03530).",
    expected=(
        "The gap is greater in the deepest network than in the shallowest one.",
        "The gap of the deepest network is greater without augmentation.",
        "Wrong labels raise the test error by less than their percentage, in every run.",
        "The measured error is the percentage of wrong labels plus the test error, within one "
        "point, so wrong labels set a ceiling.",
    ),
    jobs=jobs, measure=measure, draw=draw, check_expectations=check_expectations,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
