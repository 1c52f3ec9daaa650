"""The training loop: run folders, resuming, and settings that are refused."""

import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from children import assert_finite, assert_same_results, copy_run, find_checkpoint_steps
from conftest import ROOT, assert_one_line, run_program

from keras_resnet.data import Dataset, TrainingBatches, sources
from keras_resnet.evaluation import run_record
from keras_resnet.spec import Execution, RunOptions
from keras_resnet.support.errors import InputError
from keras_resnet.training import preparation, rate_range, run_folder
from keras_resnet.training.resolution import resolve_run
from keras_resnet.training.run import train
from keras_resnet.training.step import Step
from keras_resnet.weights.formats import load_model

DEFAULTS = {"model": "cifar_resnet8", "strategy": "one_device", "verbose": 0}


def flatten(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


def load_few_digits():
    """Returns a dataset with 96 training images and 4 validation images."""
    digits = sources.load_dataset("digits")
    train_split, test_split = digits.train.take(slice(96)), digits.test.take(slice(4))
    return Dataset("digits", digits.classes, train_split, test_split, digits.shape)


def evaluate(model, split):
    """Returns the mean cross-entropy and the accuracy of a model's probabilities."""
    probabilities = np.asarray(model(split.images.astype(np.float32)))
    losses = -np.log(probabilities[np.arange(len(split)), split.labels])
    return losses.mean(), (probabilities.argmax(1) == split.labels).mean()


def test_a_run_learns_and_writes_its_folder(trained_run):
    rows = list(csv.DictReader((trained_run / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 9))
    assert float(rows[-1]["val_accuracy"]) > 0.9
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) / 2
    record = json.loads((trained_run / "run.json").read_text(encoding="utf-8"))
    assert record["settings"]["model"] == "cifar_resnet8"
    assert record["settings"]["replicas"] == 2
    assert record["classes"] == list("0123456789")
    assert record["versions"]["keras"] == keras.__version__
    assert (trained_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in trained_run.iterdir()}
    assert names == {
        "run.json",
        "augmented.png",
        "metrics.csv",
        "curves.png",
        "best.keras",
        "final.keras",
    }

    # The saved network must have the validation metrics of the last epoch.
    model = load_model(str(trained_run / "final.keras"))
    loss, accuracy = evaluate(model, sources.load_dataset("digits").test)
    assert accuracy == pytest.approx(float(rows[-1]["val_accuracy"]), abs=1e-6)
    assert loss == pytest.approx(float(rows[-1]["val_loss"]), rel=1e-3)


def test_a_run_that_has_ended_is_not_trained_again(trained_run, tmp_path, capsys):
    """Checkpoints are deleted, in case the first process was killed before that."""
    folder = shutil.copytree(trained_run, tmp_path / "run")
    modification_times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "checkpoints").mkdir()
    arguments = {**DEFAULTS, "strategy": "mirrored", "epochs": 8, "verbose": 2}
    assert train(**arguments, model_dir=str(folder)) == []
    assert "has ended; nothing to do" in capsys.readouterr().out
    assert modification_times == {
        path: path.stat().st_mtime_ns for path in folder.iterdir()
    }


def test_resuming_with_other_settings_is_refused(trained_run):
    """The interval of checkpoints may differ, so the message does not name it."""
    changes = {"epochs": 9, "seed": 1, "ema": 0.5, "shortcut": "B"}
    with pytest.raises(InputError) as error:
        train(**{**DEFAULTS, "strategy": "mirrored"}, **changes, checkpoint_every=7,
              model_dir=str(trained_run))  # fmt: skip
    for difference in (
        "epochs (began with 8, now 9)",
        "seed (began with 0, now 1)",
        "ema (began with 0.0, now 0.5)",
        "shortcut (began with 'A', now 'B')",
    ):
        assert difference in str(error.value)
    assert str(error.value).count("began with") == 1 + len(changes)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match="which holds other files"):
        train(**DEFAULTS, model_dir=str(tmp_path))
    assert os.listdir(tmp_path) == ["thesis.tex"]


