"""Import of a package's public names at first use.

A package's stub, `__init__.pyi`, lists its public names. The library `lazy_loader` is
not used, because a device that verifies a bundle may have only LiteRT and NumPy.
"""

import ast
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any


def attach_stub(
    package: str, make_object: Callable[[str], Any] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns the module attributes that import public names at first use.

    Keras and TensorFlow take seconds to import. With lazy imports a command prints its
    `--help`, or reports a mistyped flag, before they are imported.

    Args:
        package: The package's `__name__`. Its stub `__init__.pyi` imports each public
            name as itself: `from .module import name as name`.
        make_object: Function that returns the object with a given name. It is called
            for names that the stub only annotates (`name: Type`).

    Returns:
        Values for the package's `__getattr__`, `__dir__` and `__all__`.
    """
    stub = pkgutil.get_data(package, "__init__.pyi") or b""
    module_by_name: dict[str, str] = {}
    annotated_names: set[str] = set()
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom):
            # Names without `as` are not public. The stub uses them in annotations.
            module = f"{'.' * node.level}{node.module}"
            module_by_name.update({a.asname: module for a in node.names if a.asname})
        elif make_object and isinstance(node, ast.AnnAssign):
            annotated_names.add(ast.unparse(node.target))
    public_names = sorted({*module_by_name, *annotated_names} - {"__version__"})

    def import_name(name: str) -> Any:
        if make_object and name in annotated_names:
            return make_object(name)
        if name not in module_by_name:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(module_by_name[name], package), name)

    return import_name, lambda: public_names, public_names
