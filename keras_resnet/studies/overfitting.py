"""Overfitting: effects of depth, augmentation and wrong labels on the test error."""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from keras_resnet.studies import lib
from keras_resnet.support import derive_seed

# `augmented` and `wrong`, the fraction of wrong labels, which is about 1 % in ImageNet.
CONDITIONS = (("yes", 0.0), ("no", 0.0), ("yes", 0.01), ("yes", 0.05), ("yes", 0.2))
# Columns with percentages of those training images that have wrong labels.
WRONG_LABEL_COLUMNS = ("corrected", "memorised")
# The first two of these columns should add up to the third column.
SUM_COLUMNS = ("test_wrong", "test_error", "measured_error")


def list_jobs(options: lib.Options) -> lib.Rows:
    return [
        {"depth": depth, "augmented": augmented, "wrong": fraction, "seed": seed}
        for seed in range(options.seeds)
        for depth in options.depths
        for augmented, fraction in CONDITIONS
    ]


def corrupt_labels(
    labels: np.ndarray, num_classes: int, fraction: float, seed: int
) -> np.ndarray:
    """Returns a copy of labels, (n,), with a random fraction replaced by wrong ones."""
    rng, noisy_labels = np.random.default_rng(seed), labels.copy()
    indices = rng.choice(len(labels), round(fraction * len(labels)), replace=False)
    noisy_labels[indices] += rng.integers(1, num_classes, len(indices), labels.dtype)
    return noisy_labels % num_classes


