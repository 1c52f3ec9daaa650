"""Tests of the wheel, its console scripts, the lock files and the cost of imports."""

import os
import re
import shutil
import subprocess
import sysconfig
import tarfile
import venv
import zipfile

import pytest
from conftest import ROOT, assert_one_line, run_python

import keras_resnet

# Dict from folders of the checkout to the names of their packages in the wheel.
PACKAGES = {"keras_resnet": "keras_resnet", "export": "keras_resnet_export"}


@pytest.fixture(scope="session")
def tracked_files():
    """Paths of the files of the checkout that Git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {
        path for path in result.stdout.split("\0") if path and (ROOT / path).exists()
    }


@pytest.fixture(scope="session")
def sdist(tracked_files, tmp_path_factory):
    """Folder of an unpacked sdist that was built from a copy of the checkout.

    The copy contains a file `build`. The file systems of macOS ignore the case, so the file
    `BUILD` is also `build`. By default, setuptools would fail, because it needs a folder
    with the name `build`.
    """
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for path in tracked_files:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    (source / "build").write_text("a file")
    code = (
        "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"
    )
    result = run_python("-c", code, target, cwd=source)
    assert result.returncode == 0, result.stderr
    (path,) = target.glob("keras_resnet_zoo-*.tar.gz")
    with tarfile.open(path) as file:
        file.extractall(target, filter="data")
    folder = target / path.name.removesuffix(".tar.gz")
    (folder / "build").write_text("a file")
    return folder


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory):
    """Path of a wheel, built from the sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    flags = "--no-deps", "--no-build-isolation", "-w", folder
    result = run_python("-m", "pip", "wheel", *flags, sdist, cwd=folder)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("keras_resnet_zoo-*.whl")
    return path


@pytest.fixture(scope="session")
def bin_folder(wheel, tmp_path_factory):
    """Folder `bin` of a new environment that has the wheel and all dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    site_packages = next((folder / "lib").glob("python*")) / "site-packages"
    (site_packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    # pip runs outside of the checkout, because it would mistake the egg-info folder in
    # the checkout for an installed package.
    result = run_python(
        "-m", "pip", "--python", folder, "install", "--no-deps", wheel,
        cwd=folder, env={"PYTHONPATH": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "bin"


@pytest.mark.clients
def test_the_sdist_contains_the_checkout(sdist, tracked_files):
    paths = {p.relative_to(sdist).as_posix() for p in sdist.rglob("*") if p.is_file()}
    generated = {
        p for p in paths if re.match(r"PKG-INFO|setup\.cfg|build$|.*\.egg-info/", p)
    }
    assert paths - generated == tracked_files


@pytest.mark.clients
def test_the_wheel_contains_both_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    expected_names = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.name != "BUILD" and path.suffix != ".pyc"
    }
    assert {name for name in names if ".dist-info/" not in name} == expected_names
    assert {
        "keras_resnet/py.typed",
        "keras_resnet/nets/__init__.pyi",
        "keras_resnet/weights/imagenet_classes.txt",
        "keras_resnet_export/formats/web/index.html",
    } <= expected_names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.clients
def test_console_scripts_run_from_any_folder(bin_folder, tmp_path):
    def run_script(script, *flags):
        return execute(f"keras-resnet-{script}", *flags)

    def execute(script_path, *flags):
        return subprocess.run(
            [bin_folder / script_path, *flags],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                name: value
                for name, value in os.environ.items()
                if name != "PYTHONPATH"
            },
        )

    for script in ("train", "evaluate", "predict", "export"):
        result = run_script(script, "--helpshort")
        assert "--model:" in result.stdout, result.stderr
    result = run_script(
        "train", "--model=cifar_resnet8", "--epochs=6", "--model_dir=run"
    )
    assert result.returncode == 0, result.stderr
    result = run_script("evaluate", "--model=run")
    assert "of 360 test images correct" in result.stdout, result.stderr
    result = run_script("export", "--model=run", "--output=bundle", "--formats=float32")
    assert "float32.tflite" in result.stdout, result.stderr
    assert (tmp_path / "bundle/manifest.json").exists()
    result = execute("python", "-m", "keras_resnet_export.verify", "bundle")
    assert result.returncode == 0, result.stderr
    assert "float32" in result.stdout
    result = run_script("predict", "--model=run", "--top=1", "run/curves.png")
    assert result.returncode == 0, result.stderr
    assert "run/curves.png" in result.stdout


@pytest.mark.clients
def test_importing_the_package_loads_only_keras_and_safetensors():
    code = """
import sys, keras
before = set(sys.modules)
import keras_resnet
for name in keras_resnet.__all__:
    getattr(keras_resnet, name)
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    result = run_python("-c", code)
    assert result.stdout.strip() == "['keras_resnet', 'safetensors']", (
        result.stdout + result.stderr
    )


def test_a_missing_tensorflow_is_reported_with_the_extras(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
"""
    )
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code = """
import keras_resnet
print(keras_resnet.list_models()[0])
try:
    keras_resnet.ResNet50
except ImportError as error:
    print(error)
"""
    result = run_python("-c", code, env=env)
    assert "resnet18" in result.stdout, result.stderr
    for extra in ("cpu", "gpu"):
        assert f"keras-resnet-zoo[{extra}]" in result.stdout, result.stderr
    result = run_python("-m", "keras_resnet.train", env=env)
    assert_one_line(result, "keras-resnet-zoo[cpu]")


def test_lock_files_have_hashes_and_no_urls():
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        pins = [line for line in text.splitlines() if line[:1].isalnum()]
        assert len(pins) > 20
        assert all("==" in pin for pin in pins)
        assert text.count("--hash=sha256:") >= len(pins)
        assert "://" not in text
    assert "tensorflow-cpu==" in text


def test_the_citation_states_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {keras_resnet.__version__}\n" in citation


def test_the_workflow_runs_the_targets_of_the_script():
    """The workflow of the public forge and .ci/run run the same targets of make."""
    script = (ROOT / ".ci/run").read_text("utf-8")
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    targets = set(re.findall(r"^ *make ([\w-]+)$", script, re.MULTILINE))
    assert len(targets) == 4
    assert {*re.findall(r"run: make (?:\w+=\w+ )?([\w-]+)$", workflow, re.M)} == targets
