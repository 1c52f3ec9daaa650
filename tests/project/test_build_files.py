"""Tests that the deps in the BUILD files match the imports of the sources.

A failure lists the deps to add to a target or to remove from it. Bazel is not needed,
because the BUILD files are valid Python. They are executed here with rules that only
record their arguments.
"""
# ruff: noqa: E501 (table of faults)

import fnmatch
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
from typing import NamedTuple

import pytest
from imports import (
    ON_IMPORT,
    find_imports,
    find_module,
    read_sources,
    resolve_public_names,
)

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("keras_resnet", "export")
FOLDERS = (*PACKAGES, "tests", "benchmarks")

KERAS_LABEL, TENSORFLOW_LABEL = "@pypi//keras", "//:tensorflow"
# Labels that an import needs, for imports whose label is not @pypi//NAME.
LABELS_BY_IMPORT = {
    "PIL": {"@pypi//pillow"},
    "absl": {"@pypi//absl_py"},
    "google": {"@pypi//protobuf"},
    "sklearn": {"@pypi//scikit_learn"},
    "tensorflow": {TENSORFLOW_LABEL},
    # TFDS 4.9.10 imports importlib_resources but does not declare this dependency.
    "tensorflow_datasets": {"@pypi//importlib_resources", "@pypi//tensorflow_datasets"},
}
# Imported packages that need no dep. Benchmarks, make_torch_logits.py and the extra
# `tensorboard` need optional packages. pip is a part of Python, only type checkers provide
# _typeshed, and test_packaging installs keras_resnet_export as a wheel.
IMPORTS_WITHOUT_LABEL = {"keras_hub", "litert_quantizer", "tensorboard", "timm", "torch",
                 "torchvision", "pip", "_typeshed", "keras_resnet_export"}  # fmt: skip
# Imports by module that find_imports cannot detect: conftest runs commands in new
# processes (run_program), and test_notebook starts a Jupyter kernel.
UNDETECTED_IMPORTS = {
    "tests.conftest": "\nimport keras_resnet.train",
    "tests.project.test_notebook": "\nimport ipykernel",
}
# The macro pytest_tests adds these deps to every test, so they never count as unused.
DEPS_OF_ALL_TESTS = {"//tests:helpers", "@pypi//hypothesis", "@pypi//pytest"}


class Target(NamedTuple):
    """A Bazel target. Paths in `srcs` and `data` begin with the target's package."""

    rule: str
    label: str
    srcs: list[str]
    data: list[str]
    deps: set[str]

    @property
    def modules(self):
        return [path.removesuffix(".py").replace("/", ".") for path in self.srcs]

    @property
    def owner_of_deps(self):
        """Label of the target, or folder of a test. All tests of a folder share deps."""
        is_test = self.rule == "py_test"
        return "/".join(self.srcs[0].split("/")[:2]) if is_test else self.label


def read_build_files(root):
    """Executes the BUILD files and returns their targets by label."""
    targets = {}

    def execute(path):
        folder, package = path.parent, path.parent.name

        def make_absolute(label):
            label = f"//{package}{label}" if label.startswith(":") else label
            is_abbreviated = label.startswith("//") and ":" not in label
            return f"{label}:{label[2:]}" if is_abbreviated else label

        def declare(rule, name, srcs=(), data=(), deps=(), **_):
            paths = ([f"{package}/{file}" for file in files] for files in (srcs, data))
            label = f"//{package}:{name}"
            targets[label] = Target(rule, label, *paths, {*map(make_absolute, deps)})

        def load(file, *names):
            symbols = {} if file.startswith("@") else execute(folder / file[1:])
            for name in names:
                rule = lambda *, _name=name, **options: declare(_name, **options)  # noqa: E731
                namespace[name] = symbols.get(name, rule)

        def glob(include, exclude=()):
            paths = sorted(
                p.relative_to(folder).as_posix() for p in folder.rglob("*.*")
            )

            # In fnmatch, a star also matches slashes, so `matches` compares the depth too.
            def matches(path, pattern):
                same_depth = path.count("/") == pattern.count("/") or "**" in pattern
                return same_depth and fnmatch.fnmatch(path, pattern.replace("**/", "*"))

            return [p for p in paths if any(matches(p, i) for i in include)
                    and not any(matches(p, e) for e in exclude)]  # fmt: skip

        do_nothing = lambda **_: None  # noqa: E731
        namespace = {
            "load": load,
            "glob": glob,
            "package": do_nothing,
            "filegroup": do_nothing,
        }
        namespace["native"] = types.SimpleNamespace(glob=glob)
        exec(compile(path.read_text("utf-8"), path, "exec"), namespace)
        return namespace

    for folder in FOLDERS:
        execute(root / folder / "BUILD")
    return targets


