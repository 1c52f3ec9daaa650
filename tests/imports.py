"""The imports of a Python source, read without running it."""

import ast
import functools
import itertools
import pathlib
from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

ON_IMPORT = "when it is imported"
IN_FUNCTION = "in a function"
AS_PROGRAM = "as a program"
FOR_TYPES = "for types"
_GUARDS = {"__name__ == '__main__'": AS_PROGRAM, "TYPE_CHECKING": FOR_TYPES}


class Import(NamedTuple):
    """One imported name.

    Attributes:
        name: The full name, such as `"keras_resnet.data.load_dataset"`.
        when: `ON_IMPORT`, `IN_FUNCTION`, `AS_PROGRAM` or `FOR_TYPES`.
        relative: Whether the import is written with leading dots.
    """

    name: str
    when: str
    relative: bool = False


@functools.cache
def find_imports(source: str, module: str) -> tuple[Import, ...]:
    """Returns an `Import` for every name that the source of `module` imports.

    A name that is taken from an imported one, as `lib.draw` is after
    `from package import lib`, counts as an imported name too.

    A package's own source is the module `package.__init__`. What a test starts by
    `run_program("package.program")`, `run_child`, `Child` or
    `[..., "-m", "package.program"]` and what it skips for by `importorskip` is needed
    no less than what it imports; a program's name ends in `.__main__`.
    """
    package = module.split(".")[:-1]
    aliases: dict[str, Import] = {}

    def visit(node: ast.AST, when: str) -> Iterator[Import]:
        children = [*ast.iter_child_nodes(node)]
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, when)
            case ast.ImportFrom(level=level):
                # One dot is the package of the module, each further one its parent.
                parents = package[: len(package) - level + 1] if level else []
                start = [*parents, *filter(None, [node.module])]
                for alias in node.names:
                    item = Import(".".join([*start, alias.name]), when, level > 0)
                    aliases[alias.asname or alias.name] = item
                    yield item
            case ast.Attribute(ast.Name(name), attribute) if name in aliases:
                yield aliases[name]._replace(
                    name=f"{aliases[name].name}.{attribute}", when=when
                )
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                body = node.body if isinstance(node.body, list) else [node.body]
                for child in children:
                    # Types, defaults and decorators are evaluated outside.
                    deferred = child in body and when == ON_IMPORT
                    yield from visit(child, IN_FUNCTION if deferred else when)
                return
            case ast.If():
                when = _GUARDS.get(ast.unparse(node.test), when)
        yield from (Import(name, when) for name in _started(node))
        for child in children:
            yield from visit(child, when)

    return tuple(visit(ast.parse(source), ON_IMPORT))


def _started(node: ast.AST) -> Iterator[str]:
    """Yields what a call or a list of arguments starts or skips for."""
    match node:
        case ast.Call(
            ast.Name("run_program" | "run_child" | "Child"), [ast.Constant(program), *_]
        ):
            yield f"{program}.__main__"
        case ast.Call(ast.Attribute(attr="importorskip"), [ast.Constant(name), *_]):
            yield str(name)
        case ast.List(items) | ast.Call(args=items):
            for pair in itertools.pairwise(items):
                match pair:
                    case ast.Constant("-m"), ast.Constant(program):
                        yield f"{program}.__main__"


def read_sources(
    root: pathlib.Path, folders: tuple[str, ...], ending: str = ".py"
) -> dict[str, str]:
    """Returns the source of every module in these folders, by its dotted name."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text("utf-8")
        for folder in folders
        for path in sorted((root / folder).rglob(f"*{ending}"))
    }


def read_doors(stubs: dict[str, str], modules: Container[str]) -> dict[str, str]:
    """Returns the module behind every name that a package's stub lists.

    `keras_resnet.nets.fold` is in `keras_resnet.nets.folding`, for example.
    """
    listed = {
        f"{stub.removesuffix('__init__')}{item.name.rpartition('.')[2]}": item.name
        for stub, text in stubs.items()
        for item in find_imports(text, stub)
    }

    def follow(name: str) -> str:
        # The stub of keras_resnet names what the doors of its rooms list.
        return follow(listed[name]) if name in listed else home(name, modules) or name

    return {name: follow(name) for name in listed}


def home(
    name: str, modules: Container[str], doors: Mapping[str, str] = MappingProxyType({})
) -> str | None:
    """Returns which of the modules the imported name is or comes from, or `None`.

    What comes from a package itself is from its `__init__`, unless it is one of the names
    that `read_doors` returned.
    """
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        if prefix in doors:
            return doors[prefix]
        for module in (prefix, f"{prefix}.__init__"):
            if module in modules:
                return module
    return None
