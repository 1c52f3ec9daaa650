"""A test rule for files of pytest."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_test(name, srcs, deps = [], data = [], marker = None, tags = [], **kwargs):
    """Declares a `py_test` that runs pytest on `srcs`.

    Args:
        name: of the target.
        srcs: files of tests.
        deps: what they import, without pytest and conftest, which every test has.
        data: files that they read, without pyproject.toml, which every test has.
        marker: of pytest, where it leaves out all tests of the file unless asked for
            them by their marker. Then Bazel runs it only if it is named, too.
        tags: as of `py_test`.
        **kwargs: as of `py_test`.
    """
    args = ["$(location %s)" % src for src in srcs]
    py_test(
        name = name,
        srcs = srcs + ["run_pytest.py"],
        args = args + (["-m", marker] if marker else []),
        data = data + ["//:pyproject.toml"],
        main = "run_pytest.py",
        tags = tags + (["manual"] if marker else []),
        deps = deps + [
            ":conftest",
            "@pypi//pytest",
        ],
        **kwargs
    )
