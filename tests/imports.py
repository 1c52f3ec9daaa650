"""The imports of a Python source, read without running it."""

import ast
import itertools
import typing

ON_IMPORT = "when it is imported"
IN_FUNCTION = "in a function"
AS_PROGRAM = "as a program"
FOR_TYPES = "for types"
_GUARDS = {"__name__ == '__main__'": AS_PROGRAM, "TYPE_CHECKING": FOR_TYPES}


class Import(typing.NamedTuple):
    name: str  # with what is taken from it: "keras_resnet.data.load_dataset"
    when: str
    relative: bool = False


def find_imports(source, module):
    """Yields an `Import` for every name that the source of `module` imports.

    A package's own source is the module `package.__init__`. What a test starts by
    `run_program("package.program")`, `run_child`, `Child` or
    `[..., "-m", "package.program"]` and what it skips for by `importorskip` is needed
    no less than what it imports; a program's name ends in `.__main__`.
    """
    package = module.split(".")[:-1]

    def visit(node, when):
        match node:
            case ast.Import():
                yield from (Import(alias.name, when) for alias in node.names)
            case ast.ImportFrom(level=level):
                # One dot is the package of the module, each further its parent.
                parents = package[: len(package) - level + 1] if level else []
                start = [*parents, *filter(None, [node.module])]
                for alias in node.names:
                    yield Import(".".join([*start, alias.name]), when, level > 0)
            case ast.Call(
                ast.Name("run_program" | "run_child" | "Child"),
                [ast.Constant(program), *_],
            ):
                yield Import(f"{program}.__main__", when)
            case ast.Call(ast.Attribute(attr="importorskip"), [ast.Constant(name), *_]):
                yield Import(name, when)
            case ast.List(items) | ast.Call(args=items):
                for flag, program in itertools.pairwise(items):
                    if ast.unparse(flag) == "'-m'" and isinstance(
                        program, ast.Constant
                    ):
                        yield Import(f"{program.value}.__main__", when)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                when = IN_FUNCTION if when == ON_IMPORT else when
            case ast.If():
                when = _GUARDS.get(ast.unparse(node.test), when)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, when)

    yield from visit(ast.parse(source), ON_IMPORT)


def read_sources(root, folders):
    """Returns the source of every module in these folders, by its dotted name."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text("utf-8")
        for folder in folders
        for path in sorted((root / folder).rglob("*.py"))
    }


def home(name, modules):
    """Returns which of the modules the imported name is or comes from, or None.

    What comes from the package itself is from its `__init__`.
    """
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        for module in (prefix, f"{prefix}.__init__"):
            if module in modules:
                return module
    return None
