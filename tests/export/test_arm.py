"""Bundles on an emulated ARM CPU, with LiteRT's wheel for ARM (`make test-arm`).

Nothing is timed, because the speed of an emulated CPU differs from a real one's.
"""

import re
import subprocess

import numpy as np
import pytest
from conftest import ROOT, run_python

from export import bundle
from keras_resnet.data import sources

ARM = ROOT / ".arm"
FORMATS = ["float32", "float16", "dynamic", "int8"]

pytestmark = [
    pytest.mark.arm,
    pytest.mark.skipif(
        not ARM.is_dir(), reason="needs an emulated ARM machine: make test-arm"
    ),
]


def run_arm(*arguments, timeout=600):
    """Runs Debian's arm64 Python on an emulated Cortex-A76, from the checkout."""
    root = ARM / "root"
    (python,) = (root / "usr/bin").glob("python3.*")
    # Name the CPU that the emulated /proc/cpuinfo describes. qemu's default CPU has SME
    # instructions, with which qemu 7 computes int8 incorrectly.
    command = [ARM / "qemu-aarch64-static", "-cpu", "cortex-a76", "-L", root, python]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={"PYTHONPATH": f"{root / 'site-packages'}:{ROOT}"},
    )


@pytest.fixture(scope="module")
def exported_bundle(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm") / "demo"
    bundle.export(str(trained_run), str(folder), formats=FORMATS)
    return folder


@pytest.fixture(scope="module")
def probabilities(exported_bundle, tmp_path_factory):
    """Probabilities by artifact, computed on this machine and on the emulated one."""
    folder = tmp_path_factory.mktemp("probabilities")
    np.save(folder / "images.npy", sources.load_dataset("digits").test.images)
    results = []
    for run in (run_python, run_arm):
        path = folder / f"{run.__name__}.npz"
        process = run(
            "tests/arm/classify.py", exported_bundle, folder / "images.npy", path
        )
        assert process.returncode == 0, process.stderr
        results.append(np.load(path))
    return results


def test_emulated_machine_is_arm():
    process = run_arm("-c", "import platform; print(platform.machine())")
    assert process.stdout == "aarch64\n", process.stderr


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        # The two CPUs add in different orders and thus round differently.
        ("float32", 1e-5),
        ("float16", 1e-5),
        # A sum that is rounded differently may move an activation by one of its 255
        # quantisation steps.
        ("dynamic", 1e-3),
        # The limit is two quantisation steps of the output.
        ("int8", 2 / 256),
    ],
)
def test_arm_and_x86_agree(probabilities, name, limit):
    x86, arm = (results[name] for results in probabilities)
    assert x86.shape == (360, 10)
    np.testing.assert_array_equal(arm.argmax(axis=1), x86.argmax(axis=1))
    np.testing.assert_allclose(arm, x86, rtol=0, atol=limit)


def test_int8_is_bit_equal_on_reference_kernels(probabilities):
    """LiteRT's reference kernels are bit-identical on both CPUs, unlike XNNPACK's."""
    x86, arm = (results["int8 reference"] for results in probabilities)
    assert len(np.unique(x86)) > 20
    np.testing.assert_array_equal(arm, x86)


def test_bundle_is_verified_on_arm(exported_bundle):
    process = run_arm("-m", "export.verify", exported_bundle)
    assert process.returncode == 0, process.stderr + process.stdout
    for name in ("float32", "float16", "dynamic", "int8"):
        assert re.search(rf"(?m)^{name}\.tflite +ok ", process.stdout), process.stdout
