"""A deep net made of a trained shallow one by blocks that do nothing.

The paper's section 1: "there exists a solution by construction to the deeper model". With
shortcuts it is had by zeros: a block whose last gamma and beta are zero gives what it
reads. Without shortcuts such a block gives zeros, and no gradient gets through it.

A plain net is not without such a solution: what a block reads is not negative, so that
kernels with a single one (Dirac's), and a normalisation that undoes itself, give what they
read in inference mode. But each block has to hold these very numbers; nothing draws it
to them, and in training, batch normalisation shifts them with each batch.
"""

import os

from keras_resnet.studies.lib import (
    KINDS,
    Options,
    Study,
    add_legends,
    draw_points,
    mean_and_deviation,
    new_figure,
    run_key,
    select_column,
)

NETS = ("shallow", "start", "further", "scratch")


def jobs(options):
    shallow, *_, deep = options.depths
    return [
        {"kind": kind, "depth": shallow, "to": deep, "seed": seed}
        for seed in range(options.seeds)
        for kind in KINDS
    ]


def measure(options, job):
    """Errors in inference mode, in %, of images as they are, not augmented.

    `difference` is the largest of any probability of a training image from the shallow
    net's; `chance` the least error of a net that names one class for all images.
    """
    import keras
    import numpy as np

    from keras_resnet.studies.lib import deepened, error_rate, probabilities
    from keras_resnet.training import save_network
    from keras_resnet.weights import load_model

    def trained(depth, **changes):
        model = f"cifar_{job['kind']}net{depth}"
        folder = options.train(model, job["seed"], **changes)
        return load_model(os.path.join(folder, "final.keras"))

    shallow, scratch = trained(job["depth"]), trained(job["to"])
    keras.utils.set_random_seed(job["seed"])
    start = deepened(shallow, f"cifar_{job['kind']}net{job['to']}")
    name = run_key({"": "deepened", **job, **options.budget})
    folder = os.path.join(options.folder, "runs", name)
    save_network(start, f"{folder}.keras")
    further = trained(
        job["to"], folder=folder, weights=f"{folder}.keras", learning_rate=0.01
    )
    train, test = options.load().train, options.load().test
    least = 100 * (1 - np.bincount(train.labels).max() / len(train))
    before = probabilities({"": shallow}, train.images)
    rows = []
    for name, net in zip(NETS, (shallow, start, further, scratch), strict=True):
        said, held_out = (
            probabilities({"": net}, each.images) for each in (train, test)
        )
        rows.append(
            {
                "net": name,
                "training_error": error_rate(said, train.labels),
                "test_error": error_rate(held_out, test.labels),
                "difference": float(np.abs(said - before).max()),
                "chance": least,
            }
        )
    return rows


def draw(rows):
    figure, axes = new_figure("training images", "held-out images", share_y=True)
    depth, to, chance = (rows[0][column] for column in ("depth", "to", "chance"))
    labels = f"{depth} layers", f"made {to}", "trained\nfurther", f"{to}, from\nscratch"
    for each, column in zip(axes, ("training_error", "test_error"), strict=True):
        for kind, (title, colour) in KINDS.items():
            runs = [select_column(rows, column, kind=kind, net=net) for net in NETS]
            draw_points(each, labels, runs, title, colour)
        each.axhline(chance, color="grey", ls=":", label="one answer for all")
        each.set_yscale("symlog", linthresh=1)
        each.set_ylim(-0.05, 130)
        each.set_yticks([0, 0.5, 1, 10, 100], ["0", "0.5", "1", "10", "100"])
    axes[0].set_ylabel("error (%), even steps below 1")
    add_legends(axes[0])
    return figure


def judge(rows):
    def errors(column, kind="res"):
        """All seeds' errors of the four nets, and the most that was lost."""
        found = {net: select_column(rows, column, kind=kind, net=net) for net in NETS}
        pairs = zip(found["shallow"], found["further"], strict=True)
        words = (
            f"{mean_and_deviation(found['shallow'])} with {rows[0]['depth']} layers, "
            f"{mean_and_deviation(found['start'])} made {rows[0]['to']}, {mean_and_deviation(found['further'])} "
            f"trained further; {mean_and_deviation(found['scratch'])} from scratch"
        )
        return words, max(after - before for before, after in pairs), found["start"]

    largest = max(select_column(rows, "difference", kind="res", net="start"))
    training, more, _ = errors("training_error")
    held_out, more_held_out, _ = errors("test_error")
    plain, _, start = errors("training_error", "plain")
    return [
        (f"largest difference of any probability: {largest:.3g}", largest == 0),
        (f"training error {training}: at most {more:.2f} points more", more <= 0.5),
        (
            f"held-out error {held_out}: at most {more_held_out:.2f} points more",
            more_held_out <= 1,
        ),
        (f"training error of plain nets {plain}", min(start) >= rows[0]["chance"]),
    ]


STUDY = Study(
    name="identity",
    title="A solution by construction",
    claim="A deeper net can do what a shallower one does, if its added layers are the "
    "identity; that training does not find it is the degradation problem (section 1). With "
    "shortcuts the identity is had by zeros. Nets from scratch have the recipe's rate and "
    "epochs, deepened ones as many on top of the shallow net's, at a rate of 0.01.",
    expected=(
        "a trained residual net that is deepened by blocks of zeros gives the same "
        "probabilities exactly",
        "trained further, its training error is at most 0.5 points above the shallow net's",
        "and its held-out error at most 1 point above",
        "a plain net that is deepened so gives one answer for all images, and no better",
    ),
    jobs=jobs,
    measure=measure,
    draw=draw,
    judge=judge,
    defaults=Options(depths=(8, 44)),
    least_depths=2,
    deepest=362,
)


if __name__ == "__main__":
    from keras_resnet.studies.lib import run_study

    run_study(STUDY)
