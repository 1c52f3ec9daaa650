"""Tests of the wheel, its console scripts, the lock files and the cost of imports."""

import os
import shutil
import subprocess
import sysconfig
import venv
import zipfile

import pytest
from conftest import ROOT, assert_one_line, run_python

# Dict from folders of the checkout to the names of their packages in the wheel.
PACKAGES = {"keras_resnet": "keras_resnet", "export": "keras_resnet_export"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Path of a wheel, built from a copy of the checkout that contains a file `build`.

    The file systems of macOS ignore the case, so the file `BUILD` is also `build`. By
    default, setuptools would fail, because it needs a folder with the name `build`.
    """
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "build").write_text("a file")
    wheel_folder = tmp_path_factory.mktemp("wheel")
    result = run_python(
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        wheel_folder,
        source,
        cwd=wheel_folder,
    )
    assert result.returncode == 0, result.stderr
    (path,) = wheel_folder.glob("keras_resnet_zoo-*.whl")
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


def test_importing_the_package_loads_only_keras():
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
    assert result.stdout.strip() == "['keras_resnet']", result.stdout + result.stderr


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
