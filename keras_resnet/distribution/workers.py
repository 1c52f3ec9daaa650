"""Starts several worker processes on this machine, which form a local cluster."""

import contextlib
import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from keras_resnet.support import exit_now

# Environment variable with the index of a worker process of `run_local_workers`.
LOCAL_WORKER_VARIABLE = "KERAS_RESNET_LOCAL_WORKER"

# Time limit in seconds for workers to end after this process has received a signal, and
# again after SIGTERM. Worker 0 may be writing a checkpoint.
STOP_SECONDS = 20

# The same limit after a worker has failed, which the other workers notice themselves
# (`connections.END_DELAY`), or after worker 0 has ended, which writes all files.
END_SECONDS = 2

# Exit statuses of a worker that SIGINT or SIGTERM stopped, as it stops all workers.
_STOPPED = (130, 143)


def run_local_workers(
    count: int, command: Sequence[str], log_dir: str | os.PathLike[str]
) -> int:
    """Runs a command in several worker processes, which TF_CONFIG connects.

    Worker 0, the chief, writes to the output of this process, the other workers to
    `worker-1.log` and so on. SIGTERM and SIGINT are forwarded to all workers. When a
    worker fails or worker 0 ends, the other workers have END_SECONDS seconds to end. The
    standard input of the workers shows the end of this process (`end_with_launcher`).

    Args:
        count: Number of processes.
        command: Program and arguments, such as `[sys.executable, "-m", ...]`.
        log_dir: Folder for the log files, which is created if it does not exist.

    Returns:
        The exit status of worker 0. If worker 0 succeeds, the exit status of the worker
        that failed first, or 0 if no worker failed; a worker that had to be ended after
        worker 0 succeeded has not failed. The exit status is 128 + n if the signal n
        killed the worker, or if this process received n (SIGTERM or SIGINT).
    """
    log_paths = [pathlib.Path(log_dir, f"worker-{index}.log") for index in range(count)]
    log_paths[0].parent.mkdir(parents=True, exist_ok=True)
    workers: list[subprocess.Popen] = []
    received_signals: list[int] = []

    def forward_signal(signum: int, frame: FrameType | None) -> None:
        del frame
        received_signals.append(signum)
        for worker in workers:
            worker.send_signal(signum)

    with contextlib.ExitStack() as stack:
        port_holders = [stack.enter_context(_hold_port()) for _ in range(count)]
        addresses = ["{}:{}".format(*holder.getsockname()) for holder in port_holders]
        if sys.platform != "linux":
            for holder in port_holders:
                holder.close()
        stack.callback(_terminate, workers, END_SECONDS)
        for signum in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, signum, signal.signal(signum, forward_signal))
        for index, log_path in enumerate(log_paths):
            log_file = stack.enter_context(log_path.open("w")) if index else None
            worker = subprocess.Popen(
                command,
                env=_make_environment(addresses, index),
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=subprocess.STDOUT if index else None,
                # In a new session, only `forward_signal` sends SIGINT, not Ctrl-C.
                start_new_session=True,
            )
            workers.append(worker)
            assert worker.stdin
            stack.enter_context(worker.stdin)
        failed_indices = _wait(workers, received_signals)
    if received_signals:
        return 128 + received_signals[0]
    if not failed_indices:
        return 0
    failed_index = failed_indices[0]
    status = _get_exit_status(workers[failed_index])
    message = f"worker {failed_index} failed with status {status}"
    if failed_index:
        path = log_paths[failed_index]
        message += f"; last line of {path}: {_read_last_line(path)}"
    if status > 128:
        message += ". The same command resumes the run"
    print(message, file=sys.stderr)
    return _get_exit_status(workers[0]) or status


def end_with_launcher() -> None:
    """Ends this process when the process that ran `run_local_workers` ends."""

    def wait() -> None:
        os.read(0, 1)  # The launcher writes nothing, so this is the end of the file.
        message = "error: The process that started the workers has ended"
        exit_now(1, f"{message}. The same command resumes the run")

    threading.Thread(target=wait, daemon=True).start()


def _wait(workers: Sequence[subprocess.Popen], signals: Sequence[int]) -> list[int]:
    """Waits for all workers. Returns indices of failed workers, in order of failure."""
    failed_indices: list[int] = []
    deadline, is_running = math.inf, True
    while is_running:
        time.sleep(0.05)
        is_running = any([worker.poll() is None for worker in workers])
        for index, worker in enumerate(workers):
            if worker.returncode and index not in failed_indices:
                failed_indices.append(index)
        statuses = {worker.returncode for worker in workers}.difference({None, 0})
        is_stopping = workers[0].returncode is None and statuses.issubset(_STOPPED)
        limit = STOP_SECONDS if signals or is_stopping else END_SECONDS
        if signals or failed_indices or workers[0].returncode is not None:
            deadline = min(deadline, time.monotonic() + limit)
        if is_running and time.monotonic() > deadline:
            _terminate(workers, limit)
            break
    return failed_indices


def _terminate(workers: Sequence[subprocess.Popen], limit: float) -> None:
    """Sends SIGTERM to all running workers, then SIGKILL to workers that do not end."""
    for send_signal in (subprocess.Popen.terminate, subprocess.Popen.kill):
        deadline = time.monotonic() + limit
        for worker in workers:
            if worker.poll() is None:
                send_signal(worker)
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(max(0, deadline - time.monotonic()))


def _get_exit_status(worker: subprocess.Popen) -> int:
    return worker.returncode if worker.returncode >= 0 else 128 - worker.returncode


def _make_environment(addresses: Sequence[str], index: int) -> dict[str, str]:
    # By default, each worker would use as many threads as there are CPU cores.
    num_threads = max(1, (os.cpu_count() or 1) // len(addresses))
    task = {"type": "worker", "index": index}
    return {
        "TF_NUM_INTRAOP_THREADS": str(num_threads),
        **os.environ,
        LOCAL_WORKER_VARIABLE: str(index),
        **({"TF_GRPC_REUSE_PORT": "1"} if sys.platform == "linux" else {}),
        "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task}),
    }


def _hold_port() -> socket.socket:
    """Returns a socket that keeps a free port for a worker of this user, on Linux.

    Other systems would send connections to this socket, or cannot share a port.
    """
    holder = socket.socket()
    if sys.platform == "linux":
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def _read_last_line(log_path: pathlib.Path) -> str:
    lines = log_path.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "(nothing)"