class Project:
    """Sources and Bazel targets of a checkout."""

    def __init__(self, root):
        self.targets = read_build_files(root)
        sources = read_sources(root, FOLDERS)
        self.sources = {m: s for m, s in sources.items() if "tests.bazel." not in m}
        self.stubs = read_sources(root, PACKAGES, ".pyi")
        self.module_by_public_name = resolve_public_names(self.stubs, self.sources)
        # If a library and a command share a source, the library is the first owner.
        self.owners_by_module = {module: [] for module in self.sources}
        for target in sorted(self.targets.values(), key=lambda t: t.rule, reverse=True):
            for module in target.modules:
                self.owners_by_module[module].append(target)

    def is_public_target(self, label):
        """Returns whether a label is a target that has no sources, only deps."""
        return label in self.targets and not self.targets[label].srcs

    def find_labels(self, name, importer):
        """Returns the labels of the targets that a module needs to import a name."""
        top_level_name = name.partition(".")[0]
        # Tests of a folder import each other without deps, because every test target has
        # all test files of its folder as sources.
        if top_level_name.startswith("test_"):
            return set()
        # tests/ is on sys.path, so tests import its modules without the prefix `tests`.
        if f"tests.{top_level_name}" in self.sources:
            name = f"tests.{name}"
        if module := find_module(name, self.sources, self.module_by_public_name):
            public_target = "//{0}:{0}".format(module.removesuffix(".__init__"))
            owner_labels = {
                target.label for target in self.owners_by_module[module][:1]
            }
            return (
                {public_target}
                if self.is_public_target(public_target)
                else owner_labels
            )
        ignored_names = sys.stdlib_module_names | IMPORTS_WITHOUT_LABEL
        return (
            set()
            if top_level_name in ignored_names
            else LABELS_BY_IMPORT.get(top_level_name, {f"@pypi//{top_level_name}"})
        )

    def find_needed_labels(self, target):
        """Returns the labels that the sources of a target need as deps."""
        needed_labels = set()
        init = f"{target.label[2:].partition(':')[0]}.__init__"
        if self.is_public_target(target.label):
            for item in find_imports(self.stubs.get(init, ""), init):
                needed_labels |= self.find_labels(item.name, init)
        for module in target.modules or [init]:
            first_owner_label = self.owners_by_module[module][0].label
            if target.rule == "py_binary" and first_owner_label != target.label:
                needed_labels.add(first_owner_label)
                continue
            source = self.sources[module] + UNDETECTED_IMPORTS.get(module, "")
            for item in find_imports(source, module):
                # Functions in __init__.py import the public names. Only the public target
                # needs deps for these names. The target of __init__.py must not have such
                # deps, because all other targets depend on this target.
                if module != init or item.condition == ON_IMPORT or not target.srcs:
                    needed_labels |= self.find_labels(item.name, module)
            for package in itertools.accumulate(module.split(".")[:-1], "{}.{}".format):
                needed_labels |= {
                    t.label
                    for t in self.owners_by_module.get(f"{package}.__init__", [])
                }
        # Keras does not depend on a backend, so a command that uses Keras needs TensorFlow.
        reachable_labels = self.add_dependencies(needed_labels)
        if (
            target.rule == "py_binary"
            and KERAS_LABEL in reachable_labels
            and TENSORFLOW_LABEL not in reachable_labels
        ):
            needed_labels.add(TENSORFLOW_LABEL)
        return needed_labels - {target.label}

    def add_dependencies(self, labels):
        """Returns the labels with all their direct and indirect dependencies."""
        reachable_labels, queue = set(), [*labels]
        while queue:
            if (label := queue.pop()) not in reachable_labels:
                reachable_labels.add(label)
                queue += self.targets[label].deps if label in self.targets else ()
        return reachable_labels

    def find_dep_problems(self):
        """Yields a message for each missing and each unused dep of every target."""
        target_by_owner = {
            target.owner_of_deps: target for target in self.targets.values()
        }
        for owner, target in target_by_owner.items():
            needed_labels, declared_labels = (
                self.find_needed_labels(target),
                target.deps,
            )
            if target.rule == "py_test":
                # A test may import indirect dependencies, so they need not be deps.
                public_targets = {
                    label for label in needed_labels if self.is_public_target(label)
                }
                needed_labels = (
                    needed_labels.union(*(self.targets[p].deps for p in public_targets))
                    - public_targets
                )
                missing_labels = needed_labels - self.add_dependencies(declared_labels)
                unused_labels = {dep for dep in declared_labels - DEPS_OF_ALL_TESTS
                          if needed_labels <= self.add_dependencies(declared_labels - {dep})}  # fmt: skip
            else:
                missing_labels, unused_labels = (
                    needed_labels - declared_labels,
                    declared_labels - needed_labels,
                )
            for verb, deps in ("add", missing_labels), ("remove", unused_labels):
                for dep in sorted(deps):
                    yield f"deps of {owner}: {verb} {dep}"


