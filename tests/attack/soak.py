"""Soak test: short runs of two workers, with kills and freezes at random moments.

    PYTHONPATH=.:tests python tests/attack/soak.py --minutes=30

Each run is disturbed once or twice and started again with the same command until it
ends. Most runs have two workers that are forked from a warm process and find each other
by TF_CONFIG, as on a cluster. The others use `--local_workers=2`. A run is lost if the
rest of it does not end within LIMIT seconds after a fault, if it ends without the line
that says how to resume, if a process or a port is left, or if the final weights differ
from those of an undisturbed run. The stacks of all processes of a lost run are written.
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

# Seconds in which the rest of a run must end after a fault.
LIMIT = 15

# Seconds after which an undisturbed run counts as hanging.
HANG_LIMIT = 240

OPTIONS = (
    "--strategy=multi_worker", "--dataset=digits", "--model=cifar_resnet8",
    "--epochs=1", "--batch_size=96", "--set", "checkpoint_every=4",
)  # fmt: skip

# Words of the messages after a loss, and of the messages of orderly ends.
RESUME_WORDS = ("same command",)

FIELDS = (
    "run", "kind", "fault", "victim", "moment", "ended_after", "statuses", "line",
    "last_output", "lost",
)  # fmt: skip


def run_worker(environment):
    """Runs the command `train` as a worker; SIGUSR1 prints its Python stacks."""
    os.environ.update(json.loads(environment))
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    sys.argv = ["keras_resnet.train", *sys.argv[3:]]
    runpy.run_module("keras_resnet.train", run_name="__main__", alter_sys=True)


class Cluster:
    """Two forked workers that TF_CONFIG connects, as on a cluster."""

    kind = "cluster"

    def __init__(self, folder):
        from keras_resnet.distribution import workers

        self._holders = [workers._hold_port() for _ in range(2)]
        addresses = ["{}:{}".format(*h.getsockname()) for h in self._holders]
        self.ports = [h.getsockname()[1] for h in self._holders]
        names = ("TF_CONFIG", "TF_NUM_INTRAOP_THREADS", "TF_GRPC_REUSE_PORT")
        self._children = []
        for index in range(2):
            variables = workers._make_environment(addresses, index)
            environment = json.dumps({name: variables[name] for name in names})
            arguments = "worker", environment, *OPTIONS, f"--model_dir={folder}"
            self._children.append(
                Child("attack.soak", *arguments, cwd=folder.parent)
            )
        self.pids = [child.pid for child in self._children]

    def running(self):
        return [i for i, child in enumerate(self._children) if child.is_running]

    def finish(self):
        """Returns the exit statuses and the error outputs, by worker."""
        results = [child.wait(1) for child in self._children]
        for holder in self._holders:
            holder.close()
        return [r.returncode for r in results], [r.stderr for r in results]


class Local:
    """The command with `--local_workers=2`. The last of the pids is the launcher's."""

    kind = "local"

    def __init__(self, folder):
        self._errors = folder.parent / "launcher.txt"
        command = [sys.executable, "-m", "keras_resnet.train", "--local_workers=2"]
        with self._errors.open("w") as output:
            self._launcher = subprocess.Popen(
                [*command, *OPTIONS, f"--model_dir={folder}"], cwd=ROOT,
                stdout=subprocess.DEVNULL, stderr=output,
            )  # fmt: skip
        self.pids, self.ports = [], []
        while len(self.pids) < 3 and self._launcher.poll() is None:
            time.sleep(0.02)
            path = f"/proc/{self._launcher.pid}/task/{self._launcher.pid}/children"
            children = pathlib.Path(path).read_text().split()
            if len(children) == 2:
                self.pids = [*map(int, children), self._launcher.pid]

    def running(self):
        self._launcher.poll()
        return [i for i, pid in enumerate(self.pids) if is_alive(pid)]

    def finish(self):
        text = self._errors.read_text()
        return [self._launcher.wait(1)], [text, text, text]


def is_alive(pid):
    with contextlib.suppress(OSError):
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return state.split()[0] != "Z"
    return False


def dump_stacks(run, path):
    """Writes the stacks of all threads of all processes of a run, C++ ones too."""
    with path.open("w") as file:
        for index in run.running():
            pid = run.pids[index]
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGUSR1 if run.kind == "cluster" else signal.SIGCONT)
            time.sleep(1)
            if shutil.which("gdb"):
                print(f"worker {index}", file=file, flush=True)
                command = ["gdb", "-p", str(pid), "-batch", "-ex", "thread apply all bt 30"]
                subprocess.run(command, stdout=file, stderr=subprocess.DEVNULL, timeout=120)


def end(run):
    for index in run.running():
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pids[index], signal.SIGKILL)
    while run.running():
        time.sleep(0.01)


