"""Imports point one way: DESIGN.md's rules, read from the sources."""
# ruff: noqa: E501 (the table of rules)

import pathlib
import re
import sys
import typing

import pytest
from imports import ON_IMPORT, find_imports, home, read_sources

ROOT = pathlib.Path(__file__).parents[2]

# How far a rule looks.
DIRECTLY = "directly"
BY_FULL_NAME = "directly, by its full name"
ON_IMPORT_ONLY = "when it is imported, by way of others too"
AT_ALL = "anywhere, by way of others too"


class Rule(typing.NamedTuple):
    who: str
    how: str
    never: str
    why: str
    unless: str = ""


# A name that begins with a dot is a module of keras_resnet, as in ".resnet".
# fmt: off
MODELS = ".variants .blocks .resnet .weights .weight_files .layouts .registry .complexity .training .classifiers"
PROGRAMS = ".train .evaluate .predict .convert .runs .studies.all"
STUDIES = ".studies.complexity .studies.degradation .studies.shortcuts .studies.gradients .studies.responses .studies.identity .studies.lesion .studies.schedule .studies.overfitting"
RULES = [
    Rule(".variants .blocks .resnet .complexity .layouts .registry .weights .weight_files", AT_ALL, "tensorflow", "a model builds on every Keras backend"),
    Rule(".weights .weight_files .layouts .registry", AT_ALL, ".resnet", "they act on a model that they are given"),
    Rule(".complexity", ON_IMPORT_ONLY, ".resnet absl", "only as a program it builds networks and has flags"),
    Rule(".resnet", ON_IMPORT_ONLY, ".weights", "weights are loaded only when they are asked for"),
    Rule(".data .preprocessing .recipes .strategies", AT_ALL, MODELS, "data and devices know nothing of models"),
    Rule(f".__init__ {PROGRAMS} {STUDIES} .complexity export.__main__", ON_IMPORT_ONLY, "keras tensorflow", "help and a mistyped flag are answered at once"),
    Rule("*", DIRECTLY, PROGRAMS, "programs are on top"),
    Rule("*", DIRECTLY, "absl.flags", "flags are process-wide: only programs own them", unless=f"{PROGRAMS} .programs .studies.program .complexity export.__main__"),
    Rule("*", DIRECTLY, STUDIES, "a study stands alone; what several need is beside them", unless=".studies.all"),
    Rule(".*", DIRECTLY, ".studies.*", "studies stand on the rest", unless=".studies.*"),
    Rule(".*", AT_ALL, "export keras_resnet_export", "export stands on keras_resnet"),
    Rule("export.verify export.latency export.runtimes", ON_IMPORT_ONLY, "keras tensorflow absl matplotlib", "a device checks and times a bundle with LiteRT and NumPy alone"),
    Rule("export.*", BY_FULL_NAME, "export keras_resnet_export", "in a wheel the folder has another name"),
]
# fmt: on


def full(names):
    return [f"keras_resnet{n}" if n.startswith(".") else n for n in names.split()]


def within(name, outers):
    """Whether a dotted name is one of these, or in one; `*` stands for anything."""
    return any(
        outer == "*" or f"{name}.".startswith(f"{outer.removesuffix('.*')}.")
        for outer in outers
    )


def chains(module, how, graph):
    """Returns how `module` comes to each name that it imports: a list of names."""
    found, queue = {}, [[module]]
    while queue:
        chain = queue.pop(0)
        for item in graph[chain[-1]]:
            if how == BY_FULL_NAME and item.relative:
                continue
            if how == ON_IMPORT_ONLY and item.when != ON_IMPORT:
                continue
            if item.name not in found:
                found[item.name] = [*chain, item.name]
                next_module = home(item.name, graph)
                if how in (ON_IMPORT_ONLY, AT_ALL) and next_module:
                    queue.append([*chain, next_module])
    return found


def violations(sources):
    graph = {name: list(find_imports(text, name)) for name, text in sources.items()}
    return [
        f"{' -> '.join(chain)}: {rule.why} ({rule.how})"
        for rule in RULES
        for module in graph
        if within(module, full(rule.who)) and not within(module, full(rule.unless))
        for name, chain in chains(module, rule.how, graph).items()
        if within(name, full(rule.never))
    ]


