"""DESIGN.md's rules on rooms, imports, names and sizes, checked in the sources."""
# ruff: noqa: E501 (the tables)

import ast
import graphlib
import pathlib
import re
import sys
from collections.abc import Iterator

import pytest
from imports import ON_IMPORT, find_imports, home, read_doors, read_sources

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("keras_resnet", "export")

# The rooms, and what each may import beside itself. A module of its own, such as a
# command or zoo, is a room too.
NETS = {"support", "spec", "nets", "weights", "zoo"}
LIBRARY = NETS | {"data", "distribution", "evaluation", "training"}
STUDIES = LIBRARY | {"studies.lib"}
EXPORTED = LIBRARY - {"distribution", "training"} | {"export.device"}
ROOMS = {
    "support": set(),
    "spec": {"support"},
    "nets": {"support", "spec"},
    "weights": {"support", "spec", "nets"},
    "zoo": {"support", "spec", "nets", "weights"},
    "data": {"support", "spec"},
    "distribution": {"support", "spec"},
    "evaluation": NETS | {"data", "distribution"},
    "training": LIBRARY,
    "studies.lib": LIBRARY,
    "studies.all": STUDIES | {"studies"},
    "studies": STUDIES,
    "export.device": {"support", "spec"},
    "export.formats": EXPORTED,
    "export.quantization": EXPORTED | {"export.formats"},
    "export": EXPORTED | {"export.formats", "export.quantization"},
    "": LIBRARY,  # the commands, and the public names
}

COMMANDS = r"keras_resnet\.(?!zoo$)\w+|keras_resnet\.studies\.\w+|export\.__main__"
DEVICE = r"export\.(device\..+|verify|latency)"
# Modules, whether a call of theirs counts as well, what they must not import and why.
NEVER = [
    (r"keras_resnet\.(nets\..+|weights\..+|zoo)", True, "tensorflow", "a network builds on every Keras backend"),
    (r"keras_resnet\.spec\..+", True, "keras tensorflow", "choices need neither"),
    (DEVICE, False, "keras tensorflow absl matplotlib rich", "a device has LiteRT and NumPy alone"),
    (COMMANDS, False, "keras tensorflow", "help and a mistyped flag are answered at once"),
]  # fmt: skip
FLAGS = rf"{COMMANDS}|keras_resnet\.(support|studies\.lib)\.program"

FRONT_DOOR = "keras_resnet.support.front_door"
LONGEST = 70  # lines of a function, without its docstring
LONGER: dict[str, str] = {}  # module.function: the reason why it is longer


def room_of(module: str) -> str:
    """Returns the room of a module, a key of `ROOMS`."""
    name = module.removeprefix("keras_resnet.")
    return max(
        (r for r in ROOMS if f"{name}.".startswith(f"{r}.")), key=len, default=""
    )


class Sources:
    """The sources of the packages, and what each module imports."""

    def __init__(self, sources: dict[str, str], stubs: dict[str, str]) -> None:
        self.texts = sources
        self.imports = {m: find_imports(t, m) for m, t in sources.items()}
        self.doors = read_doors(stubs, sources)
        # A room as a whole; what is taken from it counts as an import as well.
        self.rooms = {stub.removesuffix(".__init__") for stub in stubs}

    def target(self, name: str) -> str | None:
        """Returns the module that an imported name comes from, if it is ours."""
        return home(name, self.texts, self.doors)

    def chains(self, module: str, in_functions: bool) -> dict[str, list[str]]:
        """Returns how a module comes to each name that it imports, by way of others."""
        chains: dict[str, list[str]] = {}
        queue = [[module]]
        while queue:
            chain = queue.pop(0)
            # An import runs the packages around the module, but none of their
            # functions: those import the public names at first use.
            functions = in_functions and not chain[-1].endswith(".__init__")
            items = self.imports[chain[-1]]
            names = [i.name for i in items if functions or i.when == ON_IMPORT]
            around = chain[-1].split(".")[:-1]
            names += [
                ".".join([*around[: n + 1], "__init__"]) for n in range(len(around))
            ]
            for name in names:
                if name not in chains:
                    chains[name] = [*chain, name]
                    if target := self.target(name):
                        queue.append([*chain, target])
        return chains


def import_problems(module: str, sources: Sources) -> Iterator[str]:
    """Yields what is wrong with single imports of a module."""
    room = room_of(module)
    for item in sources.imports[module]:
        name, package = item.name, item.name.split(".")[0]
        if f"{name}.".startswith("absl.flags.") and not re.fullmatch(FLAGS, module):
            yield f"{module} -> {name}: flags are process-wide, only commands own them"
        if package in ("export", "keras_resnet_export") and not (
            item.relative and module.startswith("export.")
        ):
            yield f"{module} -> {name}: export is imported relatively and by itself only"
        if package not in PACKAGES:
            continue
        if re.match("_[^_]", name.split(".")[-1]):
            yield f"{module} -> {name}: the name is private"
        target = sources.target(name) or ""
        other = room_of(target)
        on_top = other in ("", "studies") and target != module
        if other not in ROOMS[room] and (on_top or other != room):
            yield f"{module} -> {name}: {room or 'a command'} does not stand on {other}"
        by_door = target != home(name, sources.texts) or name in sources.rooms
        is_door = target in ("keras_resnet.zoo", FRONT_DOOR) or on_top
        if other != room and not by_door and not is_door:
            yield f"{module} -> {name}: no name that the room's __init__.pyi lists"


