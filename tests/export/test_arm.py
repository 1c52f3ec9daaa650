"""LiteRT's wheel for ARM, on an emulated CPU: `make test-arm`.

Emulated time says nothing of a real CPU's, so nothing is timed here.
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
    # Its cpuinfo is a Cortex-A76's, and qemu's own choice another CPU: qemu 7 computes
    # int8 wrongly with that one's SME.
    emulated = [ARM / "qemu-aarch64-static", "-cpu", "cortex-a76", "-L", root, python]
    return subprocess.run(
        [*emulated, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={"PYTHONPATH": f"{root / 'site-packages'}:{ROOT}"},
    )


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm") / "demo"
    bundle.export(str(trained), str(folder), formats=FORMATS)
    return folder


@pytest.fixture(scope="module")
def answers(exported, tmp_path_factory):
    """Probabilities that this machine gives, and those of the emulated one."""
    folder = tmp_path_factory.mktemp("answers")
    np.save(folder / "images.npy", sources.load_dataset("digits").test.images)
    found = []
    for run in (run_python, run_arm):
        path = folder / f"{run.__name__}.npz"
        result = run("tests/arm/classify.py", exported, folder / "images.npy", path)
        assert result.returncode == 0, result.stderr
        found.append(np.load(path))
    return found


def test_the_emulated_machine():
    result = run_arm("-c", "import platform; print(platform.machine())")
    assert result.stdout == "aarch64\n", result.stderr


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        # Sums in another order.
        ("float32", 1e-5),
        ("float16", 1e-5),
        # Such a sum may put an activation on the next of its 255 levels.
        ("dynamic", 1e-3),
        # Two levels of the output.
        ("int8", 2 / 256),
    ],
)
def test_arm_answers_as_x86(answers, name, limit):
    x86, arm = (each[name] for each in answers)
    assert x86.shape == (360, 10)
    np.testing.assert_array_equal(arm.argmax(axis=1), x86.argmax(axis=1))
    np.testing.assert_allclose(arm, x86, rtol=0, atol=limit)


def test_int8_is_bit_equal_on_reference_kernels(answers):
    """The file settles every bit; where XNNPACK differs, its kernels round."""
    x86, arm = (each["int8 reference"] for each in answers)
    assert len(np.unique(x86)) > 20
    np.testing.assert_array_equal(arm, x86)


def test_a_bundle_is_verified_on_arm(exported):
    result = run_arm("-m", "export.verify", exported)
    assert result.returncode == 0, result.stderr + result.stdout
    for name in ("float32", "float16", "dynamic", "int8"):
        assert re.search(rf"(?m)^{name}\.tflite +ok ", result.stdout), result.stdout
