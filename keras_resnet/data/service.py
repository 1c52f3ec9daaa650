"""Training batches prepared by `tf.data` services on other machines."""

import socket
import threading
import time
from collections.abc import Callable

import tensorflow as tf

from keras_resnet.support import InputError

# Seconds to wait for a tf.data service to answer. TensorFlow's own timeout is an hour.
SERVICE_TIMEOUT = 60

# Function from the index of a lane and the number of lanes to the batches of the lane.
# With n lanes, lane i consists of the steps i, i + n, i + 2n and so on.
Lane = Callable[[int, int], tf.data.Dataset]


def serve_batches(lane: Lane, service: str, start: int, stop: int) -> tf.data.Dataset:
    """Returns batches that one or more tf.data services prepare in turn.

    Each service must have one worker. With several workers, each worker would prepare
    either all steps, so that steps are repeated, or an unpredictable part of the steps.

    Args:
        lane: Function that returns the batches of one service; see `Lane`.
        service: Addresses of the services, such as `"grpc://one:5000,grpc://two:5000"`.
        start: Number of the first step.
        stop: Number of the step after the last one.
    """
    addresses = [address.strip() for address in service.split(",")]
    for address in addresses:
        _check_service(address)
    lanes = [
        _distribute(lane(lane_index, len(addresses)), address)
        for lane_index, address in enumerate(addresses)
    ]
    order = tf.data.Dataset.range(stop - start).map(lambda step: step % len(lanes))
    batches = tf.data.Dataset.choose_from_datasets(lanes, order, False)

    def check(expected_step: tf.Tensor, batch: tuple) -> tuple[tf.Tensor, ...]:
        step, *rest = batch
        message = f"{_ONE_WORKER} Received: {service}"
        assertion = tf.debugging.assert_equal(step, expected_step, message)
        with tf.control_dependencies([assertion]):
            return tf.identity(step), *rest

    return tf.data.Dataset.zip(tf.data.Dataset.range(start, stop), batches).map(check)


def _distribute(batches: tf.data.Dataset, address: str) -> tf.data.Dataset:
    distribute = tf.data.experimental.service.distribute
    return batches.apply(distribute("parallel_epochs", address))


_ONE_WORKER = (
    "Each tf.data service must have one worker. To use more workers, pass several "
    "services, separated by commas."
)


def _check_service(address: str) -> None:
    """Raises an InputError unless a service answers and has exactly one worker."""
    scheme, _, host_and_port = address.rpartition("://")
    host, _, port = host_and_port.rpartition(":")
    if scheme != "grpc" or not host or not port.isdigit():
        raise InputError(
            "data_service must be an address such as grpc://host:5000, or several "
            f"addresses separated by commas. Received: {address!r}"
        )
    received = f"Received: data_service={address}"
    deadline = time.monotonic() + SERVICE_TIMEOUT
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), 5).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                problem = f"no answer within {SERVICE_TIMEOUT} s ({error}). {received}"
                raise InputError(f"The tf.data service gave {problem}") from None
            time.sleep(0.2)
    num_workers = _count_workers(address)
    if not num_workers:
        problem = f"no worker within {SERVICE_TIMEOUT} s. {received}"
        raise InputError(f"The tf.data service had {problem}")
    if num_workers > 1:
        raise InputError(f"{_ONE_WORKER} {received} with {num_workers} workers")


def _count_workers(address: str) -> int:
    """Returns the number of workers that answer within SERVICE_TIMEOUT seconds."""
    # Each worker sends the dataset's only element, so elements are counted.
    probes = _distribute(tf.data.Dataset.range(1), address)
    copy_counts: list[int] = []

    def collect_copies() -> None:
        copy_counts.append(len(list(probes.as_numpy_iterator())))

    thread = threading.Thread(target=collect_copies, daemon=True)
    thread.start()
    thread.join(SERVICE_TIMEOUT)
    return copy_counts[0] if copy_counts else 0