def compute_errors(
    predicted: np.ndarray, truth: np.ndarray, labels: np.ndarray, training: np.ndarray
) -> dict[str, float]:
    """Returns the error columns of a row, in %.

    All arguments have the shape (images,). `training` is true for training images. The
    other arguments are classes. `labels` equals `truth` except for some wrong classes.
    """

    def percentage(mask: np.ndarray, subset: np.ndarray) -> float:
        return round(100 * float(mask[subset].mean()), 4) if subset.any() else 0.0

    is_test, is_wrong = ~training, truth != labels
    return {
        "training_error": percentage(predicted != labels, training),
        "test_error": percentage(predicted != truth, is_test),
        "measured_error": percentage(predicted != labels, is_test),
        "test_wrong": percentage(is_wrong, is_test),
        "memorised": percentage(predicted == labels, training & is_wrong),
        "corrected": percentage(predicted == truth, training & is_wrong),
    }


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Trains a network and returns its errors on images without augmentation, in %."""
    from keras_resnet.evaluation import load_classifier

    model, noise, seed = f"cifar_resnet{job['depth']}", job["wrong"], job["seed"]
    dataset = options.load()
    union, num_classes = dataset.train + dataset.test, len(dataset.classes)
    train_seed = derive_seed(seed, "wrong training labels")
    test_seed = derive_seed(seed, "wrong test labels")
    train_labels = corrupt_labels(dataset.train.labels, num_classes, noise, train_seed)
    test_labels = corrupt_labels(dataset.test.labels, num_classes, noise, test_seed)
    changes: dict[str, Any] = {}
    if job["augmented"] == "no":
        changes = {"pad": 0.0, "flip": False}
    if noise:
        settings = {"": model, **options.name_settings, "wrong": noise, "seed": seed}
        changes["folder"] = f"{options.folder}/runs/{lib.file_stem(settings)}"
        corrupted_split = dataclasses.replace(dataset.train, labels=train_labels)
        changes["dataset"] = dataclasses.replace(dataset, train=corrupted_split)
    network = load_classifier(options.train(model, seed, **changes)).model
    predicted = lib.predict_probabilities({"": network}, union.images).argmax(axis=-1)
    labels = np.concatenate([train_labels, test_labels])
    is_training = np.arange(len(union)) < len(train_labels)
    return [compute_errors(predicted, union.labels, labels, is_training)]


def get_column(
    rows: lib.Rows, column: str, depth: int, wrong: float = 0.0, augmented: str = "yes"
) -> np.ndarray:
    """Returns a value per seed. "gap" is the measured minus the training error."""
    if column == "gap":
        columns = ("measured_error", "training_error")
        errors = (get_column(rows, c, depth, wrong, augmented) for c in columns)
        return np.subtract(*errors)
    where = {"depth": depth, "wrong": wrong, "augmented": augmented}
    return np.array(lib.select_column(rows, column, **where))


def draw(rows: lib.Rows) -> Figure:
    titles = ("test minus training error", "errors with wrong labels")
    figure, (gap_axes, error_axes) = lib.new_figure(*titles)
    depths, noise = (lib.distinct_values(rows, column) for column in ("depth", "wrong"))
    percentages, max_noise, deepest = [100 * x for x in noise], noise[-1], depths[-1]
    conditions = {"augmented": (0, "yes"), "not augmented": (0, "no")}
    conditions[f"{max_noise:.0%} wrong labels"] = (max_noise, "yes")
    for label, colour in lib.pair_with_colours(conditions):
        values = [get_column(rows, "gap", d, *conditions[label]) for d in depths]
        lib.draw_points(gap_axes, depths, values, label, colour)
    gap_axes.set(xlabel="layers", ylabel="difference (points)", xticks=depths)
    for column, colour in lib.pair_with_colours(("training", "test", "measured")):
        values = [get_column(rows, f"{column}_error", deepest, w) for w in noise]
        lib.draw_points(error_axes, percentages, values, column, colour)
    error_axes.plot(percentages, percentages, "k:", label="percentage of wrong labels")
    error_axes.set(xlabel="wrong labels (%)", ylabel=f"error with {deepest} layers (%)")
    lib.add_legends(gap_axes, error_axes)
    return figure


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    depths, noise = (lib.distinct_values(rows, column) for column in ("depth", "wrong"))
    deepest, max_noise = depths[-1], noise[-1]

    def to_text(values: np.ndarray) -> str:
        return lib.format_mean(values, " points")

    shallow_gap, deep_gap = (get_column(rows, "gap", d) for d in (depths[0], deepest))
    bare_gap = get_column(rows, "gap", deepest, 0, "no")  # Without augmentation.
    errors = {w: [get_column(rows, "test_error", d, w) for d in depths] for w in noise}
    rises = {w: np.subtract(errors[w], errors[0]).ravel() for w in noise[1:]}
    rise_text = ", ".join(f"{to_text(rise)} with {w:.0%}" for w, rise in rises.items())
    columns = [get_column(rows, c, deepest, max_noise) for c in WRONG_LABEL_COLUMNS]
    corrected, memorised = map(lib.format_mean, columns)
    terms = np.array([[row[c] for c in SUM_COLUMNS] for row in rows if row["wrong"]])
    differences = abs(terms @ [1, 1, -1])
    are_rises_small = all(max(rise) < 100 * w for w, rise in rises.items())
    results = (
        f"gap {to_text(shallow_gap)} with {depths[0]} layers, {to_text(deep_gap)} with {deepest}",
        f"gap {to_text(bare_gap)} without augmentation, {to_text(deep_gap)} with it",
        f"increase by {rise_text} wrong labels; training images with wrong labels: {corrected} "
        f"predicted correctly, {memorised} as labelled (fraction {max_noise:.0%})",
        f"difference {to_text(differences)}, at most {max(differences):.2f}",
    )
    gap_rises = deep_gap - shallow_gap, bare_gap - deep_gap
    holds = (*(min(r) > 0 for r in gap_rises), are_rises_small, max(differences) < 1)
    return list(zip(results, map(bool, holds), strict=True))


STUDY = lib.Study(
    name="overfitting", title="Depth, augmentation and wrong labels",
    claim="The network with 1202 layers has the training error of the one with 110 layers but "
    "a higher test error, so it overfits (section 4.2). Left: this gap. Right: wrong labels; the "
    "test error uses the true labels, the measured error partly wrong ones (arXiv:1611.03530).",
    expectations=(
        "The gap is greater in the deepest network than in the shallowest one.",
        "The gap of the deepest network is greater without augmentation.",
        "Wrong labels raise the test error by less than their percentage, in every run.",
        "The measured error is the percentage of wrong labels plus the test error, within one "
        "point, so wrong labels are an upper bound on the measured accuracy.",
    ),
    list_jobs=list_jobs, measure=measure, draw=draw, check_expectations=check_expectations,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
