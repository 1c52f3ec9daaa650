"""Soak test: short runs of two workers, with kills and freezes at random moments.

    PYTHONPATH=.:tests python tests/attack/soak.py --minutes=30

Each run is disturbed once or twice, and started again with the same command until it
ends. Most runs have two workers that are forked from a warm process and find each other
by TF_CONFIG, as on a cluster. The others use `--local_workers=2`. A run is lost if:

- it fails or hangs without a fault;
- the rest of the run has not ended LIMIT seconds after a fault, or has ended without a
  message that the same command resumes the run;
- a process or a port is left;
- the final weights differ from those of the first run.

The output folder gets a row of `soak.csv` for each start, what the workers printed, and
the folder and the stacks of lost runs.
"""

import argparse
import collections
import contextlib
import csv
import faulthandler
import json
import os
import pathlib
import random
import runpy
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

from children import ROOT, Child, read_members

from keras_resnet.distribution import workers

LIMIT = 15

# Number of seconds after which a run without a fault, or the rest of a run, hangs.
HANG_LIMIT = 300

# Name of this file as a module, which the workers run.
MODULE = pathlib.Path(__file__).stem

OPTIONS = (
    "--strategy=multi_worker", "--dataset=digits", "--model=cifar_resnet8",
    "--epochs=1", "--batch_size=96", "--set", "checkpoint_every=4",
)  # fmt: skip


class Cluster:
    """Two forked workers that TF_CONFIG connects, as on a cluster.

    Attributes:
        pids: Processes.
        ports: Ports of the workers.
    """

    kind = "cluster"

    def __init__(self, folder):
        self._holders = [workers._hold_port() for _ in range(2)]
        addresses = ["{}:{}".format(*h.getsockname()) for h in self._holders]
        self.ports = [h.getsockname()[1] for h in self._holders]
        names = ("TF_CONFIG", "TF_NUM_INTRAOP_THREADS", "TF_GRPC_REUSE_PORT")
        self._children = []
        for index in range(2):
            variables = workers._make_environment(addresses, index)
            environment = json.dumps({name: variables[name] for name in names})
            arguments = environment, *OPTIONS, f"--model_dir={folder}"
            self._children.append(Child(MODULE, *arguments, cwd=folder.parent))
        self.pids = [child.pid for child in self._children]

    def list_running(self):
        """Returns the indices of the processes that have not ended."""
        return [i for i, child in enumerate(self._children) if child.is_running]

    def finish(self):
        """Returns the exit statuses and what each process printed to standard error."""
        results = [child.wait(1) for child in self._children]
        for holder in self._holders:
            holder.close()
        return [r.returncode for r in results], [r.stderr for r in results]


class Local:
    """Two workers of `--local_workers=2`, and as the third process their launcher."""

    kind = "local"
    ports = ()

    def __init__(self, folder):
        self._error_path = folder.parent / "launcher.txt"
        command = [sys.executable, "-m", "keras_resnet.train", "--local_workers=2"]
        with self._error_path.open("w") as file:
            self._launcher = subprocess.Popen(
                [*command, *OPTIONS, f"--model_dir={folder}"], cwd=ROOT,
                stdout=subprocess.DEVNULL, stderr=file,
            )  # fmt: skip
        path = pathlib.Path("/proc", str(self._launcher.pid), "task")
        self.pids = []
        while len(self.pids) < 2 and self._launcher.poll() is None:
            time.sleep(0.02)
            children = (path / f"{self._launcher.pid}" / "children").read_text()
            self.pids = [int(pid) for pid in children.split()]
        self.pids.append(self._launcher.pid)

    def list_running(self):
        self._launcher.poll()
        return [i for i, pid in enumerate(self.pids) if is_running(pid)]

    def finish(self):
        return [self._launcher.wait()], [self._error_path.read_text()]


def run_worker(environment, *options):
    """Runs the command `train` as a worker; SIGUSR1 makes it print its Python stacks."""
    os.environ.update(json.loads(environment))
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    sys.argv = ["keras_resnet.train", *options]
    runpy.run_module("keras_resnet.train", run_name="__main__", alter_sys=True)


def is_running(pid):
    with contextlib.suppress(OSError):
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[0] not in "ZX"
    return False


def is_connected(port):
    """Returns whether the workers are connected.

    Before that, the workers of a cluster cannot know whether a worker is lost or late.
    """
    lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()
    return any(
        line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01"
        for line in lines
    )


def wait(run, indices, seconds):
    """Waits until processes of a run have ended, at most `seconds` seconds."""
    deadline = time.monotonic() + seconds
    while indices.intersection(run.list_running()) and time.monotonic() < deadline:
        time.sleep(0.01)


def disturb(run, fault, victim, moment):
    """Causes a fault and waits for the end of the run.

    Returns:
        The number of seconds from the fault to the end of the other processes, or `None`
        if the run had ended before, and what is wrong, or "".
    """
    all_indices = set(range(len(run.pids)))
    wait(run, all_indices, moment if fault else HANG_LIMIT)
    while run.ports and not is_connected(run.ports[0]) and run.list_running():
        time.sleep(0.01)
    if not fault or victim not in run.list_running():
        wait(run, all_indices, HANG_LIMIT)
        return None, "hangs without a fault" if run.list_running() else ""
    number = signal.SIGSTOP if fault == "freeze" else signal.SIGKILL
    with contextlib.suppress(ProcessLookupError):
        os.kill(run.pids[victim], number)
    start_time = time.monotonic()
    # A launcher ends a frozen worker. Nobody ends a frozen worker of a cluster.
    rest = all_indices - ({victim} if run.kind == "cluster" else set())
    wait(run, rest, 60)
    seconds = time.monotonic() - start_time
    if rest.intersection(run.list_running()):
        return seconds, "does not end after a fault"
    return seconds, "ends late after a fault" if seconds > LIMIT else ""


