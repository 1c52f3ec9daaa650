"""The workers of a cluster: TF_CONFIG, Slurm, Kubernetes."""

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

# Seconds that a worker waits for the others to be started.
START_TIMEOUT = 300

# First port of the workers that Slurm or Kubernetes start.
PORT = 12000


def find_cluster() -> tuple[tuple[str, ...], int]:
    """Returns the addresses of all workers, and the index of this one among them."""
    for variable, read in (
        ("TF_CONFIG", _from_tf_config),
        ("SLURM_PROCID", _from_slurm),
        ("KUBERNETES_SERVICE_HOST", _from_kubernetes),
    ):
        if os.environ.get(variable):
            addresses, index = read()
            return tuple(addresses), index
    raise InputError(
        "multi_worker is for a process that TF_CONFIG, Slurm (srun) or Kubernetes tells "
        "of the others. Received: none of TF_CONFIG, SLURM_PROCID and "
        "KUBERNETES_SERVICE_HOST"
    )


def _from_tf_config() -> tuple[list[str], int]:
    text = os.environ["TF_CONFIG"]
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        # The chief is a worker too, the first.
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


def _from_slurm() -> tuple[list[str], int]:
    # Not SlurmClusterResolver: it fails where there is no GPU, and sorts the hosts as
    # text (n10 before n2), while ranks follow the list of nodes.
    try:
        hosts = expand_hostlist(os.environ["SLURM_STEP_NODELIST"])
        tasks = expand_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
        rank, job = (int(os.environ[f"SLURM_{key}"]) for key in ("PROCID", "JOB_ID"))
    except (KeyError, ValueError) as error:
        raise InputError(
            "multi_worker under Slurm needs the variables of a step, such as `srun "
            "--distribution=block --ntasks-per-node=1 ...` sets. Received: "
            f"{type(error).__name__}: {error}"
        ) from None
    # Two jobs on one node must not meet.
    port = PORT + job % 1000 * 16
    addresses = [
        f"{host}:{port + number}"
        for host, count in zip(hosts, tasks, strict=False)
        for number in range(count)
    ]
    if rank >= len(addresses):
        raise InputError(
            f"Slurm's step has {len(addresses)} tasks. Received: SLURM_PROCID={rank}"
        )
    return addresses, rank


def _from_kubernetes() -> tuple[list[str], int]:
    """The pods of an Indexed Job with a headless service, by their DNS names."""
    try:
        index = int(os.environ["JOB_COMPLETION_INDEX"])
        count = int(os.environ["KERAS_RESNET_WORKERS"])
        domain = os.environ["KERAS_RESNET_SERVICE"]
    except (KeyError, ValueError) as error:
        raise InputError(
            "multi_worker on Kubernetes needs TF_CONFIG, which a training operator sets, or "
            "in an Indexed Job KERAS_RESNET_WORKERS (its completions) and "
            "KERAS_RESNET_SERVICE (its headless service, the pods' subdomain). Received: "
            f"{type(error).__name__}: {error}"
        ) from None
    job = socket.gethostname().removesuffix(f"-{index}")
    return [f"{job}-{pod}.{domain}:{PORT}" for pod in range(count)], index


def await_workers(addresses: Sequence[str], index: int) -> None:
    """Waits until every worker listens; TensorFlow would wait without a limit.

    A worker listens from here on, with this socket and then with TensorFlow's.
    """
    port = int(addresses[index].rpartition(":")[2])
    missing = set(addresses) - {addresses[index]}
    deadline = time.monotonic() + START_TIMEOUT
    try:
        listener = socket.create_server(("", port), backlog=len(addresses))
    except OSError as error:
        raise InputError(
            f"Worker {index} must listen on port {port} of this machine, as its cluster "
            f"says ({error.strerror}). Received: {', '.join(addresses)}"
        ) from None
    with listener:
        while missing:
            missing = {address for address in missing if not _listens(address)}
            if missing and time.monotonic() > deadline:
                raise InputError(
                    f"{len(missing)} of {len(addresses)} workers did not start within "
                    f"{START_TIMEOUT} s: {', '.join(sorted(missing))}"
                )
            time.sleep(0.1 if missing else 0)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
        return True
    return False
