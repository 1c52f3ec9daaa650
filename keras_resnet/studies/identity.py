"""A deep net made of a trained shallow one by blocks that do nothing.

The paper's section 1: "there exists a solution by construction to the deeper model". With
shortcuts it is had by zeros: a block whose last gamma and beta are zero gives what it
reads. Without shortcuts such a block gives zeros, and no gradient gets through it; a
plain net would need Dirac kernels and a normalisation that undoes itself.
"""

import os
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from keras_resnet.studies import lib

if TYPE_CHECKING:
    import keras

NETS = ("shallow", "start", "further", "scratch")


def jobs(options: lib.Options) -> lib.Rows:
    shallow, *_, deep = options.depths
    return [
        {"kind": kind, "depth": shallow, "to": deep, "seed": seed}
        for seed in range(options.seeds)
        for kind in lib.KINDS
    ]


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Errors in inference mode, in %, of images as they are, not augmented.

    `difference` is the largest of any probability of a training image from the shallow
    net's; `chance` the least error of a net that names one class for all images.
    """
    import keras
    import numpy as np

    from keras_resnet.training import save_network
    from keras_resnet.weights import load_model

    def trained(depth: int, **changes: Any) -> "keras.Model":
        model = f"cifar_{job['kind']}net{depth}"
        folder = options.train(model, job["seed"], **changes)
        return load_model(os.path.join(folder, "final.keras"))

    shallow, scratch = trained(job["depth"]), trained(job["to"])
    keras.utils.set_random_seed(job["seed"])
    start = lib.deepened(shallow, f"cifar_{job['kind']}net{job['to']}")
    name = lib.run_key({"": "deepened", **job, **options.budget})
    folder = os.path.join(options.folder, "runs", name)
    weights = f"{folder}.keras"
    save_network(start, weights)
    further = trained(job["to"], folder=folder, weights=weights, learning_rate=0.01)
    train, test = options.load().train, options.load().test
    before = lib.probabilities({"": shallow}, train.images)
    rows: lib.Rows = []
    for name, net in zip(NETS, (shallow, start, further, scratch), strict=True):
        outputs = lib.probabilities({"": net}, train.images)
        held_out = lib.probabilities({"": net}, test.images)
        row = {
            "net": name,
            "training_error": lib.error_rate(outputs, train.labels),
            "test_error": lib.error_rate(held_out, test.labels),
            "difference": float(np.abs(outputs - before).max()),
            "chance": 100 * (1 - np.bincount(train.labels).max() / len(train)),
        }
        rows.append(row)
    return rows


def draw(rows: lib.Rows) -> Figure:
    figure, axes = lib.new_figure("training images", "held-out images", share_y=True)
    depth, to, chance = (rows[0][column] for column in ("depth", "to", "chance"))
    labels = f"{depth} layers", f"made {to}", "trained\nfurther", f"{to}, from\nscratch"
    for panel, column in zip(axes, ("training_error", "test_error"), strict=True):
        for kind, (title, colour) in lib.KINDS.items():
            runs = [lib.select_column(rows, column, kind=kind, net=net) for net in NETS]
            lib.draw_points(panel, labels, runs, title, colour)
        panel.axhline(chance, color="grey", ls=":", label="one answer for all")
        panel.set_yscale("symlog", linthresh=1)
        panel.set_ylim(-0.05, 130)
        panel.set_yticks([0, 0.5, 1, 10, 100], ["0", "0.5", "1", "10", "100"])
    axes[0].set_ylabel("error (%), even steps below 1")
    lib.add_legends(axes[0])
    return figure


def judge(rows: lib.Rows) -> list[lib.Verdict]:
    def errors(column: str, kind: str = "res") -> tuple[str, float, list[float]]:
        """All seeds' errors in words, the most that was lost, and those at the start."""
        by_net = [lib.select_column(rows, column, kind=kind, net=net) for net in NETS]
        shallow, start, further, scratch = map(lib.mean_and_deviation, by_net)
        words = (
            f"{shallow} with {rows[0]['depth']} layers, {start} made {rows[0]['to']}, "
            f"{further} trained further; {scratch} from scratch"
        )
        pairs = zip(by_net[0], by_net[2], strict=True)
        return words, max(after - before for before, after in pairs), by_net[1]

    largest = max(lib.select_column(rows, "difference", kind="res", net="start"))
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


STUDY = lib.Study(
    name="identity", title="A solution by construction",
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
    jobs=jobs, measure=measure, draw=draw, judge=judge,
    defaults=lib.Options(depths=(8, 44)), least_depths=2, deepest=362,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
