"""Batches prepared by `tf.data` services."""

import socket
import threading
import time
from collections.abc import Callable

import tensorflow as tf

from keras_resnet.support import InputError

# Seconds for a tf.data service to answer; TensorFlow would wait for an hour.
SERVICE_TIMEOUT = 60

# From a number and a count to every `count`-th step from the `number`-th on.
Lane = Callable[[int, int], tf.data.Dataset]


def serve_batches(lane: Lane, service: str, start: int, stop: int) -> tf.data.Dataset:
    """Steps prepared by tf.data services, which take turns.

    A service of several workers would repeat every step: there each worker prepares
    all of a data set, or an unforeseeable part of it.

    Args:
        lane: Makes the steps that one service prepares.
        service: Addresses, such as `"grpc://one:5000,grpc://two:5000"`.
        start: First step.
        stop: Step after the last.
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
        equal = tf.debugging.assert_equal(step, expected, message)
        with tf.control_dependencies([equal]):
            return tf.identity(step), *rest

    return tf.data.Dataset.zip(tf.data.Dataset.range(start, stop), batches).map(check)


def _distribute(batches: tf.data.Dataset, address: str) -> tf.data.Dataset:
    distribute = tf.data.experimental.service.distribute
    return batches.apply(distribute("parallel_epochs", address))


_ONE_WORKER = (
    "Each tf.data service may have one worker; name several services, with commas "
    "between, for more."
)


def _check_service(address: str) -> None:
    """Refuses a service that does not answer, or that has several workers."""
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if scheme != "grpc" or not host or not port.isdigit():
        raise InputError(
            "data_service is an address such as grpc://host:5000, or several with "
            f"commas between. Received: {address!r}"
        )
    received = f"Received: data_service={address}"
    deadline = time.monotonic() + SERVICE_TIMEOUT
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), 5).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                late = f"answered within {SERVICE_TIMEOUT} s ({error}). {received}"
                raise InputError(f"No tf.data service {late}") from None
            time.sleep(0.2)
    workers = _count_workers(address)
    if not workers:
        late = f"no worker within {SERVICE_TIMEOUT} s. {received}"
        raise InputError(f"The tf.data service had {late}")
    if workers > 1:
        raise InputError(f"{_ONE_WORKER} {received} with {workers}")


def _count_workers(address: str) -> int:
    """Number of workers of a service; 0 if none answers within SERVICE_TIMEOUT."""
    # Each worker prepares this element.
    probe = _distribute(tf.data.Dataset.range(1), address)
    counts: list[int] = []

    def count() -> None:
        counts.append(len(list(probe.as_numpy_iterator())))

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    thread.join(SERVICE_TIMEOUT)
    return counts[0] if counts else 0
