"""Addresses of the workers of a cluster, from TF_CONFIG, Slurm or Kubernetes."""

import json
import os
import socket

from keras_resnet.support import InputError

# Port of workers that Kubernetes starts, and lowest port of workers that Slurm starts.
PORT = 12000


def find_cluster() -> tuple[tuple[str, ...], int]:
    """Returns the addresses (host:port) of all workers, and this worker's index."""
    for variable, read_cluster in (
        ("TF_CONFIG", _read_tf_config),
        ("SLURM_PROCID", _read_slurm),
        ("KUBERNETES_SERVICE_HOST", _read_kubernetes),
    ):
        if os.environ.get(variable):
            addresses, index = read_cluster()
            return tuple(addresses), index
    raise InputError(
        "The strategy multi_worker must run with TF_CONFIG, Slurm (srun) or Kubernetes. "
        "Received: none of TF_CONFIG, SLURM_PROCID and KUBERNETES_SERVICE_HOST is set"
    )


def _read_tf_config() -> tuple[list[str], int]:
    text = os.environ["TF_CONFIG"]
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        # An address in the job "chief" comes before the addresses in the job "worker".
        chief_addresses, index = cluster.get("chief", []), int(task["index"])
        addresses = chief_addresses + cluster["worker"]
        if index not in range(len(cluster[task["type"]])):
            raise IndexError("task index out of range")
        index += {"chief": 0, "worker": len(chief_addresses)}[task["type"]]
        for address in addresses:
            int(address.rpartition(":")[2])
    except (ValueError, TypeError, LookupError, AttributeError,
            RecursionError) as error:  # fmt: skip
        raise InputError(
            'TF_CONFIG must be like {"cluster": {"worker": ["host:port", ...]}, "task": '
            '{"type": "worker", "index": 0}}, where index 0 is the first address. Received: '
            f"{text[:500]!r} ({type(error).__name__}: {error})"
        ) from None
    return addresses, index


def _read_slurm() -> tuple[list[str], int]:
    # TensorFlow's SlurmClusterResolver is not used: it fails on machines without a GPU,
    # and it sorts hosts as text (n10 before n2), but Slurm ranks follow the node list.
    # The module is private, so only Slurm depends on it.
    from tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver import (
        expand_hostlist,
        expand_tasks_per_node,
    )

    try:
        hosts = expand_hostlist(os.environ["SLURM_STEP_NODELIST"])
        task_counts = expand_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
        rank, job_id = (int(os.environ[f"SLURM_{key}"]) for key in ("PROCID", "JOB_ID"))
    except (KeyError, ValueError) as error:
        raise InputError(
            "Under Slurm, multi_worker must run in a job step. Start it with `srun "
            "--distribution=block --ntasks-per-node=1 ...`. "
            f"Received: {type(error).__name__}: {error}"
        ) from None
    # The ports depend on the job, so that two jobs on the same node do not collide.
    first_port = PORT + job_id % 1000 * 16
    addresses = [
        f"{host}:{first_port + task_index}"
        for host, num_tasks in zip(hosts, task_counts, strict=False)
        for task_index in range(num_tasks)
    ]
    if rank >= len(addresses):
        raise InputError(
            f"SLURM_PROCID must be below the task count, {len(addresses)}. Received: rank {rank}"
        )
    return addresses, rank


def _read_kubernetes() -> tuple[list[str], int]:
    """Returns the addresses of all pods of an Indexed Job, and this pod's index."""
    try:
        index = int(os.environ["JOB_COMPLETION_INDEX"])
        num_pods = int(os.environ["KERAS_RESNET_WORKERS"])
        domain = os.environ["KERAS_RESNET_SERVICE"]
    except (KeyError, ValueError) as error:
        raise InputError(
            "On Kubernetes, multi_worker requires TF_CONFIG (set by training operators) "
            "or, in an Indexed Job, KERAS_RESNET_WORKERS (the number of completions) and "
            "KERAS_RESNET_SERVICE (name of the headless service, the pods' subdomain). "
            f"Received: {type(error).__name__}: {error}"
        ) from None
    job_name = socket.gethostname().removesuffix(f"-{index}")
    return [f"{job_name}-{pod}.{domain}:{PORT}" for pod in range(num_pods)], index
