"""Workers as real processes on this machine; each has a time limit of its own."""

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
from keras_resnet.distribution.workers import LOCAL_WORKER, run_local_workers

LIMIT = 150

# Batches of 4, 4 and 3 images, then for ever of 4; float64, so that an order of adding
# does not matter.
TRAINING = """
import json, os, pathlib, signal, sys
signal.alarm(int(os.environ["LIMIT"]))  # A hang fails.
import keras, numpy as np, tensorflow as tf
from keras_resnet.distribution import (
    is_chief, local_replicas, lost_worker, make_strategy, next_batch, sum_over_workers,
    worker_count, worker_index)
from keras_resnet.nets import synchronized
from keras_resnet.support import leave

name, folder, steps = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
keras.config.set_floatx("float64")
keras.utils.set_random_seed(0)
tf.config.experimental.enable_op_determinism()
strategy = make_strategy(name)
replicas, here = strategy.num_replicas_in_sync, local_replicas(strategy)
draw = np.random.RandomState(1)
data = [(draw.rand(n, 6), draw.rand(n, 1)) for n in (4, 4, 3)]

def elements():
    for step in range(steps):
        x, y = data[step % 3]
        for r in here:
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
def take(batches, count):
    for _ in tf.range(count):
        with synchronized(network):
            loss = strategy.run(replica_step, args=next_batch(strategy, batches))
        losses.assign_add(strategy.reduce("SUM", loss, axis=None))

checkpoint = tf.train.Checkpoint(network=network, optimizer=optimizer)
try:
    iterator = iter(batches)
    for step in range(0, steps, 3):
        take(iterator, tf.constant(3))
        (folder / f"step-{worker_index(strategy)}").write_text(str(step))
    if is_chief(strategy):
        checkpoint.write(str(folder / "saved"))
    # All wait here until it is there, and then read what the chief alone wrote.
    sum_over_workers(strategy, tf.ones([], "float64"))
    weights = network.get_weights()
    for variable in network.variables:
        variable.assign(tf.zeros_like(variable))
    checkpoint.read(str(folder / "saved")).assert_existing_objects_matched()
    for before, after in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    np.savez(folder / f"weights-{replicas}-{worker_index(strategy)}.npz",
             losses.numpy(), *weights)
    print(replicas, worker_count(strategy), list(here), os.environ["TF_NUM_INTRAOP_THREADS"])
except tf.errors.OpError as error:
    assert lost_worker(error), error
    print("a worker is gone")
    leave(3)
"""


@pytest.fixture
def training(tmp_path, monkeypatch):
    """The command of a small training; the folder where it writes is tmp_path."""
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LIMIT", str(LIMIT))
    return lambda name, steps: [sys.executable, script, name, tmp_path, str(steps)]


@pytest.mark.full  # test_multi_worker.py shows it through the program.
def test_two_workers_train_as_one_device_does(training, tmp_path):
    assert run_local_workers(2, training("multi_worker", 3), tmp_path) == 0
    assert run_local_workers(1, training("one_device", 3), tmp_path) == 0
    chief, other, alone = (
        list(np.load(tmp_path / f"weights-{name}.npz").values())
        for name in ("2-0", "2-1", "1-0")
    )
    for ours, same, expected in zip(chief, other, alone, strict=True):
        np.testing.assert_array_equal(ours, same)
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
    threads = max(1, os.cpu_count() // 2)
    assert f"2 2 [1] {threads}" in (tmp_path / "worker-1.log").read_text()


@pytest.mark.full  # test_multi_worker.py shows it through the program.
def test_a_killed_worker_is_noticed_and_all_can_start_again(training, tmp_path):
    addresses = workers._free_addresses(2)

    def start(steps):
        return [
            subprocess.Popen(
                training("multi_worker", steps),
                env=workers._environment(addresses, index),
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(2)
        ]

    chief, other = start(3_000_000)
    deadline = time.monotonic() + LIMIT
    while not all((tmp_path / f"step-{index}").exists() for index in range(2)):
        assert time.monotonic() < deadline and chief.poll() is None
        time.sleep(0.1)
    other.kill()
    output, _ = chief.communicate(timeout=30)
    assert chief.returncode == 3 and "a worker is gone" in output
    other.communicate()
    for worker in start(3):
        output, _ = worker.communicate(timeout=LIMIT)
        assert worker.returncode == 0 and output.startswith("2 2 ")


def python(text):
    return [sys.executable, "-c", f"import os, signal, sys, time\n{text}"]


INDEX = f"index = int(os.environ['{LOCAL_WORKER}'])\n"


def test_the_workers_of_a_cluster(tmp_path):
    write = "open(f'{sys.argv[1]}/{index}', 'w').write(os.environ['TF_CONFIG'])"
    command = [*python(INDEX + write), tmp_path]
    assert run_local_workers(3, command, tmp_path / "logs") == 0
    found = [json.loads((tmp_path / str(index)).read_text()) for index in range(3)]
    assert [each["task"] for each in found] == [
        {"type": "worker", "index": index} for index in range(3)
    ]
    assert len(set(found[0]["cluster"]["worker"])) == 3
    assert all(each["cluster"] == found[0]["cluster"] for each in found)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("print('no disk'); sys.exit(3 * index)", 3),
        ("sys.exit(5 if index == 0 else 0)", 5),
        ("print('no disk'); index and os.kill(os.getpid(), 9)", 137),
        # The chief's status counts, the one that failed first is named.
        ("index or time.sleep(1); print('no disk'); sys.exit(3 if index else 4)", 4),
        # The others are stopped, and killed where SIGTERM does not do.
        (
            "index or signal.signal(15, 1) or time.sleep(60); print('no disk'); sys.exit(7)",
            137,
        ),
    ],
)
def test_a_failure_is_the_exit_status(fault, status, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 2)
    began = time.monotonic()
    assert run_local_workers(2, python(INDEX + fault), tmp_path) == status
    assert time.monotonic() - began < 20
    message = capsys.readouterr().err
    if status == 5:
        assert message == "worker 0 failed with status 5\n"
    else:
        assert message.startswith("worker 1 failed with status ")
        log = tmp_path / "worker-1.log"
        assert message.count("\n") == 1
        if "kill" not in fault:
            assert message.endswith(f"{log} ends: no disk\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_forwarded(number, tmp_path):
    """In a process of its own: one who is not heard would end this one."""
    handle = "for n in 2, 15: signal.signal(n, lambda n, f: (print(n), sys.exit(0)))\n"
    ready = "open(f'{sys.argv[1]}/{index}', 'w').close(); time.sleep(60)"
    command = [*python(INDEX + handle + ready), str(tmp_path)]
    code = f"""
import signal, sys
from keras_resnet.distribution import workers
workers.GRACE = 5
before = signal.getsignal({number:d})
status = workers.run_local_workers(2, {command}, {str(tmp_path)!r})
assert signal.getsignal({number:d}) is before
sys.exit(status)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not all((tmp_path / str(index)).exists() for index in range(2)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert (tmp_path / "worker-1.log").read_text() == f"{number}\n"
