"""Names for tf.distribute strategies."""

import functools

import tensorflow as tf

from keras_resnet.errors import InputError, choose

STRATEGIES = ("one_device", "mirrored")


def make_strategy(name, virtual_devices=0):
    """Makes the strategy of that name on the devices of this machine.

    Args:
        name: `"one_device"`: the first GPU, or else the CPU. `"mirrored"`: one
            replica on each GPU, or else on each (virtual) CPU device.
        virtual_devices: splits the CPU in that many devices and uses them, for
            trying out; 0 leaves it whole. Only before TensorFlow has run
            anything.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        InputError: this machine cannot give that strategy.
    """
    choose("strategy", name, STRATEGIES)
    if virtual_devices:
        _split_cpu(virtual_devices)
    kind = (
        "CPU"
        if virtual_devices
        else ("GPU" if tf.config.list_physical_devices("GPU") else "CPU")
    )
    devices = tuple(device.name for device in tf.config.list_logical_devices(kind))
    return _strategy(name, devices)


@functools.cache  # Two in one process would use the same keys for their collectives.
def _strategy(name, devices):
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    # Between parts of one CPU a ring takes twice as long as adding in one place.
    on_cpu = "CPU" in devices[0]
    reduce = tf.distribute.ReductionToOneDevice() if on_cpu else None
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduce)


def next_batch(strategy, batches):
    """Takes one element for each replica, within a `tf.function`.

    Distributed data sets of tf.distribute are not used: making one sets malloc to
    return memory to the system at once (TensorFlow 2.21, GeneratorDatasetOp), which
    made the steps of ResNet-50 on a CPU twice as long.

    Args:
        strategy: a `tf.distribute.Strategy`.
        batches: iterator over a `tf.data.Dataset` with an element for each replica.

    Returns:
        What `strategy.run` takes as its arguments.
    """
    return strategy.experimental_distribute_values_from_function(
        lambda context: next(batches)
    )


def _split_cpu(parts):
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


def iterate(strategy, batches):
    """Returns an iterator for `next_batch`.

    On GPUs each replica's next batch is copied there ahead of time.

    Args:
        strategy: a `tf.distribute.Strategy`.
        batches: `tf.data.Dataset` with an element for each replica of this process.
    """
    if tf.config.list_physical_devices("GPU"):
        return iter(strategy.distribute_datasets_from_function(lambda _: batches))
    return iter(batches)


def total(strategy, values):
    """Adds up a tensor over all workers, each of which gives its own."""

    @tf.function
    def reduced():
        shares = strategy.run(lambda: values / len(local_replicas(strategy)))
        return strategy.reduce("SUM", shares, axis=None)

    return reduced()


def local_replicas(strategy):
    """Returns the range of the global numbers of this process's replicas."""
    count = strategy.extended._num_replicas_in_sync // worker_count(strategy)
    first = worker_index(strategy) * count
    return range(first, first + count)


def worker_count(strategy):
    """Returns the number of processes that train together."""
    resolver = strategy.cluster_resolver
    spec = resolver.cluster_spec().as_dict() if resolver else {}
    return max(1, sum(len(spec.get(job, ())) for job in ("chief", "worker")))


def worker_index(strategy):
    """Returns the number of this process among them."""
    return strategy.extended._id_in_cluster if worker_count(strategy) > 1 else 0


def is_chief(strategy):
    """Whether this process writes the files."""
    return worker_index(strategy) == 0


def lost_worker(error):
    """Whether an error says that another worker is gone."""
    return isinstance(
        error, tf.errors.UnavailableError | tf.errors.AbortedError | tf.errors.CancelledError
    )