def disturb(run, fault, victim, moment):
    """Waits, causes a fault, waits for the end. Returns seconds and what is wrong."""
    started = time.monotonic()
    while run.running() and time.monotonic() < started + moment:
        time.sleep(0.01)
    if not fault or victim not in run.running():  # Nothing to disturb any more.
        while run.running() and time.monotonic() < started + HANG_LIMIT:
            time.sleep(0.05)
        return None, "hangs" if run.running() else ""
    fault_time = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.kill(run.pids[victim], signal.SIGSTOP if fault == "freeze" else signal.SIGKILL)

    def rest():
        frozen = [victim] if fault == "freeze" and run.kind == "cluster" else []
        return set(run.running()).difference(frozen)

    # A worker that is disturbed after the last step leaves the others undisturbed.
    while rest() and time.monotonic() < fault_time + 60:
        time.sleep(0.01)
    return time.monotonic() - fault_time, "rest does not end" if rest() else ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("soak"))
    parser.add_argument("--local_fraction", type=float, default=0.2)
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    generator = random.Random(options.seed)
    work = options.output / "work"
    durations, expected = {}, None
    rows, lost_runs, number = [], [], 0
    with (options.output / "soak.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        while time.monotonic() < deadline:
            make = Local if generator.random() < options.local_fraction else Cluster
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            num_faults = generator.choice([1, 1, 2]) if make in durations else 0
            problems = []
            for attempt in range(num_faults + 1):
                fault = generator.choice(["kill", "freeze"])
                victims = [0, 1, 2] if make is Local and fault == "kill" else [0, 1]
                victim = generator.choice(victims)
                moment = generator.uniform(0, 1) * durations.get(make, 0)
                if attempt == num_faults:
                    fault, victim, moment = "", "", 0
                started = time.monotonic()
                run = make(work / "run")
                seconds, problem = disturb(run, fault, victim, moment)
                if problem:
                    dump_stacks(run, options.output / f"stacks-{number}.txt")
                took = time.monotonic() - started
                end(run)
                statuses, errors = run.finish()
                if seconds is not None and seconds > LIMIT and not problem:
                    problem = "rest ends late"
                survivors = [e for i, e in enumerate(errors) if i != victim]
                line = next((l for l in "\n".join(survivors).splitlines() if RESUME_WORDS[0] in l), "")
                ends_well = statuses[0] == 0 and (run.kind == "local" or fault == "" or statuses[1 - (victim or 0)] == 0)
                if fault and seconds is not None and not problem and not line and not ends_well:
                    problem = "no line"
                if seconds is None and not problem and any(statuses):
                    problem = "fails undisturbed"
                for port in run.ports:
                    with contextlib.suppress(OSError):
                        socket.create_connection(("127.0.0.1", port), 1).close()
                        problem = problem or "port is left"
                log = options.output / f"errors-{number}-{attempt}.txt"
                log.write_text("\n=====\n".join(errors))
                if problem:
                    problems.append(problem)
                last_output = "".join(survivors).strip().splitlines()[-1:]
                row = dict(run=number, kind=run.kind, fault=fault if seconds is not None else "", victim=victim, moment=f"{moment:.2f}",
                    ended_after="" if seconds is None else f"{seconds:.2f}", statuses=" ".join(map(str, statuses)), line=line, last_output="".join(last_output)[:200], lost=problem)  # fmt: skip
                rows.append(row)
                writer.writerow(row)
                file.flush()
                print(row, f"{took:.1f} s", flush=True)
                if seconds is None and not problem and attempt == 0:
                    durations[make] = min(took, durations.get(make, took))
            with contextlib.suppress(OSError):
                members = read_members(work / "run" / "final.keras")
                expected = expected or members
                if members != expected:
                    problems.append("weights differ")
                    shutil.copytree(work, options.output / f"run-{number}")
            if not (work / "run" / "final.keras").exists():
                problems.append("not completed")
                shutil.copytree(work, options.output / f"run-{number}", dirs_exist_ok=True)
            if problems:
                lost_runs.append((number, problems))
                print("LOST", number, problems, flush=True)
            number += 1
    for kind in ("cluster", "local"):
        for fault in ("kill", "freeze"):
            times = [float(r["ended_after"]) for r in rows if r["fault"] == fault and r["kind"] == kind and r["ended_after"]]
            if times:
                print(f"{kind} {fault}: {len(times)} faults, the rest ended after {statistics.median(times):.1f} s (median), {max(times):.1f} s (at most)")
    counts = collections.Counter(problem for _, problems in lost_runs for problem in problems)
    print(f"{number} runs, {len(lost_runs)} lost: {dict(counts)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        run_worker(sys.argv[2])
    else:
        main()
