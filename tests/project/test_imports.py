"""Tests of the project's rules on imports, names of modules and lengths of functions."""
# ruff: noqa: E501 (tables)

import ast
import graphlib
import pathlib
import re
import sys
from collections.abc import Iterator

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

# ALLOWED_IMPORTS maps each unit of the source code to the other units that it may import.
# A unit is a package, or a module outside of the packages, such as zoo.
NET_UNITS = {"support", "spec", "nets", "weights", "zoo"}
LIBRARY_UNITS = NET_UNITS | {"data", "distribution", "evaluation", "training"}
STUDY_UNITS = LIBRARY_UNITS | {"studies.lib"}
EXPORT_UNITS = LIBRARY_UNITS - {"distribution", "training"} | {"export.device"}
ALLOWED_IMPORTS = {
    "support": set(),
    "spec": {"support"},
    "nets": {"support", "spec"},
    "weights": {"support", "spec", "nets"},
    "zoo": {"support", "spec", "nets", "weights"},
    "data": {"support", "spec"},
    "distribution": {"support", "spec"},
    "evaluation": NET_UNITS | {"data", "distribution"},
    "training": LIBRARY_UNITS,
    "studies.lib": LIBRARY_UNITS,
    "studies.all": STUDY_UNITS | {"studies"},
    "studies": STUDY_UNITS,
    "export.device": {"support", "spec"},
    "export.formats": EXPORT_UNITS,
    "export.quantization": EXPORT_UNITS | {"export.formats"},
    "export": EXPORT_UNITS | {"export.formats", "export.quantization"},
    "": LIBRARY_UNITS,  # Commands and keras_resnet/__init__.py.
}

COMMAND_MODULE_PATTERN = (
    r"keras_resnet\.(?!zoo$)\w+|keras_resnet\.studies\.\w+|export\.__main__"
)
DEVICE_MODULE_PATTERN = r"export\.(device\..+|verify|latency)"
# Each row has a regular expression that matches modules, whether imports inside functions
# count, the packages that the modules must not import, and the reason for this rule.
FORBIDDEN_IMPORTS = [
    (r"keras_resnet\.(nets\..+|weights\..+|zoo)", True, "tensorflow", "networks support every Keras backend"),
    (r"keras_resnet\.spec\..+", True, "keras tensorflow", "settings need neither"),
    (DEVICE_MODULE_PATTERN, False, "keras tensorflow absl matplotlib rich", "a device has only LiteRT and NumPy"),
    (COMMAND_MODULE_PATTERN, False, "keras tensorflow", "--help and errors in flags must appear at once"),
]  # fmt: skip
FLAG_MODULE_PATTERN = (
    rf"{COMMAND_MODULE_PATTERN}|keras_resnet\.(support|studies\.lib)\.program"
)

LAZY_IMPORTS = "keras_resnet.support.lazy_imports"
MAX_LINES = 70  # Maximum number of lines of a function, without its docstring.
ALLOWED_LONG_FUNCTIONS: dict[str, str] = {}  # Reason by "module.function".


def find_unit(module: str) -> str:
    """Returns the key of `ALLOWED_IMPORTS` to which a module belongs."""
    name = module.removeprefix("keras_resnet.")
    units = (unit for unit in ALLOWED_IMPORTS if f"{name}.".startswith(f"{unit}."))
    return max(units, key=len, default="")


class Sources:
    """Sources of the packages, and the imports of each module."""

    def __init__(self, sources: dict[str, str], stubs: dict[str, str]) -> None:
        self.texts = sources
        self.imports = {m: find_imports(t, m) for m, t in sources.items()}
        self.module_by_public_name = resolve_public_names(stubs, sources)
        # Packages of the project. After `from keras_resnet import data`, every use of a
        # name of the package, such as `data.Split`, counts as an import too.
        self.packages = {stub.removesuffix(".__init__") for stub in stubs}

    def find_definition(self, name: str) -> str | None:
        """Returns the module of this project that defines a name; `None` if none does."""
        return find_module(name, self.texts, self.module_by_public_name)

    def find_chains(self, module: str, in_functions: bool) -> dict[str, list[str]]:
        """Returns the chains of imports by which a module imports names, also indirectly.

        Args:
            module: Dotted name of the module.
            in_functions: Whether imports inside functions count too.

        Returns:
            Dict from each imported name to the chain of imports that leads to it, a list
            of names that begins with `module`.
        """
        chains: dict[str, list[str]] = {}
        queue = [[module]]
        while queue:
            chain = queue.pop(0)
            # Importing a module also runs the __init__.py of its parent packages, but not
            # the functions in them, which import public names at first use.
            follow_functions = in_functions and not chain[-1].endswith(".__init__")
            items = self.imports[chain[-1]]
            names = [
                i.name for i in items if follow_functions or i.condition == ON_IMPORT
            ]
            parents = chain[-1].split(".")[:-1]
            names += [
                ".".join([*parents[: n + 1], "__init__"]) for n in range(len(parents))
            ]
            for name in names:
                if name not in chains:
                    chains[name] = [*chain, name]
                    if target_module := self.find_definition(name):
                        queue.append([*chain, target_module])
        return chains