# Tests of a run with averaged weights, the plateau schedule, early stopping and callbacks.


class Recorder(keras.callbacks.Callback):
    """Records the run. Checkpoints save the lists, but not the tuple."""

    def __init__(self):
        super().__init__()
        self.batch_indices, self.losses, self.weights = [], [], ()

    def on_train_begin(self, logs=None):
        self.initial_weights = flatten(self.model.get_weights())

    def on_train_batch_end(self, batch, logs=None):
        self.batch_indices.append(batch)
        self.weights += (flatten(self.model.get_weights()),)

    def on_epoch_end(self, epoch, logs=None):
        self.losses.append(logs["val_loss"])


def train_for_reference(folder, **changes):
    """Trains with the settings of `reference_run`; returns the results.

    An epoch has six steps. The small validation split makes the accuracy constant for
    some epochs, to which the plateau schedule and early stopping react.
    """
    recorder = Recorder()
    stopping = keras.callbacks.EarlyStopping(
        "val_loss", patience=50, restore_best_weights=True, start_from_epoch=1
    )
    arguments = {
        **DEFAULTS, "dataset": load_few_digits(), "epochs": 40, "batch_size": 16,
        "learning_rate": 0.05, "schedule": "plateau", "warmup": 0, "patience": 1,
        "early_stopping": 3, "ema": 0.35, "checkpoint_every": 4,
        "keep_checkpoints": 3, "callbacks": [recorder, stopping], **changes,
    }  # fmt: skip
    rows = train(**arguments, model_dir=str(folder))
    return types.SimpleNamespace(
        folder=folder, rows=rows, recorder=recorder, stopping=stopping
    )


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory):
    """A run that was not interrupted.

    The attribute `snapshot` is the path of a copy of the run folder, with the files
    that the run would have left if it had been killed after step 16.
    """
    folder = tmp_path_factory.mktemp("reference") / "run"
    snapshot = tmp_path_factory.mktemp("snapshot") / "run"
    with copy_run(16, folder, snapshot):
        run = train_for_reference(folder)
    run.snapshot = snapshot
    return run


@pytest.fixture
def killed_run(reference_run, tmp_path):
    """Copy of the run folder of a run that was killed after step 16."""
    return shutil.copytree(reference_run.snapshot, tmp_path / "moved")


def test_plateaus_divide_the_learning_rate_by_10(reference_run):
    """The learning rate drops after an epoch without a better accuracy."""
    expected, rate, best_accuracy = [], 0.05, -1.0
    for row in reference_run.rows:
        expected.append(rate)
        if row["val_accuracy"] <= best_accuracy:
            rate /= 10
        best_accuracy = max(best_accuracy, row["val_accuracy"])
    assert len(set(expected)) >= 3
    rates = [row["learning_rate"] for row in reference_run.rows]
    np.testing.assert_allclose(rates, expected, 1e-5)


def test_early_stopping_ends_a_run_after_3_stale_epochs(reference_run):
    accuracies = [row["val_accuracy"] for row in reference_run.rows]
    assert len(accuracies) == int(np.argmax(accuracies)) + 1 + 3 < 40
    assert (reference_run.folder / "final.keras").exists()


