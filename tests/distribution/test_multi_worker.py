"""Tests of `train` with two real worker processes on this machine."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

# Program that trains a network with `train` and saves the final weights. The last step
# of an epoch has 3 images (51 modulo 16), 2 for one worker and 1 for the other.
SCRIPT = """
import os, sys
import keras, numpy as np, tensorflow as tf
from keras_resnet import data, training
from keras_resnet.support import run_command

def main(argv):
    folder, strategy, sync_bn, epochs = argv
    keras.config.set_dtype_policy("float64")
    batch = int(os.environ.get("BATCH", 16))
    worker = os.environ.get("KERAS_RESNET_LOCAL_WORKER", "0")
    folder = folder.replace("WORKER", worker)
    if worker != "0":  # Only the chief may write files.
        def refuse(*args, **kwargs):
            raise AssertionError("a worker that is not the chief writes a file")
        os.replace = tf.train.CheckpointManager.save = refuse
    digits = data.load_dataset("digits")
    digits = data.Dataset(
        "digits", digits.classes, digits.train.take(slice(51)),
        digits.test.take(slice(37)), digits.shape,
    )
    class Sleep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.last_logs = logs
            time = __import__("time"); time.sleep(float(os.environ.get("SLOW", 0)))
    path = f"{folder}-{strategy}-{worker}.npz"
    rows = training.train(
        "cifar_resnet8", digits, strategy=strategy, epochs=int(epochs), batch_size=batch,
        learning_rate=0.1, sync_bn=sync_bn == "True", model_dir=folder, verbose=2,
        checkpoint_every=2, callbacks=[Sleep(), SaveWeights(path)],
    )
    return 0

class SaveWeights(keras.callbacks.Callback):
    def __init__(self, path):
        super().__init__()
        # A function, because checkpoints would save a string and restore another path.
        self.get_path, self.logs = (lambda: path), {}
    def on_epoch_end(self, epoch, logs=None):
        self.logs = {k: float(v) for k, v in logs.items()}
    def on_train_end(self, logs=None):
        values = {f"w{i}": v for i, v in enumerate(self.model.get_weights())}
        with open(self.get_path(), "wb") as file:
            np.savez(file, **values, **self.logs)