def find_problems(root):
    """Yields a message for each problem in the BUILD files of a checkout."""
    project = Project(root)
    for module, owners in project.owners_by_module.items():
        libraries = [owner.label for owner in owners if owner.rule == "py_library"]
        if not owners or len(libraries) > 1:
            yield f"{module} is in {' and in '.join(libraries) or 'no target'}"
    yield from project.find_dep_problems()

    # Files such as stubs and web pages must be data of the target of their package.
    for path in itertools.chain(*((root / p).rglob("*.*") for p in PACKAGES)):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            folder = next(p for p in path.parents if (p / "__init__.py").exists())
            module = ".".join([*folder.relative_to(root).parts, "__init__"])
            name = path.relative_to(root).as_posix()
            if not any(
                name in owner.data for owner in project.owners_by_module[module]
            ):
                yield f"{name} is not in the data of the target of {module}"

    lock_text = (root / "requirements-dev.lock").read_text("utf-8")
    locked_names = {
        re.sub(r"\W", "_", n) for n in re.findall(r"^([\w.-]+)==", lock_text, re.M)
    }
    for path in (root / "BUILD", *root.glob("*/BUILD"), *root.glob("*/*.bzl")):
        labels = re.findall(r'"@pypi//([^"]+)"', path.read_text("utf-8"))
        for name in sorted({*labels} - locked_names):
            yield f"{path.relative_to(root)}: requirements-dev.lock lacks {name}"


def test_build_files_match_the_imports():
    assert "\n".join(find_problems(ROOT)) == ""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files that `find_problems` reads."""
    root = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "fixtures", "results")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    for name in ("BUILD", "requirements-dev.lock"):
        shutil.copy(ROOT / name, root)
    return root


@pytest.mark.parametrize(
    ("path", "pattern", "replacement", "message"),
    [
        ("keras_resnet/BUILD", '"@pypi//safetensors",', "", "deps of //keras_resnet:weights: add @pypi//safetensors"),
        ("keras_resnet/BUILD", '("distribution/.*?deps = .)', r'\1":zoo",', "deps of //keras_resnet:distribution: remove //keras_resnet:zoo"),
        ("keras_resnet/BUILD", '(name = "keras_resnet".*?)":zoo",', r"\1", "deps of //keras_resnet:keras_resnet: add //keras_resnet:zoo"),
        ("keras_resnet/BUILD", r'"zoo\.py",', "", "keras_resnet.zoo is in //keras_resnet:zoo and in //keras_resnet:commands"),
        ("keras_resnet/BUILD", r'data = glob\(."nets/\*.pyi".\),', "", "keras_resnet/nets/__init__.pyi is not in the data of the target of keras_resnet.nets.__init__"),
        ("keras_resnet/new/thing.py", "", "", "keras_resnet.new.thing is in no target"),
        ("keras_resnet/distribution/workers.py", r"\Z", "\ndef f():\n    import h5py", "deps of //keras_resnet:distribution: add @pypi//h5py"),
        ("tests/BUILD", '"@pypi//jax"', "", "deps of tests/nets: add @pypi//jax"),
        ("tests/BUILD", '"@pypi//jax"', '"@pypi//jax", "@pypi//keras"', "deps of tests/nets: remove @pypi//keras"),
        ("tests/spec/test_variants.py", r"\Z", "\nrun_program('keras_resnet.studies.lesion')", "deps of tests/spec: add //keras_resnet:studies"),
        ("tests/spec/test_variants.py", r"\Z", "\n['-m', 'keras_resnet.studies.lesion']", "deps of tests/spec: add //keras_resnet:studies"),
        ("tests/pytest_tests.bzl", "@pypi//pytest", "@pypi//nose", "tests/pytest_tests.bzl: requirements-dev.lock lacks nose"),
        ("BUILD", "@pypi//tensorflow_cpu", "@pypi//tensorflow_tpu", "BUILD: requirements-dev.lock lacks tensorflow_tpu"),
    ],
)  # fmt: skip
def test_a_fault_is_reported(checkout, path, pattern, replacement, message):
    file = checkout / path
    text = file.read_text("utf-8") if file.exists() else None
    changed_text = re.sub(pattern, replacement, text or "", count=1, flags=re.DOTALL)
    assert changed_text != text, f"{path} contains no match of {pattern}"
    file.parent.mkdir(exist_ok=True)
    file.write_text(changed_text, "utf-8")
    try:
        assert message in "\n".join(find_problems(checkout))
    finally:
        file.unlink() if text is None else file.write_text(text, "utf-8")


def test_a_rule_that_is_not_loaded_is_an_error(tmp_path):
    (tmp_path / "keras_resnet").mkdir()
    (tmp_path / "keras_resnet/BUILD").write_text('py_library(name = "zoo")')
    with pytest.raises(NameError, match="py_library"):
        read_build_files(tmp_path)


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def test(): pass", 0),
        ("def test(): assert False", 1),
        ("def check(): pass", 5),
    ],
)
def test_the_runner_fails_unless_tests_ran_and_passed(tmp_path, source, status):
    (tmp_path / "test_source.py").write_text(source)
    runner = pathlib.Path(__file__).parents[1] / "run_pytest.py"
    # Bazel sets sys.path only for this process, so PYTHONPATH passes it to the child.
    # Pytest starts four times as fast without plugins.
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, runner, "test_source.py"]
    assert subprocess.run(command, cwd=tmp_path, env=env).returncode == status
