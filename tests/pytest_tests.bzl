"""Tests of pytest, by folder."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_tests(name, small = [], markers = {}, data = [], deps = []):
    """Declares a `py_test` for every file test_*.py in a folder.

    Deps and data are those of the folder, whose tests may import each other.

    Args:
        name: The folder. Each target has the name of its file.
        small: Names of the targets that end within a minute. `make bazel` runs them.
        markers: For a file whose tests all have a pytest marker that leaves them out
            unless they are asked for: the marker. Bazel runs the target only if it is
            named.
        data: Files that the tests read.
        deps: What they import, as far as ":helpers" does not bring it.
    """
    paths = {
        path.split("/")[-1][:-len(".py")]: path
        for path in native.glob([name + "/**/test_*.py"])
    }
    for test in small + list(markers):
        if test not in paths:
            fail("%s has no %s.py" % (name, test))
    for test, path in paths.items():
        marker = markers.get(test)
        py_test(
            name = test,
            size = "small" if test in small else "large",
            # A busy machine takes longer than the minute of a small test.
            timeout = "moderate" if test in small else "long",
            srcs = list(paths.values()) + ["run_pytest.py"],
            args = ["$(location %s)" % path] + (["-m", marker] if marker else []),
            data = data + ["//:pyproject.toml"],
            main = "run_pytest.py",
            tags = ["manual"] if marker else [],
            deps = deps + [
                ":helpers",
                "@pypi//pytest",
            ],
        )
