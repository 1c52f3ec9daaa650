"""Training with two real worker processes on this machine.

Each worker runs this file as a command, in a process forked by `children.Child`.
"""

import json
import os
import re
import shutil
import socket

import numpy as np
import pytest
from children import Child

from keras_resnet.distribution import workers


def main(argv):
    """Trains in float64 and saves the metrics and the weights of this worker.

    The last batch of the 59 images has only 11 images, so that the two workers get
    different numbers of images.
    """
    folder, options, environment = argv[0], json.loads(argv[1]), json.loads(argv[2])
    os.environ.update(environment)
    worker = int(environment.get(workers.LOCAL_WORKER_VARIABLE, 0))

    import keras
    import tensorflow as tf

    from keras_resnet import data, training

    def refuse(*args, **kwargs):
        raise AssertionError("a worker that is not the chief writes a file")

    if worker:
        os.replace = tf.train.CheckpointManager.save = refuse

    class SaveResults(keras.callbacks.Callback):
        logs = None

        def on_epoch_end(self, epoch, logs=None):
            self.logs = {key: float(value) for key, value in logs.items()}

        def on_train_end(self, logs=None):
            arrays = {f"w{i}": w for i, w in enumerate(self.model.get_weights())}
            np.savez(f"{folder}-{worker}.npz", **arrays, **(self.logs or {}))

    keras.config.set_dtype_policy("float64")
    digits = data.load_dataset("digits")
    train_split, test_split = digits.train.take(slice(59)), digits.test.take(slice(37))
    digits = data.Dataset(
        "digits", digits.classes, train_split, test_split, digits.shape
    )
    training.train(
        "cifar_resnet8", digits, model_dir=folder.replace("WORKER", str(worker)),
        learning_rate=0.1, verbose=2, callbacks=[SaveResults()],
        **{"epochs": 2, "batch_size": 16, "checkpoint_every": 2, **options},
    )  # fmt: skip
    return 0


METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")


# Sockets that keep the ports of the workers until the end of the tests.
_port_holders: list[socket.socket] = []


def start_workers(folder, faults=((), ()), **options):
    """Starts two workers and returns a list of `Child` objects, the chief first.

    `faults` contains the faults of each worker; see `children.Child`.
    """
    holders = [workers._hold_port() for _ in range(2)]
    _port_holders.extend(holders)
    addresses = ["{}:{}".format(*holder.getsockname()) for holder in holders]
    variables = ("TF_CONFIG", "TF_NUM_INTRAOP_THREADS", "TF_GRPC_REUSE_PORT")
    variables += (workers.LOCAL_WORKER_VARIABLE,)
    children = []
    for index in range(2):
        environment = workers._make_environment(addresses, index)
        environment = {name: environment[name] for name in variables}
        arguments = {"strategy": "multi_worker", **options}, environment
        children.append(
            Child(
                "test_multi_worker", folder, *map(json.dumps, arguments),
                cwd=folder.parent, faults=faults[index],
            )
        )  # fmt: skip
    return children


def assert_success(results):
    for result in results:
        assert result.returncode == 0, result.stderr[-2000:]


def join_weights(arrays):
    return np.concatenate(
        [np.ravel(arrays[name]) for name in arrays if name.startswith("w")]
    )


def assert_equal_workers(folder):
    """Asserts that both workers have the same metrics and weights; returns them."""
    chief, other_worker = (np.load(f"{folder}-{worker}.npz") for worker in (0, 1))
    assert all(chief[key] == other_worker[key] for key in METRICS)
    np.testing.assert_array_equal(join_weights(chief), join_weights(other_worker))
    return chief


def assert_same_run(folder, expected_folder):
    chief, expected = (np.load(f"{path}-0.npz") for path in (folder, expected_folder))
    np.testing.assert_array_equal(join_weights(chief), join_weights(expected))
    expected_rows = (expected_folder / "metrics.csv").read_bytes()
    assert (folder / "metrics.csv").read_bytes() == expected_rows


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory):
    """Run folder of two workers that trained to the end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert_success([child.wait() for child in start_workers(folder)])
    return folder


def test_two_workers_reach_the_losses_and_weights_of_one_device(
    undisturbed_run, tmp_path
):
    arguments = map(json.dumps, ({"strategy": "one_device"}, {}))
    child = Child("test_multi_worker", tmp_path / "run", *arguments, cwd=tmp_path)
    assert_success([child.wait()])
    chief = assert_equal_workers(undisturbed_run)
    one_device = np.load(tmp_path / "run-0.npz")
    for key in METRICS:
        assert chief[key] == pytest.approx(one_device[key], rel=1e-9)
    np.testing.assert_allclose(
        join_weights(chief), join_weights(one_device), rtol=0, atol=1e-9
    )


@pytest.mark.full
def test_workers_may_use_the_statistics_of_their_own_images(tmp_path):
    folder = tmp_path / "run"
    assert_success([w.wait() for w in start_workers(folder, sync_bn=False)])
    assert np.isfinite(join_weights(assert_equal_workers(folder))).all()


@pytest.mark.slow
def test_an_interrupted_run_resumes_exactly(undisturbed_run, tmp_path):
    """One worker is killed after step 3, and the last checkpoint is of step 2."""
    folder = tmp_path / "run"
    faults = (), [("kill_after_step", 3)]
    chief, other_worker = (w.wait(60) for w in start_workers(folder, faults))
    assert (chief.returncode, other_worker.returncode) == (1, -9), chief.stderr
    # Either TensorFlow or the connection to the worker notices the loss first.
    assert re.search("error: (A worker was lost at|Worker 1 has end)", chief.stderr)
    assert "Start all workers again with the same command" in chief.stderr
    results = [w.wait() for w in start_workers(folder)]
    assert_success(results)
    assert "Resuming after step 2 of 8" in results[0].stdout
    assert_same_run(folder, undisturbed_run)


@pytest.mark.full
def test_workers_stop_and_resume_in_the_middle_of_an_epoch(tmp_path):
    """The run stops after step 10 of 30. An epoch has 15 steps.

    Workers whose folders contain different checkpoints report an error.
    """
    folder, options = tmp_path / "cut", {"batch_size": 4}
    whole_folder = tmp_path / "whole"
    assert_success([w.wait() for w in start_workers(whole_folder, **options)])
    faults = [("call_after_step", 3, "_terminate")], ()
    chief, other_worker = (w.wait() for w in start_workers(folder, faults, **options))
    assert chief.returncode == other_worker.returncode == 143
    assert "Stopped by SIGTERM after step 10 of 30" in chief.stderr

    # Worker 0 gets an empty model_dir, worker 1 gets a model_dir with checkpoints.
    shutil.copytree(folder, tmp_path / "own-1")
    children = start_workers(tmp_path / "own-WORKER", **options)
    results = [child.wait(60) for child in children]
    for result in results:
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert "All workers must share model_dir" in result.stderr
    (error,) = re.findall("^error: .*", results[0].stderr, re.MULTILINE)
    assert "own-0', where this worker found step 0" in error
    results = [w.wait() for w in start_workers(folder, **options)]
    assert_success(results)
    assert "Resuming after step 10 of 30" in results[0].stdout
    assert_same_run(folder, whole_folder)


if __name__ == "__main__":
    from keras_resnet.support import run_command

    run_command(main, accepts_positional=True)
