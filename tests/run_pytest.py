"""Runs pytest with the command-line arguments. Bazel's test targets run this file.

Bazel can only run a Python file and check its exit status. If it ran a test file
directly, no test function would be called and the target would always pass.
"""

import os
import sys

import pytest

if __name__ == "__main__":
    # npm and matplotlib write caches, but the home folder is read-only in Bazel's sandbox.
    if "TEST_TMPDIR" in os.environ:
        os.environ["HOME"] = os.environ["TEST_TMPDIR"]
    # `bazel run` stores the user's folder in this variable. The variable is removed,
    # because commands that the tests start would change to that folder.
    os.environ.pop("BUILD_WORKING_DIRECTORY", None)
    # If a file contains no tests, pytest exits with status 5, so the target fails. The
    # cache is disabled because Bazel's folders are read-only.
    sys.exit(pytest.main([*sys.argv[1:], "-p", "no:cacheprovider"]))
