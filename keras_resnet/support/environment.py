"""Versions, machine and commit, as noted in what is written."""

import os
import platform
import subprocess
from importlib import metadata


def versions():
    """Returns the version of Python and of each package that counts."""
    names = (
        "keras", "tensorflow", "tensorflow-cpu", "numpy", "ai-edge-litert",
        "onnx", "onnxruntime", "openvino", "nncf", "litert-quantizer", "torch",
    )  # fmt: skip
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine():
    """Returns what this machine is, in words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


def commit():
    """Returns the checkout's commit, where this package lies in one."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=os.path.dirname(os.path.realpath(__file__)),  # Bazel's is a link.
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