def test_imports_point_one_way():
    assert "\n".join(violations(read_sources(ROOT, ["keras_resnet", "export"]))) == ""


def test_the_rules_name_modules_that_exist():
    modules = read_sources(ROOT, ["keras_resnet", "export"])
    named = {n for r in RULES for n in full(f"{r.who} {r.never} {r.unless}")}
    ours = {n for n in named if n.startswith(("keras_resnet.", "export."))}
    assert (
        ours - {"keras_resnet.*", "keras_resnet.studies.*", "export.*"}
        <= modules.keys()
    )


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("keras_resnet.blocks", "import tensorflow as tf", "every Keras backend"),
        ("keras_resnet.blocks", "def f(): from tensorflow import nn", "backend"),
        ("keras_resnet.blocks", "from keras_resnet import data", "blocks -> keras_resnet.data"),
        ("keras_resnet.weights", "def f(): from .resnet import ResNet", "are given"),
        ("keras_resnet.weights", "from keras_resnet import ResNet", "are given"),
        ("keras_resnet.complexity", "from keras_resnet.resnet import ResNet", "only as a program"),
        ("keras_resnet.complexity", "from absl import flags", "only as a program"),
        ("keras_resnet.resnet", "try: from keras_resnet import weights\nfinally: 0", "asked for"),
        ("keras_resnet.recipes", "from keras_resnet import variants", "nothing of models"),
        ("keras_resnet.train", "from keras_resnet.blocks import conv_bn", "at once"),
        ("keras_resnet.run_folders", "import keras_resnet.train", "programs are on top"),
        ("keras_resnet.reports", "def f(): from absl import app, flags", "process-wide"),
        ("keras_resnet.studies.width", "from .. import predict", "programs are on top"),
        ("keras_resnet.runs", "if TYPE_CHECKING: from export import card", "stands on"),
        ("keras_resnet.runs", "import keras_resnet_export", "stands on"),
        ("export.bundle", "from export import card", "another name"),
    ],
)  # fmt: skip
def test_a_forbidden_import_is_found(module, source, word):
    allowed = {
        "keras_resnet.__init__": (
            "if TYPE_CHECKING:\n    from keras_resnet.resnet import ResNet"
        ),
        "keras_resnet.blocks": "import keras",
        "keras_resnet.complexity": (
            "def main():\n    from absl import flags\n    from keras_resnet import resnet"
        ),
        "keras_resnet.data": "import tensorflow as tf",
        "keras_resnet.resnet": (
            "from keras_resnet import blocks\ndef f(): from . import weights"
        ),
        "keras_resnet.train": "from absl import flags",
        "keras_resnet.weights": "import keras",
        "export.bundle": "from . import card\nfrom keras_resnet import data",
        "export.card": "import numpy",
    }
    assert not violations(allowed)
    assert word in "\n".join(violations({**allowed, module: source}))


# `bazel run` and `python FOLDER/FILE.py` put the file's folder first on sys.path: a
# module in it that is named like a library hides the library from everybody.
FOLDERS = ("keras_resnet", "export", "tests", "benchmarks")
# Libraries under another name than their distribution's, and one that others try.
LIBRARIES = {"IPython", "PIL", "absl", "datasets", "google", "sklearn"}


def clashes(modules, lock):
    locked = re.findall(r"^([\w.-]+)==", lock, re.M)
    libraries = {name.replace("-", "_") for name in locked} | LIBRARIES
    taken = sys.stdlib_module_names | libraries
    return {module for module in modules if module.split(".")[-1] in taken}


def test_no_module_is_named_like_a_library():
    lock = (ROOT / "requirements-dev.lock").read_text("utf-8")
    assert not clashes(read_sources(ROOT, FOLDERS), lock)


@pytest.mark.parametrize("name", ["types", "profile", "datasets", "keras", "absl"])
def test_a_name_like_a_library_s_is_found(name):
    module = f"keras_resnet.{name}"
    assert clashes([module, "keras_resnet.data"], "keras==3.15.1 \\\n") == {module}
