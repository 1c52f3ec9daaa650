"""Trains the runs in tests/fixtures/format2.tar.xz and tests/fixtures/losses.json.

python tests/make_run_fixtures.py

A version that changes the format of run folders or checkpoints must add an archive and
keep the old ones, which are never made again after a release. The losses are made again
whenever a change of the numbers is intended.
"""

import contextlib
import json
import os
import pathlib
import platform
import re
import shutil
import tarfile
import tempfile
from importlib import metadata

from children import KILLED, ROOT, run_child

FIXTURES = ROOT / "tests/fixtures"
# The run trains only the stem and the head. The other weights come from a file with
# rounded weights, so that the archive is small.
RUN_FLAGS = [
    "--model=cifar_resnet8", "--dataset=digits", "--strategy=one_device",
    "--freeze=conv2..conv4", "--epochs=12",
    *(f"--set={change}" for change in (
        "schedule=plateau", "warmup=0", "patience=1", "early_stopping=3", "ema=0.9",
        "checkpoint_every=10", "keep_checkpoints=1",
    )),
]  # fmt: skip
# Rounding errors grow from step to step, so the run is short. The losses changed by 1e-7
# of their values without oneDNN, and by 1.2e-3 on one CPU.
LOSS_FLAGS = [
    "--model=cifar_resnet8", "--dataset=digits", "--strategy=one_device", "--set=iterations=6",
    "--set=mixup=0.2", "--set=stochastic_depth=0.2", "--set=pad=0.25",
]  # fmt: skip
MAX_ROUNDING = 5e-3


def find_machine():
    """Returns what rounding depends on: processor and versions of packages.

    The kernels of oneDNN and Eigen depend on the instruction sets, the sizes of the
    caches and the number of CPUs.
    """
    flags, cache_sizes = set(), []
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        flags = set(re.findall(r"\b(?:amx|avx|fma)\w*", text))
    for path in sorted(
        pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")
    ):
        cache_sizes.append(path.read_text().strip())
    packages = ("keras", "numpy", "tensorflow-cpu")
    return {
        "processor": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "flags": sorted(flags),
        "caches": cache_sizes,
        "versions": {name: metadata.version(name) for name in packages},
    }


def train_for_losses(folder):
    """Trains six steps in a new process and returns the lines of `metrics.csv`."""
    flags = [*LOSS_FLAGS, f"--model_dir={folder}/losses"]
    result = run_child("keras_resnet.train", *flags, cwd=folder, timeout=300)
    assert result.returncode == 0, result.stderr
    return (folder / "losses/metrics.csv").read_text().splitlines()


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        content = {"machine": find_machine(), "metrics": train_for_losses(folder)}
        (FIXTURES / "losses.json").write_text(json.dumps(content, indent=1) + "\n")
        with tarfile.open(FIXTURES / "v0.1.0.tar.xz") as file:
            file.extract("v0.1.0/weights/resnet8-a.keras", folder, filter="data")
        shutil.copy(folder / "v0.1.0/weights/resnet8-a.keras", folder)
        for run, faults in (("whole", ()), ("killed", [("kill_after_step", 85)])):
            flags = [*RUN_FLAGS, "--weights=resnet8-a.keras", f"--model_dir={run}"]
            result = run_child(
                "keras_resnet.train", *flags, cwd=folder, faults=faults, timeout=300
            )
            assert result.returncode == (KILLED if faults else 0), result.stderr
            for file_name in ("augmented.png", "curves.png", "best.keras"):
                (folder / run / file_name).unlink(missing_ok=True)
        with tarfile.open(FIXTURES / "format2.tar.xz", "w:xz") as file:
            for run in ("whole", "killed"):
                file.add(folder / run, f"format2/{run}")


if __name__ == "__main__":
    main()
