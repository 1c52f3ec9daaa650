"""Whether a run that is killed at any moment ends as if nothing had happened.

python -m benchmarks.kills --kills=100

Each run is killed once with SIGKILL, at a moment drawn from its whole length, start
and last writing included, and then started again. `identical` says whether both
networks that it leaves and `metrics.csv` are those of an undisturbed run, bit for
bit. The same command goes on where it was interrupted.
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
    """Starts the run in that folder: 69 steps, a checkpoint after each 5."""
    command = [
        sys.executable, "-m", "keras_resnet.train", "--model=cifar_resnet8",
        "--strategy=one_device", "--epochs=3", "--set", "checkpoint_every=5",
        f"--model_dir={folder}",
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def finish(process):
    """Waits for the end of a run; returns the step after which it had resumed."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run failed with status {process.returncode}: {output}")
    if "has ended" in output:
        return "ended"
    resumed = re.search(r"Resuming after step (\d+)", output)
    return int(resumed[1]) if resumed else 0


def content(folder):
    """What must be the same, as bytes."""
    with open(os.path.join(folder, "metrics.csv"), "rb") as file:
        contents = [file.read()]
    for name in ("final.keras", "best.keras"):
        with zipfile.ZipFile(os.path.join(folder, name)) as archive:
            contents.append(archive.read("model.weights.h5"))
    return contents


def kill_once(folder, took):
    """Kills a run and lets it resume; returns the moment and the step."""
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        process, moment = start(folder), random.uniform(0, took)
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return moment, finish(start(folder))
        # It had ended before: that is no kill.


def main(wanted, work_dir):
    """Kills as often as asked for, less those that were done before."""
    names = ("whole", "cut", "kills.json")
    whole, cut, path = (os.path.abspath(os.path.join(work_dir, n)) for n in names)
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
    shutil.rmtree(whole, ignore_errors=True)
    began = time.perf_counter()
    finish(start(whole))
    took = time.perf_counter() - began
    expected = content(whole)
    with progress_bar("kills", wanted) as advance:
        for number in range(1, wanted + 1):
            if number > len(rows):
                moment, step = kill_once(cut, took)
                same = "yes" if content(cut) == expected else "no"
                values = (number, round(moment, 2), round(took, 2), step, same)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
                write_file(path, json.dumps(rows))
            advance()
    write_results("kills", rows[:wanted])
    same = sum(row["identical"] == "yes" for row in rows[:wanted])
    print(f"{same} of {wanted} killed runs ended bit for bit as the undisturbed one.")
    return int(same < wanted)


if __name__ == "__main__":
    run(main, kills=(100, "How many."), work_dir=("runs/kills", "Where the runs are."))
