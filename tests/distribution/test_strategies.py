import functools
import importlib
import json
import socket
import sys
import time

import pytest
import tensorflow as tf

from keras_resnet.distribution import cluster, connections, strategies
from keras_resnet.distribution.strategies import (
    is_chief,
    is_lost_worker_error,
    local_replicas,
    make_strategy,
    sum_over_workers,
    worker_count,
)
from keras_resnet.support.errors import InputError, Preempted


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Unsets the environment variables of clusters and TPUs."""
    for variable in (
        "TF_CONFIG",
        "SLURM_PROCID",
        "KUBERNETES_SERVICE_HOST",
        "TPU_NAME",
    ):
        monkeypatch.delenv(variable, raising=False)


def test_strategies_have_one_replica_per_device():
    assert make_strategy("one_device").num_replicas_in_sync == 1
    # conftest.py has split the CPU into two virtual devices.
    assert make_strategy("mirrored").num_replicas_in_sync == 2
    assert make_strategy("mirrored", virtual_devices=2).num_replicas_in_sync == 2
    assert isinstance(make_strategy("mirrored"), tf.distribute.MirroredStrategy)


@pytest.mark.parametrize("name", ["horovod", "mirored", ""])
def test_an_unknown_strategy_is_refused(name):
    with pytest.raises(
        InputError, match="Accepted: one_device, mirrored, multi_worker, tpu"
    ):
        make_strategy(name)


def test_the_cpu_cannot_be_split_again():
    tf.constant(0) + 1
    with pytest.raises(InputError, match="Received: virtual_devices=3"):
        make_strategy("mirrored", virtual_devices=3)


@pytest.mark.parametrize(("name", "num_replicas"), [("one_device", 1), ("mirrored", 2)])
def test_single_process_strategies_have_all_replicas_in_one_worker(name, num_replicas):
    strategy = make_strategy(name)
    assert is_chief(strategy) and worker_count(strategy) == 1
    assert local_replicas(strategy) == range(num_replicas)


def test_replicas_are_numbered_over_all_workers(monkeypatch):
    monkeypatch.setattr(strategies, "worker_index", lambda strategy: 1)
    assert local_replicas(make_strategy("mirrored")) == range(2, 4)


def test_a_worker_counts_once_in_sums():
    values = sum_over_workers(make_strategy("mirrored"), tf.constant([1.5, -2.0]))
    assert values.numpy().tolist() == [1.5, -2.0]


@pytest.mark.parametrize("name", ["multi_worker", "tpu"])
def test_a_missing_cluster_or_tpu_is_reported_quickly(name):
    start_time = time.monotonic()
    with pytest.raises(InputError, match="Received: ") as caught:
        make_strategy(name)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start_time < 2


def test_virtual_devices_require_a_single_process():
    with pytest.raises(InputError, match="Received: strategy='multi_worker', virtual"):
        make_strategy("multi_worker", virtual_devices=2)


CLUSTER = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        {"cluster": CLUSTER},
        {"task": {"type": "worker", "index": 0}},
        {"cluster": CLUSTER, "task": {"type": "worker"}},
        {"cluster": CLUSTER, "task": {"type": "worker", "index": 2}},
        {"cluster": CLUSTER, "task": {"type": "worker", "index": -1}},
        {"cluster": CLUSTER, "task": {"type": "ps", "index": 0}},
        {"cluster": {"worker": ["a", "b"]}, "task": {"type": "worker", "index": 0}},
        {"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}},
    ],
)
def test_an_invalid_tf_config_is_refused(config, monkeypatch):
    text = config if isinstance(config, str) else json.dumps(config)
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match="TF_CONFIG must be like") as caught:
        make_strategy("multi_worker")
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("job", "index"), [("chief", 0), ("worker", 2)])
def test_the_chief_is_the_first_worker(job, index, monkeypatch):
    config = {
        "cluster": {"chief": ["c:3"], **CLUSTER},
        "task": {"type": job, "index": max(0, index - 1)},
    }
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert cluster.find_cluster() == (("c:3", "a:1", "b:2"), index)


def set_slurm(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_two_slurm_tasks_on_one_node_have_different_ports(monkeypatch):
    set_slurm(monkeypatch, PROCID="1", JOB_ID="1000", STEP_NODELIST="n1")
    set_slurm(monkeypatch, STEP_TASKS_PER_NODE="2")
    assert cluster.find_cluster() == (("n1:12000", "n1:12001"), 1)


def test_slurm_ranks_follow_the_list_of_nodes(monkeypatch):
    set_slurm(monkeypatch, PROCID="2", JOB_ID="7", STEP_NODELIST="n[2,10],m")
    set_slurm(monkeypatch, STEP_TASKS_PER_NODE="1(x3)")
    assert cluster.find_cluster() == (("n2:12112", "n10:12112", "m:12112"), 2)
    set_slurm(monkeypatch, PROCID="3")
    with pytest.raises(InputError, match=r"SLURM_PROCID must .* 3\. Received: rank 3"):
        cluster.find_cluster()
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    with pytest.raises(InputError, match=r"srun .*SLURM_STEP_NODELIST"):
        make_strategy("multi_worker")


@pytest.mark.parametrize(
    ("nodes", "counts", "hosts"),
    [
        # Examples of Slurm's documentation: hostlists in the manual of scontrol and
        # SLURM_TASKS_PER_NODE in the manual of sbatch.
        ("tux[1-3]", "1(x3)", "tux1 tux2 tux3"),
        ("tux2,tux1,tux3", "1(x3)", "tux2 tux1 tux3"),
        ("linux[0-1,3]", "2(x3)", "linux0 linux0 linux1 linux1 linux3 linux3"),
        ("node[01-03,7],gpu1", "1(x5)", "node01 node02 node03 node7 gpu1"),
        ("n[1-4]", "2(x3),1", "n1 n1 n2 n2 n3 n3 n4"),
    ],
)
def test_lists_of_nodes_and_tasks_are_expanded(nodes, counts, hosts, monkeypatch):
    set_slurm(monkeypatch, PROCID="0", JOB_ID="0", STEP_NODELIST=nodes)
    set_slurm(monkeypatch, STEP_TASKS_PER_NODE=counts)
    addresses, _ = cluster.find_cluster()
    assert " ".join(address.partition(":")[0] for address in addresses) == hosts


def test_only_slurm_imports_a_private_module_of_tensorflow(monkeypatch):
    name = "tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver"
    monkeypatch.setitem(sys.modules, name, None)  # Any import of the module fails.
    cluster_source = importlib.reload(cluster)
    config = {"cluster": CLUSTER, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert cluster_source.find_cluster() == (("a:1", "b:2"), 1)


def test_the_pods_of_an_indexed_job_form_a_cluster(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(InputError, match="JOB_COMPLETION_INDEX"):
        make_strategy("multi_worker")
    monkeypatch.setattr(socket, "gethostname", lambda: "resnet-1")
    for name, value in (
        ("JOB_COMPLETION_INDEX", "1"),
        ("KERAS_RESNET_WORKERS", "2"),
        ("KERAS_RESNET_SERVICE", "workers"),
    ):
        monkeypatch.setenv(name, value)
    addresses = ("resnet-0.workers:12000", "resnet-1.workers:12000")
    assert cluster.find_cluster() == (addresses, 1)


def test_errors_of_a_lost_worker_are_recognised():
    lost_message = "Collective ops is aborted by: recvmsg:Connection reset by peer"
    assert is_lost_worker_error(tf.errors.UnavailableError(None, None, lost_message))
    assert is_lost_worker_error(tf.errors.CancelledError(None, None, lost_message))
    assert not is_lost_worker_error(
        tf.errors.InvalidArgumentError(None, None, "Invalid PNG")
    )
    assert not is_lost_worker_error(
        tf.errors.OutOfRangeError(None, None, "End of sequence")
    )
    assert not is_lost_worker_error(ValueError(lost_message))


# Error message that names a device of worker 1.
DEVICE_MESSAGE = "{{node Adam}} device: /job:worker/replica:0/task:1/device:CPU:0"


@pytest.mark.parametrize(
    ("error_class", "is_lost"),
    [
        (tf.errors.ResourceExhaustedError, False),
        (tf.errors.NotFoundError, False),
        (tf.errors.DataLossError, False),
        (tf.errors.InvalidArgumentError, False),
        (tf.errors.UnavailableError, True),
        (tf.errors.InternalError, True),
    ],
)
def test_local_errors_that_name_a_device_are_no_lost_workers(error_class, is_lost):
    """A worker can run out of memory or read a damaged file while no worker is lost."""
    assert is_lost_worker_error(error_class(None, None, DEVICE_MESSAGE)) == is_lost


@pytest.mark.parametrize(
    ("host", "is_open"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)]
)
def test_ports_that_are_open_to_the_network_are_named(
    host, is_open, monkeypatch, capsys
):
    """The port of one worker on a loopback address is not open; see `close_to_network`."""
    strategies._join_cluster.cache_clear()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    config = {
        "cluster": {"worker": [f"{host}:{port}"]},
        "task": {"type": "worker", "index": 0},
    }
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    tf.constant(0) + 1
    with pytest.raises(InputError, match="before TensorFlow runs"):
        make_strategy("multi_worker")
    message = f"Open to the network without authentication: port {port}. Let only the "
    assert (
        message in capsys.readouterr().err if is_open else not capsys.readouterr().err
    )


def test_tensorflow_may_notice_a_lost_worker_first(monkeypatch):
    """Without a cluster, the same error is an error of this process."""
    error = tf.errors.UnavailableError(None, None, "recvmsg:Connection reset by peer")
    with pytest.raises(tf.errors.UnavailableError), strategies.common_work():
        raise error
    in_cluster = functools.cache(lambda: True)
    in_cluster()
    monkeypatch.setattr(strategies, "_join_cluster", in_cluster)
    with socket.socket() as connection:
        monkeypatch.setitem(connections._connections, 1, connection)
        with (
            pytest.raises(ConnectionError, match="same command"),
            strategies.common_work(),
        ):
            raise error
        with pytest.raises(InputError), strategies.common_work():
            raise InputError("damaged image")
        assert connections._connections
        with pytest.raises(Preempted), strategies.common_work():
            raise Preempted
        assert not connections._connections
