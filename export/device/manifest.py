"""The manifest of a bundle, and the files that it lists."""

import hashlib
import json
import os

from keras_resnet.support import InputError

# Of manifest.json.
MANIFEST_FORMAT = 2


def describe_files(folder, paths):
    """Returns size and sha256 of files, and of all in folders, by path in a bundle."""
    found = {}
    for path in paths:
        whole = os.path.join(folder, path)
        inside = [os.path.join(at, f) for at, _, names in os.walk(whole) for f in names]
        for each in sorted(inside) or [whole]:
            name = os.path.relpath(each, folder).replace(os.sep, "/")
            with open(each, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = {"bytes": os.path.getsize(each), "sha256": digest}
    return found


def read_manifest(folder):
    """Returns the manifest of a bundle.

    Raises:
        InputError: there is none that this version reads.
    """
    path = os.path.join(folder, "manifest.json")
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        if manifest["format"] != MANIFEST_FORMAT:
            problem = f"of format {manifest['format']}, where {MANIFEST_FORMAT} is read"
        elif _has_shape(manifest):
            return manifest
        else:
            problem = "damaged, or not a bundle's"
    except OSError as error:
        problem = str(error.strerror)
    except (ValueError, KeyError, TypeError, AttributeError):
        problem = "damaged, or not a bundle's"
    raise InputError(
        "BUNDLE must be a folder that python -m export wrote. "
        f"Received: {folder!r}, whose manifest.json is: {problem}"
    )


def _has_shape(manifest):
    """Whether all is there that is read of a manifest here."""
    rows = manifest["artifacts"].values()
    return isinstance(manifest["files"], dict) and all(
        isinstance(row["files"], dict)
        and isinstance(row["path"], str)
        and (row["runtime"] is None or ("logits" in row["limit"] and row["check"]))
        for row in rows
    )


def _listed(manifest):
    """Size and sha256 of each file of a bundle, as its manifest has them."""
    found = dict(manifest["files"])
    for row in manifest["artifacts"].values():
        found |= row["files"]
    return found


def find_strangers(folder, manifest):
    """Returns the files in a folder that are not of the bundle, by path in it."""
    there = {
        os.path.relpath(os.path.join(at, name), folder).replace(os.sep, "/")
        for at, _, names in os.walk(folder)
        for name in names
    }
    return sorted(there - _listed(manifest).keys() - {"manifest.json"})


def check_files(folder, manifest):
    """Finds each file of a bundle that is not as the manifest has it.

    Returns:
        A dict from its path in the bundle to what is wrong; empty where all is well.
    """
    problems = dict.fromkeys(find_strangers(folder, manifest), "is not of this bundle")
    for name, expected in _listed(manifest).items():
        if not os.path.isfile(os.path.join(folder, name)):
            problems[name] = "is missing"
        elif describe_files(folder, [name])[name] != expected:
            problems[name] = "is not the file that was exported (sha256)"
    return problems