def test_averaged_weights_are_evaluated_and_saved(reference_run):
    """The decay of step n is (1 + n) / (10 + n), but at most 0.35."""
    recorder, rows = reference_run.recorder, reference_run.rows
    average = recorder.initial_weights
    for n, weights in enumerate(recorder.weights, 1):
        decay = min(0.35, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights
    final_model = load_model(str(reference_run.folder / "final.keras"))
    final_weights = flatten(final_model.get_weights())
    np.testing.assert_allclose(final_weights, average, rtol=1e-4, atol=1e-4)
    assert np.abs(final_weights - recorder.weights[-1]).max() > 1e-3
    best_model = load_model(str(reference_run.folder / "best.keras"))
    best_row = max(rows, key=lambda row: row["val_accuracy"])
    for model, row in ((final_model, rows[-1]), (best_model, best_row)):
        loss, accuracy = evaluate(model, load_few_digits().test)
        assert loss == pytest.approx(row["val_loss"], rel=1e-4)
        assert accuracy == row["val_accuracy"]


def test_a_killed_and_moved_run_equals_one_that_was_not(
    killed_run, reference_run, capsys
):
    """The newest checkpoint is damaged, and the interval of checkpoints differs."""
    (path,) = (killed_run / "checkpoints/step-16").glob("state.data*")
    path.write_bytes(path.read_bytes()[:-100_000])
    times = [path.stat().st_mtime_ns for path in reference_run.snapshot.rglob("*")]
    run = train_for_reference(
        killed_run, checkpoint_every=5, keep_checkpoints=2, verbose=2
    )
    stdout, stderr = capsys.readouterr()
    assert "step-16/state is damaged; an older checkpoint is tried" in stderr
    assert "Resuming after step 12 of 240" in stdout
    assert_same_results(killed_run, reference_run.folder)
    assert run.rows == reference_run.rows
    assert run.recorder.losses == reference_run.recorder.losses
    assert run.recorder.batch_indices == list(range(6)) * len(run.rows)
    assert (run.stopping.best, run.stopping.wait) == (
        reference_run.stopping.best,
        reference_run.stopping.wait,
    )
    np.testing.assert_array_equal(
        *(flatten(r.stopping.best_weights) for r in (run, reference_run))
    )
    assert times == [p.stat().st_mtime_ns for p in reference_run.snapshot.rglob("*")]


def test_steps_per_execution_do_not_change_the_results(reference_run, tmp_path):
    """The folder has a record with other settings, but no checkpoint.

    A killed process may have left such a folder. The settings may then be changed.
    """
    folder = tmp_path / "run"
    folder.mkdir()
    options = RunOptions.from_keywords("cifar_resnet8", strategy="one_device", epochs=8)
    spec, _, preprocessing = resolve_run(options, Execution(), 1)
    record = run_record.RunRecord(spec, ("cat", "dog"), preprocessing)
    run_record.write_record(folder, record)
    run = train_for_reference(folder, steps_per_execution=5, checkpoint_every=7)
    record = json.loads((folder / "run.json").read_text())
    assert (record["settings"]["epochs"], record["classes"][0]) == (40, "0")
    assert_same_results(folder, reference_run.folder)
    # A call runs 5 steps, or fewer up to a checkpoint or the end of the epoch.
    end_steps = [5, 6, 7, 12, 14, 18, 21, 24]
    indices = [(end - 1) % 6 for end in end_steps]
    assert run.recorder.batch_indices[: len(indices)] == indices


def test_stop_training_ends_a_run_that_starts_again(killed_run, capsys):
    """Without its checkpoints, the run starts again. It ends within the epoch.

    During the run, the folder is locked.
    """

    class Stopper(keras.callbacks.Callback):
        num_batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.num_batches += 1
            self.model.stop_training = self.num_batches == 4
            with (
                pytest.raises(InputError, match="Another process is training into"),
                run_folder.lock_folder(killed_run),
            ):
                pass

    shutil.rmtree(killed_run / "checkpoints")
    stopper = Stopper()
    run = train_for_reference(killed_run, callbacks=[stopper], verbose=2)
    assert (stopper.num_batches, len(run.rows)) == (4, 1)
    assert "Resuming" not in capsys.readouterr().out
    assert (killed_run / "final.keras").exists()
    assert len((killed_run / "metrics.csv").read_text().splitlines()) == 2


def test_resuming_with_other_callbacks_is_refused(killed_run):
    with pytest.raises(
        InputError,
        match="began with: Recorder, EarlyStopping, ReduceLROnPlateau, EarlyStopping, "
        r"RunFolder\. Received: Recorder, Red",
    ):
        train_for_reference(killed_run, callbacks=[Recorder()])


def test_resuming_with_another_input_size_is_refused(killed_run):
    with pytest.raises(InputError, match=r"input_shape \(began with \[8, 8, 1\], now"):
        train_for_reference(killed_run, image_size=16)


def test_resuming_with_other_class_names_is_refused(killed_run):
    """Other class names would change the meaning of the labels."""
    digits = load_few_digits()
    renamed_digits = dataclasses.replace(digits, classes=("none", *digits.classes[1:]))
    original_record = (killed_run / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"Different: classes \(began with \['0', "):
        train_for_reference(killed_run, dataset=renamed_digits)
    assert original_record == (killed_run / "run.json").read_bytes()


def test_a_damaged_record_is_refused(killed_run):
    (killed_run / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        train_for_reference(killed_run)


@pytest.mark.slow
def test_each_image_size_is_used_for_a_part_of_the_run(tmp_path, monkeypatch):
    """Five steps are divided into three of 4 pixels and two of 8 pixels.

    The evaluation uses 8 x 8 pixels.
    """
    dataset_calls, traced_shapes = [], []
    original_dataset = TrainingBatches.dataset
    original_replica_step = Step._replica_step

    def record_dataset(self, start, stop):
        size = self.preprocessing.height, self.preprocessing.width
        dataset_calls.append((start, stop, *size))
        return original_dataset(self, start, stop)

    def record_shapes(self, network, images, *batch):
        traced_shapes.append(tuple(images.shape[1:]))
        assert network.input_shape[1:] == images.shape[1:]
        return original_replica_step(self, network, images, *batch)

    monkeypatch.setattr(TrainingBatches, "dataset", record_dataset)
    monkeypatch.setattr(Step, "_replica_step", record_shapes)
    digits = load_few_digits()
    (row,) = train(
        **DEFAULTS, dataset=digits, batch_size=16, iterations=5, sizes=(4, 8),
        steps_per_execution=5, model_dir=str(tmp_path / "run"),
    )  # fmt: skip
    # The first call reads the batch for `augmented.png`.
    assert dataset_calls == [(0, 1, 4, 4), (0, 3, 4, 4), (3, 5, 8, 8)]
    assert list(dict.fromkeys(traced_shapes)) == [(4, 4, 1), (8, 8, 1)]
    model = load_model(str(tmp_path / "run" / "final.keras"))
    assert model.input_shape == (None, 8, 8, 1)
    loss, _ = evaluate(model, digits.test)
    assert loss == pytest.approx(row["val_loss"], rel=1e-4)


def load_weights(path):
    model = load_model(str(path))
    return [np.asarray(variable) for variable in model.weights]


def make_command(folder, *flags):
    return [
        sys.executable, "-m", "keras_resnet.train", "--epochs=6",
        "--set=checkpoint_every=7", "--model=cifar_resnet14",
        f"--model_dir={folder}", *flags,
    ]  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize(
    ("flags", "num_kills"),
    [(["--strategy=one_device"], 1), (["--virtual_devices=2"], 8)],
)
def test_a_killed_run_equals_an_undisturbed_one(tmp_path, flags, num_kills):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    popen_options = {
        "cwd": tmp_path,
        "env": environment,
        "stdout": subprocess.PIPE,
        "text": True,
    }
    subprocess.run(make_command("undisturbed", *flags), check=True, **popen_options)
    seed = random.randrange(2**32)
    print(f"Random seed of the kill times: {seed}")
    generator = random.Random(seed)
    folder = tmp_path / "resumed" / "checkpoints"
    for _ in range(num_kills):
        old_paths = set(folder.glob("step-*"))
        process = subprocess.Popen(make_command("resumed", *flags), **popen_options)
        while process.poll() is None and not set(folder.glob("step-*")) - old_paths:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 1 / num_kills))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed_process = subprocess.run(
        make_command("resumed", *flags), check=True, **popen_options
    )
    assert "Resuming after step" in resumed_process.stdout, (
        "The run was killed too late."
    )
    for name in ("final.keras", "best.keras"):
        expected_weights = load_weights(tmp_path / "undisturbed" / name)
        actual_weights = load_weights(tmp_path / "resumed" / name)
        for expected, actual in zip(expected_weights, actual_weights, strict=True):
            np.testing.assert_array_equal(actual, expected)
    metrics = [
        (tmp_path / run / "metrics.csv").read_bytes()
        for run in ("undisturbed", "resumed")
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "steps", "drops": (0.75, 0.5)},
        {"schedule": "plateau", "warmup": 0.1},
        {"policy": "rand_augment_increasing", "magnitude": 15},
    ],
)
def test_a_rejected_recipe_creates_no_folder(changes, tmp_path):
    """A folder with the rejected recipe would make the corrected command fail."""
    with pytest.raises(InputError):
        train(**DEFAULTS, **changes, model_dir=str(tmp_path / "run"))
    assert os.listdir(tmp_path) == []


