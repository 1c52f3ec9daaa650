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

# Script that calls `train` and saves the final weights. The last batch of the 51 images
# has only 3 images, so that the two workers get different numbers of images.
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
        # Training checkpoints would save a string attribute, and resuming would restore
        # the path of the earlier run. A function is not saved.
        self.get_path, self.logs = (lambda: path), {}
    def on_epoch_end(self, epoch, logs=None):
        self.logs = {k: float(v) for k, v in logs.items()}
    def on_train_end(self, logs=None):
        values = {f"w{i}": v for i, v in enumerate(self.model.get_weights())}
        with open(self.get_path(), "wb") as file:
            np.savez(file, **values, **self.logs)

run_command(main, accepts_positional=True)
"""
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")


@pytest.fixture
def script_path(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def start_training(
    script_path,
    folder,
    strategy="multi_worker",
    sync_bn=True,
    epochs=3,
    sleep_seconds=0.0,
    batch_size=16,
):
    """Starts the script in one process or, for `"multi_worker"`, in two workers.

    The script pauses for `sleep_seconds` after each training step.
    """
    arguments = [str(script_path), str(folder), strategy, str(sync_bn), str(epochs)]
    command = [sys.executable, *arguments]
    if strategy == "multi_worker":
        code = (
            "import sys; from keras_resnet.distribution import run_local_workers; "
            f"sys.exit(run_local_workers(2, {command!r}, {str(folder) + '-logs'!r}))"
        )
        command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLOW": str(sleep_seconds)}
    environment["BATCH"] = str(batch_size)
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_exit(process, status=0, seconds=200):
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == status, stderr[-2000:]
    return stdout, stderr


def join_weights(arrays):
    return np.concatenate(
        [np.ravel(arrays[name]) for name in arrays if name.startswith("w")]
    )


@pytest.mark.parametrize("sync_bn", [True, pytest.param(False, marks=pytest.mark.full)])
def test_two_workers_reach_the_losses_and_weights_of_one_device(
    tmp_path, script_path, sync_bn
):
    processes = [start_training(script_path, tmp_path / "shared", sync_bn=sync_bn)]
    if sync_bn:
        processes.append(start_training(script_path, tmp_path / "alone", "one_device"))
    for process in processes:
        wait_for_exit(process)
    chief, other_worker = (
        np.load(tmp_path / f"shared-multi_worker-{worker}.npz") for worker in (0, 1)
    )
    assert all(chief[key] == other_worker[key] for key in METRICS)
    np.testing.assert_array_equal(join_weights(chief), join_weights(other_worker))
    # Without `sync_bn`, each worker uses the statistics of its own images, so the
    # weights differ from the weights that training on one device reaches.
    if not sync_bn:
        assert np.isfinite(join_weights(chief)).all()
        return
    one_device = np.load(tmp_path / "alone-one_device-0.npz")
    for key in METRICS:
        assert chief[key] == pytest.approx(one_device[key], rel=1e-9)
    np.testing.assert_allclose(
        join_weights(chief), join_weights(one_device), rtol=0, atol=1e-9
    )


def find_workers(process):
    """Returns the process ids of the two workers of `process`, ordered by index."""
    pids = []
    deadline = time.monotonic() + 60
    while len(pids) < 2 and time.monotonic() < deadline:
        process_list = subprocess.run(
            ["ps", "--ppid", str(process.pid), "-o", "pid="],
            capture_output=True,
            text=True,
        )
        pids = [int(pid) for pid in process_list.stdout.split()]
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
def test_an_interrupted_run_resumes_exactly(tmp_path, script_path, signal_name):
    """SIGKILL is sent to one worker, SIGTERM to the parent process of both workers."""
    uninterrupted_run = start_training(script_path, tmp_path / "whole", epochs=4)
    interrupted_run = start_training(
        script_path, tmp_path / "cut", epochs=4, sleep_seconds=0.7
    )
    workers = find_workers(interrupted_run)
    wait_for_checkpoint(tmp_path / "cut")
    start_time = time.monotonic()
    if signal_name == "SIGKILL":
        os.kill(workers[1], signal.SIGKILL)
        _, stderr = wait_for_exit(interrupted_run, 1, 60)
        assert "A worker was lost" in stderr
        assert "with the same command" in stderr
    else:
        interrupted_run.send_signal(signal.SIGTERM)
        _, stderr = wait_for_exit(interrupted_run, 143, 60)
        assert "Stopped by SIGTERM after step" in stderr
    assert time.monotonic() - start_time < 45
    wait_for_exit(uninterrupted_run)
    stdout, _ = wait_for_exit(start_training(script_path, tmp_path / "cut", epochs=4))
    assert "Resuming after step" in stdout
    expected, resumed = (
        np.load(tmp_path / f"{name}-multi_worker-0.npz") for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(join_weights(expected), join_weights(resumed))
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (
        tmp_path / "cut/metrics.csv"
    ).read_bytes()


@pytest.mark.full
def test_workers_stop_and_resume_in_the_middle_of_an_epoch(tmp_path, script_path):
    """The run stops after step 10 of 26. An epoch has 13 steps.

    Workers whose folders contain different checkpoints report an error.
    """
    arguments = {"epochs": 2, "batch_size": 4}
    uninterrupted_run = start_training(script_path, tmp_path / "whole", **arguments)
    interrupted_run = start_training(
        script_path, tmp_path / "cut", **arguments, sleep_seconds=0.4
    )
    wait_for_checkpoint(tmp_path / "cut")
    interrupted_run.send_signal(signal.SIGTERM)
    _, stderr = wait_for_exit(interrupted_run, 143, 60)
    assert "Stopped by SIGTERM after step 10 of 26" in stderr
    wait_for_exit(uninterrupted_run)

    # Worker 0 gets an empty model_dir, worker 1 gets a model_dir with checkpoints.
    shutil.copytree(tmp_path / "cut", tmp_path / "own-1")
    _, stderr = wait_for_exit(
        start_training(script_path, tmp_path / "own-WORKER", **arguments), 1, 60
    )
    error_lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(error_lines) == 1 and "Traceback" not in stderr
    assert "All workers must share model_dir" in error_lines[0]
    assert "own-0', where this worker found step 0" in error_lines[0]

    stdout, _ = wait_for_exit(
        start_training(script_path, tmp_path / "cut", **arguments)
    )
    assert "Resuming after step 10 of 26" in stdout
    expected, resumed = (
        np.load(tmp_path / f"{name}-multi_worker-0.npz") for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(join_weights(expected), join_weights(resumed))
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (
        tmp_path / "cut/metrics.csv"
    ).read_bytes()
