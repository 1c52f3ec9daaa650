"""Training batches prepared by `tf.data` services on other machines."""

import socket
import threading
import time
from collections.abc import Callable

import tensorflow as tf

from keras_resnet.support import InputError

# Seconds to wait for an answer of a tf.data service. TensorFlow's timeout is an hour.
SERVICE_TIMEOUT = 60

# Function from (number, count) to a dataset of every `count`-th step from `number` on.
Lane = Callable[[int, int], tf.data.Dataset]


def serve_batches(lane: Lane, service: str, start: int, stop: int) -> tf.data.Dataset:
    """Returns the batches of steps that tf.data services prepare in turn.

    Each service must have one worker. With several workers, each worker would prepare
    either all steps, so that steps are repeated, or an unpredictable part of the steps.

    Args:
        lane: Function that returns the steps prepared by one of several services.
        service: Addresses of the services, such as `"grpc://one:5000,grpc://two:5000"`.
        start: Number of the first step.
        stop: Number of the step after the last one.
    """
    addresses = [address.strip() for address in service.split(",")]
    for address in addresses:
        _check_service(address)
    lanes = [
        _distribute(lane(number, len(addresses)), address)
        for number, address in enumerate(addresses)
    ]
    turns = tf.data.Dataset.range(stop - start).map(lambda step: step % len(lanes))
    batches = tf.data.Dataset.choose_from_datasets(lanes, turns, False)

    def check(expected: tf.Tensor, batch: tuple) -> tuple[tf.Tensor, ...]:
        step, *rest = batch
        message = f"{_ONE_WORKER} Received: {service}"
        assertion = tf.debugging.assert_equal(step, expected, message)
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
    workers = _count_workers(address)
    if not workers:
        problem = f"no worker within {SERVICE_TIMEOUT} s. {received}"
        raise InputError(f"The tf.data service had {problem}")
    if workers > 1:
        raise InputError(f"{_ONE_WORKER} {received} with {workers} workers")


def _count_workers(address: str) -> int:
    """Returns the number of workers that answer within SERVICE_TIMEOUT seconds."""
    # Each worker sends one copy of the element.
    probes = _distribute(tf.data.Dataset.range(1), address)
    counts: list[int] = []

    def count() -> None:
        counts.append(len(list(probes.as_numpy_iterator())))

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    thread.join(SERVICE_TIMEOUT)
    return counts[0] if counts else 0
