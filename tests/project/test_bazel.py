"""Tests of the BUILD files with Bazel, on a copy of the checkout; `make bazel`.

Some tests break the copy on purpose and expect Bazel to report it.
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
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("benchmarks", "export", "keras_resnet", "tests"):
            shutil.copytree(ROOT / name, self.root / name, ignore=ignored)
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy2(path, self.root)
        # The folder .bazel contains buildifier.
        shutil.copytree(ROOT / ".bazel", self.root / ".bazel", symlinks=True)

    def bazel(self, *arguments, cwd=None, environment=sys.prefix):
        """Runs Debian's Bazel and returns its exit status and output."""
        script = self.root / "tests/bazel/run.sh"
        command = [script, f"--output_user_root={self._outputs}", *map(str, arguments)]
        return self._run(command, cwd, VENV=str(environment))

    def buildifier(self):
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
    def change(self, path, pattern, replacement):
        """Changes a file inside the context by substituting a regular expression."""
        file = self.root / path
        original = file.read_text("utf-8")
        changed = re.sub(pattern, replacement, original, flags=re.DOTALL)
        assert changed != original, f"{path} contains no match of {pattern}"
        file.write_text(changed, "utf-8")
        try:
            yield
        finally:
            file.write_text(original, "utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    copy = Checkout(tmp_path_factory.mktemp("bazel"))
    yield copy
    copy.bazel("shutdown")


# Test target, change (file, pattern, replacement), and expected output of the target.
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
    # The interpreter has all packages installed, so only test_build_files fails.
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
    """Outputs of the targets that fail with all faults present at once.

    Without faults all targets pass: `make bazel` runs them before this file.
    """
    with contextlib.ExitStack() as stack:
        for _, change, _ in FAULTS.values():
            stack.enter_context(checkout.change(*change))
        targets = [target for target, _, _ in FAULTS.values()]
        status, output = checkout.bazel("test", "--keep_going", *targets)
    assert status == 3, output  # Build succeeded, tests failed.
    failed = re.findall(r"^(//\S+) +FAILED in", output, re.MULTILINE)
    parts = re.split(r"^=+ Test output for (//\S+):$", output, flags=re.MULTILINE)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {target: texts[target] for target in failed}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails(failed_outputs, name):
    target, _, words = FAULTS[name]
    assert words in failed_outputs.get(target, "the target passed")


def test_export_cannot_be_imported_by_keras_resnet(checkout):
    change = "keras_resnet/BUILD", r'("zoo.py".,\s+deps = .)', r'\1"//export:device",'
    with checkout.change(*change):
        status, output = checkout.bazel("build", "//keras_resnet:zoo")
    assert status == 1
    words = "'//export:device' is not visible from target '//keras_resnet:zoo'"
    assert words in " ".join(output.split())


def test_a_misformatted_build_file_is_refused(checkout):
    assert checkout.buildifier()[0] == 0
    with checkout.change("export/BUILD", 'name = "device"', 'name="device"'):
        status, output = checkout.buildifier()
    assert status != 0 and "export/BUILD # reformat" in output
    with checkout.change("tests/BUILD", r'"py_library"\)', '"py_library", "py_test")'):
        status, output = checkout.buildifier()
    assert status != 0 and 'Loaded symbol "py_test" is unused' in output


@pytest.mark.parametrize(
    ("cpu", "name"), [("x86_64", "tensorflow_cpu"), ("aarch64", "tensorflow")]
)
def test_tensorflow_depends_on_the_platform(checkout, cpu, name):
    """setup.py makes the same choice."""
    constraints = f'["@platforms//os:linux", "@platforms//cpu:{cpu}"]'
    platform = f'platform(name = "device", constraint_values = {constraints})\n'
    with checkout.change("BUILD", r"\Z", platform):
        query = "cquery", "--platforms=//:device", "deps(//:tensorflow, 1)"
        status, output = checkout.bazel(*query)
    assert status == 0, output
    assert f"@pypi//{name}:{name} (" in output


def test_commands_run_in_the_current_folder_of_the_user(checkout, tmp_path, digits):
    def run(target, *flags):
        status, output = checkout.bazel("run", target, "--", *flags, cwd=folder)
        assert status == 0, output
        return output

    # Bazel must be started inside the checkout.
    folder = checkout.root / "docs"
    folder.mkdir()
    Image.fromarray(digits.test.images[0].squeeze()).save(folder / "digit.png")
    network = "--model=cifar_resnet8", "--epochs=2", "--strategy=mirrored"
    run("//keras_resnet:train", *network, "--model_dir=runs/demo")
    assert (folder / "runs/demo/final.keras").exists()
    printed = run("//keras_resnet:evaluate", "--model=runs/demo")
    assert re.search("of 360 .*images", printed)
    assert "digit.png" in run(
        "//keras_resnet:predict", "--model=runs/demo", "digit.png"
    )
    run("//export", "--model=runs/demo", "--output=demo", "--formats=float32")
    assert (folder / "demo/float32.tflite").exists()


def test_an_environment_that_contains_the_project_is_refused(checkout, tmp_path):
    venv.create(tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "project.pth").write_text(str(ROOT))
    status, output = checkout.bazel("info", environment=tmp_path / "venv")
    assert (status, output.count("\n")) == (1, 1)
    assert output.startswith("error: VENV must not contain this project")
    status, output = checkout.bazel("info", environment=tmp_path / "none")
    assert (status, output.count("\n")) == (1, 1)
    assert output.startswith("error: VENV must be an environment with the packages")
