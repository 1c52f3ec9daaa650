"""Training on two real worker processes on loopback."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

# A batch of 16 leaves 3 of 51 images for the last step, 2 and 1 for the workers.
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
    if worker != "0":  # Files are the chief's alone.
        def refuse(*args, **kwargs):
            raise AssertionError("not the chief, and it writes")
        os.replace = tf.train.CheckpointManager.save = refuse
    digits = data.load_dataset("digits")
    digits = data.Dataset(
        "digits", digits.classes, digits.train.take(slice(51)),
        digits.test.take(slice(37)), digits.shape,
    )
    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.seen = logs
            time = __import__("time"); time.sleep(float(os.environ.get("SLOW", 0)))
    rows = training.train(
        "cifar_resnet8", digits, strategy=strategy, epochs=int(epochs), batch_size=batch,
        learning_rate=0.1, sync_bn=sync_bn == "True", model_dir=folder, verbose=2,
        checkpoint_every=2, callbacks=[Slow(), Keep(f"{folder}-{strategy}-{worker}.npz")],
    )
    return 0

class Keep(keras.callbacks.Callback):
    def __init__(self, path):
        super().__init__()
        self.where, self.logs = (lambda: path), {}
    def on_epoch_end(self, epoch, logs=None):
        self.logs = {k: float(v) for k, v in logs.items()}
    def on_train_end(self, logs=None):
        values = {f"w{i}": v for i, v in enumerate(self.model.get_weights())}
        with open(self.where(), "wb") as file:
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
    script, folder, strategy="multi_worker", sync_bn=True, epochs=3, slow=0.0, batch=16
):
    """Starts one process, or two workers."""
    arguments = [str(script), str(folder), strategy, str(sync_bn), str(epochs)]
    command = [sys.executable, *arguments]
    if strategy == "multi_worker":
        code = (
            "import sys; from keras_resnet.distribution import run_local_workers; "
            f"sys.exit(run_local_workers(2, {command!r}, {str(folder) + '-logs'!r}))"
        )
        command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLOW": str(slow)}
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


def weights(found):
    return np.concatenate([np.ravel(found[k]) for k in found if k.startswith("w")])


@pytest.mark.parametrize("sync_bn", [True, pytest.param(False, marks=pytest.mark.full)])
def test_two_workers_train_as_one_device(tmp_path, script, sync_bn):
    """Batch normalisation over both: every loss and weight is one device's."""
    runs = [start(script, tmp_path / "shared", sync_bn=sync_bn)]
    if sync_bn:
        runs.append(start(script, tmp_path / "alone", "one_device"))
    for run in runs:
        finish(run)
    first, second = (
        np.load(tmp_path / f"shared-multi_worker-{worker}.npz") for worker in (0, 1)
    )
    assert all(first[key] == second[key] for key in KEYS)
    np.testing.assert_array_equal(weights(first), weights(second))
    if not sync_bn:  # Each normalises its own part, so it trains otherwise.
        assert np.isfinite(weights(first)).all()
        return
    alone = np.load(tmp_path / "alone-one_device-0.npz")
    for key in KEYS:
        assert first[key] == pytest.approx(alone[key], rel=1e-9)
    np.testing.assert_allclose(weights(first), weights(alone), rtol=0, atol=1e-9)


def children_of(process):
    """The workers, in their order."""
    found = []
    deadline = time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < deadline:
        listed = subprocess.run(
            ["ps", "--ppid", str(process.pid), "-o", "pid="],
            capture_output=True,
            text=True,
        )
        found = [int(pid) for pid in listed.stdout.split()]
        time.sleep(0.1)
    return sorted(found)


def until_checkpoint(folder, seconds=120):
    deadline = time.monotonic() + seconds
    while not list((folder / "checkpoints").glob("*.index")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "how", ["killed", pytest.param("told to stop", marks=pytest.mark.full)]
)
def test_a_lost_worker_loses_nothing(tmp_path, script, how):
    undisturbed = start(script, tmp_path / "whole", epochs=4)
    run = start(script, tmp_path / "cut", epochs=4, slow=0.7)
    workers = children_of(run)
    until_checkpoint(tmp_path / "cut")
    begin = time.monotonic()
    if how == "killed":
        os.kill(workers[1], signal.SIGKILL)
        _, errors = finish(run, 1, 60)
        assert "A worker is gone" in errors
        assert "with the same command" in errors
    else:
        run.send_signal(signal.SIGTERM)
        _, errors = finish(run, 143, 60)
        assert "Stopped by SIGTERM after step" in errors
    assert time.monotonic() - begin < 45
    finish(undisturbed)
    output, _ = finish(start(script, tmp_path / "cut", epochs=4))
    assert "Resuming after step" in output
    whole, cut = (
        np.load(tmp_path / f"{name}-multi_worker-0.npz") for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(weights(whole), weights(cut))
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (
        tmp_path / "cut/metrics.csv"
    ).read_bytes()


@pytest.mark.full
def test_workers_stop_and_resume_in_the_middle_of_an_epoch(tmp_path, script):
    """After step 10 of 26, of an epoch of 13; not from different checkpoints."""
    small = {"epochs": 2, "batch": 4}
    undisturbed = start(script, tmp_path / "whole", **small)
    run = start(script, tmp_path / "cut", **small, slow=0.4)
    until_checkpoint(tmp_path / "cut")
    run.send_signal(signal.SIGTERM)
    _, errors = finish(run, 143, 60)
    assert "Stopped by SIGTERM after step 10 of 26" in errors
    finish(undisturbed)

    # As where model_dir is no folder that they share.
    shutil.copytree(tmp_path / "cut", tmp_path / "own-1")
    _, errors = finish(start(script, tmp_path / "own-WORKER", **small), 1, 60)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in errors
    assert "model_dir must be a folder that they share" in lines[0]
    assert "own-0', where this one found step 0" in lines[0]

    output, _ = finish(start(script, tmp_path / "cut", **small))
    assert "Resuming after step 10 of 26" in output
    whole, cut = (
        np.load(tmp_path / f"{name}-multi_worker-0.npz") for name in ("whole", "cut")
    )
    np.testing.assert_array_equal(weights(whole), weights(cut))
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (
        tmp_path / "cut/metrics.csv"
    ).read_bytes()
