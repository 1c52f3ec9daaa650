"""Several worker processes on this machine, which form a local cluster."""

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

# Environment variable with the index of a worker that `run_local_workers` has started.
LOCAL_WORKER = "KERAS_RESNET_LOCAL_WORKER"

# Number of seconds from a worker's failure until the others get SIGTERM, and from then
# until SIGKILL. TensorFlow's heartbeat lets them notice the failure after 10 seconds.
GRACE_SECONDS = 20


def run_local_workers(
    count: int, command: Sequence[str], log_dir: str | os.PathLike[str]
) -> int:
    """Runs a command in several worker processes, which find each other by TF_CONFIG.

    The output of worker 0 is not redirected. The other workers write to `worker-1.log`
    and so on. SIGTERM and SIGINT are forwarded to all workers. When a worker fails, or
    worker 0 has ended, the other workers have GRACE_SECONDS to end.

    Args:
        count: Number of processes.
        command: Program and arguments, such as `[sys.executable, "-m", ...]`.
        log_dir: Folder of the log files. It is made if it does not exist.

    Returns:
        The exit status. It is 0 if all workers succeed. Otherwise it is the status of
        worker 0, or if this is 0, the status of the worker that failed first. A worker
        that was killed by signal n has the status 128 + n.
    """
    logs = [pathlib.Path(log_dir, f"worker-{index}.log") for index in range(count)]
    logs[0].parent.mkdir(parents=True, exist_ok=True)
    addresses = _find_free_addresses(count)
    workers: list[subprocess.Popen] = []
    signals: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        signals.append(number)
        for worker in workers:
            worker.send_signal(number)

    with contextlib.ExitStack() as stack:
        stack.callback(_terminate, workers)
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, forward))
        for index, log in enumerate(logs):
            output = stack.enter_context(log.open("w")) if index else None
            worker = subprocess.Popen(
                command,
                env=_make_environment(addresses, index),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if index else None,
                # In a new session a worker gets Ctrl-C only from `forward`.
                start_new_session=True,
            )
            workers.append(worker)
        failed = _wait(workers, signals)
    if signals:
        return 128 + signals[0]
    if not failed:
        return 0
    first = failed[0]
    reason = f"worker {first} failed with status {_exit_status(workers[first])}"
    if first:
        reason += f"; last line of {logs[first]}: {_read_last_line(logs[first])}"
    print(reason, file=sys.stderr)
    return _exit_status(workers[0]) or _exit_status(workers[first])


def _wait(workers: Sequence[subprocess.Popen], signals: Sequence[int]) -> list[int]:
    """Waits until all workers end; returns the failed ones in the order of failure."""
    failed: list[int] = []
    deadline = math.inf
    is_running = True
    while is_running:
        time.sleep(0.05)
        is_running = any([worker.poll() is None for worker in workers])
        for index, worker in enumerate(workers):
            if worker.returncode and index not in failed:
                failed.append(index)
        if failed or signals or workers[0].returncode is not None:
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if is_running and time.monotonic() > deadline:
            _terminate(workers)
    return failed


def _terminate(workers: Sequence[subprocess.Popen]) -> None:
    """Sends SIGTERM to the running workers, then SIGKILL to those that do not end."""
    for stop in (subprocess.Popen.terminate, subprocess.Popen.kill):
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in workers:
            if worker.poll() is None:
                stop(worker)
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0, deadline - time.monotonic()))


def _exit_status(worker: subprocess.Popen) -> int:
    return worker.returncode if worker.returncode >= 0 else 128 - worker.returncode


def _make_environment(addresses: Sequence[str], index: int) -> dict[str, str]:
    # The workers share the cores. By default each would start one thread per core.
    threads = max(1, (os.cpu_count() or 1) // len(addresses))
    task = {"type": "worker", "index": index}
    return {
        "TF_NUM_INTRAOP_THREADS": str(threads),
        **os.environ,
        LOCAL_WORKER: str(index),
        "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task}),
    }


def _find_free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [stack.enter_context(server).getsockname()[1] for server in servers]
        return [f"127.0.0.1:{port}" for port in ports]


def _read_last_line(log: pathlib.Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "(nothing)"
