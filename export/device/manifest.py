"""The manifest of a bundle, and checks of the files that it lists."""

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

from keras_resnet.spec import Provenance
from keras_resnet.support import InputError, StrPath

MANIFEST_FORMAT = 2  # Format version of manifest.json.

# Size (`bytes`) and `sha256` of each file, by path relative to the bundle.
Files = dict[str, dict[str, Any]]

# Tensors of a function in an artifact: "inputs" and "outputs", each a dict from tensor
# name to [dtype, shape], where -1 in a shape means any size. The list of a quantised
# tensor also has scale and zero point; value = (stored integer - zero point) * scale.
Signature = dict[str, dict[str, list[Any]]]


class ArtifactRow(TypedDict, total=False):
    """Entry of an artifact in the manifest, with the fields that this package reads.

    The fields from `images` on exist only if the artifact has a runtime. They include
    fields of `comparison.Comparison`. `limit` has the fields of `comparison.Limit`.
    `check` is what `comparison.compare_with_check` returned at export.
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
    """Measurement of one artifact; see `timing.measure_latency` for the units."""

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
    """Content of manifest.json.

    `settings` is a serialised `keras_resnet.spec.Provenance`. `preprocessing` has the
    fields of `keras_resnet.data.Preprocessing`. `evaluation` has results of the Keras
    model on test images. `check` has the number of `images` in check.npz and, as `of`,
    their dataset. `calibration` has the indices of the calibration `images` in their
    dataset. `latency` has `machine` and `rows` of `python -m export.latency`.
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


def read_manifest(folder: StrPath) -> Manifest:
    """Returns the manifest of a bundle.

    Raises:
        InputError: If `folder` has no manifest of a format that this version supports.
    """
    path = os.path.join(folder, "manifest.json")
    problem = "it is damaged or does not describe a bundle"
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        if manifest["format"] != MANIFEST_FORMAT:
            problem = f"its format is {manifest['format']}, not {MANIFEST_FORMAT}"
        elif _has_required_fields(manifest):
            return manifest
    except OSError as error:
        problem = str(error.strerror)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(
        "BUNDLE must be a folder that python -m export wrote. "
        f"Received: {folder!r}, whose manifest.json cannot be used: {problem}"
    )


def _has_required_fields(manifest: Any) -> bool:
    """Returns whether a manifest has all required fields. May also raise `KeyError`."""
    Provenance.from_settings(manifest["settings"])
    return isinstance(manifest["files"], dict) and all(
        isinstance(row["files"], dict)
        and isinstance(row["path"], str)
        and (row["runtime"] is None or ("logits" in row["limit"] and row["check"]))
        for row in manifest["artifacts"].values()
    )


def strip_folders(value: Any) -> Any:
    """Returns a setting without parent folders: `folder:b` instead of `folder:/a/b`.

    Bundles are published, and the folders of the exporting machine are private.
    """
    if not isinstance(value, str):
        return value
    kind, colon, path = value.rpartition(":")
    return kind + colon + os.path.basename(path) if os.path.isabs(path) else value


def describe_files(folder: StrPath, paths: Iterable[str]) -> Files:
    """Returns size and sha256 of files, by path. A folder stands for all its files."""
    files: Files = {}
    for path in paths:
        for name in _list_files(folder, path) or [path]:
            full_path = os.path.join(folder, name)
            with open(full_path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[name] = {"bytes": os.path.getsize(full_path), "sha256": digest}
    return files


def find_unexpected_files(folder: StrPath, manifest: Manifest) -> list[str]:
    """Returns the paths of files in a bundle that its manifest does not list."""
    expected = _get_listed_files(manifest).keys() | {"manifest.json"}
    return [name for name in _list_files(folder) if name not in expected]


def check_files(folder: StrPath, manifest: Manifest) -> dict[str, str]:
    """Returns the problem of each missing, changed or unexpected file, by path."""
    problems = dict.fromkeys(find_unexpected_files(folder, manifest), "is unexpected")
    for name, expected in _get_listed_files(manifest).items():
        if not os.path.isfile(os.path.join(folder, name)):
            problems[name] = "is missing"
        elif describe_files(folder, [name])[name] != expected:
            problems[name] = "differs from the exported file (sha256)"
    return problems


def _get_listed_files(manifest: Manifest) -> Files:
    rows = dict(manifest["files"])
    for artifact in manifest["artifacts"].values():
        rows |= artifact["files"]
    return rows


def _list_files(folder: StrPath, subfolder: str = "") -> list[str]:
    """Returns the sorted paths, relative to the bundle, of all files in a subfolder."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")
        for parent, _, names in os.walk(os.path.join(folder, subfolder))
        for name in names
    )
