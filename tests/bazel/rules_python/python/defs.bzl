"""Substitute for rules_python that uses the built-in rules of Bazel 4."""

_RUN_MODULE = Label("//python:run_module.py")

def py_binary(name, srcs, main_module = None, **kwargs):
    """Declares a command.

    Args:
        name: Name of the target.
        srcs: Source files of the target.
        main_module: Module to run as `python -m` does. Default: a source file is run.
        **kwargs: Other attributes of the built-in rule.
    """
    if main_module:
        kwargs.update(args = [main_module], main = _RUN_MODULE)
        srcs = srcs + [_RUN_MODULE]
    native.py_binary(name = name, srcs = srcs, **kwargs)  # buildifier: disable=native-py

py_library = native.py_library
py_test = native.py_test
