"""Test that a training run that is killed and resumed has bit-identical results.

python -m benchmarks.kills --kills=100

Each run is killed once with SIGKILL and then started again. The moment of the kill is
random, from the start of the process to its final writes. `identical` states whether
`metrics.csv` and both saved networks are bit-identical to an uninterrupted run's.
An interrupted benchmark resumes with the same command.
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


def start(folder):
    """Starts a run of 69 steps in a folder, with a checkpoint every 5 steps."""
    command = [
        sys.executable, "-m", "keras_resnet.train", "--model=cifar_resnet8",
        "--strategy=one_device", "--epochs=3", "--set", "checkpoint_every=5",
        f"--model_dir={folder}",
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def finish(process):
    """Waits for the end of a run and returns the step after which it resumed."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"A run failed with status {process.returncode}: {output}")
    if "has ended" in output:
        return "ended"
    resumed = re.search(r"Resuming after step (\d+)", output)
    return int(resumed[1]) if resumed else 0


def read_results(folder):
    """Returns the bytes of a run's results, which must be identical."""
    with open(os.path.join(folder, "metrics.csv"), "rb") as file:
        contents = [file.read()]
    for name in ("final.keras", "best.keras"):
        with zipfile.ZipFile(os.path.join(folder, name)) as archive:
            contents.append(archive.read("model.weights.h5"))
    return contents


def kill_once(folder, duration):
    """Kills a run, resumes it, and returns the second of the kill and the step."""
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        process, kill_time = start(folder), random.uniform(0, duration)
        try:
            process.communicate(timeout=kill_time)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return kill_time, finish(start(folder))
        # The run ended before the kill, so another one is started.


def main(kills, work_dir):
    """Kills the remaining runs; results of an interrupted benchmark are reused."""
    names = ("whole", "cut", "kills.json")
    original, killed, path = (os.path.abspath(os.path.join(work_dir, n)) for n in names)
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
    shutil.rmtree(original, ignore_errors=True)
    began = time.perf_counter()
    finish(start(original))
    duration = time.perf_counter() - began
    expected = read_results(original)
    with progress_bar("kills", kills) as advance:
        for number in range(1, kills + 1):
            if number > len(rows):
                kill_time, step = kill_once(killed, duration)
                same = "yes" if read_results(killed) == expected else "no"
                values = (number, round(kill_time, 2), round(duration, 2), step, same)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
                write_file(path, json.dumps(rows))
            advance()
    write_results("kills", rows[:kills])
    same = sum(row["identical"] == "yes" for row in rows[:kills])
    print(f"{same} of {kills} killed runs are bit-identical to the uninterrupted run.")
    return int(same < kills)


if __name__ == "__main__":
    run(main, kills=(100, "Number of kills."), work_dir=("runs/kills", "Run folders."))
