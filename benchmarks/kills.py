"""Test that killed and resumed training runs have the results of uninterrupted runs.

python -m benchmarks.kills --kills=100

Each run is killed once with SIGKILL and then started again. The moment of the kill is
random, between the start of the process and its last writes. `identical` states whether
`metrics.csv` and both saved networks are bit-identical to those of an uninterrupted
run. If the benchmark is interrupted, the same command resumes it.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile

from benchmarks.side_by_side import run, write_results
from keras_resnet.support import progress_bar, write_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COLUMNS = ("kill", "moment_s", "run_s", "resumed_step", "identical")


def start_run(folder):
    """Starts a run of 69 steps in a folder, with a checkpoint every 5 steps."""
    command = [
        sys.executable, "-m", "keras_resnet.train", "--model=cifar_resnet8",
        "--strategy=one_device", "--epochs=3", "--set", "checkpoint_every=5",
        f"--model_dir={folder}",
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def finish_run(process):
    """Waits for a run. Returns the step after which the run resumed, or "ended"."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"A run failed with status {process.returncode}: {output}")
    if "has ended" in output:
        return "ended"
    match = re.search(r"Resuming after step (\d+)", output)
    return int(match[1]) if match else 0


def read_results(folder):
    """Returns the content of `metrics.csv` and of both saved networks as bytes."""
    with open(os.path.join(folder, "metrics.csv"), "rb") as file:
        contents = [file.read()]
    for name in ("final.keras", "best.keras"):
        with zipfile.ZipFile(os.path.join(folder, name)) as archive:
            contents.append(archive.read("model.weights.h5"))
    return contents


def kill_once(folder, duration):
    """Kills a run at a random second. Returns the second and `finish_run`'s result."""
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        process, kill_time = start_run(folder), random.uniform(0, duration)
        try:
            process.communicate(timeout=kill_time)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return kill_time, finish_run(start_run(folder))
        # The run ended before it could be killed, so the loop starts another run.


def main(kills, work_dir):
    """Kills runs until `kills` results exist, and writes `results/kills.csv`."""
    names = ("whole", "cut", "kills.json")
    work_dir = os.path.abspath(work_dir)
    original_dir, killed_dir, path = (os.path.join(work_dir, n) for n in names)
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
    shutil.rmtree(original_dir, ignore_errors=True)
    start = time.perf_counter()
    finish_run(start_run(original_dir))
    duration = time.perf_counter() - start
    expected = read_results(original_dir)
    with progress_bar("kills", kills) as advance:
        for index in range(1, kills + 1):
            if index > len(rows):
                moment, step = kill_once(killed_dir, duration)
                identical = "yes" if read_results(killed_dir) == expected else "no"
                values = (index, round(moment, 2), round(duration, 2), step, identical)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
                write_file(path, json.dumps(rows))
            advance()
    write_results("kills", rows[:kills])
    matches = sum(row["identical"] == "yes" for row in rows[:kills])
    print(f"{matches} of {kills} resumed runs equal the uninterrupted run bit by bit.")
    return int(matches < kills)


if __name__ == "__main__":
    run(main, kills=(100, "Number of runs."), work_dir=("runs/kills", "Run folders."))
