"""The BUILD files, against the imports of the sources; no Bazel is needed.

What fails here says which deps to add to which target, or to remove. The part of
Starlark that BUILD files use is Python by its grammar, so that `ast` reads it.
"""
# ruff: noqa: E501 (the table of faults)

import ast
import dataclasses
import graphlib
import os
import pathlib
import re
import subprocess
import sys

import pytest
from imports import AS_PROGRAM, ON_IMPORT, find_imports, home, read_sources

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("keras_resnet", "export", "tests", "benchmarks")
RULES = ("py_library", "py_binary", "pytest_test")

KERAS, TENSORFLOW = "@pypi//keras", "//:tensorflow"
# Imports whose label is not @pypi//NAME.
LABELS = {
    "PIL": {"@pypi//pillow"},
    "absl": {"@pypi//absl_py"},
    "google": {"@pypi//protobuf"},
    "sklearn": {"@pypi//scikit_learn"},
    "tensorflow": {TENSORFLOW},
    # TFDS 4.9.10 imports importlib_resources without requiring it.
    "tensorflow_datasets": {
        "@pypi//importlib_resources",
        "@pypi//tensorflow_datasets",
    },
    # Exceptions: peers of the benchmarks and of the fixture's script, and an extra,
    # all done without where they are missing; and what comes with the interpreter.
    "keras_hub": set(),
    "litert_quantizer": set(),
    "tensorboard": set(),
    "timm": set(),
    "torch": set(),
    "torchvision": set(),
    "pip": set(),
    "keras_resnet_export": set(),  # in the wheel that test_packaging installs
}
# Exception: what a test starts in a way that find_imports does not see.
STARTED = {
    "tests.test_programs": ["export.__main__"],
    "tests.test_notebook": [
        "ai_edge_litert",
        "export.bundle",
        "export.card",
        "ipykernel",
        "keras",
        "keras_resnet",
        "keras_resnet.data",
        "keras_resnet.training",
        "numpy",
    ],
}
# What the macro pytest_test brings.
OF_EVERY_TEST = {"//tests:conftest", "@pypi//pytest"}


@dataclasses.dataclass(frozen=True)
class Target:
    rule: str
    package: str
    name: str
    srcs: tuple = ()
    deps: tuple = ()

    @property
    def label(self):
        return f"//{self.package}:{self.name}"

    @property
    def modules(self):
        paths = (f"{self.package}/{source}" for source in self.srcs)
        return [path.removesuffix(".py").replace("/", ".") for path in paths]

    @property
    def is_face(self):
        """Whether it stands for what the package's `__init__.py` offers."""
        return self.name == self.package.split("/")[-1] and not self.srcs

    @property
    def of_rule(self):
        return OF_EVERY_TEST if self.rule == "pytest_test" else set()

    @property
    def declared(self):
        return {absolute(dep, self.package) for dep in self.deps}


def absolute(label, package):
    """`:name` as `//package:name`, `//package` as `//package:package`."""
    if label.startswith(":"):
        return f"//{package}{label}"
    if label.startswith("//") and ":" not in label:
        return f"{label}:{label.split('/')[-1]}"
    return label


def shortest(label, package):
    label = label.replace(f"//{package}:", ":")
    folder, _, name = label.partition(":")
    return folder if folder.split("/")[-1] == name else label


def ignored_folders(root):
    return (root / ".bazelignore").read_text("utf-8").split()


def starlark_files(root, *patterns):
    """Returns the files of FOLDERS that Bazel sees."""
    ignored = [root / folder for folder in ignored_folders(root)]
    found = (p for f in FOLDERS for g in patterns for p in (root / f).rglob(g))
    return sorted(p for p in found if not any(map(p.is_relative_to, ignored)))


def read_build_files(root):
    """Returns the targets of the BUILD files by label, and what is not loaded."""
    targets, faults = {}, []
    for path in starlark_files(root, "BUILD"):
        package = path.parent.relative_to(root).as_posix()
        calls = [line.value for line in ast.parse(path.read_text("utf-8")).body]
        calls = [call for call in calls if isinstance(call, ast.Call)]
        loaded = [a.value for c in calls if c.func.id == "load" for a in c.args[1:]]
        for call in calls:
            if (rule := call.func.id) in RULES:
                values = {
                    word.arg: ast.literal_eval(word.value)
                    for word in call.keywords
                    if word.arg in ("name", "srcs", "deps")
                }
                target = Target(rule, package, **values)
                targets[target.label] = target
                if rule not in loaded:
                    faults.append(f"{target.label}: {rule} is not loaded")
    return targets, faults