def find_import_problems(module: str, sources: Sources) -> Iterator[str]:
    """Yields a message for each violation of a rule by an import in a module."""
    unit = find_unit(module)
    for item in sources.imports[module]:
        name, package = item.name, item.name.split(".")[0]
        if f"{name}.".startswith("absl.flags.") and not re.fullmatch(
            FLAG_MODULE_PATTERN, module
        ):
            yield f"{module} -> {name}: flags are process-wide, so only commands may define them"
        if package in ("export", "keras_resnet_export") and not (
            item.is_relative and module.startswith("export.")
        ):
            yield f"{module} -> {name}: only export may import export, and only relatively"
        if package not in PACKAGES:
            continue
        if re.match("_[^_]", name.split(".")[-1]):
            yield f"{module} -> {name}: the name is private"
        target_module = sources.find_definition(name) or ""
        target_unit = find_unit(target_module)
        is_top_level = target_unit in ("", "studies") and target_module != module
        if target_unit not in ALLOWED_IMPORTS[unit] and (
            is_top_level or target_unit != unit
        ):
            yield f"{module} -> {name}: {unit or 'a command'} must not import {target_unit}"
        is_public = (
            target_module != find_module(name, sources.texts)
            or name in sources.packages
        )
        needs_no_stub = (
            target_module in ("keras_resnet.zoo", LAZY_IMPORTS) or is_top_level
        )
        if target_unit != unit and not is_public and not needs_no_stub:
            yield f"{module} -> {name}: the package's __init__.pyi does not list the name"


