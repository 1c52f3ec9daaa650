"""Tests of connections between real worker processes, without TensorFlow."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from keras_resnet.distribution import workers

# Each worker connects, writes its state, and then works until the test disturbs it. The
# time limits are shorter than in real runs, except for the heartbeat of a busy machine.
SCRIPT = """
import os, signal, sys, time
signal.alarm(60)
from keras_resnet.distribution import cluster, connections
from keras_resnet.distribution.workers import end_with_launcher
connections.HEARTBEAT_TIMEOUT = 3
connections.START_TIMEOUT = float(os.environ.get("START", 30))
addresses, index = cluster.find_cluster()
if "LAUNCHER" in os.environ:
    end_with_launcher()
def work(state):
    open(f"{state}-{index}", "w").close()
    while not os.path.exists(f"end-{index}"):
        time.sleep(0.02)
if index == int(os.environ.get("LATE", -1)):
    work("late")
connections.connect_workers(addresses, index)
work("connected")
if "ERROR" in os.environ:
    sys.exit(f"error of worker {index}")
connections.leave_cluster()
print("done", flush=True)
work("left") if "STAY" in os.environ else None
"""

RESUME = "Start all workers again with the same command"


@pytest.fixture
def start_workers(tmp_path, monkeypatch):
    """Function that starts workers in `tmp_path`, with more environment variables."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with contextlib.ExitStack() as stack:

        def start(count, **variables):
            holders = [stack.enter_context(workers._hold_port()) for _ in range(count)]
            addresses = ["{}:{}".format(*h.getsockname()) for h in holders]
            processes = []
            for index in range(count):
                process = subprocess.Popen(
                    [sys.executable, "-c", SCRIPT],
                    env={**workers._make_environment(addresses, index), **variables},
                    cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True,
                )  # fmt: skip
                process.port = holders[index].getsockname()[1]
                stack.callback(process.stdout.close)
                stack.callback(process.wait)
                stack.callback(process.kill)
                processes.append(process)
            return processes

        yield start


def await_files(folder, names):
    deadline = time.monotonic() + 60
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < deadline, names
        time.sleep(0.02)


def is_running(pid):
    with contextlib.suppress(OSError):
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[0] not in "ZX"
    return False


def end(folder, *indices):
    for index in indices:
        (folder / f"end-{index}").touch()


@pytest.mark.parametrize(
    ("fault", "victim", "loss"),
    [
        (signal.SIGKILL, 0, "Worker 0 has ended"),
        (signal.SIGKILL, 2, "Worker 2 has ended"),
        (signal.SIGSTOP, 0, "Worker 0 sent no heartbeat for 3 s"),
        (signal.SIGSTOP, 1, "Worker 1 sent no heartbeat for 3 s"),
    ],
)
def test_a_lost_worker_ends_all_others(fault, victim, loss, start_workers, tmp_path):
    processes = start_workers(3)
    await_files(tmp_path, [f"connected-{index}" for index in range(3)])
    processes[victim].send_signal(fault)
    start_time = time.monotonic()
    for index, process in enumerate(processes):
        if index != victim:
            output, _ = process.communicate(timeout=15)
            assert process.returncode == 1
            assert output.startswith(f"error: {loss}. {RESUME}"), output
            assert output.count("\n") == 1
    assert time.monotonic() - start_time < 15


def test_a_worker_that_is_lost_before_all_have_started_ends_the_others(
    start_workers, tmp_path
):
    processes = start_workers(3, LATE="2")
    await_files(tmp_path, ["late-2"])
    time.sleep(2)  # Workers 0 and 1 connect.
    processes[1].kill()
    output, _ = processes[0].communicate(timeout=15)
    assert (processes[0].returncode, output[:26]) == (1, "error: Worker 1 has ended.")


def test_an_error_in_the_common_work_is_a_loss(start_workers, tmp_path):
    processes = start_workers(2, ERROR="1")
    await_files(tmp_path, ["connected-0", "connected-1"])
    end(tmp_path, 1)
    outputs = [process.communicate(timeout=15)[0] for process in processes]
    assert outputs[0].startswith(f"error: Worker 1 has ended. {RESUME}")
    assert outputs[1] == "error of worker 1\n"


@pytest.mark.slow
def test_workers_may_end_in_any_order_after_the_common_work(start_workers, tmp_path):
    """Worker 0 ends first, and then worker 1 is killed; worker 2 needs neither."""
    processes = start_workers(3, STAY="1")
    await_files(tmp_path, [f"connected-{index}" for index in range(3)])
    end(tmp_path, 0)
    assert processes[0].communicate(timeout=15)[0] == "done\n"
    time.sleep(4)  # Longer than the heartbeat timeout of the script.
    processes[1].kill()
    time.sleep(2)
    assert processes[2].poll() is None
    end(tmp_path, 2)
    assert processes[2].communicate(timeout=15)[0] == "done\n"
    assert processes[2].returncode == 0


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def test_other_programs_cannot_take_part(start_workers, tmp_path):
    """One of them sends the greeting of a worker of another cluster."""
    processes = start_workers(2, LATE="1")
    await_files(tmp_path, ["late-1"])
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\xff"
    for content in (b"", preface, b"0" * 64 + b" 1\n", b"9" * 5000):
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                stranger = connect(processes[0].port)
                break
            assert time.monotonic() < deadline
        with stranger, contextlib.suppress(ConnectionResetError):
            stranger.sendall(content)
            assert stranger.recv(100) == b""
    end(tmp_path, 0, 1)
    for process in processes:
        output, _ = process.communicate(timeout=30)
        assert (process.returncode, output) == (0, "done\n")


