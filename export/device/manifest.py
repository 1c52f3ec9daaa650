"""The manifest of a bundle, and checks of the files that it lists."""

import contextlib
import hashlib
import io
import math
import os
import re
import zipfile
from collections.abc import Iterable
from typing import Annotated, Any, NotRequired, Required, TypedDict

import numpy as np

from keras_resnet import support
from keras_resnet.spec import Provenance
from keras_resnet.support import Count, InputError, PixelCount, StrPath, check_type

from .comparison import LIMITS

MANIFEST_FORMAT = 2  # Format version of manifest.json.

MAX_CHECK_BYTES = 2**28  # Largest accepted size of check.npz and of each array in it.

# Below, `Annotated[X, f]` accepts a value if `f(value)` is true; see `check_type`.

# Path in a bundle, which cannot lead out of it and has no special meaning in Markdown.
BundlePath = Annotated[str, re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII).fullmatch]


class FileEntry(TypedDict):
    """Size, below 8 GiB, and hash of a file."""

    bytes: Annotated[int, range(2**33).__contains__]
    sha256: str


Files = dict[BundlePath, FileEntry]

# Tensors of a function in an artifact: "inputs" and "outputs", each a dict from tensor
# name to [dtype, shape], where -1 in a shape means any size. The list of a quantised
# tensor also has scale and zero point; value = (stored integer - zero point) * scale.
Signature = dict[str, dict[str, list[Any]]]


class ArtifactRow(TypedDict, total=False):
    """Entry of an artifact in the manifest, with the fields that this package reads.

    The optional fields exist only if the artifact has a runtime. They include fields of
    `comparison.Comparison`. `limit` has the fields of `comparison.Limit`. `check` is
    what `comparison.compare_with_check` returned at export.
    """

    path: Required[BundlePath]
    runtime: Required[str | None]
    note: Required[str]
    bytes: Required[Count]
    files: Required[Annotated[Files, len]]
    precision: Annotated[str, LIMITS.__contains__] | None
    images: Annotated[Count, bool]
    right: Count
    agreement: float
    loss_interval: Annotated[list[float], lambda ends: len(ends) == 2]
    difference: float
    limit: Annotated[dict[str, float | None], lambda limit: "logits" in limit]
    check: Annotated[dict[str, float], lambda check: "agreement" in check]
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


class PreprocessingFields(TypedDict):
    """Fields of `keras_resnet.data.Preprocessing`."""

    height: PixelCount
    width: PixelCount
    channels: PixelCount
    crop: Annotated[float, lambda crop: 1e-3 <= crop <= 1]
    interpolation: Annotated[str, ("bilinear", "bicubic").__contains__]


class Evaluation(TypedDict):
    """Results of the Keras model on test images."""

    dataset: str
    split: str
    images: Annotated[Count, bool]
    keras_right: Count
    right_by_class: list[Count]
    images_by_class: list[Count]
    keras_latency_ms: NotRequired[float]


def _is_image_selection(calibration: dict[str, Any]) -> bool:
    types = type(calibration.get("images")), type(calibration.get("dataset"))
    return types == (list, str)


class Manifest(TypedDict):
    """Content of manifest.json.

    `settings` is a serialised `keras_resnet.spec.Provenance`. `check` has the number of
    `images` in check.npz and, as `of`, their dataset. `calibration` has the indices of
    the calibration `images` in their `dataset`. `latency` has `machine` and `rows` of
    `python -m export.latency`.
    """

    format: int
    name: str
    classes: Annotated[list[str], len]
    settings: dict[str, Any]
    preprocessing: dict[str, Any]
    evaluation: Evaluation
    check: dict[str, Any]
    versions: dict[str, str]
    machine: str
    calibration: Annotated[dict[str, Any], _is_image_selection] | None
    artifacts: dict[BundlePath, ArtifactRow]
    files: Files
    latency: NotRequired[dict[str, Any]]


def read_manifest(folder: StrPath) -> Manifest:
    """Returns the manifest of a bundle, after checking every field.

    Raises:
        InputError: If `folder` has no manifest of a format that this version supports.
    """
    path = os.path.join(folder, "manifest.json")
    problem = "it is damaged or does not describe a bundle"
    try:
        manifest = support.read_json(path)
        if manifest["format"] != MANIFEST_FORMAT:
            problem = f"its format is {manifest['format']!r:.20}, not {MANIFEST_FORMAT}"
        elif _is_consistent(manifest):
            return manifest
    except OSError as error:
        problem = str(error.strerror)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem += f" ({error})" if isinstance(error, InputError) else ""
    raise InputError(
        "BUNDLE must be a folder that python -m export wrote. "
        f"Received: {os.fspath(folder)!r}, whose manifest.json cannot be used: {problem}"
    )


