import keras
import numpy as np

from keras_resnet.studies import gradients
from keras_resnet.studies.gradients import SCALES, STEPS, STUDY
from keras_resnet.studies.lib.study import Options


def make_rows(**changes):
    """Returns rows of plain and residual networks with 14 layers, that is six blocks.

    `changes` replaces entries of the dict `values`. Five entries are gradients of the
    first block: "plain" and "res" without batch norm at half scale, "he" without batch
    norm at larger scales, "with" before training and "trained" after steps with batch
    norm. "terms" is the shortcut's term, "error" the error of the chain rule. All other
    gradients are 1.
    """
    values = {"plain": 1e-4, "res": 0.5, "he": 0.9, "with": 2.0, "trained": 3.0}
    values = {**values, "terms": 1.5, "error": 1e-9, **changes}

    def first_gradient(kind, batch_norm, scale, step):
        if batch_norm == "with":
            return values["trained"] if step else values["with"]
        return values[kind] if scale < 1 else values["he"]

    return [
        {
            "kind": kind, "depth": 14, "seed": seed, "batch_norm": batch_norm,
            "scale": scale, "step": step, "block": block, "shortcut": values["terms"],
            "gradient": 1.0 if block > 1 else first_gradient(kind, batch_norm, scale, step),
            "branch": 1.0, "kernel": 1.0, "identity_error": values["error"],
        }
        for seed in range(2)
        for kind in ("plain", "res")
        for batch_norm in ("with", "without")
        for scale in SCALES
        for step in STEPS
        for block in range(1, 7)
    ]  # fmt: skip


def get_verdicts(rows):
    """Returns whether each expectation holds."""
    return [holds for _, holds in STUDY.check_expectations(rows)]


def test_each_expectation_can_fail():
    assert get_verdicts(make_rows()) == [True] * 6
    failing_changes = [
        {"error": 0.1}, {"plain": 0.01}, {"he": 0.01}, {"with": 11}, {"trained": 0.09},
        {"terms": 0.9},
    ]  # fmt: skip
    for index, changes in enumerate(failing_changes):
        assert get_verdicts(make_rows(**changes)) == [i != index for i in range(6)]
    assert not get_verdicts(make_rows(res=0.01))[1]


def test_a_diverged_run_is_not_drawn():
    diverged_run = {"batch_norm": "without", "scale": SCALES[-1], "step": STEPS[-1]}
    remaining_rows = [
        row for row in make_rows() if not diverged_run.items() <= row.items()
    ]
    line_counts = [
        len(STUDY.draw(rows).axes[6].lines) for rows in (make_rows(), remaining_rows)
    ]
    assert line_counts == [4, 2]
    line, *_ = STUDY.draw(make_rows()).axes[4].lines
    assert list(line.get_ydata()) == [1e-4, 1, 1, 1, 1, 1]
    assert all(get_verdicts(remaining_rows))


def test_gradients_are_measured_while_a_network_trains(monkeypatch, tmp_path):
    kernels, gammas = [], []

    class Recorder(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            kernels.append(self.model.get_layer("conv1_conv").kernel.numpy())

        def on_train_end(self, logs=None):
            kernels.append(self.model.get_layer("conv1_conv").kernel.numpy())
            gammas.append(self.model.get_layer("conv2_block1_2_bn").gamma.numpy())

    original_train = Options.train

    def train(self, *args, callbacks, **changes):
        # The claim in the report states this learning rate.
        assert (changes["learning_rate"], changes["iterations"]) == (0.01, 2)
        callbacks = [Recorder(), *callbacks, Recorder()]
        return original_train(self, *args, callbacks=callbacks, **changes)

    monkeypatch.setattr(Options, "train", train)
    monkeypatch.setattr(gradients, "STEPS", (0, 2))
    job = {"kind": "res", "depth": 8, "seed": 0, "batch_norm": "without", "scale": 0.5}
    rows = STUDY.measure(Options(images=64, output=str(tmp_path)), job)
    assert [(row["step"], row["block"]) for row in rows] == [
        (step, block) for step in (0, 2) for block in (1, 2, 3)
    ]
    for row in rows:  # Triangle inequality for a sum of two terms.
        assert 0 < row["gradient"] <= 1.0001 * (row["branch"] + row["shortcut"])
        assert row["identity_error"] < 1e-6
    original_kernel, halved_kernel, trained_kernel, _ = kernels
    np.testing.assert_array_equal(halved_kernel, original_kernel / 2)
    assert np.abs(trained_kernel - halved_kernel).max() > 0
    assert (np.array(gammas) == 1).all()  # Batch normalisation is frozen.
    assert not list(tmp_path.iterdir())  # The run folder was temporary.
