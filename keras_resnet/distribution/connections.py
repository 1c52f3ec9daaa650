"""Connections between the workers of a cluster, which show that a worker is lost.

Every worker is connected to worker 0 until the end of the common work. TensorFlow alone
notices no loss before all workers have joined, and some losses only after 10 seconds.
"""

import atexit
import contextlib
import hashlib
import os
import pathlib
import socket
import threading
import time
from collections.abc import Sequence

from keras_resnet.support import InputError, exit_now, to_printable

# Number of seconds that a worker waits for all other workers to start.
START_TIMEOUT = 300

# Number of seconds without a heartbeat after which a worker is lost. On a busy machine,
# calls that hold Python's global lock may delay the thread that sends the heartbeats.
# The second number therefore holds when TensorFlow has joined the cluster. Its own
# heartbeats, which nothing delays, then time out after 10 seconds.
HEARTBEAT_TIMEOUT, JOINED_TIMEOUT = 10, 60

# Number of seconds that a worker has to end by itself after another worker has ended.
END_DELAY = 1

HOW_TO_RESUME = (
    "Start all workers again with the same command; "
    "they resume from the last checkpoint"
)

# Connections by the index of the other worker. It is empty after the common work.
_connections: dict[int, socket.socket] = {}
_is_complete = threading.Event()  # Set when all workers are connected.
_is_lost = threading.Event()  # Set when a worker is lost.


def connect_workers(addresses: Sequence[str], index: int) -> None:
    """Waits until all workers are connected, at most START_TIMEOUT seconds.

    From then on, the loss of a worker ends this process with a message and status 1.

    Args:
        addresses: Addresses (host:port) of all workers. Worker 0 listens on its port
            until all workers are connected, then frees the port for TensorFlow.
        index: Index of this worker.

    Raises:
        InputError: If worker 0 cannot listen, or if a worker does not start in time.
    """
    deadline = time.monotonic() + START_TIMEOUT
    cluster_id = hashlib.sha256(" ".join(addresses).encode()).hexdigest()
    greetings = {f"{cluster_id} {i}\n": i for i in range(len(addresses))}
    threading.Thread(target=_send_heartbeats, daemon=True).start()
    atexit.register(_report_end, index)
    if index == 0:
        _accept_workers(addresses, greetings, deadline)
        missing_indices = set(range(1, len(addresses))).difference(_connections)
    else:
        _connect_to_chief(addresses[0], list(greetings)[index], deadline)
        missing_indices = {0}.difference(_connections)
    if missing_indices:
        raise InputError(
            f"{len(missing_indices)} of {len(addresses)} workers did not start within "
            f"{START_TIMEOUT} s: {', '.join(addresses[i] for i in missing_indices)}"
        )
    if index == 0:
        _send("complete")
    else:
        _is_complete.wait()


def _accept_workers(
    addresses: Sequence[str], greetings: dict[str, int], deadline: float
) -> None:
    host, _, port = addresses[0].rpartition(":")
    host = host if is_local(addresses) else ""
    try:
        reuse_port = "TF_GRPC_REUSE_PORT" in os.environ
        listener = socket.create_server((host, int(port)), reuse_port=reuse_port)
    except OSError as error:
        raise InputError(
            f"Worker 0 must be able to listen on port {port} of this machine "
            f"({error.strerror}). Received: {', '.join(addresses)}"
        ) from None
    with listener:
        listener.settimeout(0.1)
        while len(_connections) < len(addresses) - 1 and time.monotonic() < deadline:
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                connection = stack.enter_context(listener.accept()[0])
                connection.settimeout(1)
                with connection.makefile(errors="replace") as lines:
                    index = greetings.get(lines.readline(100))
                if index and index not in _connections:
                    connection.sendall(b"\n")
                    stack.pop_all()
                    _watch(index, connection)


def _connect_to_chief(address: str, greeting: str, deadline: float) -> None:
    host = address.rpartition(":")[0].strip("[]")
    while not _connections and time.monotonic() < deadline:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            connection = socket.create_connection((host, get_port(address)), timeout=5)
            stack.enter_context(connection)
            connection.sendall(greeting.encode())
            if connection.recv(1) == b"\n":  # Another server would not answer this.
                stack.pop_all()
                _watch(0, connection)
        time.sleep(0.1)


def _watch(index: int, connection: socket.socket) -> None:
    connection.settimeout(HEARTBEAT_TIMEOUT)
    _connections[index] = connection
    threading.Thread(target=_read_lines, args=(index, connection), daemon=True).start()


def _read_lines(index: int, connection: socket.socket) -> None:
    """Reads what another worker sends, until it leaves or is lost.

    An empty line is a heartbeat. "complete" means that all workers are connected, and
    "leave" that the common work has ended. Another line reports the loss of a worker.
    """
    loss, last_time = f"Worker {index} has ended", time.monotonic()
    with contextlib.suppress(OSError):
        lines = connection.makefile(errors="replace")
        try:
            while line := lines.readline(200):
                last_time = time.monotonic()
                if line == "complete\n":
                    _is_complete.set()
                elif line == "leave\n":
                    return
                elif line != "\n":
                    loss = to_printable(line.strip())
                    break
        except TimeoutError:
            seconds = round(time.monotonic() - last_time)
            loss = f"Worker {index} sent no heartbeat for {seconds} s"
    if _connections and not _is_lost.is_set():
        _is_lost.set()
        _send(loss)
        time.sleep(END_DELAY)
        if _connections:
            exit_now(1, f"error: {loss}. {HOW_TO_RESUME}")


def _send(line: str) -> None:
    for connection in list(_connections.values()):
        with contextlib.suppress(OSError):
            connection.sendall(f"{line}\n".encode())


def _send_heartbeats() -> None:
    while True:
        _send("")
        time.sleep(1)


def _report_end(index: int) -> None:
    _send(f"Worker {index} has ended")
    _connections.clear()


def leave_cluster() -> None:
    """Ends the common work: from now on, this process and the others may end."""
    _send("leave")
    _connections.clear()


def tolerate_pauses() -> None:
    """Allows longer pauses between heartbeats, when TensorFlow has joined the cluster."""
    for connection in _connections.values():
        connection.settimeout(JOINED_TIMEOUT)


def is_local(addresses: Sequence[str]) -> bool:
    """Returns whether all addresses are those of the loopback device."""
    return all(address.startswith(("127.", "localhost:")) for address in addresses)


def get_port(address: str) -> int:
    """Returns the port of an address such as `"host:12000"`."""
    return int(address.rpartition(":")[2])


def close_to_network(port: int) -> bool:
    """Closes a local worker's port to other machines; returns whether that is possible.

    TensorFlow listens on all addresses. A thread waits for its socket and binds it to
    the loopback device, which requires Linux 5.7.
    """
    level, option = socket.SOL_SOCKET, getattr(socket, "SO_BINDTODEVICE", -1)
    try:
        with socket.socket() as probe:
            probe.setsockopt(level, option, b"lo")
    except OSError:
        return False

    def bind_to_loopback() -> None:
        is_bound = False
        while not is_bound:
            time.sleep(0.01)
            for path in pathlib.Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):  # The file may be closed by now.
                    if not path.is_socket():
                        continue
                    with socket.socket(fileno=os.dup(int(path.name))) as candidate:
                        is_listening = candidate.getsockopt(level, socket.SO_ACCEPTCONN)
                        if is_listening and candidate.getsockname()[1:2] == (port,):
                            candidate.setsockopt(level, option, b"lo")
                            is_bound = True

    threading.Thread(target=bind_to_loopback, daemon=True).start()
    return True
