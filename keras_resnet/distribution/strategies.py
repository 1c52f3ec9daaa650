"""Construction of `tf.distribute` strategies, and functions for training loops."""

import contextlib
import functools
import glob
import os
import sys
from collections.abc import Callable, Iterator

import tensorflow as tf

from keras_resnet.distribution.cluster import find_cluster
from keras_resnet.distribution.connections import (
    HOW_TO_RESUME,
    close_to_network,
    connect_workers,
    get_port,
    is_local,
    leave_cluster,
    tolerate_pauses,
)
from keras_resnet.support import (
    InputError,
    Interrupted,
    Preempted,
    check_choice,
    first_line,
)

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")

MAX_VIRTUAL_DEVICES = 1024

# Iterator that `iterate_batches` returns and `next_batch` reads.
Batches = Iterator[tuple[tf.Tensor, ...]]


def make_strategy(name: str, virtual_devices: int = 0) -> tf.distribute.Strategy:
    """Makes a `tf.distribute` strategy.

    With `"multi_worker"`, a worker is lost if it ends outside of `common_work`. The loss
    ends the other workers with status 1.

    Args:
        name: `"one_device"` uses the first GPU, or the CPU if there is no GPU.
            `"mirrored"` has one replica on each GPU, or on each virtual device of the
            CPU. `"multi_worker"` connects the worker processes that TF_CONFIG, Slurm or
            Kubernetes define. Every worker has one replica on each of its GPUs, or on
            its CPU. `"tpu"` has one replica on each core of the TPU.
        virtual_devices: Number of virtual devices that the CPU is split into, for
            tests; 0 does not split it. The CPU must be split before TensorFlow runs.

    Raises:
        InputError: If this machine does not support the strategy, or if not all workers
            have started within START_TIMEOUT seconds.
    """
    check_choice("strategy", name, STRATEGIES)
    can_split = name in ("one_device", "mirrored")
    if virtual_devices and not (can_split and virtual_devices <= MAX_VIRTUAL_DEVICES):
        raise InputError(
            "virtual_devices requires the strategy one_device or mirrored, and may be at "
            f"most {MAX_VIRTUAL_DEVICES}. "
            f"Received: strategy={name!r}, virtual_devices={virtual_devices}"
        )
    if name == "multi_worker":
        return _join_cluster(*find_cluster())
    if name == "tpu":
        return _make_tpu()
    if virtual_devices:
        _split_cpu(virtual_devices)
    on_gpu = not virtual_devices and tf.config.list_physical_devices("GPU")
    device_type = "GPU" if on_gpu else "CPU"
    devices = tuple(d.name for d in tf.config.list_logical_devices(device_type))
    return _make_local(name, devices)


# Strategies are cached, because two equal strategies in a process would conflict.
# TensorFlow identifies collective operations by integer keys. Each strategy starts to
# count its keys at the same integer, so two strategies would use the same keys.
@functools.cache
def _make_local(name: str, devices: tuple[str, ...]) -> tf.distribute.Strategy:
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    # Ring all-reduce between virtual CPU devices takes twice as long as this reduction.
    is_cpu = "CPU" in devices[0]
    reduction = tf.distribute.ReductionToOneDevice() if is_cpu else None
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


@functools.cache  # A process can join its cluster only once.
def _join_cluster(addresses: tuple[str, ...], index: int) -> tf.distribute.Strategy:
    num_gpus = len(tf.config.list_physical_devices("GPU"))  # May take seconds.
    connect_workers(addresses, index)
    can_close = is_local(addresses) and close_to_network(get_port(addresses[index]))
    if index == 0 and not can_close:
        ports = ", ".join(sorted({a.rpartition(":")[2] for a in addresses}))
        print(
            f"Open to the network without authentication: port {ports}. Let only the "
            "workers connect, with a firewall; see docs/how-to/distribute.md",
            file=sys.stderr,
        )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(addresses)}),
        task_type="worker",
        task_id=index,
        num_accelerators={"GPU": num_gpus},
        rpc_layer="grpc",
    )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except RuntimeError as error:  # TensorFlow has already run an operation.
        message = f"Make the strategy multi_worker before TensorFlow runs: {error}"
        raise InputError(message) from error
    tolerate_pauses()
    return strategy


@contextlib.contextmanager
def common_work() -> Iterator[None]:
    """Context in which all workers need each other. Afterwards, each of them may end.

    A worker that ends with an error, or before the end of this context, is lost.

    Raises:
        ConnectionError: If a worker is lost and TensorFlow notices that first.
    """
    try:
        yield
    except (Preempted, Interrupted):  # All workers stop after the same step.
        leave_cluster()
        raise
    except tf.errors.OpError as error:
        if _join_cluster.cache_info().currsize and is_lost_worker_error(error):
            raise ConnectionError(f"A worker was lost. {HOW_TO_RESUME}") from error
        raise
    leave_cluster()


