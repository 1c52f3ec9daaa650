"""Files that appear whole or not at all, and what they note of their origin."""

import csv
import io
import os
import platform
import subprocess
from importlib import metadata


def write_file(path, content):
    """Writes a file that appears whole or not at all.

    Args:
        path: of the file.
        content: text or bytes.
    """
    beside = f"{path}.part"
    try:
        with open(beside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    except OSError as error:  # Which does not always say of which file.
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def to_csv(rows):
    """Returns rows, dicts, as CSV; columns that a row lacks are empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_png(figure):
    """Returns the bytes of a matplotlib figure's PNG."""
    png = io.BytesIO()
    figure.savefig(png, dpi=120)
    return png.getvalue()


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