class Project:
    """The sources and targets of a checkout."""

    def __init__(self, root):
        ignored = tuple(f"{f.replace('/', '.')}." for f in ignored_folders(root))
        self.sources = {
            module: source
            for module, source in read_sources(root, FOLDERS).items()
            if not module.startswith(ignored)
        }
        self.targets, self.faults = read_build_files(root)
        # Which targets have a module: a library and a program may both have it.
        self.libraries, self.programs = {}, {}
        for target in self.targets.values():
            is_library = target.rule == "py_library"
            for module in target.modules:
                owners = self.libraries if is_library else self.programs
                owners.setdefault(module, []).append(target.label)

    def labels(self, name, importer):
        """Returns the labels that an import of `name` in `importer` needs."""
        top = name.split(".")[0]
        # Without an __init__.py, modules import those beside them by bare names.
        folder = importer.rpartition(".")[0]
        beside = f"{folder}.{top}" in self.sources
        if beside and f"{folder}.__init__" not in self.sources:
            name = f"{folder}.{name}"
        module = home(name, self.sources)
        if not module:
            standard = top in sys.stdlib_module_names
            return set() if standard else LABELS.get(top, {f"@pypi//{top}"})
        if module.endswith(".__init__"):
            package = module.removesuffix(".__init__").replace(".", "/")
            face = self.targets.get(absolute(f"//{package}", package))
            if face and face.is_face:
                return {face.label}
        owners = self.libraries.get(module, []), self.programs.get(module, [])
        first, other = reversed(owners) if name.endswith(".__main__") else owners
        return {*(first or other)[:1]}

    def needed(self, target):
        """Returns the labels that the target's sources need."""
        init = f"{target.package.replace('/', '.')}.__init__"
        needed = {*self.libraries.get(init, [])}
        for module in [init] if target.is_face else target.modules:
            for item in find_imports(self.sources.get(module, ""), module):
                if item.when == AS_PROGRAM and target.rule == "py_library":
                    continue
                # Every import of a module runs its package's __init__: what that
                # imports later is brought by the face; here it would be a cycle.
                if module == init and item.when != ON_IMPORT and not target.is_face:
                    continue
                needed |= self.labels(item.name, module)
            for name in STARTED.get(module, []):
                needed |= self.labels(name, module)
        # Keras requires no backend: who runs something with Keras brings one.
        if target.rule != "py_library":
            reached = self.reached(needed | target.of_rule)
            if KERAS in reached and TENSORFLOW not in reached:
                needed.add(TENSORFLOW)
        return needed - target.of_rule - {target.label}

    def reached(self, labels):
        """Returns the labels, what they depend on, and so on."""
        reached, queue = set(), [*labels]
        while queue:
            if (label := queue.pop()) not in reached:
                reached.add(label)
                if target := self.targets.get(label):
                    queue += target.declared | target.of_rule
        return reached


def problems(root):
    """Yields a line for everything that is wrong with the BUILD files."""
    project = Project(root)
    yield from project.faults

    for owners in (project.libraries, project.programs):
        for module, labels in owners.items():
            if module not in project.sources:
                yield f"{labels[0]}: there is no source of {module}"
            if len(labels) > 1:
                yield f"{module} is in {' and in '.join(labels)}"
    for module in project.sources:
        if module not in {**project.libraries, **project.programs}:
            yield f"{module} is in no target"

    for label, target in project.targets.items():
        needed, declared = project.needed(target), target.declared
        changes = []
        for verb, deps in ("add", needed - declared), ("remove", declared - needed):
            names = sorted(shortest(dep, target.package) for dep in deps)
            changes += [f"{verb} {', '.join(map(repr, names))}"] if names else []
        if changes:
            yield f"deps of {label}: {'; '.join(changes)}"
        if label.startswith("//keras_resnet"):
            for dep in sorted(project.reached([label])):
                if dep.startswith("//export"):
                    yield f"{label} comes to depend on {dep}"

    try:
        graphlib.TopologicalSorter(
            {label: target.declared for label, target in project.targets.items()}
        ).prepare()
    except graphlib.CycleError as error:
        yield f"a cycle: {' <- '.join(error.args[1])}"

    lock = (root / "requirements-dev.lock").read_text("utf-8")
    locked = {re.sub(r"\W", "_", n) for n in re.findall(r"^([\w.-]+)==", lock, re.M)}
    for path in (root / "BUILD", *starlark_files(root, "BUILD", "*.bzl")):
        labels = re.findall(r'"@pypi//([^"]+)"', path.read_text("utf-8"))
        for package in sorted({*labels} - locked):
            yield f"{path.relative_to(root)}: requirements-dev.lock lacks {package}"


def test_build_files_match_the_imports():
    assert read_build_files(ROOT)[0]
    assert "\n".join(problems(ROOT)) == ""


