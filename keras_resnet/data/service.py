"""Batches prepared by `tf.data` services."""

import socket
import threading
import time

import tensorflow as tf

from keras_resnet.support import InputError

# Seconds for a tf.data service to answer; TensorFlow would wait for an hour.
SERVICE_TIMEOUT = 60


def serve_batches(lane, service, start, stop):
    """Steps prepared by tf.data services, which take turns.

    A service of several workers would repeat every step: there each worker prepares
    all of a data set, or an unforeseeable part of it.

    Args:
        lane: function of a number and a count that gives every so many steps.
        service: addresses, such as `"grpc://one:5000,grpc://two:5000"`.
        start: first step.
        stop: the step after the last.
    """
    addresses = [address.strip() for address in service.split(",")]
    for address in addresses:
        _check_service(address)
    lanes = [
        lane(number, len(addresses)).apply(
            tf.data.experimental.service.distribute("parallel_epochs", address)
        )
        for number, address in enumerate(addresses)
    ]
    turns = tf.data.Dataset.range(stop - start).map(lambda step: step % len(lanes))
    batches = tf.data.Dataset.choose_from_datasets(lanes, turns, False)

    def check(expected, batch):
        step, *rest = batch
        message = f"{_ONE_WORKER} Received: {service}"
        equal = tf.debugging.assert_equal(step, expected, message)
        with tf.control_dependencies([equal]):
            return tf.identity(step), *rest

    return tf.data.Dataset.zip(tf.data.Dataset.range(start, stop), batches).map(check)


_ONE_WORKER = (
    "Each tf.data service may have one worker; name several services, with commas "
    "between, for more."
)


def _check_service(address):
    """Refuses a service that does not answer, or that has several workers."""
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if scheme != "grpc" or not host or not port.isdigit():
        raise InputError(
            "data_service is an address such as grpc://host:5000, or several with "
            f"commas between. Received: {address!r}"
        )
    deadline = time.monotonic() + SERVICE_TIMEOUT
    problem = None
    while problem is None or time.monotonic() < deadline:
        try:
            socket.create_connection((host.strip("[]"), int(port)), 5).close()
            break
        except OSError as error:
            problem = error
            time.sleep(0.2)
    else:
        raise InputError(
            f"No tf.data service answered within {SERVICE_TIMEOUT} s ({problem}). "
            f"Received: data_service={address}"
        )
    # Of this each worker prepares its own.
    probe = tf.data.Dataset.range(1).apply(
        tf.data.experimental.service.distribute("parallel_epochs", address)
    )
    found = []
    thread = threading.Thread(
        target=lambda: found.append(len(list(probe.as_numpy_iterator()))), daemon=True
    )
    thread.start()
    thread.join(SERVICE_TIMEOUT)
    if not found:
        raise InputError(
            f"The tf.data service had no worker within {SERVICE_TIMEOUT} s. "
            f"Received: data_service={address}"
        )
    if found[0] > 1:
        raise InputError(
            f"{_ONE_WORKER} Received: data_service={address} with {found[0]}"
        )
