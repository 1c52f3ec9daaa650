"""The training loop: run folders, resuming, and settings that are refused."""

import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from children import Child
from conftest import ROOT, assert_one_line, run_program, run_python

from keras_resnet.data import sources
from keras_resnet.evaluation import run_record
from keras_resnet.spec import Execution, RunOptions
from keras_resnet.support.errors import InputError
from keras_resnet.training import checkpoints, rate_range, run_folder
from keras_resnet.training.resolution import resolve_run
from keras_resnet.training.run import train
from keras_resnet.weights.formats import load_model

DEFAULTS = {"model": "cifar_resnet8", "strategy": "one_device", "verbose": 0}


def flatten(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


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
    digits = sources.load_dataset("digits")
    loss, accuracy = model.evaluate(digits.test.images, digits.test.labels, verbose=0)
    assert accuracy == pytest.approx(float(rows[-1]["val_accuracy"]), abs=1e-6)
    assert loss == pytest.approx(float(rows[-1]["val_loss"]), rel=1e-3)


def test_a_run_that_has_ended_is_not_trained_again(trained_run, capsys):
    modification_times = {
        path.name: path.stat().st_mtime_ns for path in trained_run.iterdir()
    }
    arguments = {**DEFAULTS, "strategy": "mirrored", "epochs": 8, "verbose": 2}
    assert train(**arguments, model_dir=str(trained_run)) == []
    assert "has ended; nothing to do" in capsys.readouterr().out
    assert modification_times == {
        path.name: path.stat().st_mtime_ns for path in trained_run.iterdir()
    }


def test_resuming_with_other_settings_is_refused(trained_run):
    with pytest.raises(InputError) as error:
        train(**DEFAULTS, epochs=9, seed=1, model_dir=str(trained_run))
    assert "epochs (began with 8, now 9)" in str(error.value)
    assert "seed (began with 0, now 1)" in str(error.value)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match="which holds other files"):
        train(**DEFAULTS, model_dir=str(tmp_path))
    assert os.listdir(tmp_path) == ["thesis.tex"]


class Counter(keras.callbacks.Callback):
    """Counts batches and epochs. Interrupts the run after `stop_at` batches."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.batches = self.epochs = self.batches_in_epoch = 0
        self.losses = []
        # Checkpoints save callback attributes, but no functions. A resumed run
        # therefore uses its own `stop_at`, not the value of the interrupted run.
        self.stop_at = lambda: stop_at

    def on_epoch_begin(self, epoch, logs=None):
        self.batches_in_epoch = 0

    def on_train_batch_end(self, batch, logs=None):
        assert batch == self.batches_in_epoch
        self.batches += 1
        self.batches_in_epoch += 1
        if self.batches == self.stop_at():
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        self.losses.append(logs["val_loss"])


@pytest.mark.parametrize(
    "stop_at", [25, *(pytest.param(step, marks=pytest.mark.full) for step in (46, 61))]
)
def test_callbacks_resume_in_the_middle_of_an_epoch(tmp_path, stop_at):
    """An epoch has 23 steps. The run is interrupted after step 25, 46 or 61."""

    def train_into(folder, stop_at=None):
        counter = Counter(stop_at)
        stopping = keras.callbacks.EarlyStopping(
            "val_loss", patience=50, restore_best_weights=True, start_from_epoch=1
        )
        folder = str(tmp_path / folder)
        rows = train(
            **DEFAULTS,
            epochs=3,
            model_dir=folder,
            checkpoint_every=10,
            callbacks=[counter, stopping],
        )
        return rows, counter, stopping

    rows, counter, stopping = train_into("undisturbed")
    with pytest.raises(KeyboardInterrupt):
        train_into("resumed", stop_at)
    resumed_rows, resumed_counter, resumed_stopping = train_into("resumed")
    networks = [
        load_model(str(tmp_path / name / "final.keras"))
        for name in ("undisturbed", "resumed")
    ]
    np.testing.assert_array_equal(*(flatten(model.get_weights()) for model in networks))
    assert resumed_rows == rows
    assert (resumed_counter.batches, resumed_counter.epochs) == (69, 3)
    assert resumed_counter.losses == counter.losses
    assert resumed_stopping.best == stopping.best
    assert resumed_stopping.wait == stopping.wait


def test_early_stopping_ends_the_run(tmp_path):
    stopping = keras.callbacks.EarlyStopping("val_accuracy", patience=1, min_delta=1.0)
    rows = train(
        **DEFAULTS, epochs=20, model_dir=str(tmp_path / "run"), callbacks=[stopping]
    )
    assert len(rows) == 2
    assert (tmp_path / "run" / "final.keras").exists()


def load_weights(path):
    model = load_model(str(path))
    return [np.asarray(variable) for variable in model.weights]


def make_command(folder, *flags):
    return [
        sys.executable, "-m", "keras_resnet.train", "--epochs=6",
        "--set=checkpoint_every=7", "--model=cifar_resnet14",
        f"--model_dir={folder}", *flags,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "num_kills"),
    [
        pytest.param(["--virtual_devices=2"], 1, marks=pytest.mark.full),
        pytest.param(["--strategy=one_device"], 1, marks=pytest.mark.full),
        pytest.param(["--virtual_devices=2"], 8, marks=pytest.mark.full),
    ],
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
        old_paths = set(folder.glob("*.index"))
        process = subprocess.Popen(make_command("resumed", *flags), **popen_options)
        # The file "checkpoint" exists as soon as the first checkpoint is complete.
        while process.poll() is None and not (
            (folder / "checkpoint").exists() and set(folder.glob("*.index")) - old_paths
        ):
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


@pytest.fixture
def interrupted_run(tmp_path):
    """Folder of a run interrupted after step 31 of 69, with a checkpoint of step 30."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(
            **DEFAULTS,
            epochs=3,
            model_dir=str(folder),
            checkpoint_every=10,
            callbacks=[Counter(31)],
        )
    return folder


