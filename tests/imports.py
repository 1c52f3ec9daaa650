"""Static analysis of the imports in Python sources."""

import ast
import functools
import itertools
import pathlib
from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

ON_IMPORT = "when it is imported"
IN_FUNCTION = "in a function"
AS_COMMAND = "as a command"
FOR_TYPES = "for types"
_CONDITION_BY_TEST = {"__name__ == '__main__'": AS_COMMAND, "TYPE_CHECKING": FOR_TYPES}


class Import(NamedTuple):
    """An imported name.

    Attributes:
        name: Full name, such as `"keras_resnet.data.load_dataset"`.
        condition: When the import statement runs: `ON_IMPORT`, `IN_FUNCTION`, `AS_COMMAND`
            or `FOR_TYPES`.
        is_relative: Whether the import statement has leading dots.
    """

    name: str
    condition: str
    is_relative: bool = False


@functools.cache
def find_imports(source: str, module: str) -> tuple[Import, ...]:
    """Returns an `Import` for every name that the source of a module imports.

    Attributes of imported names count as imports too, such as `lib.draw` after
    `from package import lib`, and so do arguments of `importorskip`.

    A command that a test runs with `run_program("package.command")`, `run_child`,
    `Child` or `[..., "-m", "package.command"]` counts as an import of
    `package.command.__main__`.

    Args:
        source: Text of the module.
        module: Dotted name of the module; `package.__init__` for a package.
    """
    package = module.split(".")[:-1]
    aliases: dict[str, Import] = {}

    def visit(node: ast.AST, condition: str) -> Iterator[Import]:
        children = [*ast.iter_child_nodes(node)]
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, condition)
            case ast.ImportFrom(level=level):
                # One dot stands for the module's package, and two dots for its parent.
                parents = package[: len(package) - level + 1] if level else []
                prefix = [*parents, *filter(None, [node.module])]
                for alias in node.names:
                    item = Import(".".join([*prefix, alias.name]), condition, level > 0)
                    aliases[alias.asname or alias.name] = item
                    yield item
            case ast.Attribute(ast.Name(name), attribute) if name in aliases:
                yield aliases[name]._replace(
                    name=f"{aliases[name].name}.{attribute}", condition=condition
                )
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                body = node.body if isinstance(node.body, list) else [node.body]
                for child in children:
                    # Annotations, defaults and decorators run with the `def` statement.
                    is_deferred = child in body and condition == ON_IMPORT
                    yield from visit(child, IN_FUNCTION if is_deferred else condition)
                return
            case ast.If():
                condition = _CONDITION_BY_TEST.get(ast.unparse(node.test), condition)
        yield from (Import(name, condition) for name in _find_started_modules(node))
        for child in children:
            yield from visit(child, condition)

    return tuple(visit(ast.parse(source), ON_IMPORT))


def _find_started_modules(node: ast.AST) -> Iterator[str]:
    """Yields the modules that a node of a test runs or passes to `importorskip`."""
    match node:
        case ast.Call(
            ast.Name("run_program" | "run_child" | "Child"), [ast.Constant(command), *_]
        ):
            yield f"{command}.__main__"
        case ast.Call(ast.Attribute(attr="importorskip"), [ast.Constant(name), *_]):
            yield str(name)
        case ast.List(items) | ast.Call(args=items):
            for pair in itertools.pairwise(items):
                match pair:
                    case ast.Constant("-m"), ast.Constant(command):
                        yield f"{command}.__main__"


def read_sources(
    root: pathlib.Path, folders: tuple[str, ...], suffix: str = ".py"
) -> dict[str, str]:
    """Returns the texts of the modules in some folders, by dotted name."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text("utf-8")
        for folder in folders
        for path in sorted((root / folder).rglob(f"*{suffix}"))
    }


def resolve_public_names(
    stubs: dict[str, str], modules: Container[str]
) -> dict[str, str]:
    """Returns a dict from public names to the modules that define the names.

    For example, `keras_resnet.nets.fold` is defined in `keras_resnet.nets.folding`.

    Args:
        stubs: Texts of the stubs (`__init__.pyi`), by dotted name.
        modules: Dotted names of all modules.
    """
    import_by_public_name = {
        f"{stub.removesuffix('__init__')}{item.name.rpartition('.')[2]}": item.name
        for stub, text in stubs.items()
        for item in find_imports(text, stub)
    }

    def follow(name: str) -> str:
        # keras_resnet imports public names from subpackages, where they are public too.
        return (
            follow(import_by_public_name[name])
            if name in import_by_public_name
            else find_module(name, modules) or name
        )

    return {name: follow(name) for name in import_by_public_name}


def find_module(
    name: str,
    modules: Container[str],
    module_by_public_name: Mapping[str, str] = MappingProxyType({}),
) -> str | None:
    """Returns the module that defines a name, or `None` for a name of a library.

    Args:
        name: Full name of a module or of an object in it.
        modules: Dotted names of all modules.
        module_by_public_name: Result of `resolve_public_names`. All other names of a
            package are assumed to be defined in the package's `__init__`.
    """
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        if prefix in module_by_public_name:
            return module_by_public_name[prefix]
        for module in (prefix, f"{prefix}.__init__"):
            if module in modules:
                return module
    return None