def test_workers_that_do_not_start_are_named(start_workers, tmp_path):
    processes = start_workers(3, LATE="2", START="4")
    output, _ = processes[0].communicate(timeout=30)
    address = f"127.0.0.1:{processes[2].port}"
    assert (
        f"InputError: 1 of 3 workers did not start within 4.0 s: {address}\n" in output
    )
    output, _ = processes[1].communicate(timeout=30)
    assert output.startswith("error: Worker 0 has ended")


def test_a_port_in_use_is_named(start_workers):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        addresses = f"127.0.0.1:{port}, 127.0.0.1:1"
        config = workers._make_environment(addresses.split(", "), 0)["TF_CONFIG"]
        (process,) = start_workers(1, TF_CONFIG=config)
        output, _ = process.communicate(timeout=30)
    assert f"InputError: Worker 0 must be able to listen on port {port} of " in output
    assert output.endswith(f"Received: {addresses}\n")


def test_only_this_machine_reaches_the_port_of_a_local_worker():
    code = """
import socket, sys, time
from keras_resnet.distribution.connections import close_to_network
ports = [socket.create_server(("", 0)) for _ in range(2)]
print(*(listener.getsockname()[1] for listener in ports), flush=True)
print(close_to_network(ports[0].getsockname()[1]), flush=True)
while not ports[0].getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16):
    time.sleep(0.01)
print("bound", flush=True)
time.sleep(60)
"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # Sends nothing, but finds an address.
        except OSError:
            pytest.skip("requires a network device besides the loopback device")
        own_address = probe.getsockname()[0]
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        ports = [int(port) for port in process.stdout.readline().split()]
        assert process.stdout.readline() == "True\n"
        assert process.stdout.readline() == "bound\n"
        try:
            for port in ports:
                connect(port).close()
            socket.create_connection((own_address, ports[1]), timeout=5).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((own_address, ports[0]), timeout=5)
        finally:
            process.kill()


@pytest.mark.parametrize(
    "victim",
    [
        "launcher",
        pytest.param("frozen worker", marks=pytest.mark.slow),
        pytest.param("late worker", marks=pytest.mark.slow),
    ],
)
def test_local_workers_end_with_their_launcher_or_a_worker(victim, tmp_path):
    """The launcher, the frozen worker 0, or worker 1 before it is connected is lost."""
    (tmp_path / "script.py").write_text(SCRIPT)
    code = """
import sys
from keras_resnet.distribution import run_local_workers
sys.exit(run_local_workers(2, [sys.executable, "script.py"], "logs"))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LAUNCHER": "1"}
    environment |= {"LATE": "1"} if victim == "late worker" else {}
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with launcher:
        is_late = victim == "late worker"
        await_files(tmp_path, ["late-1"] if is_late else ["connected-0", "connected-1"])
        path = f"/proc/{launcher.pid}/task/{launcher.pid}/children"
        pids = [int(pid) for pid in pathlib.Path(path).read_text().split()]
        start_time = time.monotonic()
        pid = {
            "launcher": launcher.pid,
            "frozen worker": pids[0],
            "late worker": pids[1],
        }
        fault = signal.SIGSTOP if victim == "frozen worker" else signal.SIGKILL
        os.kill(pid[victim], fault)
        _, message = launcher.communicate(timeout=30)
        while any(map(is_running, pids)):
            time.sleep(0.02)
        assert time.monotonic() - start_time < 15
    log = (tmp_path / "logs" / "worker-1.log").read_text()
    failure = "worker 1 failed with status {}; last line of logs/worker-1.log: {}"
    if victim == "launcher":
        assert launcher.returncode == -signal.SIGKILL
        text = "error: The process that started the workers has ended"
        assert log == message == f"{text}. The same command resumes the run\n"
    elif victim == "frozen worker":
        assert launcher.returncode == 128 + signal.SIGKILL
        loss = f"error: Worker 0 sent no heartbeat for 3 s. {RESUME}; they resume from "
        assert log == f"{loss}the last checkpoint\n"
        assert message == failure.format(1, log)
    else:
        assert launcher.returncode == 128 + signal.SIGTERM
        end = "(nothing). The same command resumes the run\n"
        assert message == failure.format(137, end)
