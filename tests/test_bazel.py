"""Bazel on a copy of the checkout, whole and broken on purpose; `make bazel`."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = [
    pytest.mark.bazel,
    pytest.mark.skipif("TEST_SRCDIR" in os.environ, reason="this is Bazel already"),
]


class Checkout:
    """A copy that Bazel has a server and an output folder of its own for."""

    def __init__(self, folder):
        self.root, self._outputs = folder / "checkout", folder / "outputs"
        ignored = shutil.ignore_patterns("__pycache__", ".*_cache")
        for name in ("benchmarks", "export", "keras_resnet", "tests"):
            shutil.copytree(ROOT / name, self.root / name, ignore=ignored)
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy2(path, self.root)
        shutil.copytree(ROOT / ".bazel", self.root / ".bazel", symlinks=True)

    def bazel(self, *arguments, cwd=None, venv=sys.prefix):
        script = [self.root / "tests/bazel/run.sh", f"--output_user_root={self._outputs}"]
        return self._run(*script, *arguments, cwd=cwd, env={"VENV": str(venv)})

    def buildifier(self):
        return self._run("make", "buildifier")

    def _run(self, *command, cwd=None, env=None):
        result = subprocess.run(
            command,
            cwd=cwd or self.root,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return result.returncode, result.stdout

    @contextlib.contextmanager
    def change(self, path, old, new):
        """Puts `new` in the place of `old`, once, for as long as the context lasts."""
        file = self.root / path
        before = file.read_text("utf-8")
        assert before.count(old) == 1, f"{path} has changed: {old!r}"
        file.write_text(before.replace(old, new), "utf-8")
        yield
        file.write_text(before, "utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    found = Checkout(tmp_path_factory.mktemp("bazel"))
    yield found
    found.bazel("shutdown")
