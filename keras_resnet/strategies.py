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
