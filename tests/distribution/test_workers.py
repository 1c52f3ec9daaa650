"""Tests with real worker processes. Every process has a time limit."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from keras_resnet.distribution import workers
from keras_resnet.distribution.workers import LOCAL_WORKER_VARIABLE, run_local_workers

# Time limit of each worker process.
LIMIT_SECONDS = 150

# Script that trains a small network for a number of steps. The batches have 4, 4 and 3
# examples in turn. With float64, results hardly depend on the number of replicas.
TRAINING_SCRIPT = """
import json, os, pathlib, signal, sys
signal.alarm(int(os.environ["LIMIT"]))  # Ends a process that hangs.
import keras, numpy as np, tensorflow as tf
from keras_resnet.distribution import (
    common_work, is_chief, is_lost_worker_error, local_replicas, make_strategy,
    next_batch, sum_over_workers, worker_count, worker_index)
from keras_resnet.nets import synchronize_batch_norms
from keras_resnet.support import exit_now

name, folder, steps = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
keras.config.set_floatx("float64")
keras.utils.set_random_seed(0)
tf.config.experimental.enable_op_determinism()
strategy = make_strategy(name)
replicas, own_replicas = strategy.num_replicas_in_sync, local_replicas(strategy)
random = np.random.RandomState(1)
data = [(random.rand(n, 6), random.rand(n, 1)) for n in (4, 4, 3)]