run_command(main, positional=True)
"""
KEYS = ("loss", "accuracy", "val_loss", "val_accuracy")


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def start(
    script, folder, strategy="multi_worker", sync_bn=True, epochs=3, sleep=0.0, batch=16
):
    """Starts the script as one process, or as two workers for `"multi_worker"`.

    Each step is followed by a pause of `sleep` seconds.
    """
    arguments = [str(script), str(folder), strategy, str(sync_bn), str(epochs)]
    command = [sys.executable, *arguments]
    if strategy == "multi_worker":
        code = (
            "import sys; from keras_resnet.distribution import run_local_workers; "
            f"sys.exit(run_local_workers(2, {command!r}, {str(folder) + '-logs'!r}))"
        )
        command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLOW": str(sleep)}
    environment["BATCH"] = str(batch)
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, status=0, seconds=200):
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == status, errors[-2000:]
    return output, errors


def join_weights(arrays):
    return np.concatenate([np.ravel(arrays[k]) for k in arrays if k.startswith("w")])


@pytest.mark.parametrize("sync_bn", [True, pytest.param(False, marks=pytest.mark.full)])
def test_two_workers_train_as_one_device(tmp_path, script, sync_bn):
    """With `sync_bn`, the losses and weights equal those of one device."""
    processes = [start(script, tmp_path / "shared", sync_bn=sync_bn)]
    if sync_bn:
        processes.append(start(script, tmp_path / "alone", "one_device"))
    for process in processes:
        finish(process)
    chief, other_worker = (
        np.load(tmp_path / f"shared-multi_worker-{worker}.npz") for worker in (0, 1)
    )
    assert all(chief[key] == other_worker[key] for key in KEYS)
    np.testing.assert_array_equal(join_weights(chief), join_weights(other_worker))
    # Without `sync_bn`, each worker normalises its own part of the batch, and the weights
    # differ from those of one device.
    if not sync_bn:
        assert np.isfinite(join_weights(chief)).all()
        return
    one_device = np.load(tmp_path / "alone-one_device-0.npz")
    for key in KEYS:
        assert chief[key] == pytest.approx(one_device[key], rel=1e-9)
    np.testing.assert_allclose(
        join_weights(chief), join_weights(one_device), rtol=0, atol=1e-9
    )


def find_workers(process):
    """Returns the process ids of the two workers in the order of their indices."""
    pids = []
    deadline = time.monotonic() + 60
    while len(pids) < 2 and time.monotonic() < deadline:
        listed = subprocess.run(
            ["ps", "--ppid", str(process.pid), "-o", "pid="],
            capture_output=True,
            text=True,
        )
        pids = [int(pid) for pid in listed.stdout.split()]
        time.sleep(0.1)
    return sorted(pids)


def wait_for_checkpoint(folder, seconds=120):
    deadline = time.monotonic() + seconds
    while not list((folder / "checkpoints").glob("*.index")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "signal_name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.full)]
)
def test_an_interrupted_run_resumes_exactly(tmp_path, script, signal_name):
    """SIGKILL ends one worker; SIGTERM goes to the parent of both workers."""
    uninterrupted = start(script, tmp_path / "whole", epochs=4)
    run = start(script, tmp_path / "cut", epochs=4, sleep=0.7)
    workers = find_workers(run)
    wait_for_checkpoint(tmp_path / "cut")
    started_at = time.monotonic()
    if signal_name == "SIGKILL":
        os.kill(workers[1], signal.SIGKILL)
        _, errors = finish(run, 1, 60)
        assert "A worker was lost" in errors
        assert "with the same command" in errors
    else:
        run.send_signal(signal.SIGTERM)
        _, errors = finish(run, 143, 60)
        assert "Stopped by SIGTERM after step" in errors
    assert time.monotonic() - started_at < 45
    finish(uninterrupted)
    output, _ = finish(start(script, tmp_path / "cut", epochs=4))
    assert "Resuming after step" in output
    expected, resumed = (
        np.load(tmp_path / f"{name}-multi_worker-0.npz") for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(join_weights(expected), join_weights(resumed))
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (
        tmp_path / "cut/metrics.csv"
    ).read_bytes()


@pytest.mark.full
def test_workers_stop_and_resume_in_the_middle_of_an_epoch(tmp_path, script):
    """The run stops after step 10 of 26. An epoch has 13 steps.

    Workers whose folders contain different checkpoints are refused.
    """
    small = {"epochs": 2, "batch": 4}
    uninterrupted = start(script, tmp_path / "whole", **small)
    run = start(script, tmp_path / "cut", **small, sleep=0.4)
    wait_for_checkpoint(tmp_path / "cut")
    run.send_signal(signal.SIGTERM)
    _, errors = finish(run, 143, 60)
    assert "Stopped by SIGTERM after step 10 of 26" in errors
    finish(uninterrupted)

    # Each worker has its own model_dir, and only worker 1's contains checkpoints.
    shutil.copytree(tmp_path / "cut", tmp_path / "own-1")
    _, errors = finish(start(script, tmp_path / "own-WORKER", **small), 1, 60)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in errors
    assert "All workers must share model_dir" in lines[0]
    assert "own-0', where this worker found step 0" in lines[0]

    output, _ = finish(start(script, tmp_path / "cut", **small))
    assert "Resuming after step 10 of 26" in output
    expected, resumed = (
        np.load(tmp_path / f"{name}-multi_worker-0.npz") for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(join_weights(expected), join_weights(resumed))
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (
        tmp_path / "cut/metrics.csv"
    ).read_bytes()
