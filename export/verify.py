"""Whether an artifact agrees with its Keras model.

    python -m export.verify artifacts/demo

That reads a bundle again, wherever it was copied to, with LiteRT and NumPy alone: the
sha256 of every file, and on the images of its `check.npz` the agreement and the accuracy
of each artifact whose runtime is installed.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_resnet.support import InputError, format_table, shorten_list

from .device import (
    DRIFT,
    RUNTIMES,
    ArtifactRow,
    Folder,
    MissingRuntime,
    check_answers,
    check_files,
    read_manifest,
)


class Finding(NamedTuple):
    """A row of the table."""

    artifact: str  # Its path; "files" for the files of the bundle.
    verdict: str  # "ok", "wrong" or "unchecked"
    details: str


def verify(folder: Folder) -> tuple[list[Finding], bool]:
    """Checks a bundle again.

    Returns:
        The rows of the table, and whether nothing is wrong with what could be checked.

    Raises:
        InputError: The folder is not a bundle.
    """
    manifest = read_manifest(folder)
    problems = check_files(folder, manifest)
    findings = [Finding("files", "wrong", " ".join(p)) for p in problems.items()]
    if not problems:
        findings.append(Finding("files", "ok", "every sha256 is the manifest's"))
    if "check.npz" in problems or "check.npz" not in manifest["files"]:
        return findings, False
    with np.load(os.path.join(folder, "check.npz")) as file:
        check = dict(file)
    for row in manifest["artifacts"].values():
        if problems.keys() & row["files"].keys():
            verdict, details = "unchecked", "its files are not as exported"
        else:
            verdict, details = _check_artifact(folder, row, check)
        findings.append(Finding(row["path"], verdict, details))
    return findings, all(finding.verdict != "wrong" for finding in findings)


def _check_artifact(
    folder: Folder, row: ArtifactRow, check: Mapping[str, np.ndarray]
) -> tuple[str, str]:
    name = row["runtime"]
    if name is None:
        return "unchecked", "its files only; a browser runs it"
    if name not in RUNTIMES:
        return "unchecked", f"this version does not know {name}"
    runtime = RUNTIMES[name]
    try:
        classify = runtime.open(os.path.join(folder, row["path"]))
        answers = runtime.predict(classify, check["image"])
    except (MissingRuntime, ImportError) as error:
        return "unchecked", str(error)
    except (ValueError, RuntimeError, OSError) as error:
        return "wrong", f"{name} cannot run it: {' '.join(str(error).split())}"
    return _judge_answers(row, check_answers(answers, check), len(answers))


def _judge_answers(
    row: ArtifactRow, answers: Mapping[str, float], count: int
) -> tuple[str, str]:
    at_export, drift = row["check"], DRIFT[str(row["precision"])]
    margins = {"agreement": drift, "right": drift * count}
    wrong = [
        f"{name} {answers[name]:.4g}, at export {at_export[name]:.4g}"
        for name, margin in margins.items()
        if name in answers and answers[name] < at_export[name] - margin
    ]
    limit = row["limit"]["logits"]
    if limit is not None and not answers["logit_difference"] <= limit:  # NaN included.
        wrong.append(
            f"logits differ by {answers['logit_difference']:.1e}; the limit is {limit:.0e}"
        )
    if wrong:
        return "wrong", "; ".join(wrong)
    details = f"same class as Keras on {answers['agreement']:.1%} of {count}"
    if "right" in answers:
        details += f", {answers['right']} right (at export {at_export['right']})"
    return "ok", details


def main(argv: Sequence[str] | None = None) -> int:
    """Verifies a bundle and prints the table; status 1 if something is wrong."""
    # Not absl's flags, because a device has LiteRT and NumPy alone.
    parser = argparse.ArgumentParser(prog="python -m export.verify")
    parser.description = "Checks every file and every artifact of a bundle again."
    parser.add_argument("bundle", help="folder that python -m export wrote")
    folder = parser.parse_args(argv).bundle
    try:
        findings, is_well = verify(folder)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(format_table(findings, left=(0, 1, 2)))
    unchecked = [f.artifact for f in findings if f.verdict == "unchecked"]
    if unchecked:
        print(f"unchecked: {shorten_list(unchecked, 20)}")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