def elements():
    for step in range(steps):
        x, y = data[step % 3]
        for r in own_replicas:
            part = slice(r * len(x) // replicas, (r + 1) * len(x) // replicas)
            yield x[part], y[part], float(len(x))

specs = [tf.TensorSpec([None, n], "float64") for n in (6, 1)]
batches = tf.data.Dataset.from_generator(
    elements, output_signature=(*specs, tf.TensorSpec([], "float64")))
with strategy.scope():
    norm = keras.layers.BatchNormalization
    network = keras.Sequential([keras.Input((6,)), norm(), keras.layers.Dense(8, "tanh"),
                                norm(), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(network.trainable_variables)
    losses = tf.Variable(0.0, dtype="float64")

def replica_step(x, y, count):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum((network(x, training=True) - y) ** 2) / count
    variables = network.trainable_variables
    optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
    return loss

@tf.function
def take_steps(batches, count):
    for _ in tf.range(count):
        with synchronize_batch_norms(network):
            loss = strategy.run(replica_step, args=next_batch(strategy, batches))
        losses.assign_add(strategy.reduce("SUM", loss, axis=None))

checkpoint = tf.train.Checkpoint(network=network, optimizer=optimizer)
try:
    with common_work():
        iterator = iter(batches)
        for step in range(0, steps, 3):
            take_steps(iterator, tf.constant(3))
            (folder / f"step-{worker_index(strategy)}").write_text(str(step))
        if is_chief(strategy):
            checkpoint.write(str(folder / "saved"))
        # All workers wait here until the chief has written the checkpoint, then read it.
        sum_over_workers(strategy, tf.ones([], "float64"))
    weights = network.get_weights()
    for variable in network.variables:
        variable.assign(tf.zeros_like(variable))
    checkpoint.read(str(folder / "saved")).assert_existing_objects_matched()
    for saved, restored in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(saved, restored)
    np.savez(folder / f"weights-{replicas}-{worker_index(strategy)}.npz",
             losses.numpy(), *weights)
    threads = os.environ["TF_NUM_INTRAOP_THREADS"]
    print(replicas, worker_count(strategy), list(own_replicas), threads)
except tf.errors.OpError as error:
    assert is_lost_worker_error(error), error
    print("a worker is lost")
    exit_now(3)
"""


@pytest.fixture
def make_training_command(tmp_path, monkeypatch):
    """Function that returns a command, given a strategy name and a number of steps.

    The command runs `TRAINING_SCRIPT`, which writes its files to `tmp_path`.
    """
    script_path = tmp_path / "training.py"
    script_path.write_text(TRAINING_SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LIMIT", str(LIMIT_SECONDS))
    return lambda name, steps: [sys.executable, script_path, name, tmp_path, str(steps)]


@pytest.mark.slow
def test_two_workers_reach_the_losses_and_weights_of_one_device(
    make_training_command, tmp_path
):
    assert run_local_workers(2, make_training_command("multi_worker", 3), tmp_path) == 0
    assert run_local_workers(1, make_training_command("one_device", 3), tmp_path) == 0
    chief, other_worker, one_device = (
        list(np.load(tmp_path / f"weights-{name}.npz").values())
        for name in ("2-0", "2-1", "1-0")
    )
    for weights, other_weights, expected in zip(
        chief, other_worker, one_device, strict=True
    ):
        np.testing.assert_array_equal(weights, other_weights)
        np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-12)
    num_threads = max(1, os.cpu_count() // 2)
    assert f"2 2 [1] {num_threads}" in (tmp_path / "worker-1.log").read_text()


@pytest.mark.full  # Slow, and mostly covered by test_multi_worker.py.
def test_a_killed_worker_is_noticed_and_all_can_start_again(
    make_training_command, tmp_path
):
    holders = [workers._hold_port() for _ in range(2)]
    addresses = ["{}:{}".format(*holder.getsockname()) for holder in holders]

    def start_workers(steps):
        return [
            subprocess.Popen(
                make_training_command("multi_worker", steps),
                env=workers._make_environment(addresses, index),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(2)
        ]

    chief, other_worker = start_workers(3_000_000)
    deadline = time.monotonic() + LIMIT_SECONDS
    while not all((tmp_path / f"step-{index}").exists() for index in range(2)):
        assert time.monotonic() < deadline and chief.poll() is None
        time.sleep(0.1)
    other_worker.kill()
    output, _ = chief.communicate(timeout=30)
    # Either TensorFlow or the connection to the worker notices the loss first.
    assert (chief.returncode, "a worker is lost" in output) == (3, True) or (
        (chief.returncode, "error: Worker 1 has ended." in output) == (1, True)
    )
    other_worker.communicate()
    for worker in start_workers(3):
        output, _ = worker.communicate(timeout=LIMIT_SECONDS)
        assert worker.returncode == 0 and "\n2 2 [" in output
    for holder in holders:
        holder.close()


def make_command(code):
    return [sys.executable, "-c", f"import os, signal, sys, time\n{code}"]


# Python code that sets `index` to the index of the worker.
READ_INDEX = f"index = int(os.environ['{LOCAL_WORKER_VARIABLE}'])\n"


def test_all_workers_get_the_same_cluster_and_different_tasks(tmp_path, monkeypatch):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    write = (
        "import json; json.dump(dict(os.environ), open(f'{sys.argv[1]}/{index}', 'w'))"
    )
    command = [*make_command(READ_INDEX + write), tmp_path]
    assert run_local_workers(3, command, tmp_path / "logs") == 0
    variables = [json.loads((tmp_path / str(index)).read_text()) for index in range(3)]
    configs = [json.loads(environment["TF_CONFIG"]) for environment in variables]
    assert [config["task"] for config in configs] == [
        {"type": "worker", "index": index} for index in range(3)
    ]
    assert len(set(configs[0]["cluster"]["worker"])) == 3
    assert all(config["cluster"] == configs[0]["cluster"] for config in configs)
    # The workers share the cores of this machine.
    num_threads = str(max(1, os.cpu_count() // 3))
    assert all(v["TF_NUM_INTRAOP_THREADS"] == num_threads for v in variables)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("print('no disk'); sys.exit(3 * index)", 3),
        ("sys.exit(5 if index == 0 else 0)", 5),
        ("print('no disk'); index and os.kill(os.getpid(), 9)", 137),
        # Both workers fail. The exit status comes from worker 0 (the chief), but the
        # message names worker 1, which fails first.
        ("index or time.sleep(1); print('no disk'); sys.exit(3 if index else 4)", 4),
        # Worker 1 fails. Worker 0 ignores SIGTERM (15), so SIGKILL (9) ends worker 0.
        (
            "index or signal.signal(15, 1) or time.sleep(60); print('no disk'); sys.exit(7)",
            137,
        ),
    ],
)
def test_a_failed_worker_sets_the_exit_status(code, status, tmp_path, capsys):
    start_time = time.monotonic()
    assert run_local_workers(2, make_command(READ_INDEX + code), tmp_path) == status
    assert time.monotonic() - start_time < 20
    message = capsys.readouterr().err
    if status == 5:
        assert message == "worker 0 failed with status 5\n"
    else:
        assert message.startswith("worker 1 failed with status ")
        log_path = tmp_path / "worker-1.log"
        assert message.count("\n") == 1
        if "kill" not in code:
            assert message.endswith(f"last line of {log_path}: no disk\n")


def test_a_worker_that_must_be_ended_after_worker_0_succeeds_has_not_failed(
    tmp_path, capsys
):
    code = "index and (signal.signal(15, signal.SIG_IGN), time.sleep(60))"
    assert run_local_workers(2, make_command(READ_INDEX + code), tmp_path) == 0
    assert capsys.readouterr().err == ""


def test_no_other_program_can_take_the_port_of_a_worker(tmp_path):
    code = """
import json, socket
address = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"][index].split(":")
for reuse_port in False, True:
    try:
        socket.create_server(("", int(address[1])), reuse_port=reuse_port).close()
        print(reuse_port)
    except OSError as error:
        print(error.strerror.split(" (")[0])
"""
    command = make_command(READ_INDEX + code)
    assert run_local_workers(2, command, tmp_path) == 0
    # Only the worker itself, which knows that the port is shared, can listen.
    log = (tmp_path / "worker-1.log").read_text()
    assert log == "Address already in use\nTrue\n"


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_forwarded(signal_number, tmp_path):
    """A separate process starts the workers, because the signal could end pytest."""
    handler_code = (
        "for n in 2, 15: signal.signal(n, lambda n, f: (print(n), sys.exit(0)))\n"
    )
    waiting_code = "open(f'{sys.argv[1]}/{index}', 'w').close(); time.sleep(60)"
    command = [*make_command(READ_INDEX + handler_code + waiting_code), str(tmp_path)]
    code = f"""
import signal, sys
from keras_resnet.distribution import workers
original_handler = signal.getsignal({signal_number:d})
status = workers.run_local_workers(2, {command}, {str(tmp_path)!r})
assert signal.getsignal({signal_number:d}) is original_handler
sys.exit(status)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not all((tmp_path / str(index)).exists() for index in range(2)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal_number)
        assert process.wait(60) == 128 + signal_number
    assert (tmp_path / "worker-1.log").read_text() == f"{signal_number}\n"
