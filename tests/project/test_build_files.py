"""The BUILD files, against the imports of the sources; no Bazel is needed.

What fails here says which deps to add to which target, or to remove. The part of
Starlark that these files use is Python too, so that they run here, with rules that
record what they are called with.
"""
# ruff: noqa: E501 (the table of faults)

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
from imports import ON_IMPORT, find_imports, home, read_doors, read_sources

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("keras_resnet", "export")
FOLDERS = (*PACKAGES, "tests", "benchmarks")

KERAS, TENSORFLOW = "@pypi//keras", "//:tensorflow"
# Imports whose label is not @pypi//NAME.
LABELS = {
    "PIL": {"@pypi//pillow"},
    "absl": {"@pypi//absl_py"},
    "google": {"@pypi//protobuf"},
    "sklearn": {"@pypi//scikit_learn"},
    "tensorflow": {TENSORFLOW},
    # TFDS 4.9.10 imports importlib_resources without requiring it.
    "tensorflow_datasets": {"@pypi//importlib_resources", "@pypi//tensorflow_datasets"},
}
# Exceptions: peers of the benchmarks and of the fixture's script, and an extra, all done
# without where they are missing; what comes with the interpreter or with type checkers;
# and the package in the wheel that test_packaging installs.
WITHOUT_LABEL = {"keras_hub", "litert_quantizer", "tensorboard", "timm", "torch",
                 "torchvision", "pip", "_typeshed", "keras_resnet_export"}  # fmt: skip
# What tests start in ways that find_imports does not see: the commands that conftest's
# run_program is asked for, and a notebook.
STARTED = {
    "tests.conftest": "\nimport keras_resnet.train",
    "tests.project.test_notebook": "\nimport ipykernel",
}
# What the macro pytest_tests brings.
OF_EVERY_TEST = {"//tests:helpers", "@pypi//pytest"}


class Target(NamedTuple):
    """A target. The names of its files begin with its package."""

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
        """The target, or the folder of tests that have the same deps."""
        is_test = self.rule == "py_test"
        return "/".join(self.srcs[0].split("/")[:2]) if is_test else self.label


def read_build_files(root):
    """Returns the targets that the BUILD files declare, by label."""
    targets = {}

    def run(path):
        folder, package = path.parent, path.parent.name

        def absolute(label):
            label = f"//{package}{label}" if label.startswith(":") else label
            is_short = label.startswith("//") and ":" not in label
            return f"{label}:{label[2:]}" if is_short else label

        def declare(rule, name, srcs=(), data=(), deps=(), **_):
            paths = ([f"{package}/{file}" for file in files] for files in (srcs, data))
            label = f"//{package}:{name}"
            targets[label] = Target(rule, label, *paths, {*map(absolute, deps)})

        def load(file, *names):
            loaded = {} if file.startswith("@") else run(folder / file[1:])
            for name in names:
                rule = lambda *, _name=name, **options: declare(_name, **options)  # noqa: E731
                known[name] = loaded.get(name, rule)

        def glob(include, exclude=()):
            paths = sorted(
                p.relative_to(folder).as_posix() for p in folder.rglob("*.*")
            )

            # fnmatch's star takes slashes as well, Bazel's does not.
            def matches(path, pattern):
                depth = path.count("/") == pattern.count("/") or "**" in pattern
                return depth and fnmatch.fnmatch(path, pattern.replace("**/", "*"))

            return [p for p in paths if any(matches(p, i) for i in include)
                    and not any(matches(p, e) for e in exclude)]  # fmt: skip

        ignore = lambda **_: None  # noqa: E731
        known = {"load": load, "glob": glob, "package": ignore, "filegroup": ignore}
        known["native"] = types.SimpleNamespace(glob=glob)
        exec(compile(path.read_text("utf-8"), path, "exec"), known)
        return known

    for folder in FOLDERS:
        run(root / folder / "BUILD")
    return targets


