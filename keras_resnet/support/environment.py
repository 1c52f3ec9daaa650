"""Versions, machine and commit, which reports and `run.json` record."""

import os
import platform
import subprocess
from importlib import metadata


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages listed below."""
    names = (
        "keras", "tensorflow", "tensorflow-cpu", "numpy", "ai-edge-litert",
        "onnx", "onnxruntime", "openvino", "nncf", "litert-quantizer", "torch",
    )  # fmt: skip
    installed = {"python": platform.python_version()}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


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
            cwd=os.path.dirname(os.path.realpath(__file__)),  # Bazel links sources.
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