def next_batch(strategy: tf.distribute.Strategy, batches: Batches) -> tuple:
    """Returns the next batch of each replica, as arguments of `strategy.run`.

    `strategy.run` needs one value per replica. A distributed iterator returns such
    values. A plain iterator returns one element per call, so this function calls `next`
    once for each local replica and groups the elements. The training loop calls this
    function inside a `tf.function`, so that several steps run without Python.
    """
    if isinstance(batches, tf.distribute.DistributedIterator):
        return next(batches)
    distribute = strategy.experimental_distribute_values_from_function
    return distribute(lambda context: next(batches))


def iterate_batches(
    strategy: tf.distribute.Strategy, batches: tf.data.Dataset
) -> Batches:
    """Returns an iterator for `next_batch` over a dataset with an element per replica.

    On GPUs, the iterator is a distributed one, which copies batches to the GPUs ahead
    of time. On CPUs, the iterator is a plain one. A distributed iterator would make
    malloc return freed memory to the system at once (GeneratorDatasetOp in TensorFlow
    2.21), which doubled the time of ResNet-50's training steps.
    """
    if tf.config.list_physical_devices("GPU"):
        return iter(strategy.distribute_datasets_from_function(lambda _: batches))
    return iter(batches)


def sum_over_workers(strategy: tf.distribute.Strategy, values: tf.Tensor) -> tf.Tensor:
    """Returns the sum of a tensor over all workers. All workers must make this call."""
    return _make_sum(strategy)(values)


@functools.cache  # A new `tf.function` would be traced in each call.
def _make_sum(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    @tf.function
    def reduce_values(values: tf.Tensor) -> tf.Tensor:
        # `reduce` sums over replicas, so each replica adds an equal part of `values`.
        parts = strategy.run(lambda: values / len(local_replicas(strategy)))
        return strategy.reduce("SUM", parts, axis=None)

    return reduce_values


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process is the chief, which writes all files."""
    return worker_index(strategy) == 0


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of worker processes."""
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def local_replicas(strategy: tf.distribute.Strategy) -> range:
    """Returns the indices of the replicas in this process, counted over all workers.

    `next_batch` takes one element for each index, in the order of the indices.
    """
    num_local = len(strategy.extended.worker_devices)
    first_index = worker_index(strategy) * num_local
    return range(first_index, first_index + num_local)


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """Returns the index of this process among the workers."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return strategy.cluster_resolver.task_id
    return 0


def is_lost_worker_error(error: Exception) -> bool:
    """Returns whether TensorFlow raised the error because another worker is lost.

    TensorFlow raises the error while this worker waits for the lost worker, at once or
    after 10 seconds without a heartbeat.
    """
    return isinstance(error, tf.errors.UnavailableError) or (
        isinstance(error, tf.errors.OpError)
        and not isinstance(error, _LOCAL_ERRORS)
        and any(phrase in str(error) for phrase in _LOST_PHRASES)
    )


# Errors that this worker causes itself. They do not mean that a worker is lost, even if
# the message contains "/job:worker/", because it may name a device of this worker.
_LOCAL_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.ResourceExhaustedError,
    tf.errors.DataLossError,
    tf.errors.NotFoundError,
)
_LOST_PHRASES = ("Collective ops is aborted", "coordination service", "/job:worker/")


def _make_tpu() -> tf.distribute.Strategy:
    address_variables = [v for v in ("TPU_NAME", "COLAB_TPU_ADDR") if os.environ.get(v)]
    is_local = glob.glob("/dev/accel[0-9]*") or "TPU_WORKER_ID" in os.environ
    # On a machine without a TPU, the resolver would wait long for a metadata server.
    if not address_variables and not is_local:
        raise InputError(
            "The strategy tpu requires TPU_NAME, COLAB_TPU_ADDR, TPU_WORKER_ID or a "
            "device such as /dev/accel0. Received: a machine without a TPU"
        )
    address = os.environ[address_variables[0]] if address_variables else "local"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, OSError, ImportError, ValueError, RuntimeError) as error:
        message = f"The TPU {address!r} cannot be used: {first_line(error)}"
        raise InputError(message) from error


def _split_cpu(num_devices: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    device_configs = [tf.config.LogicalDeviceConfiguration()] * num_devices
    try:
        tf.config.set_logical_device_configuration(cpu, device_configs)
    except RuntimeError:
        num_existing = len(tf.config.list_logical_devices("CPU"))
        if num_existing != num_devices:
            raise InputError(
                "The CPU can be split only before TensorFlow uses it. The CPU now has "
                f"{num_existing} device(s). Received: virtual_devices={num_devices}"
            ) from None
