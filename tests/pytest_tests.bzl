"""Macro that declares Bazel targets for pytest files."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_tests(name, small = [], markers = {}, data = [], deps = []):
    """Declares a `py_test` for every file test_*.py in a folder.

    All targets of a folder have the same `data` and `deps`, because the test files may
    import each other.

    Args:
        name: Path of the folder. Each target is named after its file.
        small: Names of the targets that finish within a minute. `make bazel` runs them.
        markers: Dict from targets to pytest markers, for files in which all tests have a
            marker that pytest deselects by default. Bazel runs such a target only if it
            is named explicitly.
        data: Files that the tests read.
        deps: Libraries that the tests import and that ":helpers" does not depend on.
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
            # By default, small tests time out after one minute, too early on a busy machine.
            timeout = "moderate" if test in small else "long",
            srcs = list(paths.values()) + ["run_pytest.py"],
            args = ["$(location %s)" % path] + (["-m", marker] if marker else []),
            data = data + ["//:pyproject.toml"],
            main = "run_pytest.py",
            tags = ["manual"] if marker else [],
            deps = deps + [
                ":helpers",
                "@pypi//hypothesis",
                "@pypi//pytest",
            ],
        )
