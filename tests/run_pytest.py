"""Runs pytest on the files that it is given: what a test rule in BUILD starts.

Bazel starts a file and looks at its exit status; a file of test functions, started
by itself, runs none of them and passes.
"""

import os
import sys

import pytest

if __name__ == "__main__":
    # In Bazel's sandbox one's home can only be read; npm and matplotlib keep caches.
    if "TEST_TMPDIR" in os.environ:
        os.environ["HOME"] = os.environ["TEST_TMPDIR"]
    # Of `bazel run`; the programs that tests start are to stay in their own folders.
    os.environ.pop("BUILD_WORKING_DIRECTORY", None)
    # Status 5, which fails as well, is pytest's when it has found no test. There is no
    # cache in Bazel's folders, which cannot be written.
    sys.exit(pytest.main([*sys.argv[1:], "-p", "no:cacheprovider"]))
