"""The front door of a room: names that its stub lists, imported at first use.

`lazy_loader.attach_stub` does the same. It is not used because a device that
verifies a bundle has LiteRT and NumPy alone.
"""

import ast
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any


def open_front_door(
    package: str, make: Callable[[str], Any] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Makes what a package's `__init__.py` needs to import its names at first use.

    Keras and TensorFlow take seconds to import. A command that names only what
    it uses answers `--help` and a mistyped flag before that.

    Args:
        package: The package's `__name__`. The stub `__init__.pyi` in it lists the
            public names.
        make: Function that makes what the stub only annotates, from its name.

    Returns:
        The package's `__getattr__`, `__dir__` and `__all__`.
    """
    stub = pkgutil.get_data(package, "__init__.pyi") or b""
    homes: dict[str, str] = {}  # The module of each name.
    made: set[str] = set()
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            # Imports without `as` are only for the stub's own annotations.
            module = f"{'.' * node.level}{node.module}"
            homes.update({a.asname: module for a in node.names if a.asname})
        elif make and isinstance(node, ast.AnnAssign):
            made.add(ast.unparse(node.target))
    names = sorted({*homes, *made} - {"__version__"})

    def get(name: str) -> Any:
        if make and name in made:
            return make(name)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name], package), name)

    return get, lambda: names, names
