"""The training loop: against one device, numpy's SGD, and itself undisturbed."""

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

SMALL = {"model": "cifar_resnet8", "strategy": "one_device", "verbose": 0}


def flat(arrays):
    return np.concatenate([np.ravel(a) for a in arrays])


def test_it_learns_and_leaves_a_folder_that_explains_itself(trained):
    rows = list(csv.DictReader((trained / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 9))
    assert float(rows[-1]["val_accuracy"]) > 0.9
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) / 2
    record = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    assert record["settings"]["model"] == "cifar_resnet8"
    assert record["settings"]["replicas"] == 2
    assert record["classes"] == list("0123456789")
    assert record["versions"]["keras"] == keras.__version__
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "run.json",
        "augmented.png",
        "metrics.csv",
        "curves.png",
        "best.keras",
        "final.keras",
    }

    # The file's model is an ordinary one, and right as fit and evaluate see it.
    model = load_model(str(trained / "final.keras"))
    digits = sources.load_dataset("digits")
    loss, accuracy = model.evaluate(digits.test.images, digits.test.labels, verbose=0)
    assert accuracy == pytest.approx(float(rows[-1]["val_accuracy"]), abs=1e-6)
    assert loss == pytest.approx(float(rows[-1]["val_loss"]), rel=1e-3)


def test_after_the_end_it_does_nothing(trained, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}
    again = {**SMALL, "strategy": "mirrored", "epochs": 8, "verbose": 2}
    assert train(**again, model_dir=str(trained)) == []
    assert "has ended; nothing to do" in capsys.readouterr().out
    assert before == {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}


def test_other_settings_are_refused(trained):
    with pytest.raises(InputError) as error:
        train(**SMALL, epochs=9, seed=1, model_dir=str(trained))
    assert "epochs (began with 8, now 9)" in str(error.value)
    assert "seed (began with 0, now 1)" in str(error.value)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match="which holds other files"):
        train(**SMALL, model_dir=str(tmp_path))
    assert os.listdir(tmp_path) == ["thesis.tex"]