def long_functions(module: str, text: str) -> Iterator[str]:
    """Yields the functions that are too long."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node):
                docstring = node.body[0]
                lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
            name = f"{module}.{node.name}"
            if lines > LONGEST and name not in LONGER:
                yield f"{name} has {lines} lines without its docstring"


def problems(texts: dict[str, str], stubs: dict[str, str]) -> Iterator[str]:
    """Yields a line for everything that breaks a rule."""
    sources = Sources(texts, stubs)
    for name in sources.doors.keys() & texts.keys():
        yield f"{name}: the module of that name hides what the front door lists"
    for module, text in texts.items():
        yield from import_problems(module, sources)
        yield from long_functions(module, text)
        for who, in_functions, names, why in NEVER:
            if re.fullmatch(who, module):
                for name, chain in sources.chains(module, in_functions).items():
                    if name.split(".")[0] in names.split():
                        yield f"{' -> '.join(chain)}: {why}"
    graph = {
        module: {sources.target(item.name) for item in items} - {module, None}
        for module, items in sources.imports.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"a circle: {' <- '.join(error.args[1])}"


def test_the_sources_keep_the_rules():
    texts = read_sources(ROOT, PACKAGES)
    assert {room_of(module) for module in texts} == ROOMS.keys()
    assert "\n".join(problems(texts, read_sources(ROOT, PACKAGES, ".pyi"))) == ""


STUBS = {
    "keras_resnet.__init__": "from .nets import fold as fold",
    "keras_resnet.data.__init__": "from .splits import Split as Split",
    "keras_resnet.nets.__init__": "from .folding import fold as fold",
    "export.device.__init__": "from .card import show as show",
}
RIGHT = {
    "keras_resnet.__init__": (
        "from keras_resnet.support.front_door import get\n"
        "def f(): from keras_resnet.zoo import build"
    ),
    "keras_resnet.support.front_door": "",
    "keras_resnet.support.program": "from absl import flags",
    "keras_resnet.spec.recipes": "import typing",
    "keras_resnet.nets.__init__": "from keras_resnet.support.front_door import get",
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
        ("keras_resnet.data.splits", "def f(): from keras_resnet.zoo import build", "data does not stand on zoo"),
        ("keras_resnet.nets.blocks", "if TYPE_CHECKING: from keras_resnet.data import Split", "nets does not stand on data"),
        ("keras_resnet.training.loop", "from keras_resnet import train", "training does not stand on"),
        ("keras_resnet.evaluate", "from keras_resnet.train import f", "a command does not stand on"),
        ("keras_resnet.studies.depth", "from keras_resnet.studies import width", "studies does not stand on studies"),
        ("export.bundle", "from keras_resnet.training import loop", "export does not stand on training"),
        ("export.device.card", "from ..bundle import x", "export.device does not stand on export"),
        ("keras_resnet.nets.blocks", "from keras_resnet.nets.folding import fold", "a circle: keras_resnet.nets."),
        ("keras_resnet.training.loop", "from keras_resnet.data.splits import Split", "no name that the room's"),
        ("keras_resnet.training.loop", "from keras_resnet import nets\nnets.conv", "no name that the room's"),
        ("keras_resnet.zoo", "from keras_resnet.nets import conv", "no name that the room's"),
        ("keras_resnet.nets.folding", "from keras_resnet.nets.blocks import _conv", "the name is private"),
        ("keras_resnet.nets.blocks", "def f(): from tensorflow import nn", "every Keras backend"),
        ("keras_resnet.spec.recipes", "def f(): import keras", "choices need neither"),
        ("keras_resnet.support.front_door", "import tensorflow", "nets.__init__ -> keras_resnet.support.front_door -> tensorflow: a network"),
        ("export.verify", "from keras_resnet.nets import fold", "keras_resnet.nets.folding -> keras_resnet.nets.blocks -> keras: a device"),
        ("export.device.card", "import rich", "export.verify -> export.device.card -> rich: a device"),
        ("keras_resnet.train", "from keras_resnet.data import Split", "keras_resnet.data.splits -> tensorflow: help"),
        ("keras_resnet.studies.width", "from keras_resnet import data\ndef f(x: data.Split): 0", "keras_resnet.data.splits -> tensorflow: help"),
        ("keras_resnet.training.loop", "def f(): from absl import app, flags", "flags are process-wide"),
        ("keras_resnet.train", "from export import bundle", "relatively and by itself only"),
        ("export.bundle", "from export import verify", "relatively and by itself only"),
        ("export.device.show", "", "export.device.show: the module of that name hides"),
        ("export.bundle", "def f():\n" + "    x()\n" * 70, "export.bundle.f has 71 lines"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_found(module, source, message):
    assert not list(problems(RIGHT, STUBS))
    assert message in "\n".join(problems({**RIGHT, module: source}, STUBS))


# `bazel run` and `python FOLDER/FILE.py` put the file's folder first on sys.path: a
# module in it that is named like a library hides the library from everybody.
FOLDERS = (*PACKAGES, "tests", "benchmarks")
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