def _is_consistent(manifest: Manifest) -> bool:
    """Returns whether the fields agree. Raises errors if one has an unexpected value."""
    check_type(manifest, Manifest, "manifest")
    check_type(manifest["preprocessing"], PreprocessingFields, "preprocessing")
    provenance = Provenance.from_settings(manifest["settings"])
    check_type(provenance, Provenance, "settings")
    if provenance.run:
        provenance.run.check()
    evaluation, rows = manifest["evaluation"], manifest["artifacts"].values()
    counts = evaluation["right_by_class"], evaluation["images_by_class"]
    return (
        {len(manifest["classes"])} == set(map(len, counts))
        and evaluation["keras_right"] <= evaluation["images"]
        and all(
            f"{f}/".startswith(f"{row['path']}/") for row in rows for f in row["files"]
        )
        and all(
            ArtifactRow.__optional_keys__ <= row.keys()
            and row["precision"] is not None
            and row["right"] <= row["images"] == evaluation["images"]
            for row in rows
            if row["runtime"] is not None
        )
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


def check_files(folder: StrPath, manifest: Manifest) -> dict[str, str]:
    """Returns the problem of each missing, changed or unexpected file, by path."""
    listed_files = dict(manifest["files"])
    for row in manifest["artifacts"].values():
        listed_files |= row["files"]
    unexpected_files = set(_list_files(folder)) - {"manifest.json", *listed_files}
    problems = dict.fromkeys(sorted(unexpected_files), "is unexpected")
    root = os.path.join(os.path.realpath(folder), "")
    for name, expected in listed_files.items():
        path = os.path.join(folder, name)
        if not os.path.realpath(path).startswith(root):
            problems[name] = "is outside of the bundle, because of a link"
        elif not os.path.isfile(path):
            problems[name] = "is missing"
        elif (
            os.path.getsize(path) != expected["bytes"]
            or describe_files(folder, [name])[name] != expected
        ):
            problems[name] = "differs from the exported file (sha256)"
    return problems


def read_check(folder: StrPath, manifest: Manifest) -> dict[str, np.ndarray]:
    """Returns the arrays of check.npz; see `comparison.compare_with_check`.

    Raises:
        InputError: If the file is damaged or contradicts the manifest.
    """
    check: dict[str, np.ndarray] = {}
    try:
        sides = [manifest["preprocessing"][k] for k in ("height", "width", "channels")]
        num_images = manifest["check"]["images"]
        forms: dict[str, tuple[str, tuple[int, ...]]] = {  # Dtypes and shapes.
            "image": ("u1", (num_images, *sides)),
            "probability": ("f4", (num_images, len(manifest["classes"]))),
            "largest_logit": ("f8", ()),
            "label": ("i4", (num_images,)),
        }
        content = support.read_file(os.path.join(folder, "check.npz"), MAX_CHECK_BYTES)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if "label.npy" not in archive.namelist():
                del forms["label"]
            for name, (dtype, shape) in forms.items():
                size = np.dtype(dtype).itemsize * math.prod(shape)
                with archive.open(f"{name}.npy") as file:
                    np.lib.format.read_magic(file)
                    header = np.lib.format.read_array_header_1_0(file)
                    if size > MAX_CHECK_BYTES or header != (shape, False, dtype):
                        raise ValueError(f"{name} has the shape and dtype {header}")
                    check[name] = np.frombuffer(file.read(size), dtype).reshape(shape)
        sums = check["probability"].sum(axis=1)
        if not (0 < check["largest_logit"] < np.inf and np.abs(sums - 1).max() < 0.01):
            raise ValueError("its probabilities or logits are impossible")
    except Exception as error:  # Damaged archives raise errors of many types.
        reason = support.first_line(error)
        raise InputError(f"check.npz cannot be used: {reason}") from None
    return check


def _list_files(folder: StrPath, subfolder: str = "") -> list[str]:
    """Returns the sorted paths of all files and links in a subfolder of a bundle."""
    paths: list[str] = []
    folders = [os.path.join(folder, subfolder)]
    while folders:  # `os.walk` of Python 3.11 fails on deep folders.
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                (folders if is_folder else paths).append(entry.path)
    return sorted(os.path.relpath(p, folder).replace(os.sep, "/") for p in paths)
