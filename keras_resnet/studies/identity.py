"""Identity: a deep network is built from a trained shallow one by adding zero blocks.

Section 1 of the paper: "there exists a solution by construction to the deeper model".
With shortcuts, added blocks whose last gamma and beta are zero give this solution,
because each block returns its input. Without a shortcut, such a block returns zeros and
passes no gradient. To be the identity, it needs Dirac kernels and neutral batch norm.
"""

import os
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from keras_resnet.studies import lib
from keras_resnet.support import derive_seed

if TYPE_CHECKING:
    import keras

NETS = ("shallow", "start", "further", "scratch")


def list_jobs(options: lib.Options) -> lib.Rows:
    shallow_depth, *_, deep_depth = options.depths
    return [
        {"kind": kind, "depth": shallow_depth, "to": deep_depth, "seed": seed}
        for seed in range(options.seeds)
        for kind in lib.KINDS
    ]


def measure(options: lib.Options, job: lib.Row) -> lib.Rows:
    """Returns a row for each network, with errors in % on images without augmentation.

    `difference` is the largest absolute difference between the probabilities of the
    network and of the shallow network for training images. `chance` is the training
    error in % of a network that predicts the most frequent class for all images.
    """
    import keras
    import numpy as np

    from keras_resnet.training import save_network
    from keras_resnet.weights import load_model

    def train_net(depth: int, **changes: Any) -> "keras.Model":
        model = f"cifar_{job['kind']}net{depth}"
        folder = options.train(model, job["seed"], **changes)
        return load_model(os.path.join(folder, "final.keras"))

    shallow_net, scratch_net = train_net(job["depth"]), train_net(job["to"])
    keras.utils.set_random_seed(derive_seed(job["seed"], "deepening") % 2**32)
    start_net = lib.deepen(shallow_net, f"cifar_{job['kind']}net{job['to']}")
    name = lib.file_stem({"": "deepened", **job, **options.name_settings})
    folder = os.path.join(options.folder, "runs", name)
    path = f"{folder}.keras"
    save_network(start_net, path)
    further_net = train_net(job["to"], folder=folder, weights=path, learning_rate=0.01)
    train, test = options.load().train, options.load().test
    shallow_probabilities = lib.predict_probabilities({"": shallow_net}, train.images)
    rows: lib.Rows = []
    networks = (shallow_net, start_net, further_net, scratch_net)
    for name, network in zip(NETS, networks, strict=True):
        probabilities = lib.predict_probabilities({"": network}, train.images)
        test_probabilities = lib.predict_probabilities({"": network}, test.images)
        row = {
            "net": name,
            "training_error": lib.error_rate(probabilities, train.labels),
            "test_error": lib.error_rate(test_probabilities, test.labels),
            "difference": float(np.abs(probabilities - shallow_probabilities).max()),
            "chance": 100 * (1 - np.bincount(train.labels).max() / len(train)),
        }
        rows.append(row)
    return rows


def draw(rows: lib.Rows) -> Figure:
    figure, axes = lib.new_figure("training images", "test images", share_y=True)
    depth, new_depth, chance = (rows[0][column] for column in ("depth", "to", "chance"))
    x = f"{depth} layers", "deepened", "trained\nfurther", f"{new_depth}, from\nscratch"
    for panel, column in zip(axes, ("training_error", "test_error"), strict=True):
        for kind, (title, colour) in lib.KINDS.items():
            runs = [lib.select_column(rows, column, kind=kind, net=net) for net in NETS]
            lib.draw_points(panel, x, runs, title, colour)
        panel.axhline(chance, color="grey", ls=":", label="constant prediction")
        panel.set_yscale("symlog", linthresh=1)
        panel.set_ylim(-0.05, 130)
        panel.set_yticks([0, 0.5, 1, 10, 100], ["0", "0.5", "1", "10", "100"])
    axes[0].set_ylabel("error (%), linear below 1")
    lib.add_legends(axes[0])
    return figure


def check_expectations(rows: lib.Rows) -> list[lib.Verdict]:
    def summarise(column: str, kind: str = "res") -> tuple[str, float, list[float]]:
        """Returns the errors as text, the largest increase from the "shallow" to the
        "further" network, and the errors of the "start" networks.
        """
        errors = [lib.select_column(rows, column, kind=kind, net=net) for net in NETS]
        means = [lib.format_mean(values) for values in errors]
        text = (
            f"{means[0]} with {rows[0]['depth']} layers, {means[1]} deepened to "
            f"{rows[0]['to']}, {means[2]} trained further, {means[3]} from scratch"
        )
        pairs = zip(errors[0], errors[2], strict=True)
        return text, max(after - before for before, after in pairs), errors[1]

    change = max(lib.select_column(rows, "difference", kind="res", net="start"))
    training, rise, _ = summarise("training_error")
    test, test_rise, _ = summarise("test_error")
    plain, _, start = summarise("training_error", "plain")
    return [
        (f"largest change in any probability: {change:.3g}", change == 0),
        (f"training error {training}; rise at most {rise:.2f} points", rise <= 0.5),
        (f"test error {test}; rise at most {test_rise:.2f} points", test_rise <= 1),
        (f"training error of plain networks {plain}", min(start) >= rows[0]["chance"]),
    ]


STUDY = lib.Study(
    name="identity", title="A solution by construction",
    claim="A deeper network can do what a shallower one does if its added layers are the identity. "
    "Training does not find this solution, which is the degradation problem (section 1). With "
    "shortcuts, blocks of zeros are the identity. Networks from scratch use the recipe's learning "
    "rate and epochs. Deepened networks train for as many epochs again, at a rate of 0.01.",
    expectations=(
        "Adding blocks of zeros to a trained residual network does not change its probabilities.",
        "After further training, its training error is at most 0.5 points above the shallow "
        "network's.",
        "After further training, its test error is at most 1 point above the shallow network's.",
        "A plain network with blocks of zeros predicts one class for all images, at chance level.",
    ),
    list_jobs=list_jobs, measure=measure, draw=draw, check_expectations=check_expectations,
    defaults=lib.Options(depths=(8, 44)), min_depth_count=2, max_depth=362,
)  # fmt: skip


if __name__ == "__main__":
    lib.run_study(STUDY)