def resume_run(folder):
    return train(
        **{**DEFAULTS, "verbose": 2},
        epochs=3,
        model_dir=str(folder),
        checkpoint_every=10,
        callbacks=[Counter()],
    )


def truncate_file(path):
    path.write_bytes(path.read_bytes()[:-100_000])


def test_a_truncated_checkpoint_is_skipped(interrupted_run, tmp_path, capsys):
    """The run resumes from step 20 and ends with the weights of an undisturbed run."""
    truncate_file(interrupted_run / "checkpoints" / "step-30.data-00000-of-00001")
    resume_run(interrupted_run)
    stdout, stderr = capsys.readouterr()
    assert "step-30 is damaged; an older checkpoint is tried" in stderr
    assert "Resuming after step 20 of 69" in stdout
    resume_run(tmp_path / "undisturbed")
    undisturbed_weights, resumed_weights = (
        load_model(str(path / "final.keras")).get_weights()
        for path in (tmp_path / "undisturbed", interrupted_run)
    )
    np.testing.assert_array_equal(
        flatten(resumed_weights), flatten(undisturbed_weights)
    )


def test_a_run_with_only_truncated_checkpoints_is_refused(interrupted_run, capsys):
    folder = interrupted_run / "checkpoints"
    for path in folder.glob("*.data-*"):
        truncate_file(path)
    modification_times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(
        InputError, match=r"Remove .*/checkpoints to start the run again"
    ):
        resume_run(interrupted_run)
    assert modification_times == {
        path: path.stat().st_mtime_ns for path in folder.iterdir()
    }
    for path in folder.iterdir():  # Advice of the error message.
        path.unlink()
    folder.rmdir()
    capsys.readouterr()
    assert len(resume_run(interrupted_run)) == 3
    assert "Resuming" not in capsys.readouterr().out


def test_resuming_with_other_callbacks_is_refused(interrupted_run):
    with pytest.raises(
        InputError, match=r"began with: Counter, RunFolder\. Received: RunF"
    ):
        train(**DEFAULTS, epochs=3, model_dir=str(interrupted_run))


def test_resuming_with_another_input_size_is_refused(interrupted_run):
    with pytest.raises(InputError, match=r"input_shape \(began with \[8, 8, 1\], now"):
        train(**DEFAULTS, epochs=3, image_size=16, model_dir=str(interrupted_run))


