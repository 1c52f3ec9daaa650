"""The manifest of a bundle, and the files that it lists."""

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

from keras_resnet.spec import Provenance
from keras_resnet.support import InputError

MANIFEST_FORMAT = 2  # Of manifest.json.

Folder = str | os.PathLike[str]

# Size in `bytes` and `sha256` of files, by path in the bundle.
Files = dict[str, dict[str, Any]]

# `inputs` and `outputs` of a function in an artifact: from names to tensors. A tensor is
# a list: its type, its shape (-1 is any size) and, if it is quantised, its scale and
# zero point: the value is (level - zero point) * scale.
Signature = dict[str, dict[str, list[Any]]]


class ArtifactRow(TypedDict, total=False):
    """One artifact: what is read of it.

    From `images` on only with a runtime. There the fields of a `comparison.Comparison`
    stand; `limit` is a `comparison.Limit`, and `check` the artifact's answers to
    check.npz, see `comparison.check_answers`.
    """

    path: str
    runtime: str | None
    precision: str | None
    note: str
    bytes: int
    files: Files
    images: int
    right: int
    agreement: float
    loss_interval: tuple[float, float]
    difference: float
    limit: dict[str, float | None]
    check: dict[str, float]
    latency_ms: float


class LatencyRow(TypedDict):
    """One artifact with one number of threads and images; see `timing.measure`."""

    artifact: str
    threads: int
    batch: int
    median_ms: float
    p95_ms: float
    images_per_s: float
    peak_mib: float
    start_ms: float
    calls: int


class Manifest(TypedDict):
    """The content of manifest.json.

    `settings` is a `keras_resnet.spec.Provenance`, `preprocessing` the fields of a
    `keras_resnet.data.Preprocessing`, and `evaluation` the Keras model on the held-out
    images. `calibration` has the numbers of its images in their data set, and `latency`
    the `machine` and the `rows` that `python -m export.latency` measured.
    """

    format: int
    name: str
    classes: list[str]
    settings: dict[str, Any]
    preprocessing: dict[str, Any]
    evaluation: dict[str, Any]
    check: dict[str, Any]
    versions: dict[str, str]
    machine: str
    calibration: dict[str, Any] | None
    artifacts: dict[str, ArtifactRow]
    files: Files
    latency: NotRequired[dict[str, Any]]


def read_manifest(folder: Folder) -> Manifest:
    """Returns the manifest of a bundle.

    Raises:
        InputError: The folder has none that this version reads.
    """
    path = os.path.join(folder, "manifest.json")
    problem = "damaged, or not a bundle's"
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        if manifest["format"] != MANIFEST_FORMAT:
            problem = f"of format {manifest['format']}, where {MANIFEST_FORMAT} is read"
        elif _has_shape(manifest):
            return manifest
    except OSError as error:
        problem = str(error.strerror)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(
        "BUNDLE must be a folder that python -m export wrote. "
        f"Received: {folder!r}, whose manifest.json is: {problem}"
    )


def _has_shape(manifest: Any) -> bool:
    """Whether a manifest has everything that `verify` and `latency` read."""
    Provenance.from_settings(manifest["settings"])
    return isinstance(manifest["files"], dict) and all(
        isinstance(row["files"], dict)
        and isinstance(row["path"], str)
        and (row["runtime"] is None or ("logits" in row["limit"] and row["check"]))
        for row in manifest["artifacts"].values()
    )


def without_folders(value: Any) -> Any:
    """Returns a setting without folders of this machine: of `folder:/a/b`, `folder:b`.

    A manifest is given on with its bundle.
    """
    if not isinstance(value, str):
        return value
    kind, colon, path = value.rpartition(":")
    return kind + colon + os.path.basename(path) if os.path.isabs(path) else value


def describe_files(folder: Folder, paths: Iterable[str]) -> Files:
    """Returns size and sha256 of files, and of all files in folders, of a bundle."""
    rows: Files = {}
    for path in paths:
        for name in _list_files(folder, path) or [path]:
            whole = os.path.join(folder, name)
            with open(whole, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            rows[name] = {"bytes": os.path.getsize(whole), "sha256": digest}
    return rows


def find_strangers(folder: Folder, manifest: Manifest) -> list[str]:
    """Returns the files in a folder that are not of the bundle, by path in it."""
    known = _listed(manifest).keys() | {"manifest.json"}
    return [name for name in _list_files(folder) if name not in known]


def check_files(folder: Folder, manifest: Manifest) -> dict[str, str]:
    """Returns what is wrong with files of a bundle, by path in it."""
    problems = dict.fromkeys(find_strangers(folder, manifest), "is not of this bundle")
    for name, expected in _listed(manifest).items():
        if not os.path.isfile(os.path.join(folder, name)):
            problems[name] = "is missing"
        elif describe_files(folder, [name])[name] != expected:
            problems[name] = "is not the file that was exported (sha256)"
    return problems


def _listed(manifest: Manifest) -> Files:
    rows = dict(manifest["files"])
    for artifact in manifest["artifacts"].values():
        rows |= artifact["files"]
    return rows


def _list_files(folder: Folder, inside: str = "") -> list[str]:
    """Paths in a bundle of all files below a folder in it, with slashes, sorted."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
        for parent, _, names in os.walk(os.path.join(folder, inside))
        for name in names
    )
