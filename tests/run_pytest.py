"""Runs pytest on the files in its arguments, as the main file of Bazel's test rules.

Bazel runs a Python file and checks its exit status. Running a file of test functions
directly would call none of them and always succeed.
"""

import os
import sys

import pytest

if __name__ == "__main__":
    # npm and matplotlib write caches, but the home folder is read-only in Bazel's sandbox.
    if "TEST_TMPDIR" in os.environ:
        os.environ["HOME"] = os.environ["TEST_TMPDIR"]
    # `bazel run` sets this variable. Commands that the tests start would change to the
    # folder in it.
    os.environ.pop("BUILD_WORKING_DIRECTORY", None)
    # If a file contains no tests, pytest returns status 5, which Bazel counts as a failure.
    # The cache is disabled because Bazel's folders are read-only.
    sys.exit(pytest.main([*sys.argv[1:], "-p", "no:cacheprovider"]))