def test_a_moved_run_folder_resumes_in_place(interrupted_run, tmp_path):
    os.rename(interrupted_run, tmp_path / "moved")
    resume_run(tmp_path / "moved")
    assert os.listdir(tmp_path) == ["moved"]
    resume_run(tmp_path / "undisturbed")
    folders = [tmp_path / name for name in ("moved", "undisturbed")]
    for name in ("best.keras", "final.keras"):
        np.testing.assert_array_equal(
            *(flatten(load_weights(folder / name)) for folder in folders)
        )
    metrics = [(folder / "metrics.csv").read_bytes() for folder in folders]
    assert metrics[0] == metrics[1]
    names = [{path.name for path in folder.iterdir()} for folder in folders]
    assert names[0] == names[1]


def test_resuming_with_other_class_names_is_refused(interrupted_run):
    """Other class names would change the meaning of the labels."""
    digits = sources.load_dataset("digits")
    renamed_digits = dataclasses.replace(digits, classes=("none", *digits.classes[1:]))
    original_record = (interrupted_run / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"Different: classes \(began with \['0', "):
        train(
            **DEFAULTS, dataset=renamed_digits, epochs=3, model_dir=str(interrupted_run)
        )
    assert original_record == (interrupted_run / "run.json").read_bytes()


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


def test_a_run_without_a_checkpoint_accepts_other_settings(tmp_path):
    """A killed process may have written `run.json` but no checkpoint."""
    folder = tmp_path / "run"
    folder.mkdir()
    options = RunOptions.from_keywords("cifar_resnet8", strategy="one_device", epochs=8)
    spec, _, preprocessing = resolve_run(options, Execution(), 1)
    record = run_record.RunRecord(spec, ("cat", "dog"), preprocessing)
    run_record.write_record(folder, record)
    arguments = {
        **DEFAULTS,
        "batch_size": 512,
        "learning_rate": 0.01,
        "model_dir": folder,
    }
    assert len(train(**arguments, epochs=1)) == 1
    record = json.loads((folder / "run.json").read_text())
    assert (record["settings"]["epochs"], record["classes"][0]) == (1, "0")
    with pytest.raises(InputError, match="began with 1, now 2"):
        train(**arguments, epochs=2)


