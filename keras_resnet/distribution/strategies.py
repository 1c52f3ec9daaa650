"""Names for tf.distribute strategies, and what a training loop asks of them."""

import functools
import glob
import os
from collections.abc import Iterator

import tensorflow as tf

from keras_resnet.distribution.cluster import await_workers, find_cluster
from keras_resnet.support import InputError, choose, first_line

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")

# An iterator for `next_batch`: over elements, or distributed.
Batches = Iterator[tuple[tf.Tensor, ...]]


def make_strategy(name: str, virtual_devices: int = 0) -> tf.distribute.Strategy:
    """Makes the strategy of that name on the devices of this machine.

    Args:
        name: `"one_device"`: the first GPU, or else the CPU. `"mirrored"`: one
            replica on each GPU, or else on each (virtual) CPU device.
            `"multi_worker"`: as many processes as TF_CONFIG, Slurm or Kubernetes
            say, with one replica on each GPU that a process sees, or else one on
            its CPU. `"tpu"`: one replica on each core of the TPU.
        virtual_devices: Number of devices that the CPU is split in, for trying out;
            0 leaves it whole. Only before TensorFlow has run anything.

    Raises:
        InputError: This machine cannot give that strategy, or its workers did not
            all start within START_TIMEOUT.
    """
    choose("strategy", name, STRATEGIES)
    if virtual_devices and name not in ("one_device", "mirrored"):
        raise InputError(
            "virtual_devices are for one_device and mirrored. "
            f"Received: strategy={name!r}, virtual_devices={virtual_devices}"
        )
    if name == "multi_worker":
        return _multi_worker(*find_cluster())
    if name == "tpu":
        return _tpu()
    if virtual_devices:
        _split_cpu(virtual_devices)
    on_gpu = not virtual_devices and tf.config.list_physical_devices("GPU")
    kind = "GPU" if on_gpu else "CPU"
    devices = tuple(device.name for device in tf.config.list_logical_devices(kind))
    return _strategy(name, devices)


@functools.cache  # Two in one process would use the same keys for their collectives.
def _strategy(name: str, devices: tuple[str, ...]) -> tf.distribute.Strategy:
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    # Between parts of one CPU a ring takes twice as long as adding in one place.
    on_cpu = "CPU" in devices[0]
    reduce = tf.distribute.ReductionToOneDevice() if on_cpu else None
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduce)


@functools.cache  # As above; and a process joins its cluster once.
def _multi_worker(addresses: tuple[str, ...], index: int) -> tf.distribute.Strategy:
    await_workers(addresses, index)
    gpus = len(tf.config.list_physical_devices("GPU"))
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(addresses)}),
        task_type="worker",
        task_id=index,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except RuntimeError as error:  # TensorFlow has run something.
        message = f"multi_worker must be made before anything else: {error}"
        raise InputError(message) from error


def next_batch(strategy: tf.distribute.Strategy, batches: Batches) -> tuple:
    """Takes the arguments of `strategy.run`, within a `tf.function`.

    `batches` is what `iterate_batches` returned; or any iterator over a
    `tf.data.Dataset` with an element for each replica of this process.
    """
    if isinstance(batches, tf.distribute.DistributedIterator):
        return next(batches)
    distribute = strategy.experimental_distribute_values_from_function
    return distribute(lambda context: next(batches))


def iterate_batches(
    strategy: tf.distribute.Strategy, batches: tf.data.Dataset
) -> Batches:
    """Returns an iterator for `next_batch`, of an element for each replica of this process.

    On GPUs each replica's next batch is copied there ahead of time, by a distributed
    data set. On CPUs there is none: making one sets malloc to return memory to the
    system at once (TensorFlow 2.21, GeneratorDatasetOp), which made the steps of
    ResNet-50 twice as long.
    """
    if tf.config.list_physical_devices("GPU"):
        return iter(strategy.distribute_datasets_from_function(lambda _: batches))
    return iter(batches)


def sum_over_workers(strategy: tf.distribute.Strategy, values: tf.Tensor) -> tf.Tensor:
    """Adds up a tensor over all workers, each of which gives its own."""

    @tf.function
    def reduced() -> tf.Tensor:
        shares = strategy.run(lambda: values / len(local_replicas(strategy)))
        return strategy.reduce("SUM", shares, axis=None)

    return reduced()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes what a run leaves behind: the first worker does."""
    return worker_index(strategy) == 0


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes that share the replicas."""
    return strategy.num_replicas_in_sync // len(strategy.extended.worker_devices)


def local_replicas(strategy: tf.distribute.Strategy) -> range:
    """Returns which of the replicas, counted over all workers, are in this process.

    `next_batch` takes one element for each, in this order.
    """
    count = len(strategy.extended.worker_devices)
    first = worker_index(strategy) * count
    return range(first, first + count)


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of this process among them."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return strategy.cluster_resolver.task_id
    return 0


def lost_worker(error: Exception) -> bool:
    """Whether an error of TensorFlow means that another worker is gone.

    It is raised where this worker waits for the other one: at once if that was
    the first, else when its heartbeat has been missing for 10 seconds.
    """
    return isinstance(error, tf.errors.UnavailableError) or (
        isinstance(error, tf.errors.OpError)
        and not isinstance(error, _OWN_FAULTS)
        and any(mark in str(error) for mark in _LOST)
    )


# Faults of this worker itself, whose message names its device, "/job:worker/...".
_OWN_FAULTS = (
    tf.errors.InvalidArgumentError,
    tf.errors.ResourceExhaustedError,
    tf.errors.DataLossError,
    tf.errors.NotFoundError,
)
_LOST = ("Collective ops is aborted", "coordination service", "/job:worker/")


def _tpu() -> tf.distribute.Strategy:
    """The strategy of the TPU, if this machine knows of one."""
    known = [name for name in ("TPU_NAME", "COLAB_TPU_ADDR") if os.environ.get(name)]
    local = glob.glob("/dev/accel[0-9]*") or "TPU_WORKER_ID" in os.environ
    # Asked first, since the resolver would wait long for Google's metadata server.
    if not known and not local:
        raise InputError(
            "tpu is for a machine with a TPU: TPU_NAME or COLAB_TPU_ADDR is set, or there "
            "is a /dev/accel0. Received: a machine with none of them"
        )
    address = os.environ[known[0]] if known else "local"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, OSError, ImportError, ValueError, RuntimeError) as error:
        message = f"The TPU {address!r} cannot be used: {first_line(error)}"
        raise InputError(message) from error


def _split_cpu(parts: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    split = [tf.config.LogicalDeviceConfiguration()] * parts
    try:
        tf.config.set_logical_device_configuration(cpu, split)
    except RuntimeError:
        now = len(tf.config.list_logical_devices("CPU"))
        if now != parts:
            raise InputError(
                "The CPU can be split only before TensorFlow has run anything; it has "
                f"{now} device(s) now. Received: virtual_devices={parts}"
            ) from None