# Tests of runs that end with an error.


def train_few_digits(folder, **arguments):
    arguments = {
        **DEFAULTS,
        "dataset": load_few_digits(),
        "batch_size": 16,
        **arguments,
    }
    return train(**arguments, model_dir=folder)


@pytest.mark.parametrize(
    ("step", "is_stopped"), [(3, True), pytest.param(4, False, marks=pytest.mark.slow)]
)
def test_weights_that_overflow_are_not_saved(step, is_stopped, tmp_path):
    """The loss is finite. The next checkpoint is that of SIGTERM or a regular one."""

    class Overflow(keras.callbacks.Callback):
        num_batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.num_batches += 1
            if self.num_batches == step:
                kernel = self.model.get_layer("predictions").kernel
                kernel.assign(kernel + float("inf"))
                if is_stopped:
                    os.kill(os.getpid(), signal.SIGTERM)

    folder, message = tmp_path / "run", rf"not finite after step {step}; .*-2/state\."
    with pytest.raises(FloatingPointError, match=message):
        train_few_digits(folder, epochs=1, checkpoint_every=2, callbacks=[Overflow()])
    assert find_checkpoint_steps(folder) == [2]
    assert_finite(folder / "checkpoints" / "step-2")


def test_a_loss_of_nan_stops_the_run(tmp_path):
    """The learning rate is 0 in step 1 of 6. The weights of step 2 are finite but huge.

    The cosine schedule has fallen to (1 + cos(2 pi / 5)) / 2 = 0.655 when step 3 fails.
    """
    folder, message = (
        tmp_path / "run",
        r"loss of step 3 is .* 6\.55e\+29; .*/step-2/state\.",
    )
    with pytest.raises(FloatingPointError, match=message):
        train_few_digits(folder, epochs=1, learning_rate=1e30, checkpoint_every=1)
    assert find_checkpoint_steps(folder) == [1, 2]
    for step in (1, 2):
        assert_finite(folder / "checkpoints" / f"step-{step}")
    assert not (folder / "final.keras").exists()