SMALL = {
    ".bazelignore": "tests/bazel",
    "tests/bazel/stand_in.py": "",
    "tests/bazel/BUILD": 'py_library(name = "hidden", srcs = ["no.py"])',
    "BUILD": 'alias(name = "tensorflow", actual = "@pypi//tensorflow_cpu")',
    "requirements-dev.lock": "absl-py==2\nkeras==3\nscikit-learn==1\ntensorflow-cpu==2\n",
    "keras_resnet/__init__.py": "def __getattr__(name):\n    from . import net\n",
    "keras_resnet/net.py": (
        "import os, keras\nif __name__ == '__main__':\n    from absl import app\n"
    ),
    "keras_resnet/data.py": "import sklearn.datasets\nimport tensorflow as tf\n",
    "keras_resnet/BUILD": """
load("@rules_python//python:defs.bzl", "py_binary", "py_library")
py_library(name = "keras_resnet", deps = [":init", ":net"])
py_library(name = "init", srcs = ["__init__.py"])
py_library(name = "net", srcs = ["net.py"], deps = [":init", "@pypi//keras"])
py_binary(
    name = "net_main",
    srcs = ["net.py"],
    deps = [":init", "//:tensorflow", "@pypi//absl_py", "@pypi//keras"],
)
py_library(
    name = "data",
    srcs = ["data.py"],
    deps = [":init", "//:tensorflow", "@pypi//scikit_learn"],
)
""",
    "export/bundle.py": "import keras_resnet\nfrom keras_resnet import data\n",
    "export/BUILD": """
load("@rules_python//python:defs.bzl", "py_library")
py_library(
    name = "bundle",
    srcs = ["bundle.py"],
    deps = ["//keras_resnet", "//keras_resnet:data"],
)
""",
    "tests/conftest.py": "",
    "tests/test_net.py": "import conftest, pytest\nfrom keras_resnet.net import build\n",
    "tests/BUILD": """
load("@rules_python//python:defs.bzl", "py_library")
load(":pytest_test.bzl", "pytest_test")
py_library(name = "conftest", srcs = ["conftest.py"])
pytest_test(
    name = "test_net",
    srcs = ["test_net.py"],
    deps = ["//:tensorflow", "//keras_resnet:net"],
)
""",
    "tests/pytest_test.bzl": 'py_test(deps = ["@pypi//absl_py"])',
}


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("keras_resnet/BUILD", '", "@pypi//keras"])\npy_b', '"])\npy_b', "deps of //keras_resnet:net: add '@pypi//keras'"),
        ("keras_resnet/BUILD", ', "@pypi//absl_py"', "", "deps of //keras_resnet:net_main: add '@pypi//absl_py'"),
        ("keras_resnet/BUILD", '":init", "@', '":data", ":init", "@', "deps of //keras_resnet:net: remove ':data'"),
        ("keras_resnet/BUILD", '[":init", ":net"]', '[":init"]', "deps of //keras_resnet:keras_resnet: add ':net'"),
        ("keras_resnet/BUILD", '["__init__.py"]', '["__init__.py"], deps = [":net"]', "a cycle"),
        ("keras_resnet/BUILD", '["net.py"]', '["net.py", "data.py"]', "keras_resnet.data is in //keras_resnet:net and in //keras_resnet:data"),
        ("keras_resnet/BUILD", '["data.py"]', '["date.py"]', "//keras_resnet:data: there is no source of keras_resnet.date"),
        ("keras_resnet/BUILD", '"py_binary", ', "", "//keras_resnet:net_main: py_binary is not loaded"),
        ("keras_resnet/BUILD", '":init", ":net"', '":init", ":net", "//export:bundle"', "//keras_resnet:keras_resnet comes to depend on //export:bundle"),
        ("keras_resnet/new.py", "", "import os", "keras_resnet.new is in no target"),
        ("keras_resnet/net.py", "import os", "def f():\n    from . import data\nimport os", "deps of //keras_resnet:net: add ':data'"),
        ("keras_resnet/data.py", "import", "import numpy as np\nimport", "deps of //keras_resnet:data: add '@pypi//numpy'"),
        ("export/bundle.py", "import keras_resnet\n", "", "deps of //export:bundle: remove '//keras_resnet'"),
        ("tests/BUILD", '"//:tensorflow", ', "", "deps of //tests:test_net: add '//:tensorflow'"),
        ("tests/BUILD", 's = ["//:', 's = [":conftest", "//:', "deps of //tests:test_net: remove ':conftest'"),
        ("tests/test_net.py", "import", "run_program('keras_resnet.net')\nimport", "add '//keras_resnet:net_main'"),
        ("tests/test_net.py", "import", "['-m', 'keras_resnet.net']\nimport", "add '//keras_resnet:net_main'"),
        ("tests/pytest_test.bzl", "absl_py", "pytest", "requirements-dev.lock lacks pytest"),
        ("BUILD", "tensorflow_cpu", "tensorflow", "requirements-dev.lock lacks tensorflow"),
    ],
)  # fmt: skip
def test_a_fault_is_found(tmp_path, path, old, new, message):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    for each, text in SMALL.items():
        write(each, text)
    assert not list(problems(tmp_path))
    before = SMALL.get(path, "")
    assert old in before
    write(path, before.replace(old, new, 1))
    assert message in "\n".join(problems(tmp_path))


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def test(): pass", 0),
        ("def test(): assert False", 1),
        ("def check(): pass", 5),
    ],
)
def test_the_runner_fails_unless_tests_ran_and_passed(tmp_path, source, status):
    (tmp_path / "test_it.py").write_text(source)
    runner = pathlib.Path(__file__).parents[1] / "run_pytest.py"
    # Bazel gives the libraries to this process alone.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, runner, "test_it.py"]
    assert subprocess.run(command, cwd=tmp_path, env=env).returncode == status