def find_long_functions(module: str, text: str) -> Iterator[str]:
    """Yields a message for each function in a module that exceeds `MAX_LINES`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node):
                docstring = node.body[0]
                num_lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
            name = f"{module}.{node.name}"
            if num_lines > MAX_LINES and name not in ALLOWED_LONG_FUNCTIONS:
                yield f"{name} has {num_lines} lines without its docstring"


def find_problems(texts: dict[str, str], stubs: dict[str, str]) -> Iterator[str]:
    """Yields a message for each violation of a rule.

    Args:
        texts: Texts of the modules, by dotted name.
        stubs: Texts of the stubs (`__init__.pyi`), by dotted name.
    """
    sources = Sources(texts, stubs)
    for name in sources.module_by_public_name.keys() & texts.keys():
        yield f"{name}: the module hides the public name that the stub lists"
    for module, text in texts.items():
        yield from find_import_problems(module, sources)
        yield from find_long_functions(module, text)
        for (
            module_pattern,
            in_functions,
            forbidden_packages,
            reason,
        ) in FORBIDDEN_IMPORTS:
            if re.fullmatch(module_pattern, module):
                for name, chain in sources.find_chains(module, in_functions).items():
                    if name.split(".")[0] in forbidden_packages.split():
                        yield f"{' -> '.join(chain)}: {reason}"
    graph = {
        module: {sources.find_definition(item.name) for item in items} - {module, None}
        for module, items in sources.imports.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"an import cycle: {' <- '.join(error.args[1])}"


def test_the_sources_follow_the_rules():
    texts = read_sources(ROOT, PACKAGES)
    assert {find_unit(module) for module in texts} == ALLOWED_IMPORTS.keys()
    assert "\n".join(find_problems(texts, read_sources(ROOT, PACKAGES, ".pyi"))) == ""


# Libraries that `import keras` loads; test_packaging checks that in a process. The import
# of safetensors takes one millisecond.
FAST_LIBRARIES = {"google", "h5py", "keras", "numpy", "tensorflow", "safetensors"}


def test_importing_the_public_names_loads_no_slow_library():
    sources = Sources(
        read_sources(ROOT, PACKAGES), read_sources(ROOT, PACKAGES, ".pyi")
    )
    modules = {
        module
        for name, module in sources.module_by_public_name.items()
        if name.rpartition(".")[0] == "keras_resnet"
    }
    assert {"keras_resnet.zoo", "keras_resnet.nets.cost"} <= modules
    names = {name for m in modules for name in sources.find_chains(m, False)}
    libraries = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert libraries == {"keras_resnet", *FAST_LIBRARIES}


# Stubs and modules of a small project that follows all rules.
STUBS = {
    "keras_resnet.__init__": "from .nets import fold as fold",
    "keras_resnet.data.__init__": "from .splits import Split as Split",
    "keras_resnet.nets.__init__": "from .folding import fold as fold",
    "export.device.__init__": "from .card import show as show",
}
SOURCES = {
    "keras_resnet.__init__": (
        "from keras_resnet.support.lazy_imports import get\n"
        "def f(): from keras_resnet.zoo import build"
    ),
    "keras_resnet.support.lazy_imports": "",
    "keras_resnet.support.program": "from absl import flags",
    "keras_resnet.spec.recipes": "import typing",
    "keras_resnet.nets.__init__": "from keras_resnet.support.lazy_imports import get",
    "keras_resnet.nets.blocks": "import keras",
    "keras_resnet.nets.folding": "from keras_resnet.nets.blocks import conv",
    "keras_resnet.zoo": "from keras_resnet.nets import fold",
    "keras_resnet.data.__init__": "",
    "keras_resnet.data.splits": "import tensorflow as tf",
    "keras_resnet.training.loop": (
        "from keras_resnet.data import Split\nfrom keras_resnet.zoo import build"
    ),
    "keras_resnet.train": (
        "from absl import flags\ndef f():\n    from keras_resnet.zoo import build"
    ),
    "keras_resnet.studies.width": (
        "from keras_resnet import data\ndef f(split: int): data.Split"
    ),
    "keras_resnet.studies.all": "from keras_resnet.studies import width",
    "export.device.card": "def f(): import rich",
    "export.verify": "from .device import show",
    "export.bundle": "from .verify import verify\nfrom keras_resnet.data import Split",
}


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("keras_resnet.data.splits", "def f(): from keras_resnet.zoo import build", "data must not import zoo"),
        ("keras_resnet.nets.blocks", "if TYPE_CHECKING: from keras_resnet.data import Split", "nets must not import data"),
        ("keras_resnet.training.loop", "from keras_resnet import train", "training must not import"),
        ("keras_resnet.evaluate", "from keras_resnet.train import f", "a command must not import"),
        ("keras_resnet.studies.depth", "from keras_resnet.studies import width", "studies must not import studies"),
        ("export.bundle", "from keras_resnet.training import loop", "export must not import training"),
        ("export.device.card", "from ..bundle import x", "export.device must not import export"),
        ("keras_resnet.nets.blocks", "from keras_resnet.nets.folding import fold", "an import cycle: keras_resnet.nets."),
        ("keras_resnet.training.loop", "from keras_resnet.data.splits import Split", "__init__.pyi does not list the name"),
        ("keras_resnet.training.loop", "from keras_resnet import nets\nnets.conv", "__init__.pyi does not list the name"),
        ("keras_resnet.zoo", "from keras_resnet.nets import conv", "__init__.pyi does not list the name"),
        ("keras_resnet.nets.folding", "from keras_resnet.nets.blocks import _conv", "the name is private"),
        ("keras_resnet.nets.blocks", "def f(): from tensorflow import nn", "every Keras backend"),
        ("keras_resnet.spec.recipes", "def f(): import keras", "settings need neither"),
        ("keras_resnet.support.lazy_imports", "import tensorflow", "nets.__init__ -> keras_resnet.support.lazy_imports -> tensorflow: networks"),
        ("export.verify", "from keras_resnet.nets import fold", "keras_resnet.nets.folding -> keras_resnet.nets.blocks -> keras: a device"),
        ("export.device.card", "import rich", "export.verify -> export.device.card -> rich: a device"),
        ("keras_resnet.train", "from keras_resnet.data import Split", "keras_resnet.data.splits -> tensorflow: --help"),
        ("keras_resnet.studies.width", "from keras_resnet import data\ndef f(x: data.Split): 0", "keras_resnet.data.splits -> tensorflow: --help"),
        ("keras_resnet.training.loop", "def f(): from absl import app, flags", "flags are process-wide"),
        ("keras_resnet.train", "from export import bundle", "only export may import export"),
        ("export.bundle", "from export import verify", "only export may import export"),
        ("export.device.show", "", "export.device.show: the module hides"),
        ("export.bundle", "def f():\n" + "    x()\n" * 70, "export.bundle.f has 71 lines"),
    ],
)  # fmt: skip
def test_a_violation_is_reported(module, source, message):
    assert not list(find_problems(SOURCES, STUBS))
    assert message in "\n".join(find_problems({**SOURCES, module: source}, STUBS))


# Folders whose modules must not have the names of libraries. `bazel run` and
# `python FOLDER/FILE.py` put FOLDER first on sys.path, so its modules hide libraries.
FOLDERS = (*PACKAGES, "tests", "benchmarks")
# Import names of libraries that a lock file lists under another name, and `datasets`,
# a name that some libraries import if it exists.
OTHER_LIBRARIES = {"IPython", "PIL", "absl", "datasets", "google", "sklearn"}


def find_name_clashes(modules, lock_text):
    """Returns the modules whose name is also the name of a library or standard module.

    Args:
        modules: Dotted names of modules.
        lock_text: Text of a lock file, which lists the libraries.
    """
    locked_names = re.findall(r"^([\w.-]+)==", lock_text, re.M)
    libraries = {name.replace("-", "_") for name in locked_names} | OTHER_LIBRARIES
    taken_names = sys.stdlib_module_names | libraries
    return {module for module in modules if module.split(".")[-1] in taken_names}


def test_no_module_has_the_name_of_a_library():
    lock_text = (ROOT / "requirements-dev.lock").read_text("utf-8")
    assert not find_name_clashes(read_sources(ROOT, FOLDERS), lock_text)


@pytest.mark.parametrize("name", ["types", "profile", "datasets", "keras", "absl"])
def test_a_module_with_the_name_of_a_library_is_reported(name):
    module = f"keras_resnet.{name}"
    modules = [module, "keras_resnet.data"]
    assert find_name_clashes(modules, "keras==3.15.1 \\\n") == {module}