class Project:
    """The sources and targets of a checkout."""

    def __init__(self, root):
        self.targets = read_build_files(root)
        sources = read_sources(root, FOLDERS)
        self.sources = {m: s for m, s in sources.items() if "tests.bazel." not in m}
        self.stubs = read_sources(root, PACKAGES, ".pyi")
        self.doors = read_doors(self.stubs, self.sources)
        # Libraries first: a program's source may be in one as well.
        self.owners = {module: [] for module in self.sources}
        for target in sorted(self.targets.values(), key=lambda t: t.rule, reverse=True):
            for module in target.modules:
                self.owners[module].append(target)

    def is_face(self, label):
        """Whether a target has no sources: it stands for a package's public names."""
        return label in self.targets and not self.targets[label].srcs

    def labels(self, name, importer):
        """Returns the labels that an import of a name needs."""
        top = name.partition(".")[0]
        if top.startswith("test_"):  # Tests of a folder are in the same target.
            return set()
        if f"tests.{top}" in self.sources:  # tests/ is on sys.path.
            name = f"tests.{name}"
        if module := home(name, self.sources, self.doors):
            face = "//{0}:{0}".format(module.removesuffix(".__init__"))
            owners = {target.label for target in self.owners[module][:1]}
            return {face} if self.is_face(face) else owners
        without = sys.stdlib_module_names | WITHOUT_LABEL
        return set() if top in without else LABELS.get(top, {f"@pypi//{top}"})

    def needed(self, target):
        """Returns the labels that the imports of the target's sources need."""
        needed = set()
        init = f"{target.label[2:].partition(':')[0]}.__init__"
        if self.is_face(target.label):
            for item in find_imports(self.stubs.get(init, ""), init):
                needed |= self.labels(item.name, init)
        for module in target.modules or [init]:
            first = self.owners[module][0].label
            if target.rule == "py_binary" and first != target.label:
                needed.add(first)
                continue
            text = self.sources[module] + STARTED.get(module, "")
            for item in find_imports(text, module):
                # What a package's functions import is brought by its face; in the target
                # of its __init__.py, on which all others stand, it would be a cycle.
                if module != init or item.when == ON_IMPORT or not target.srcs:
                    needed |= self.labels(item.name, module)
            for package in itertools.accumulate(module.split(".")[:-1], "{}.{}".format):
                needed |= {t.label for t in self.owners.get(f"{package}.__init__", [])}
        # Keras requires no backend: who runs something with Keras brings one.
        reached = self.reached(needed)
        if (
            target.rule == "py_binary"
            and KERAS in reached
            and TENSORFLOW not in reached
        ):
            needed.add(TENSORFLOW)
        return needed - {target.label}

    def reached(self, labels):
        """Returns the labels, what they depend on, and so on."""
        reached, queue = set(), [*labels]
        while queue:
            if (label := queue.pop()) not in reached:
                reached.add(label)
                queue += self.targets[label].deps if label in self.targets else ()
        return reached

    def dep_problems(self):
        """Yields what to add to the deps of each target, and what to remove."""
        owners = {target.owner_of_deps: target for target in self.targets.values()}
        for owner, target in owners.items():
            needed, declared = self.needed(target), target.deps
            if target.rule == "py_test":
                # Tests may use what other targets bring them.
                faces = {label for label in needed if self.is_face(label)}
                needed = needed.union(*(self.targets[f].deps for f in faces)) - faces
                missing = needed - self.reached(declared)
                unused = {dep for dep in declared - OF_EVERY_TEST
                          if needed <= self.reached(declared - {dep})}  # fmt: skip
            else:
                missing, unused = needed - declared, declared - needed
            for verb, deps in ("add", missing), ("remove", unused):
                for dep in sorted(deps):
                    yield f"deps of {owner}: {verb} {dep}"


def problems(root):
    """Yields a line for everything that is wrong with the BUILD files."""
    project = Project(root)
    for module, owners in project.owners.items():
        libraries = [owner.label for owner in owners if owner.rule == "py_library"]
        if not owners or len(libraries) > 1:
            yield f"{module} is in {' and in '.join(libraries) or 'no target'}"
    yield from project.dep_problems()

    # What the packages read: stubs, pages, weights.
    for path in itertools.chain(*((root / p).rglob("*.*") for p in PACKAGES)):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            folder = next(p for p in path.parents if (p / "__init__.py").exists())
            module = ".".join([*folder.relative_to(root).parts, "__init__"])
            name = path.relative_to(root).as_posix()
            if not any(name in owner.data for owner in project.owners[module]):
                yield f"{name} is not in the data of the target of {module}"

    lock = (root / "requirements-dev.lock").read_text("utf-8")
    locked = {re.sub(r"\W", "_", n) for n in re.findall(r"^([\w.-]+)==", lock, re.M)}
    for path in (root / "BUILD", *root.glob("*/BUILD"), *root.glob("*/*.bzl")):
        labels = re.findall(r'"@pypi//([^"]+)"', path.read_text("utf-8"))
        for name in sorted({*labels} - locked):
            yield f"{path.relative_to(root)}: requirements-dev.lock lacks {name}"


def test_build_files_match_the_imports():
    assert "\n".join(problems(ROOT)) == ""


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
def test_a_fault_is_found(tmp_path, path, pattern, replacement, message):
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("BUILD", "requirements-dev.lock"):
        shutil.copy(ROOT / name, tmp_path)
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    before = file.read_text("utf-8") if file.exists() else ""
    file.write_text(re.sub(pattern, replacement, before, count=1, flags=re.DOTALL))
    assert message in "\n".join(problems(tmp_path))


def test_a_rule_that_is_not_loaded_is_found(tmp_path):
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
    (tmp_path / "test_it.py").write_text(source)
    runner = pathlib.Path(__file__).parents[1] / "run_pytest.py"
    # Bazel gives the libraries to this process alone.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, runner, "test_it.py"]
    assert subprocess.run(command, cwd=tmp_path, env=env).returncode == status
