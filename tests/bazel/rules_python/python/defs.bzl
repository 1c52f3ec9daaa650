"""Stand-in for rules_python: the rules of a Bazel that has them built in."""

_RUN_MODULE = Label("//python:run_module.py")

def py_binary(name, srcs, main_module = None, **kwargs):
    """Declares a program.

    Args:
        name: of the target.
        srcs: its sources.
        main_module: what to run as `python -m` does, if not a file.
        **kwargs: as of the built-in rule.
    """
    if main_module:
        kwargs.update(args = [main_module], main = _RUN_MODULE)
        srcs = srcs + [_RUN_MODULE]
    native.py_binary(name = name, srcs = srcs, **kwargs)  # buildifier: disable=native-py

py_library = native.py_library
py_test = native.py_test