class Counter(keras.callbacks.Callback):
    """Has state of its own, within epochs too."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.batches = self.epochs = self.in_epoch = 0
        self.losses = []
        self.stop_at = lambda: stop_at  # Not plain: stays out of the checkpoint.

    def on_epoch_begin(self, epoch, logs=None):
        self.in_epoch = 0

    def on_train_batch_end(self, batch, logs=None):
        assert batch == self.in_epoch
        self.batches += 1
        self.in_epoch += 1
        if self.batches == self.stop_at():
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        self.losses.append(logs["val_loss"])


@pytest.mark.parametrize(
    "stop_at", [25, *(pytest.param(step, marks=pytest.mark.full) for step in (46, 61))]
)
def test_callbacks_resume_in_the_middle_of_an_epoch(tmp_path, stop_at):
    """Cut after steps 25, 46 (the last of an epoch of 23) and 61."""

    def run(folder, stop_at=None):
        counter = Counter(stop_at)
        stopping = keras.callbacks.EarlyStopping(
            "val_loss", patience=50, restore_best_weights=True, start_from_epoch=1
        )
        folder = str(tmp_path / folder)
        rows = train(
            **SMALL,
            epochs=3,
            model_dir=folder,
            checkpoint_every=10,
            callbacks=[counter, stopping],
        )
        return rows, counter, stopping

    rows, counter, stopping = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop_at)
    resumed_rows, resumed_counter, resumed_stopping = run("cut")
    final = [
        load_model(str(tmp_path / name / "final.keras")) for name in ("whole", "cut")
    ]
    np.testing.assert_array_equal(*(flat(model.get_weights()) for model in final))
    assert resumed_rows == rows
    assert (resumed_counter.batches, resumed_counter.epochs) == (69, 3)
    assert resumed_counter.losses == counter.losses
    assert resumed_stopping.best == stopping.best
    assert resumed_stopping.wait == stopping.wait


def test_early_stopping_ends_the_run(tmp_path):
    stopping = keras.callbacks.EarlyStopping("val_accuracy", patience=1, min_delta=1.0)
    rows = train(
        **SMALL, epochs=20, model_dir=str(tmp_path / "run"), callbacks=[stopping]
    )
    assert len(rows) == 2
    assert (tmp_path / "run" / "final.keras").exists()


def weights_of(path):
    model = load_model(str(path))
    return [np.asarray(v) for v in model.weights]


def train_in_process(folder, *flags):
    return [
        sys.executable, "-m", "keras_resnet.train", "--epochs=6", "--set=checkpoint_every=7",
        "--model=cifar_resnet14", f"--model_dir={folder}", *flags,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "kills"),
    [
        pytest.param(["--virtual_devices=2"], 1, marks=pytest.mark.full),
        pytest.param(["--strategy=one_device"], 1, marks=pytest.mark.full),
        pytest.param(["--virtual_devices=2"], 8, marks=pytest.mark.full),
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, flags, kills):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {
        "cwd": tmp_path,
        "env": environment,
        "stdout": subprocess.PIPE,
        "text": True,
    }
    subprocess.run(train_in_process("whole", *flags), check=True, **options)
    seed = random.randrange(2**32)
    print(f"seed of the moments: {seed}")
    chance = random.Random(seed)
    folder = tmp_path / "cut" / "checkpoints"
    for _ in range(kills):
        before = set(folder.glob("*.index"))
        process = subprocess.Popen(train_in_process("cut", *flags), **options)
        # The file "checkpoint" notes the first one as written to the end.
        while process.poll() is None and not (
            (folder / "checkpoint").exists() and set(folder.glob("*.index")) - before
        ):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 1 / kills))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed = subprocess.run(train_in_process("cut", *flags), check=True, **options)
    assert "Resuming after step" in resumed.stdout, "killed too late to show anything"
    for name in ("final.keras", "best.keras"):
        whole, cut = (
            weights_of(tmp_path / "whole" / name),
            weights_of(tmp_path / "cut" / name),
        )
        for expected, found in zip(whole, cut, strict=True):
            np.testing.assert_array_equal(found, expected)
    metrics = [
        (tmp_path / run / "metrics.csv").read_bytes() for run in ("whole", "cut")
    ]
    assert metrics[0] == metrics[1]


@pytest.fixture
def interrupted(tmp_path):
    """The folder of a run of three epochs that was cut short at step 30 of 69."""
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(
            **SMALL,
            epochs=3,
            model_dir=str(folder),
            checkpoint_every=10,
            callbacks=[Counter(31)],
        )
    return folder


def resume(folder):
    return train(
        **{**SMALL, "verbose": 2},
        epochs=3,
        model_dir=str(folder),
        checkpoint_every=10,
        callbacks=[Counter()],
    )


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100_000])


def test_a_truncated_checkpoint_is_passed_over(interrupted, tmp_path, capsys):
    """The one before it leads to the same end."""
    cut_short(interrupted / "checkpoints" / "step-30.data-00000-of-00001")
    resume(interrupted)
    output, errors = capsys.readouterr()
    assert "step-30 is damaged; taking the one before" in errors
    assert "Resuming after step 20 of 69" in output
    resume(tmp_path / "whole")
    whole, resumed = (
        load_model(str(path / "final.keras")).get_weights()
        for path in (tmp_path / "whole", interrupted)
    )
    np.testing.assert_array_equal(flat(resumed), flat(whole))


def test_truncated_checkpoints_are_refused(interrupted, capsys):
    folder = interrupted / "checkpoints"
    for path in folder.glob("*.data-*"):
        cut_short(path)
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    with pytest.raises(InputError, match=r"remove .*/checkpoints to begin anew"):
        resume(interrupted)
    assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    for path in folder.iterdir():  # As the message says.
        path.unlink()
    folder.rmdir()
    capsys.readouterr()
    assert len(resume(interrupted)) == 3
    assert "Resuming" not in capsys.readouterr().out


def test_other_callbacks_are_refused(interrupted):
    with pytest.raises(
        InputError, match=r"began with, Counter, RunFolder\. Received: RunF"
    ):
        train(**SMALL, epochs=3, model_dir=str(interrupted))


def test_another_input_size_is_refused(interrupted):
    with pytest.raises(InputError, match=r"input_shape \(began with \[8, 8, 1\], now"):
        train(**SMALL, epochs=3, image_size=16, model_dir=str(interrupted))


def test_a_folder_that_was_moved_resumes_where_it_is_now(interrupted, tmp_path):
    os.rename(interrupted, tmp_path / "moved")
    resume(tmp_path / "moved")
    assert os.listdir(tmp_path) == ["moved"]
    resume(tmp_path / "whole")
    folders = [tmp_path / name for name in ("moved", "whole")]
    for name in ("best.keras", "final.keras"):
        np.testing.assert_array_equal(*(flat(weights_of(f / name)) for f in folders))
    written = [(folder / "metrics.csv").read_bytes() for folder in folders]
    assert written[0] == written[1]
    names = [{path.name for path in folder.iterdir()} for folder in folders]
    assert names[0] == names[1]


def test_other_names_of_classes_are_refused(interrupted):
    """The labels would mean something else."""
    digits = sources.load_dataset("digits")
    renamed = dataclasses.replace(digits, classes=("none", *digits.classes[1:]))
    before = (interrupted / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"Different: classes \(began with \['0', "):
        train(**SMALL, dataset=renamed, epochs=3, model_dir=str(interrupted))
    assert before == (interrupted / "run.json").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "steps", "drops": (0.75, 0.5)},
        {"schedule": "plateau", "warmup": 0.1},
        {"policy": "rand_augment_increasing", "magnitude": 15},
    ],
)
def test_a_rejected_recipe_leaves_no_folder(changes, tmp_path):
    """Else the corrected command would find other settings there."""
    with pytest.raises(InputError):
        train(**SMALL, **changes, model_dir=str(tmp_path / "run"))
    assert os.listdir(tmp_path) == []


def test_a_run_that_has_not_begun_blocks_no_other_settings(tmp_path):
    """Killed between its record and its first checkpoint, say."""
    folder = tmp_path / "run"
    folder.mkdir()
    options = RunOptions.of("cifar_resnet8", strategy="one_device", epochs=8)
    spec, _, preprocessing = resolve_run(options, Execution(), 1)
    record = run_record.RunRecord(spec, ("cat", "dog"), preprocessing)
    run_record.write_record(folder, record)
    small = {**SMALL, "batch_size": 512, "learning_rate": 0.01, "model_dir": folder}
    assert len(train(**small, epochs=1)) == 1
    record = json.loads((folder / "run.json").read_text())
    assert (record["settings"]["epochs"], record["classes"][0]) == (1, "0")
    with pytest.raises(InputError, match="began with 1, now 2"):
        train(**small, epochs=2)


def test_one_step_that_breaks_the_weights_leaves_no_model(tmp_path):
    """The loss of the only step is that of the weights before it, a number."""
    with pytest.raises(FloatingPointError, match="no longer"):
        train(**SMALL, iterations=1, learning_rate=1e38, model_dir=tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "run.json" in left and not left & {"best.keras", "final.keras"}


@pytest.mark.parametrize("end", ["killed", "ended"])
def test_two_processes_do_not_train_into_one_folder(end, tmp_path):
    small = {"epochs": 3, "batch_size": 480}
    flags = [f"--{key}={value}" for key, value in small.items()]
    fault = ("after_step", 5, "_sleep", 600 if end == "killed" else 6)
    first = Child(
        "keras_resnet.train", "--model=cifar_resnet8", "--strategy=one_device",
        "--model_dir=run", "--set=checkpoint_every=2", *flags, cwd=tmp_path,
        faults=[fault],
    )  # fmt: skip
    folder = tmp_path / "run"
    deadline = time.monotonic() + 60
    while not list((folder / "checkpoints").glob("step-4.index")):
        assert first.runs and time.monotonic() < deadline
        time.sleep(0.02)
    again = {**SMALL, **small, "checkpoint_every": 2, "model_dir": str(folder)}
    with pytest.raises(InputError) as error:
        train(**again)
    assert first.runs
    assert str(error.value) == f"Another process is training into {str(folder)!r}"
    if end == "killed":
        os.kill(first.pid, signal.SIGKILL)
        assert first.wait().returncode == -signal.SIGKILL
        assert len(train(**again)) == 3
        return
    ended = first.wait()
    assert ended.returncode == 0, ended.stderr  # The second one did it no harm.
    assert train(**again) == []
    with (
        run_folder.locked_folder(folder),
        pytest.raises(InputError, match="Another process"),
        run_folder.locked_folder(folder),
    ):
        pass
    with run_folder.locked_folder(folder):
        pass


def test_stopping_within_an_epoch_stops_at_once(tmp_path):
    class Stop(Counter):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            self.model.stop_training = self.batches == 4

    stop = Stop()
    rows = train(**SMALL, epochs=3, model_dir=str(tmp_path / "run"), callbacks=[stop])
    assert (stop.batches, len(rows)) == (4, 1)


def write_checkpoint(folder, **objects):
    checkpoint = tf.train.Checkpoint(**objects)
    tf.train.CheckpointManager(
        checkpoint, str(folder / "checkpoints"), 5, checkpoint_name="step"
    ).save(40)


def test_a_foreign_checkpoint_is_refused(interrupted):
    write_checkpoint(interrupted, model=tf.Variable(1.0))
    with pytest.raises(InputError, match="was not written by keras_resnet"):
        resume(interrupted)


def test_a_newer_checkpoint_is_refused(interrupted, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    write_checkpoint(interrupted, progress=checkpoints.Progress([]))
    monkeypatch.undo()
    with pytest.raises(InputError, match="has format 2, from a newer keras_resnet"):
        resume(interrupted)


def test_a_checkpoint_of_another_network_is_refused(interrupted):
    for path in (interrupted / "checkpoints").iterdir():
        path.unlink()
    write_checkpoint(
        interrupted, progress=checkpoints.Progress([]), sums=tf.Variable([0.0] * 3)
    )
    with pytest.raises(InputError, match="is damaged or of another network"):
        resume(interrupted)


def test_a_damaged_record_is_refused(interrupted):
    (interrupted / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        resume(interrupted)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "resnet21"}, "Unknown model"),
        ({"dataset": "digit"}, "There is no such data set"),
        ({"strategy": "horovod"}, "Accepted: one_device, mirrored"),
        ({"shortcut": "D"}, "Received: shortcut='D'"),
        ({"recipe": "sgd"}, "Unknown recipe"),
        ({"strategy": "mirrored", "batch_size": 63}, "must be a multiple"),
        ({"model": "resnet50"}, "at least 32 pixels"),
        ({"checkpoint_every": 0}, "checkpoint_every must be above 0"),
        ({"seed": -1}, "Received: seed=-1"),
        ({"model_dir": "/proc/runs"}, "can be written"),
    ],
)
def test_bad_arguments(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        train(**{**SMALL, **arguments})
    assert words in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_damaged_image_stops_the_run_and_is_named(tmp_path):
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
    """A limit on the size of files stands for the disk."""
    code = """
