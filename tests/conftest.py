"""Shared parts of the tests: two CPU devices, a trained run, commands as processes."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
from children import run_child

from keras_resnet.data import sources
from keras_resnet.distribution import strategies

ROOT = pathlib.Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"

# Two virtual CPU devices let every test use two replicas. They must be created before
# TensorFlow runs its first operation.
strategies.make_strategy("mirrored", virtual_devices=2)


def pytest_collection_modifyitems(items):
    """Skips tests that need the published weights and images if these are missing."""
    missing = pytest.mark.skip(reason=f"needs real weights and images in {SHARED}")
    for item in items:
        if item.get_closest_marker("shared_data") and not SHARED.is_dir():
            item.add_marker(missing)


def run_python(*arguments, timeout=300, env=None, **options):
    """Runs Python in a new process, by default in the folder of the checkout."""
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
    """Runs a command of this project like `python -m`, in a forked process.

    A forked process saves the seconds that importing TensorFlow takes; see children.py.
    """
    return run_child(module, *arguments, timeout=timeout, cwd=cwd)


def assert_one_line(result, *words):
    """Asserts that a command failed with a single error line that contains the words."""
    assert result.returncode == 1, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in errors[0]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """Run folder of a small network that was trained on the digits."""
    from keras_resnet.training.run import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    train("cifar_resnet8", epochs=8, model_dir=str(folder), verbose=0)
    return folder


@pytest.fixture(scope="session")
def digits():
    return sources.load_dataset("digits")


@pytest.fixture(scope="session")
def classifier(trained_run):
    """The network of `trained_run`, folded, with class names that need escaping."""
    from keras_resnet.evaluation.classifier import load_classifier
    from keras_resnet.nets.folding import fold

    trained = load_classifier(str(trained_run))
    names = ("a, b", "c\nd", "é 零", *trained.classes[3:])
    return dataclasses.replace(trained, model=fold(trained.model), classes=names)


@pytest.fixture(scope="session")
def exported_bundle(trained_run, tmp_path_factory):
    """Folder of a bundle that the export command wrote, and the command's output."""
    folder = tmp_path_factory.mktemp("artifacts") / "demo"
    result = run_program("export", f"--model={trained_run}", f"--output={folder}")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def write_artifacts(classifier, folder, names, calibration=None):
    """Writes artifacts of a classifier like an export and returns their paths by name."""
    from export.artifacts import ARTIFACTS, Source
    from keras_resnet.nets.folding import fold

    folded = dataclasses.replace(classifier, model=fold(classifier.model))
    with tempfile.TemporaryDirectory() as scratch:
        source = Source(folded, calibration, str(folder), scratch)
        paths = {name: f"{folder}/{ARTIFACTS[name].path}" for name in names}
        for name, path in paths.items():
            ARTIFACTS[name].write(path, source)
    return paths
