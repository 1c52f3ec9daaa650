"""Command that checks a bundle, for example after it was copied to a device.

    python -m export.verify artifacts/demo

Compares the sha256 of every file with the manifest. If the runtime of an artifact is
installed, runs the artifact on the images of check.npz and compares its predictions
with those of the Keras model. The command itself needs only LiteRT and NumPy.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_resnet import support

from . import device


class Finding(NamedTuple):
    """Result of one check, a row of the printed table."""

    artifact: str  # Path of the artifact, or "files" for the check of all files.
    verdict: str  # One of "ok", "wrong" and "unchecked".
    details: str  # Measured values, or the reason for the verdict.


def verify(folder: support.StrPath) -> tuple[list[Finding], bool]:
    """Checks the files and artifacts of a bundle.

    Returns:
        Results of all checks, and whether no verdict is "wrong".

    Raises:
        InputError: If the folder is not a bundle.
    """
    manifest = device.read_manifest(folder)
    problems = device.check_files(folder, manifest)
    findings = [Finding("files", "wrong", " ".join(p)) for p in problems.items()]
    if not problems:
        findings.append(Finding("files", "ok", "all sha256 match the manifest"))
    if "check.npz" in problems:
        return findings, False
    try:
        check = device.read_check(folder, manifest)
    except support.InputError as error:
        return [*findings, Finding("check.npz", "wrong", str(error))], False
    for row in manifest["artifacts"].values():
        if problems.keys() & row["files"].keys():
            verdict, details = "unchecked", "its files are missing or changed"
        else:
            verdict, details = _check_artifact(folder, row, check)
        findings.append(Finding(row["path"], verdict, details))
    return findings, all(finding.verdict != "wrong" for finding in findings)


def _check_artifact(
    folder: support.StrPath, row: device.ArtifactRow, check: Mapping[str, np.ndarray]
) -> tuple[str, str]:
    name = row["runtime"]
    if name is None:
        return "unchecked", "runs only in browsers; its files were checked"
    if name not in device.RUNTIMES:
        return "unchecked", f"this version does not support {name}"
    runtime = device.RUNTIMES[name]
    try:
        classify = runtime.open(os.path.join(folder, row["path"]))
        outputs = runtime.predict(classify, check["image"])
        results = device.compare_with_check(outputs, check)
    except (device.MissingRuntime, ImportError) as error:
        return "unchecked", str(error)
    except Exception as error:  # Runtimes raise errors of their own types.
        return "wrong", f"{name} failed: {' '.join(str(error).split())}"
    return _check_results(row, results, len(outputs))


def _check_results(
    row: device.ArtifactRow, results: Mapping[str, float], num_images: int
) -> tuple[str, str]:
    # At export, `right` exists only if check.npz has labels.
    export_results = {"right": 0.0} | row["check"]
    max_drift = device.DRIFT_LIMITS[str(row["precision"])]
    margins = {"agreement": max_drift, "right": max_drift * num_images}
    problems = [
        f"{name} {results[name]:.4g}, at export {export_results[name]:.4g}"
        for name, margin in margins.items()
        if name in results and results[name] < export_results[name] - margin
    ]
    limit = row["limit"]["logits"]
    if limit is not None and not results["logit_difference"] <= limit:  # Rejects NaN.
        problems.append(
            f"logits differ by {results['logit_difference']:.1e}; the limit is {limit:.0e}"
        )
    if problems:
        return "wrong", "; ".join(problems)
    details = f"agrees with Keras on {results['agreement']:.1%} of {num_images} images"
    if "right" in results:
        details += f", {results['right']} correct (at export {export_results['right']})"
    return "ok", details


def main(argv: Sequence[str] | None = None) -> int | None:
    """Checks a bundle, prints the results and returns 1 if anything is wrong."""
    # argparse instead of absl, because a device may have only LiteRT and NumPy.
    parser = support.CommandParser(prog="python -m export.verify")
    parser.description = "Checks every file and every artifact of a bundle."
    parser.add_argument("bundle", help="folder that python -m export wrote")
    parser.add_argument("--debug", action="store_true", help="print tracebacks")
    args = parser.parse_args(argv)
    return support.report_errors(lambda: _print_findings(args.bundle), args.debug)


def _print_findings(folder: str) -> int:
    findings, passed = verify(folder)
    print(support.format_table(findings, left_columns=(0, 1, 2)))
    if artifacts := [f.artifact for f in findings if f.verdict == "unchecked"]:
        print(f"unchecked: {support.shorten_list(artifacts, 20)}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
