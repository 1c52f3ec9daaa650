"""Package versions, machine and Git commit, which reports and `run.json` record."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata


def find_versions() -> dict[str, str]:
    """Returns versions of Python and of relevant installed packages, by package name."""
    packages = (
        "keras", "tensorflow", "tensorflow-cpu", "numpy", "ai-edge-litert",
        "onnx", "onnxruntime", "openvino", "nncf", "litert-quantizer", "torch",
    )  # fmt: skip
    version_by_package = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            version_by_package[package] = metadata.version(package)
    return version_by_package


def describe_machine() -> str:
    """Returns the operating system, processor type and number of CPUs as text."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


def find_commit() -> str | None:
    """Returns the checked-out Git commit, or `None` outside of a checkout.

    The commit ends in `-dirty` if files of the checkout have uncommitted changes.
    """
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            # Under Bazel, `__file__` is a symbolic link into the checkout.
            cwd=os.path.dirname(os.path.realpath(__file__)),
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