def dump_stacks(run, path):
    """Writes the stacks of all threads, Python's to the outputs, and C++'s by gdb."""
    with path.open("w") as file:
        for index in run.list_running():
            pid = run.pids[index]
            os.kill(pid, signal.SIGCONT)
            if run.kind == "cluster":
                os.kill(pid, signal.SIGUSR1)
                time.sleep(1)
            if shutil.which("gdb"):
                print(f"process {index}", file=file, flush=True)
                command = [
                    "gdb",
                    "-p",
                    str(pid),
                    "-batch",
                    "-ex",
                    "thread apply all bt",
                ]
                subprocess.run(command, stdout=file, stderr=file, timeout=120)


def end(run):
    """Kills what is left of a run. Returns the names of ports that are still open."""
    for index in run.list_running():
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pids[index], signal.SIGKILL)
    wait(run, set(range(len(run.pids))), 60)
    for port in run.ports:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return "leaves a port"
    return ""


class Soak:
    """Disturbs runs and counts lost ones."""

    def __init__(self, output, seed, local_fraction):
        self._output, self._local_fraction = output, local_fraction
        self._random = random.Random(seed)
        self._durations, self._expected, self._folder = {}, None, output / "work"
        self.rows, self.problems = [], []

    def run(self, number):
        """Starts and disturbs a run until it ends."""
        is_local = self._random.random() < self._local_fraction
        make = Local if is_local else Cluster
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        num_faults = self._random.choice([1, 1, 2]) if make in self._durations else 0
        problems = []
        for attempt in range(num_faults + 1):
            row = self._start(make, attempt < num_faults, f"{number}-{attempt}")
            problems += [row["problem"]] if row["problem"] else []
            if not row["fault"] and attempt == 0 and not problems:
                fastest = min(row["seconds"], self._durations.get(make, HANG_LIMIT))
                self._durations[make] = fastest
        path = self._folder / "run" / "final.keras"
        if not path.exists():
            problems.append("is not completed")
        else:
            members = read_members(path)
            self._expected = self._expected or members
            problems += ["has other weights"] if members != self._expected else []
        if problems:
            self.problems.append(problems)
            shutil.copytree(self._folder, self._output / f"lost-{number}")
            print("LOST", number, problems, flush=True)

    def _start(self, make, is_disturbed, name):
        """Starts the workers once. Returns the row for the CSV file."""
        fault = self._random.choice(["kill", "freeze"])
        num_victims = 3 if make is Local and fault == "kill" else 2
        victim = self._random.randrange(num_victims)
        moment = self._random.uniform(0, 1) * self._durations.get(make, 0)
        start_time = time.monotonic()
        run = make(self._folder / "run")
        fault = fault if is_disturbed else ""
        ended_after, problem = disturb(run, fault, victim, moment)
        seconds = time.monotonic() - start_time
        if problem:
            dump_stacks(run, self._output / f"stacks-{name}.txt")
        problem = end(run) or problem
        statuses, errors = run.finish()
        (self._output / f"errors-{name}.txt").write_text("\n=====\n".join(errors))
        if ended_after is None:
            fault = ""
            problem = problem or ("fails without a fault" if any(statuses) else "")
        elif make is Cluster:
            statuses, errors = [statuses[1 - victim]], [errors[1 - victim]]
        lines = [x for x in "\n".join(errors).splitlines() if "same command" in x]
        # After the common work, the other workers succeed.
        if fault and any(statuses) and not lines:
            problem = problem or "prints no message"
        row = {
            "run": name, "kind": run.kind, "fault": fault,
            "victim": victim if fault else "", "moment": round(moment, 2),
            "ended_after": "" if ended_after is None else round(ended_after, 2),
            "seconds": round(seconds, 1), "message": "".join(lines[:1]),
            "statuses": " ".join(map(str, statuses)), "problem": problem,
        }  # fmt: skip
        print(*row.values(), sep=" | ", flush=True)
        self.rows.append(row)
        with (self._output / "soak.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(self.rows)
        return row


def main():
    """Runs the soak test for a number of minutes and prints a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--local_fraction", type=float, default=0.1)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("soak"))
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True)
    # The workers find this file as the module MODULE.
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "attack")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    deadline = time.monotonic() + 60 * options.minutes
    soak, number = Soak(output, options.seed, options.local_fraction), 0
    while time.monotonic() < deadline:
        soak.run(number)
        number += 1
    for kind in ("cluster", "local"):
        for fault in ("kill", "freeze"):
            times = [
                row["ended_after"]
                for row in soak.rows
                if (row["kind"], row["fault"]) == (kind, fault)
            ]
            if times:
                median, longest = statistics.median(times), max(times)
                print(
                    f"{kind}, {fault}: {len(times)} faults; the rest ended after "
                    f"{median:.1f} s (median), {longest:.1f} s (maximum)"
                )
    counts = collections.Counter(p for problems in soak.problems for p in problems)
    print(f"{number} runs, {len(soak.problems)} lost {dict(counts)}")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("{"):
        run_worker(*sys.argv[1:])
    else:
        main()
