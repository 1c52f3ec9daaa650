"""Fixtures and functions that many tests use."""

import contextlib
import dataclasses
import fcntl
import gc
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis
import pytest
from children import run_child

from keras_resnet.data import sources
from keras_resnet.distribution import strategies

ROOT = pathlib.Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"

# A collection of the oldest generation visits all objects of Keras and TensorFlow. With the
# default threshold of 10, these collections take 5 % of the time of all tests.
gc.set_threshold(700, 10, 100)

# Property tests draw the same examples in every run and store none of them.
hypothesis.settings.register_profile(
    "suite", derandomize=True, database=None, deadline=None, max_examples=50
)
hypothesis.settings.load_profile("suite")

# Two virtual CPU devices let every test use two replicas. They must be created before
# TensorFlow runs its first operation.
strategies.make_strategy("mirrored", virtual_devices=2)


def pytest_collection_modifyitems(items):
    """Skips the tests with the marker `shared_data` if the folder `SHARED` is missing."""
    skip_marker = pytest.mark.skip(
        reason=f"needs published weights and images in {SHARED}"
    )
    for item in items:
        if item.get_closest_marker("shared_data") and not SHARED.is_dir():
            item.add_marker(skip_marker)


def run_python(*arguments, timeout=300, env=None, **options):
    """Runs Python in a new process and returns a `CompletedProcess`.

    The working directory is by default the folder of the checkout.
    """
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=options.pop("cwd", ROOT),
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        **options,
    )


def run_program(module, *arguments, timeout=300, cwd=ROOT):
    """Runs a command like `python -m` and returns a `CompletedProcess`.

    The process is forked from a server that has imported TensorFlow, so it starts fast.
    """
    return run_child(module, *arguments, timeout=timeout, cwd=cwd)


def assert_one_line(result, *words):
    """Asserts that a command failed with a single error line that contains `words`."""
    assert result.returncode == 1, result.stderr
    error_lines = [
        line for line in result.stderr.splitlines() if line.startswith("error: ")
    ]
    assert len(error_lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in error_lines[0]


@contextlib.contextmanager
def make_deep_folder(path, depth=1500):
    """Yields the innermost of many nested folders; functions must not recurse into it."""
    folders = [path]
    for _ in range(depth):
        folders.append(f"{folders[-1]}/d")
    for folder in folders:
        os.mkdir(folder)
    yield folders[-1]
    for folder in reversed(folders):
        os.rmdir(folder)


def make_once(tmp_path_factory, name, make):
    """Returns a folder that `make(folder)` has filled.

    The processes of pytest-xdist share the folder. The first process that needs it makes
    it, and the others wait.
    """
    parent = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        parent = parent.parent
    folder, marker = parent / name, parent / f"{name}.made"
    with open(parent / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not marker.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            marker.touch()
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """Mount point of a file system of 32 MiB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this test needs permission to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """Run folder of a `cifar_resnet8` that was trained on the digits for 8 epochs."""

    def make(folder):
        from keras_resnet.training.run import train

        train("cifar_resnet8", epochs=8, model_dir=str(folder / "run"), verbose=0)

    return make_once(tmp_path_factory, "trained", make) / "run"


@pytest.fixture(scope="session")
def digits():
    """The dataset of 8x8 handwritten digits."""
    return sources.load_dataset("digits")


@pytest.fixture(scope="session")
def classifier(trained_run):
    """Classifier of `trained_run`, with batch normalisation folded into convolutions.

    Three class names contain characters that some file formats must escape.
    """
    from keras_resnet.evaluation.classifier import load_classifier
    from keras_resnet.nets.folding import fold

    trained_classifier = load_classifier(str(trained_run))
    names = ("a, b", "c\nd", "é 零", *trained_classifier.classes[3:])
    return dataclasses.replace(
        trained_classifier, model=fold(trained_classifier.model), classes=names
    )


@pytest.fixture(scope="session")
def exported_bundle(trained_run, tmp_path_factory):
    """Folder of a bundle with the default formats, and the output of the command."""

    def make(folder):
        result = run_program(
            "export", f"--model={trained_run}", f"--output={folder / 'demo'}"
        )
        assert result.returncode == 0, result.stderr
        (folder / "stdout").write_text(result.stdout)

    folder = make_once(tmp_path_factory, "artifacts", make)
    return folder / "demo", (folder / "stdout").read_text()


def write_artifacts(classifier, folder, names, calibration=None):
    """Writes artifacts of a classifier into a folder and returns their paths by name."""
    from export.artifacts import ARTIFACTS, Source
    from keras_resnet.nets.folding import fold

    folded_classifier = dataclasses.replace(classifier, model=fold(classifier.model))
    with tempfile.TemporaryDirectory() as scratch_folder:
        source = Source(folded_classifier, calibration, str(folder), scratch_folder)
        paths = {name: f"{folder}/{ARTIFACTS[name].path}" for name in names}
        for name, path in paths.items():
            ARTIFACTS[name].write(path, source)
    return paths
