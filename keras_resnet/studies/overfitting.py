"""Whether depth overfits: test minus training error, and what wrong labels do to both."""

import dataclasses

import numpy as np

from keras_resnet.studies.lib import (
    Study,
    add_legends,
    distinct_values,
    draw_points,
    mean_and_deviation,
    new_figure,
    run_key,
    select_column,
    with_colours,
)

# Augmented or not, share of wrong labels: ImageNet has about 1 %.
VARIANTS = (("yes", 0.0), ("no", 0.0), ("yes", 0.01), ("yes", 0.05), ("yes", 0.2))


LEARNT = ("corrected", "memorised")


SUM = ("test_wrong", "test_error", "measured_error")


def jobs(options):
    return [
        {"depth": depth, "augmented": augmented, "wrong": share, "seed": seed}
        for seed in range(options.seeds)
        for depth in options.depths
        for augmented, share in VARIANTS
    ]


def with_wrong_labels(labels, classes, share, seed):
    """Labels (images,) of which a share is another one of the classes, each as likely."""
    random, changed = np.random.default_rng(seed), labels.copy()
    places = random.choice(len(labels), round(share * len(labels)), replace=False)
    changed[places] += random.integers(1, classes, len(places), labels.dtype)
    return changed % classes


def errors(named, truth, given, training):
    """What a network makes of images of which some labels are wrong, in %.

    Args, all (images,): the class that it names, the right labels, those given, of
    which some are wrong, and whether it was trained on the image.
    """

    def share(mask, of):
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


def measure(options, job):
    """Errors of the trained network on images as they are, not augmented."""
    from keras_resnet.evaluation import load_classifier
    from keras_resnet.studies.lib import probabilities

    model, share, seed = f"cifar_resnet{job['depth']}", job["wrong"], job["seed"]
    images = options.load()
    both, classes = images.train + images.test, len(images.classes)
    train = with_wrong_labels(images.train.labels, classes, share, (seed, 0))
    test = with_wrong_labels(images.test.labels, classes, share, (seed, 1))
    changes = {"pad": 0.0, "flip": False} if job["augmented"] == "no" else {}
    if share:
        name = run_key({"": model, **options.budget, "wrong": share, "seed": seed})
        changes["folder"] = f"{options.folder}/runs/{name}"
        wrong = dataclasses.replace(images.train, labels=train)
        changes["dataset"] = dataclasses.replace(images, train=wrong)
    net = load_classifier(options.train(model, seed, **changes)).model
    named = probabilities({"": net}, both.images).argmax(axis=-1)
    given, training = np.concatenate([train, test]), np.arange(len(both)) < len(train)
    return [errors(named, both.labels, given, training)]


def of_seeds(rows, column, depth, wrong=0.0, augmented="yes"):
    """A column, of all seeds; `gap` is test minus training error, by labels alike."""
    if column == "gap":
        columns, where = ("measured_error", "training_error"), (depth, wrong, augmented)
        return np.subtract(*(of_seeds(rows, each, *where) for each in columns))
    return np.array(
        select_column(rows, column, depth=depth, wrong=wrong, augmented=augmented)
    )


def draw(rows):
    figure, (left, right) = new_figure("test minus training error", "wrong labels")
    depths, given = distinct_values(rows, "depth"), distinct_values(rows, "wrong")
    percent, most, deepest = 100 * np.array(given), given[-1], depths[-1]
    lines = {"augmented": (0, "yes"), "not augmented": (0, "no")}
    lines[f"{most:.0%} wrong labels"] = (most, "yes")
    for label, colour in with_colours(lines):
        runs = [of_seeds(rows, "gap", depth, *lines[label]) for depth in depths]
        draw_points(left, depths, runs, label, colour)
    left.set(xlabel="layers", ylabel="difference (points)", xticks=depths)
    for column, colour in with_colours(("training", "test", "measured")):
        runs = [of_seeds(rows, f"{column}_error", deepest, share) for share in given]
        draw_points(right, percent, runs, column, colour)
    right.plot(percent, percent, "k:", label="share of wrong labels")
    right.set(xlabel="wrong labels (%)", ylabel=f"error with {deepest} layers (%)")
    add_legends(left, right)
    return figure


def judge(rows):
    depths, given = distinct_values(rows, "depth"), distinct_values(rows, "wrong")
    deepest, most, points = depths[-1], given[-1], " points"
    shallow, deep = (of_seeds(rows, "gap", each) for each in (depths[0], deepest))
    bare = of_seeds(rows, "gap", deepest, 0, "no")
    tests = {s: [of_seeds(rows, "test_error", d, s) for d in depths] for s in given}
    rises = {s: np.subtract(tests[s], tests[0]).ravel() for s in given[1:]}
    risen = ", ".join(
        f"{mean_and_deviation(r, points)} with {s:.0%}" for s, r in rises.items()
    )
    learnt = [mean_and_deviation(of_seeds(rows, c, deepest, most)) for c in LEARNT]
    sums = np.array([[row[c] for c in SUM] for row in rows if row["wrong"]])
    apart = abs(sums @ [1, 1, -1])
    seen = (
        f"{mean_and_deviation(shallow, points)} with {depths[0]}, {mean_and_deviation(deep, points)} with {deepest}",
        f"{mean_and_deviation(bare, points)} without, {mean_and_deviation(deep, points)} with augmentation",
        f"by {risen} wrong; of {most:.0%} named rightly {learnt[0]}, as labelled {learnt[1]}",
        f"apart by {mean_and_deviation(apart, points)}, at most {max(apart):.2f}",
    )
    less = all(max(rise) < 100 * share for share, rise in rises.items())
    holds = (min(deep - shallow) > 0, min(bare - deep) > 0, less, max(apart) < 1)
    return list(zip(seen, holds, strict=True))


STUDY = Study(
    name="overfitting",
    title="Depth, augmentation and wrong labels",
    claim="The net of 1202 layers has the training error of that of 110 and a higher "
    "test error: it overfits (section 4.2). Left: that gap. Right: wrong labels, where the "
    "test error is by right ones, the measured by as wrong ones (arXiv:1611.03530).",
    expected=(
        "the gap is greater in the deepest net than in the shallowest",
        "the deepest net's is greater without augmentation",
        "wrong labels raise the test error by less than their share, in every run",
        "they are a ceiling: the measured error is their share and the test error, to a point",
    ),
    jobs=jobs,
    measure=measure,
    draw=draw,
    judge=judge,
)


if __name__ == "__main__":
    from keras_resnet.studies.lib import run_study

    run_study(STUDY)
