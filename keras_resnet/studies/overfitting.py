"""Whether depth overfits: test minus training error, and what wrong labels do to both."""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from keras_resnet.studies import lib

# Augmented or not, share of wrong labels: ImageNet has about 1 %.
VARIANTS = (("yes", 0.0), ("no", 0.0), ("yes", 0.01), ("yes", 0.05), ("yes", 0.2))
LEARNT = ("corrected", "memorised")
SUM = ("test_wrong", "test_error", "measured_error")


def jobs(options: lib.Options) -> lib.Rows:
    return [
        {"depth": depth, "augmented": augmented, "wrong": share, "seed": seed}
        for seed in range(options.seeds)
        for depth in options.depths
        for augmented, share in VARIANTS
    ]


def with_wrong_labels(
    labels: np.ndarray, classes: int, share: float, seed: tuple[int, int]
) -> np.ndarray:
    """Labels (images,) of which a share is another one of the classes, each as likely."""
    random, changed = np.random.default_rng(seed), labels.copy()
    places = random.choice(len(labels), round(share * len(labels)), replace=False)
    changed[places] += random.integers(1, classes, len(places), labels.dtype)
    return changed % classes


def errors(
    named: np.ndarray, truth: np.ndarray, given: np.ndarray, training: np.ndarray
) -> dict[str, float]:
    """Compares a network's answers with labels of which some are wrong, in %.

    Arrays are (images,): the classes that it names, the right labels, those of which some
    are wrong, and whether it was trained on the image.
    """

    def share(mask: np.ndarray, of: np.ndarray) -> float:
        return round(100 * float(mask[of].mean()), 4) if of.any() else 0.0

    test, wrong = ~training, truth != given
    return {
        "training_error": share(named != given, training),
        "test_error": share(named != truth, test),
        "measured_error": share(named != given, test),
        "test_wrong": share(wrong, test),
        "memorised": share(named == given, training & wrong),
        "corrected": share(named == truth, training & wrong),
    }


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Errors of the trained network on images as they are, not augmented."""
    from keras_resnet.evaluation import load_classifier

    model, share, seed = f"cifar_resnet{job['depth']}", job["wrong"], job["seed"]
    images = options.load()
    both, classes = images.train + images.test, len(images.classes)
    train = with_wrong_labels(images.train.labels, classes, share, (seed, 0))
    test = with_wrong_labels(images.test.labels, classes, share, (seed, 1))
    changes: dict[str, Any] = {}
    if job["augmented"] == "no":
        changes = {"pad": 0.0, "flip": False}
    if share:
        name = lib.run_key({"": model, **options.budget, "wrong": share, "seed": seed})
        changes["folder"] = f"{options.folder}/runs/{name}"
        wrong = dataclasses.replace(images.train, labels=train)
        changes["dataset"] = dataclasses.replace(images, train=wrong)
    net = load_classifier(options.train(model, seed, **changes)).model
    named = lib.probabilities({"": net}, both.images).argmax(axis=-1)
    given, training = np.concatenate([train, test]), np.arange(len(both)) < len(train)
    return [errors(named, both.labels, given, training)]


def of_seeds(
    rows: lib.Rows, column: str, depth: int, wrong: float = 0.0, augmented: str = "yes"
) -> np.ndarray:
    """A column, of all seeds; `gap` is test minus training error, by labels alike."""
    if column == "gap":
        columns = ("measured_error", "training_error")
        return np.subtract(
            *(of_seeds(rows, c, depth, wrong, augmented) for c in columns)
        )
    where = {"depth": depth, "wrong": wrong, "augmented": augmented}
    return np.array(lib.select_column(rows, column, **where))


def draw(rows: lib.Rows) -> Figure:
    titles = ("test minus training error", "wrong labels")
    figure, (left, right) = lib.new_figure(*titles)
    depths, given = (lib.distinct_values(rows, column) for column in ("depth", "wrong"))
    percent, most, deepest = [100 * share for share in given], given[-1], depths[-1]
    lines = {"augmented": (0, "yes"), "not augmented": (0, "no")}
    lines[f"{most:.0%} wrong labels"] = (most, "yes")
    for label, colour in lib.with_colours(lines):
        runs = [of_seeds(rows, "gap", depth, *lines[label]) for depth in depths]
        lib.draw_points(left, depths, runs, label, colour)
    left.set(xlabel="layers", ylabel="difference (points)", xticks=depths)
    for column, colour in lib.with_colours(("training", "test", "measured")):
        runs = [of_seeds(rows, f"{column}_error", deepest, share) for share in given]
        lib.draw_points(right, percent, runs, column, colour)
    right.plot(percent, percent, "k:", label="share of wrong labels")
    right.set(xlabel="wrong labels (%)", ylabel=f"error with {deepest} layers (%)")
    lib.add_legends(left, right)
    return figure


def judge(rows: lib.Rows) -> list[lib.Verdict]:
    depths, given = (lib.distinct_values(rows, column) for column in ("depth", "wrong"))
    deepest, most = depths[-1], given[-1]

    def points(values: np.ndarray) -> str:
        return lib.mean_and_deviation(values, " points")

    shallow, deep = (of_seeds(rows, "gap", depth) for depth in (depths[0], deepest))
    bare = of_seeds(rows, "gap", deepest, 0, "no")
    tests = {s: [of_seeds(rows, "test_error", d, s) for d in depths] for s in given}
    rises = {s: np.subtract(tests[s], tests[0]).ravel() for s in given[1:]}
    risen = ", ".join(f"{points(rise)} with {s:.0%}" for s, rise in rises.items())
    learnt = [of_seeds(rows, column, deepest, most) for column in LEARNT]
    rightly, as_labelled = map(lib.mean_and_deviation, learnt)
    sums = np.array([[row[c] for c in SUM] for row in rows if row["wrong"]])
    apart = abs(sums @ [1, 1, -1])
    less = all(max(rise) < 100 * share for share, rise in rises.items())
    words = (
        f"{points(shallow)} with {depths[0]}, {points(deep)} with {deepest}",
        f"{points(bare)} without, {points(deep)} with augmentation",
        f"by {risen} wrong; of {most:.0%} named rightly {rightly}, as labelled "
        f"{as_labelled}",
        f"apart by {points(apart)}, at most {max(apart):.2f}",
    )
    holds = (min(deep - shallow) > 0, min(bare - deep) > 0, less, max(apart) < 1)
    return list(zip(words, map(bool, holds), strict=True))


STUDY = lib.Study(
    name="overfitting", title="Depth, augmentation and wrong labels",
    claim="The net of 1202 layers has the training error of that of 110 and a higher "
    "test error: it overfits (section 4.2). Left: that gap. Right: wrong labels, where the "
    "test error is by right ones, the measured by as wrong ones (arXiv:1611.03530).",
    expected=(
        "the gap is greater in the deepest net than in the shallowest",
        "the deepest net's is greater without augmentation",
        "wrong labels raise the test error by less than their share, in every run",
        "they are a ceiling: the measured error is their share and the test error, to a point",
    ),
    jobs=jobs, measure=measure, draw=draw, judge=judge,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
