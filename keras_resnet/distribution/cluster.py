"""Addresses of the workers of a cluster, from TF_CONFIG, Slurm or Kubernetes."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence

from tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver import (
    expand_hostlist,
    expand_tasks_per_node,
)

from keras_resnet.support import InputError

# Number of seconds that a worker waits until all other workers have started.
START_TIMEOUT = 300

# First port of workers that Slurm or Kubernetes start.
PORT = 12000


def find_cluster() -> tuple[tuple[str, ...], int]:
    """Returns the addresses of all workers, and the index of this worker."""
    for variable, read_cluster in (
        ("TF_CONFIG", _read_tf_config),
        ("SLURM_PROCID", _read_slurm),
        ("KUBERNETES_SERVICE_HOST", _read_kubernetes),
    ):
        if os.environ.get(variable):
            addresses, index = read_cluster()
            return tuple(addresses), index
    raise InputError(
        "multi_worker requires TF_CONFIG, Slurm (srun) or Kubernetes, which name the "
        "workers. Received: none of TF_CONFIG, SLURM_PROCID and KUBERNETES_SERVICE_HOST"
    )


def _read_tf_config() -> tuple[list[str], int]:
    text = os.environ["TF_CONFIG"]
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        # A separate "chief" job counts as the first worker.
        chiefs, index = cluster.get("chief", []), int(task["index"])
        addresses = chiefs + cluster["worker"]
        if index not in range(len(cluster[task["type"]])):
            raise IndexError("no such task")
        index += {"chief": 0, "worker": len(chiefs)}[task["type"]]
        for address in addresses:
            int(address.rpartition(":")[2])
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            'TF_CONFIG must be like {"cluster": {"worker": ["host:port", ...]}, "task": '
            '{"type": "worker", "index": 0}}, with the index of an address. Received: '
            f"{text!r} ({type(error).__name__}: {error})"
        ) from None
    return addresses, index


def _read_slurm() -> tuple[list[str], int]:
    # SlurmClusterResolver is not used. It fails on machines without a GPU, and it sorts
    # the hosts as text (n10 before n2), although ranks follow the list of nodes.
    try:
        hosts = expand_hostlist(os.environ["SLURM_STEP_NODELIST"])
        tasks = expand_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
        rank, job = (int(os.environ[f"SLURM_{key}"]) for key in ("PROCID", "JOB_ID"))
    except (KeyError, ValueError) as error:
        raise InputError(
            "multi_worker under Slurm must run in a job step; start it with `srun "
            "--distribution=block --ntasks-per-node=1 ...`. "
            f"Received: {type(error).__name__}: {error}"
        ) from None
    # The port depends on the job, so that two jobs on one node use different ports.
    port = PORT + job % 1000 * 16
    addresses = [
        f"{host}:{port + number}"
        for host, count in zip(hosts, tasks, strict=False)
        for number in range(count)
    ]
    if rank >= len(addresses):
        raise InputError(
            f"The Slurm step has {len(addresses)} tasks. Received: SLURM_PROCID={rank}"
        )
    return addresses, rank


def _read_kubernetes() -> tuple[list[str], int]:
    """Returns the DNS names of the pods of an Indexed Job with a headless service."""
    try:
        index = int(os.environ["JOB_COMPLETION_INDEX"])
        count = int(os.environ["KERAS_RESNET_WORKERS"])
        domain = os.environ["KERAS_RESNET_SERVICE"]
    except (KeyError, ValueError) as error:
        raise InputError(
            "multi_worker on Kubernetes requires TF_CONFIG (set by training operators) "
            "or, in an Indexed Job, KERAS_RESNET_WORKERS (the number of completions) and "
            "KERAS_RESNET_SERVICE (the headless service, the pods' subdomain). "
            f"Received: {type(error).__name__}: {error}"
        ) from None
    job = socket.gethostname().removesuffix(f"-{index}")
    return [f"{job}-{pod}.{domain}:{PORT}" for pod in range(count)], index


def await_workers(addresses: Sequence[str], index: int) -> None:
    """Waits until every worker listens on its port, at most START_TIMEOUT seconds.

    TensorFlow itself would wait without a limit. This worker listens on its own port
    meanwhile, and TensorFlow's server takes the port over afterwards.
    """
    port = int(addresses[index].rpartition(":")[2])
    missing = set(addresses) - {addresses[index]}
    deadline = time.monotonic() + START_TIMEOUT
    try:
        listener = socket.create_server(("", port), backlog=len(addresses))
    except OSError as error:
        raise InputError(
            f"Worker {index} must be able to listen on port {port} of this machine "
            f"({error.strerror}). Received: {', '.join(addresses)}"
        ) from None
    with listener:
        while missing:
            missing = {address for address in missing if not _is_listening(address)}
            if missing and time.monotonic() > deadline:
                raise InputError(
                    f"{len(missing)} of {len(addresses)} workers did not start within "
                    f"{START_TIMEOUT} s: {', '.join(sorted(missing))}"
                )
            time.sleep(0.1 if missing else 0)


def _is_listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
        return True
    return False
