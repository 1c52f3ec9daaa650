"""Versions, machine and commit, as noted in what is written."""

import os
import platform
import subprocess
from importlib import metadata


def versions() -> dict[str, str]:
    """Returns the version of Python and of each installed package that matters."""
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


def machine() -> str:
    """Returns system, processor type and number of CPUs of this machine."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


def commit() -> str | None:
    """Returns the commit of the checkout, or `None` outside of one."""
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
