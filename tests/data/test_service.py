"""Batches prepared by `tf.data` services in other processes."""

import contextlib
import subprocess
import sys

import pytest
from test_pipelines import assert_equal, make_numbered_split, store_splits, take_batches

from keras_resnet.data import service as data_service
from keras_resnet.support.errors import InputError

SERVICE_SCRIPT = """
import sys, time
import tensorflow as tf
service = tf.data.experimental.service
dispatcher = service.DispatchServer()
address = dispatcher.target.split("://")[1]
workers = [
    service.WorkerServer(service.WorkerConfig(address)) for _ in range(int(sys.argv[1]))
]
print(dispatcher.target, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def run_services(*worker_counts):
    """Runs one data service for each number in `worker_counts`.

    Each service runs in its own process. The services' addresses are yielded.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SERVICE_SCRIPT, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for count in worker_counts
    ]
    try:
        yield [process.stdout.readline().strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_data_services_give_the_batches_of_a_local_pipeline(tmp_path, monkeypatch):
    """One service or two services can be used. Each service must have one worker."""
    changes = {"mixup": 0.2, "batch_size": 4}
    stored_splits = store_splits(tmp_path)
    expected = take_batches(stored_splits["folder"], 1, 8, **changes)
    expected_two_replicas = take_batches(stored_splits["records"], 1, 4, 2)
    with run_services(1, 1, 2, 0) as (
        first_address,
        second_address,
        two_worker_address,
        no_worker_address,
    ):
        batches = take_batches(
            stored_splits["folder"], 1, 8, service=first_address, **changes
        )
        assert_equal(batches, expected)
        addresses = f"{first_address}, {second_address}"
        batches = take_batches(
            stored_splits["folder"], 1, 8, service=addresses, **changes
        )
        assert_equal(batches, expected)
        batches = take_batches(stored_splits["records"], 1, 4, 2, service=addresses)
        assert_equal(batches, expected_two_replicas)
        with pytest.raises(
            InputError, match=f"have one worker.*={two_worker_address} with 2 workers$"
        ):
            take_batches(stored_splits["arrays"], 0, 3, service=two_worker_address)
        monkeypatch.setattr(data_service, "SERVICE_TIMEOUT", 3)
        with pytest.raises(
            InputError, match=f"no worker within.*={no_worker_address}$"
        ):
            take_batches(stored_splits["arrays"], 0, 3, service=no_worker_address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("grpc://localhost:1", "no answer within 1 s"),
        ("localhost:5000", "an address such as grpc://host:5000"),
        ("grpc://localhost", "an address such as grpc://host:5000"),
    ],
)
def test_unavailable_data_service_is_refused(monkeypatch, address, message):
    monkeypatch.setattr(data_service, "SERVICE_TIMEOUT", 1)
    with pytest.raises(InputError, match=message) as error:
        take_batches(make_numbered_split(9), 0, 3, service=address)
    assert "\n" not in str(error.value)