def test_weights_broken_by_the_last_step_are_not_saved(tmp_path):
    """The loss of the only step is finite, because it is computed before the update."""
    with pytest.raises(FloatingPointError, match="validation loss is NaN"):
        train(**DEFAULTS, iterations=1, learning_rate=1e38, model_dir=tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "run.json" in names and not names & {"best.keras", "final.keras"}


@pytest.mark.parametrize("outcome", ["killed", "ended"])
def test_two_processes_do_not_train_into_one_folder(outcome, tmp_path):
    arguments = {"epochs": 3, "batch_size": 480}
    flags = [f"--{key}={value}" for key, value in arguments.items()]
    fault = ("call_after_step", 5, "_sleep", 600 if outcome == "killed" else 6)
    first_process = Child(
        "keras_resnet.train", "--model=cifar_resnet8", "--strategy=one_device",
        "--model_dir=run", "--set=checkpoint_every=2", *flags, cwd=tmp_path,
        faults=[fault],
    )  # fmt: skip
    folder = tmp_path / "run"
    deadline = time.monotonic() + 60
    while not list((folder / "checkpoints").glob("step-4.index")):
        assert first_process.is_running and time.monotonic() < deadline
        time.sleep(0.02)
    keywords = {
        **DEFAULTS,
        **arguments,
        "checkpoint_every": 2,
        "model_dir": str(folder),
    }
    with pytest.raises(InputError) as error:
        train(**keywords)
    assert first_process.is_running
    assert str(error.value) == f"Another process is training into {str(folder)!r}"
    if outcome == "killed":
        os.kill(first_process.pid, signal.SIGKILL)
        assert first_process.wait().returncode == -signal.SIGKILL
        assert len(train(**keywords)) == 3
        return
    # The refused call of `train` has not disturbed the first process.
    result = first_process.wait()
    assert result.returncode == 0, result.stderr
    assert train(**keywords) == []
    with (
        run_folder.lock_folder(folder),
        pytest.raises(InputError, match="Another process"),
        run_folder.lock_folder(folder),
    ):
        pass
    with run_folder.lock_folder(folder):
        pass


def test_stop_training_ends_the_run_within_an_epoch(tmp_path):
    class StoppingCounter(Counter):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            self.model.stop_training = self.batches == 4

    counter = StoppingCounter()
    rows = train(
        **DEFAULTS, epochs=3, model_dir=str(tmp_path / "run"), callbacks=[counter]
    )
    assert (counter.batches, len(rows)) == (4, 1)


def write_checkpoint(folder, **objects):
    checkpoint = tf.train.Checkpoint(**objects)
    tf.train.CheckpointManager(
        checkpoint, str(folder / "checkpoints"), 5, checkpoint_name="step"
    ).save(40)


def test_a_checkpoint_of_other_software_is_refused(interrupted_run):
    write_checkpoint(interrupted_run, model=tf.Variable(1.0))
    with pytest.raises(InputError, match="was not written by keras_resnet"):
        resume_run(interrupted_run)


def test_a_checkpoint_of_a_newer_version_is_refused(interrupted_run, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT_NUMBER", 2)
    write_checkpoint(interrupted_run, progress=checkpoints.Progress([]))
    monkeypatch.undo()
    with pytest.raises(InputError, match="has format 2, from a newer keras_resnet"):
        resume_run(interrupted_run)


def test_a_checkpoint_of_another_network_is_refused(interrupted_run):
    for path in (interrupted_run / "checkpoints").iterdir():
        path.unlink()
    write_checkpoint(
        interrupted_run, progress=checkpoints.Progress([]), sums=tf.Variable([0.0] * 3)
    )
    with pytest.raises(InputError, match="is damaged or belongs to another network"):
        resume_run(interrupted_run)


def test_a_damaged_record_is_refused(interrupted_run):
    (interrupted_run / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        resume_run(interrupted_run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet21"}, "Unknown model"),
        ({"dataset": "digit"}, "The dataset does not exist"),
        ({"strategy": "horovod"}, "Accepted: one_device, mirrored"),
        ({"shortcut": "D"}, "Received: shortcut='D'"),
        ({"recipe": "sgd"}, "Unknown recipe"),
        ({"strategy": "mirrored", "batch_size": 63}, "must be a multiple"),
        ({"model": "resnet50"}, "at least 32 pixels"),
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


@pytest.mark.full
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    """A limit on the file size simulates a full disk."""
    script = """
import resource, sys
from keras_resnet.training import train
class Fill(__import__("keras").callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 12:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    train(
        "cifar_resnet8", epochs=1, model_dir="run", checkpoint_every=5,
        callbacks=[Fill()],
    )
except OSError as error:
    print("OSError:", error)
"""
    result = run_python("-c", script, cwd=tmp_path)
    assert "OSError: Could not write a checkpoint" in result.stdout, result.stderr
    assert (tmp_path / "run/checkpoints/step-10.index").exists()
    resumed_result = run_python("-c", script.replace("== 12", "== -1"), cwd=tmp_path)
    assert "Resuming after step 10 of 23" in resumed_result.stdout, (
        resumed_result.stderr
    )
    assert (tmp_path / "run/final.keras").exists()


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


def test_two_processes_give_identical_results(tmp_path):
    """The recipe uses random augmentation, mixing, erasing and stochastic depth."""
    flags = [
        "--model=cifar_resnet8", "--epochs=1", "--strategy=one_device",
        "--set=policy=trivial_augment", "--set=mixup=0.2", "--set=cutmix=1.0",
        "--set=erase=0.5", "--set=stochastic_depth=0.3",
    ]  # fmt: skip
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                *("-m", "keras_resnet.train", f"--model_dir={name}"),
                *flags,
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        for name in ("one", "other")
    ]
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 0
    first_run, second_run = (tmp_path / name for name in ("one", "other"))
    np.testing.assert_array_equal(
        *(
            flatten(load_weights(folder / "final.keras"))
            for folder in (first_run, second_run)
        )
    )
    for name in ("metrics.csv", "augmented.png"):
        assert (first_run / name).read_bytes() == (second_run / name).read_bytes()