import resource, sys
from keras_resnet.training import train
class Fill(__import__("keras").callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 12:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    train("cifar_resnet8", epochs=1, model_dir="run", checkpoint_every=5, callbacks=[Fill()])
except OSError as error:
    print("OSError:", error)
"""
    result = run_python("-c", code, cwd=tmp_path)
    assert "OSError: Could not write a checkpoint" in result.stdout, result.stderr
    assert (tmp_path / "run/checkpoints/step-10.index").exists()
    rest = run_python("-c", code.replace("== 12", "== -1"), cwd=tmp_path)
    assert "Resuming after step 10 of 23" in rest.stdout, rest.stderr
    assert (tmp_path / "run/final.keras").exists()


def test_a_range_of_learning_rates(tmp_path, capsys):
    """The loss falls, then blows up; in between lies the steepest fall."""
    folder = tmp_path / "net-find_lr"
    rates, losses, best = rate_range.find_learning_rate(
        "cifar_resnet8", strategy="one_device", model_dir=f"{tmp_path}/net/"
    )
    low, high = 1e-5, 10.0  # By the same factor over 100 steps, up to the end.
    expected = low * (high / low) ** (np.arange(100) / 99)
    np.testing.assert_allclose(rates, expected[: len(rates)], rtol=1e-6)
    assert len(rates) == len(losses) > 50
    lowest = int(np.argmin(losses))
    assert 0 < lowest < len(losses) - 1
    assert losses[lowest] < 0.6 * losses[0]
    assert losses[-1] > 2 * losses[lowest]
    assert 0.005 <= best <= 1
    assert best < rates[lowest]
    assert {path.name for path in folder.iterdir()} == {"find_lr.csv", "find_lr.png"}
    assert (folder / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "find_lr.csv").read_text().splitlines()
    assert lines[0] == "learning_rate,loss"
    written = np.array([list(map(float, line.split(","))) for line in lines[1:]])
    np.testing.assert_allclose(written, np.stack([rates, losses], 1), rtol=1e-5)
    assert f"at a rate of {best:.2g} " in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["net-find_lr"]


def test_two_processes_end_with_the_same_bits(tmp_path):
    """With all that draws at random."""
    options = [
        "--model=cifar_resnet8", "--epochs=1", "--strategy=one_device",
        "--set=policy=trivial_augment", "--set=mixup=0.2", "--set=cutmix=1.0",
        "--set=erase=0.5", "--set=stochastic_depth=0.3",
    ]  # fmt: skip
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                *("-m", "keras_resnet.train", f"--model_dir={name}"),
                *options,
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
    one, other = (tmp_path / name for name in ("one", "other"))
    np.testing.assert_array_equal(
        *(flat(weights_of(folder / "final.keras")) for folder in (one, other))
    )
    for name in ("metrics.csv", "augmented.png"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