def test_weights_broken_by_the_last_step_are_not_saved(tmp_path):
    """The loss of the only step is finite, because it is computed before the update."""
    message = r"validation loss is NaN after step 1; no checkpoint exists\. A lower"
    with pytest.raises(FloatingPointError, match=message):
        train_few_digits(tmp_path / "run", iterations=1, learning_rate=1e38)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "run.json" in names and not names & {"best.keras", "final.keras"}


def test_a_folder_that_another_process_has_locked_is_refused(tmp_path):
    """The operating system releases the lock of a killed process."""
    code = (
        "import fcntl, os, sys, time\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print(flush=True)\ntime.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            with pytest.raises(InputError) as error:
                train_few_digits(tmp_path)
        finally:
            process.kill()
    message = f"Another process is training into {str(tmp_path)!r}"
    assert str(error.value) == message
    assert os.listdir(tmp_path) == []
    with run_folder.lock_folder(tmp_path):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet21"}, "Unknown model"),
        ({"dataset": "digit"}, "The dataset does not exist"),
        ({"strategy": "horovod"}, "Accepted: one_device, mirrored"),
        ({"shortcut": "D"}, "Received: shortcut='D'"),
        ({"recipe": "sgd"}, "Unknown recipe"),
        ({"strategy": "mirrored", "batch_size": 63}, "must be a multiple"),
        ({"model": "resnet50"}, "sides of 32 to 32768 pixels"),
        ({"checkpoint_every": 0}, "checkpoint_every must be above 0"),
        ({"seed": -1}, "Received: seed=-1"),
        ({"model_dir": "/proc/runs"}, "writable folder"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        train(**{**DEFAULTS, **arguments})
    assert message in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_damaged_image_stops_the_run(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(5):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
            keras.utils.save_img(tmp_path / "pets" / name / f"{i}.jpg", pixels)
    path = tmp_path / "pets" / "dogs" / "2.jpg"
    path.write_bytes(path.read_bytes()[:400])
    result = run_program(
        "keras_resnet.train",
        f"--dataset=folder:{tmp_path}/pets",
        f"--model_dir={tmp_path}/run",
        "--batch_size=4",
        "--epochs=1",
    )
    assert_one_line(result, "dogs/2.jpg", "cannot be decoded")


def test_find_learning_rate_suggests_the_steepest_rate(tmp_path, capsys):
    """The loss falls, then grows. The suggested rate is below that of the minimum."""
    folder = tmp_path / "net-find_lr"
    rates, losses, suggested_rate = rate_range.find_learning_rate(
        "cifar_resnet8", strategy="one_device", model_dir=f"{tmp_path}/net/"
    )
    min_rate, max_rate = 1e-5, 10.0  # The 100 rates form a geometric series.
    expected = min_rate * (max_rate / min_rate) ** (np.arange(100) / 99)
    np.testing.assert_allclose(rates, expected[: len(rates)], rtol=1e-6)
    assert len(rates) == len(losses) > 50
    lowest_index = int(np.argmin(losses))
    assert 0 < lowest_index < len(losses) - 1
    assert losses[lowest_index] < 0.6 * losses[0]
    assert losses[-1] > 2 * losses[lowest_index]
    assert 0.005 <= suggested_rate <= 1
    assert suggested_rate < rates[lowest_index]
    assert {path.name for path in folder.iterdir()} == {"find_lr.csv", "find_lr.png"}
    assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "find_lr.csv").read_text().splitlines()
    assert lines[0] == "learning_rate,loss"
    written_values = np.array([list(map(float, line.split(","))) for line in lines[1:]])
    np.testing.assert_allclose(written_values, np.stack([rates, losses], 1), rtol=1e-5)
    assert f"at a learning rate of {suggested_rate:.2g} " in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["net-find_lr"]


def test_the_range_test_ends_when_the_loss_is_four_times_its_minimum(monkeypatch):
    """The smoothed loss is 0.8 times the previous one plus 0.2 times the new loss."""
    losses = iter([1.0] * 3 + [30.0] * 97)

    class SimulatedStep:
        def clear_sums(self):
            self.sums = None

        def __call__(self, batches):
            self.sums = tf.constant([8 * next(losses), 0.0, 8.0, 1.0])

    options = RunOptions.from_keywords("cifar_resnet8", strategy="one_device")
    run = preparation.prepare_run(options, "-find_lr", is_quiet=True)
    monkeypatch.setattr(preparation.Run, "make_step", lambda *_: SimulatedStep())
    assert rate_range._measure_losses(run) == pytest.approx([1.0, 1.0, 1.0, 6.8])
