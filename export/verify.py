"""Whether an artifact agrees with its Keras model.

    python -m export.verify artifacts/demo

That reads a bundle again, wherever it was copied to, with LiteRT and NumPy alone: the
sha256 of every file, and on the images of its `check.npz` the agreement and the accuracy
of each artifact whose runtime is installed.

Two kinds of limit. An artifact in float32 must give the same logits, up to
rounding. One in lower precision is judged on held-out images by a paired
comparison: which images the one has right and the other wrong.
"""

import argparse
import os
import sys

import numpy as np

from keras_resnet.support import InputError, shorten_list

from .device import (
    DRIFT,
    RUNTIMES,
    MissingRuntime,
    check_answers,
    check_files,
    read_manifest,
)


def verify(folder):
    """Reads a bundle again.

    Args:
        folder: of the bundle.

    Returns:
        The rows of a table, (artifact, verdict, what was found), and whether all that
        could be checked was well. The verdict is `"ok"`, `"wrong"` or `"unchecked"`.

    Raises:
        InputError: it is no bundle.
    """
    manifest = read_manifest(folder)
    problems = check_files(folder, manifest)
    rows = [("files", "wrong", f"{name} {what}") for name, what in problems.items()]
    if not problems:
        rows.append(("files", "ok", "every sha256 is the manifest's"))
    if "check.npz" in problems or "check.npz" not in manifest["files"]:
        return rows, False
    with np.load(os.path.join(folder, "check.npz")) as file:
        check = dict(file)
    for row in manifest["artifacts"].values():
        if problems.keys() & row["files"].keys():
            found = "unchecked", "its files are not as exported"
        elif row["runtime"] is None:
            found = "unchecked", "its files only; a browser runs it"
        elif row["runtime"] not in RUNTIMES:
            found = "unchecked", f"this version does not know {row['runtime']}"
        else:
            found = _check(folder, row, check)
        rows.append((row["path"], *found))
    return rows, all(verdict != "wrong" for _, verdict, _ in rows)


def _check(folder, row, check):
    """Verdict and findings of one artifact."""
    runtime = RUNTIMES[row["runtime"]]
    try:
        classify = runtime.open(os.path.join(folder, row["path"]))
        answers = runtime.predict(classify, check["image"])
    except (MissingRuntime, ImportError) as error:
        return "unchecked", str(error)
    except (ValueError, RuntimeError, OSError) as error:
        return (
            "wrong",
            f"{row['runtime']} cannot run it: {' '.join(str(error).split())}",
        )
    expected = row["check"]
    found = check_answers(answers, check)
    said = f"same class as Keras on {found['agreement']:.1%} of {len(answers)}"
    if "right" in found:
        said += f", {found['right']} right (at export {expected['right']})"
    drift = DRIFT[row["precision"]]
    wrong = [
        f"{what} {found[what]:.4g}, at export {expected[what]:.4g}"
        for what, most in (("agreement", drift), ("right", drift * len(answers)))
        if what in found and found[what] < expected[what] - most
    ]
    limit = row["limit"]["logits"]
    if limit is not None and not found["logit_difference"] <= limit:
        wrong.append(
            f"logits differ by {found['logit_difference']:.1e}; the limit is {limit:.0e}"
        )
    return ("wrong", "; ".join(wrong)) if wrong else ("ok", said)


def main(argv=None):
    """Verifies a bundle and prints the table; status 1 if something is wrong.

    Not a program of absl's flags, so that LiteRT and NumPy are enough to run it.
    """
    parser = argparse.ArgumentParser(prog="python -m export.verify")
    parser.description = "Checks every file and every artifact of a bundle again."
    parser.add_argument("bundle", help="folder that python -m export wrote")
    folder = parser.parse_args(argv).bundle
    try:
        rows, well = verify(folder)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for artifact, verdict, found in rows:
        print(f"{artifact:<24}{verdict:<11}{found}")
    unchecked = [artifact for artifact, verdict, _ in rows if verdict == "unchecked"]
    if unchecked:
        print(f"unchecked: {shorten_list(unchecked, 20)}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
