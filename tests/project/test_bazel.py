"""Tests of the BUILD files with Bazel, on a copy of the checkout. See `make bazel`.

Some tests make a deliberate mistake in the copy, which Bazel must report.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import venv

import pytest
from conftest import ROOT
from PIL import Image

pytestmark = [
    pytest.mark.bazel,
    pytest.mark.skipif(
        "TEST_SRCDIR" in os.environ, reason="Bazel is running this test"
    ),
]


class Checkout:
    """A copy of the checkout with its own Bazel server and output folder."""

    def __init__(self, folder):
        self.root, self._outputs = folder / "checkout", folder / "outputs"
        ignore_caches = shutil.ignore_patterns("__pycache__")
        for name in ("benchmarks", "export", "keras_resnet", "tests"):
            shutil.copytree(ROOT / name, self.root / name, ignore=ignore_caches)
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy2(path, self.root)
        # Copy the installed buildifier, so that `make buildifier` does not download it.
        shutil.copytree(ROOT / ".bazel", self.root / ".bazel", symlinks=True)

    def run_bazel(self, *arguments, cwd=None, environment=sys.prefix):
        """Runs Debian's Bazel with the arguments. Returns the exit status and the output."""
        script = self.root / "tests/bazel/run.sh"
        command = [script, f"--output_user_root={self._outputs}", *map(str, arguments)]
        return self._run(command, cwd, VENV=str(environment))

    def run_buildifier(self):
        return self._run(["make", "buildifier"])

    def _run(self, command, cwd=None, **env):
        result = subprocess.run(
            command,
            cwd=cwd or self.root,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return result.returncode, result.stdout

    @contextlib.contextmanager
    def patch(self, path, pattern, replacement):
        """Replaces matches of a regular expression in a file, inside the context."""
        file = self.root / path
        original_text = file.read_text("utf-8")
        changed_text = re.sub(pattern, replacement, original_text, flags=re.DOTALL)
        assert changed_text != original_text, f"{path} contains no match of {pattern}"
        file.write_text(changed_text, "utf-8")
        try:
            yield
        finally:
            file.write_text(original_text, "utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    copied_checkout = Checkout(tmp_path_factory.mktemp("bazel"))
    yield copied_checkout
    copied_checkout.run_bazel("shutdown")


# Deliberate mistakes in the checkout. Each value is a test target that must fail because
# of the mistake, the arguments of `Checkout.patch` that make the mistake, and words that
# the output of the failed target must contain.
FAULTS = {
    "an internal dep is removed": (
        "//tests:test_study_gradients",
        ("keras_resnet/BUILD", r'("studies/\*.py".*?)":studies_lib",', r"\1"),
        "cannot import name 'lib' from 'keras_resnet.studies'",
    ),
    "a stub is left out": (
        "//tests:test_reports",
        ("keras_resnet/BUILD", r'data = glob\(\["evaluation/\*.pyi"\]\),', ""),
        "keras_resnet/evaluation/__init__.pyi'",
    ),
    # All PyPI packages are installed, so imports succeed even without the dep. Only
    # test_build_files detects this mistake.
    "a @pypi dep is removed": (
        "//tests:test_build_files",
        ("keras_resnet/BUILD", r'("weights/\*.py".*?)"@pypi//h5py",', r"\1"),
        "deps of //keras_resnet:weights: add @pypi//h5py",
    ),
    "a test fails": (
        "//tests:test_variants",
        ("tests/spec/test_variants.py", r"\Z", "\n\ndef test_sum():\n    assert 1 + 1 == 3\n"),
        "FAILED tests/spec/test_variants.py::test_sum",
    ),
    "a file has no tests": (
        "//tests:test_strategies",
        ("tests/distribution/test_strategies.py", r"\ndef test_", r"\ndef check_"),
        "no tests ran",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def failed_outputs(checkout):
    """Dict from failed targets to their outputs, with all of FAULTS present at once.

    `make bazel` runs the same targets without the faults before it runs this file, so
    every failure is due to a fault.
    """
    with contextlib.ExitStack() as stack:
        for _, change, _ in FAULTS.values():
            stack.enter_context(checkout.patch(*change))
        targets = [target for target, _, _ in FAULTS.values()]
        status, output = checkout.run_bazel("test", "--keep_going", *targets)
    # Bazel exits with status 3 if the build succeeded and some tests failed.
    assert status == 3, output
    failed_targets = re.findall(r"^(//\S+) +FAILED in", output, re.MULTILINE)
    output_parts = re.split(
        r"^=+ Test output for (//\S+):$", output, flags=re.MULTILINE
    )
    output_by_target = dict(zip(output_parts[1::2], output_parts[2::2], strict=True))
    return {target: output_by_target[target] for target in failed_targets}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_makes_its_target_fail(failed_outputs, name):
    target, _, expected_message = FAULTS[name]
    assert expected_message in failed_outputs.get(target, "the target passed")


def test_export_cannot_be_imported_by_keras_resnet(checkout):
    change = "keras_resnet/BUILD", r'("zoo.py".,\s+deps = .)', r'\1"//export:device",'
    with checkout.patch(*change):
        status, output = checkout.run_bazel("build", "//keras_resnet:zoo")
    assert status == 1
    expected_message = (
        "'//export:device' is not visible from target '//keras_resnet:zoo'"
    )
    assert expected_message in " ".join(output.split())


def test_a_misformatted_build_file_is_refused(checkout):
    assert checkout.run_buildifier()[0] == 0
    with checkout.patch("export/BUILD", 'name = "device"', 'name="device"'):
        status, output = checkout.run_buildifier()
    assert status != 0 and "export/BUILD # reformat" in output
    with checkout.patch("tests/BUILD", r'"py_library"\)', '"py_library", "py_test")'):
        status, output = checkout.run_buildifier()
    assert status != 0 and 'Loaded symbol "py_test" is unused' in output


@pytest.mark.parametrize(
    ("cpu", "name"), [("x86_64", "tensorflow_cpu"), ("aarch64", "tensorflow")]
)
def test_the_platform_selects_the_tensorflow_distribution(checkout, cpu, name):
    """For each platform, //:tensorflow must select the distribution of setup.py."""
    constraints = f'["@platforms//os:linux", "@platforms//cpu:{cpu}"]'
    platform = f'platform(name = "device", constraint_values = {constraints})\n'
    with checkout.patch("BUILD", r"\Z", platform):
        cquery_arguments = "cquery", "--platforms=//:device", "deps(//:tensorflow, 1)"
        status, output = checkout.run_bazel(*cquery_arguments)
    assert status == 0, output
    assert f"@pypi//{name}:{name} (" in output


def test_commands_run_in_the_current_folder_of_the_user(checkout, tmp_path, digits):
    def run_target(target, *flags):
        status, output = checkout.run_bazel("run", target, "--", *flags, cwd=folder)
        assert status == 0, output
        return output

    # `bazel run` works only inside the checkout, so the user's folder is in it.
    folder = checkout.root / "docs"
    folder.mkdir()
    Image.fromarray(digits.test.images[0].squeeze()).save(folder / "digit.png")
    network_flags = "--model=cifar_resnet8", "--epochs=2", "--strategy=mirrored"
    run_target("//keras_resnet:train", *network_flags, "--model_dir=runs/demo")
    assert (folder / "runs/demo/final.keras").exists()
    evaluation_output = run_target("//keras_resnet:evaluate", "--model=runs/demo")
    assert re.search("of 360 .*images", evaluation_output)
    assert "digit.png" in run_target(
        "//keras_resnet:predict", "--model=runs/demo", "digit.png"
    )
    run_target("//export", "--model=runs/demo", "--output=demo", "--formats=float32")
    assert (folder / "demo/float32.tflite").exists()


def test_an_environment_that_contains_the_project_is_refused(checkout, tmp_path):
    venv.create(tmp_path / "venv")
    (site_packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site_packages / "project.pth").write_text(str(ROOT))
    status, output = checkout.run_bazel("info", environment=tmp_path / "venv")
    assert (status, output.count("\n")) == (1, 1)
    assert output.startswith("error: VENV must not contain this project")
    status, output = checkout.run_bazel("info", environment=tmp_path / "none")
    assert (status, output.count("\n")) == (1, 1)
    assert output.startswith("error: VENV must be an environment with the packages")
