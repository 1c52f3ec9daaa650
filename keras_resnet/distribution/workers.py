"""Several worker processes on this machine, as a cluster would start them."""

import contextlib
import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

# In the environment of each process that `run_local_workers` starts; its value is the index.
LOCAL_WORKER = "KERAS_RESNET_LOCAL_WORKER"

# Seconds that the others are given to end by themselves once a worker has failed;
# they notice it after 10 (TensorFlow's heartbeat). Then as long again, after SIGTERM.
GRACE = 20


def run_local_workers(
    count: int, command: Sequence[str], log_dir: str | os.PathLike[str]
) -> int:
    """Runs a command as that many workers, which find each other by TF_CONFIG.

    The output of worker 0 passes through; that of the others goes to
    `worker-1.log` and so on. SIGTERM and SIGINT are forwarded to all of them.
    When one fails, or worker 0 has ended, the others have GRACE seconds to end.

    Args:
        count: Number of processes.
        command: Program and arguments, such as `[sys.executable, "-m", ...]`.
        log_dir: Folder of the logs; made if it is missing.

    Returns:
        The exit status: 0 if every worker's is, else worker 0's, or if that is 0
        the first other one's. A worker that died of a signal counts as 128 + its
        number.
    """
    logs = [pathlib.Path(log_dir, f"worker-{index}.log") for index in range(count)]
    logs[0].parent.mkdir(parents=True, exist_ok=True)
    addresses = _free_addresses(count)
    workers: list[subprocess.Popen] = []
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        for worker in workers:
            worker.send_signal(number)

    with contextlib.ExitStack() as stack:
        stack.callback(_end, workers)
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, forward))
        for index, log in enumerate(logs):
            output = stack.enter_context(log.open("w")) if index else None
            worker = subprocess.Popen(
                command,
                env=_environment(addresses, index),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if index else None,
                # Ctrl-C reaches the workers once: from here, not from the terminal.
                start_new_session=True,
            )
            workers.append(worker)
        failed = _wait(workers, received)
    if received:
        return 128 + received[0]
    if not failed:
        return 0
    first = failed[0]
    reason = f"worker {first} failed with status {_status(workers[first])}"
    if first:
        reason += f"; {logs[first]} ends: {_last_line(logs[first])}"
    print(reason, file=sys.stderr)
    return _status(workers[0]) or _status(workers[first])


def _wait(workers: Sequence[subprocess.Popen], received: Sequence[int]) -> list[int]:
    """Waits until all have ended; returns the indices of the failed, in that order."""
    failed: list[int] = []
    deadline = math.inf
    running = True
    while running:
        time.sleep(0.05)
        running = any([worker.poll() is None for worker in workers])
        for index, worker in enumerate(workers):
            if worker.returncode and index not in failed:
                failed.append(index)
        if failed or received or workers[0].returncode is not None:
            deadline = min(deadline, time.monotonic() + GRACE)
        if running and time.monotonic() > deadline:
            _end(workers)
    return failed


def _end(workers: Sequence[subprocess.Popen]) -> None:
    """Terminates those that still run, then kills them."""
    for stop in (subprocess.Popen.terminate, subprocess.Popen.kill):
        deadline = time.monotonic() + GRACE
        for worker in workers:
            if worker.poll() is None:
                stop(worker)
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0, deadline - time.monotonic()))


def _status(worker: subprocess.Popen) -> int:
    return worker.returncode if worker.returncode >= 0 else 128 - worker.returncode


def _environment(addresses: Sequence[str], index: int) -> dict[str, str]:
    # All workers share the cores; without this each would take as many threads as
    # there are cores.
    threads = max(1, (os.cpu_count() or 1) // len(addresses))
    task = {"type": "worker", "index": index}
    return {
        "TF_NUM_INTRAOP_THREADS": str(threads),
        **os.environ,
        LOCAL_WORKER: str(index),
        "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task}),
    }


def _free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [stack.enter_context(server).getsockname()[1] for server in servers]
        return [f"127.0.0.1:{port}" for port in ports]


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "(nothing)"
