"""A test rule for files of pytest."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_test(name, srcs, deps = [], data = [], **kwargs):
    """Declares a `py_test` that runs pytest on `srcs`.

    Args:
        name: of the target.
        srcs: files of tests.
        deps: what they import, without pytest and conftest, which every test has.
        data: files that they read, without pyproject.toml, which every test has.
        **kwargs: as of `py_test`.
    """
    py_test(
        name = name,
        srcs = srcs + ["run_pytest.py"],
        args = ["$(location %s)" % src for src in srcs],
        data = data + ["//:pyproject.toml"],
        main = "run_pytest.py",
        deps = deps + [
            ":conftest",
            "@pypi//pytest",
        ],
        **kwargs
    )
