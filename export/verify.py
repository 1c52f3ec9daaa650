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
import dataclasses
import hashlib
import json
import math
import os
import sys

import numpy as np

from keras_resnet.errors import InputError, some

from .runtimes import RUNTIMES, MissingRuntime


@dataclasses.dataclass(frozen=True)
class Limit:
    """What an artifact may differ by from its Keras model.

    Attributes:
        agreement: share of the images on which it must name the same class.
        logits: largest difference of a logit, over the largest logit.
        loss_points: accuracy that it may be shown to lose, in points: the lower end
            of the 95 % interval may not lie above it.
    """

    agreement: float
    logits: float | None = None
    loss_points: float | None = None


# Of manifest.json.
FORMAT = 2
# By the precision in which an artifact computes.
LIMITS = {
    "float32": Limit(1.0, logits=1e-4),
    "float16": Limit(0.995),
    "int8": Limit(0.95, loss_points=0.5),
}
# Where there are images enough to tell: int8 of nets that were trained as the paper
# has it, and as is done since.
MANY = 5000
LOSS_POINTS = {"paper": 0.3, "modern": 0.6}
# An artifact's answers to the images of check.npz on another machine, whose kernels
# round otherwise: share of them that may differ from those at export, by precision.
DRIFT = {"float32": 0.01, "float16": 0.01, "int8": 0.05}


def limit_of(precision, images, modern):
    """Returns the `Limit` of an artifact.

    Args:
        precision: a key of `LIMITS`.
        images: the number that it is judged on.
        modern: whether the network was trained by more than the paper's recipe.
    """
    limit = LIMITS[precision]
    if limit.loss_points is None or images < MANY:
        return limit
    points = LOSS_POINTS["modern" if modern else "paper"]
    return dataclasses.replace(limit, loss_points=points)


class Disagreement(InputError):
    """An artifact differs from its Keras model by more than the limit."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An artifact beside its Keras model on the same images.

    Attributes:
        images: their number.
        right: how many the artifact names rightly.
        keras_right: how many the Keras model does.
        agreement: share on which both name the same class.
        loss_points: accuracy lost by the artifact, in points.
        loss_interval: its 95 % interval, in points.
        difference: the largest difference of any probability.
        logit_difference: the largest difference of any logit, over the largest
            logit; infinite where a probability is 0, as in int8.
    """

    images: int
    right: int
    keras_right: int
    agreement: float
    loss_points: float
    loss_interval: tuple[float, float]
    difference: float
    logit_difference: float


def compare(probabilities, logits, labels):
    """Compares an artifact's probabilities with a Keras model's logits.

    Args:
        probabilities: of the artifact, (n, classes).
        logits: of the Keras model, (n, classes).
        labels: whole numbers (n,).

    Returns:
        A `Comparison`.
    """
    expected_shares = softmax(logits)
    named, expected = probabilities.argmax(axis=1), logits.argmax(axis=1)
    right, keras_right = named == labels, expected == labels
    lost, won = int((keras_right & ~right).sum()), int((right & ~keras_right).sum())
    return Comparison(
        images=len(labels),
        right=int(right.sum()),
        keras_right=int(keras_right.sum()),
        agreement=float((named == expected).mean()),
        loss_points=100 * (lost - won) / len(labels),
        loss_interval=paired_interval(lost, won, len(labels)),
        difference=float(np.abs(probabilities - expected_shares).max()),
        logit_difference=_logit_difference(
            probabilities, expected_shares, np.abs(logits).max()
        ),
    )


def softmax(logits):
    """Probabilities of logits, (n, classes), in float64."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def paired_interval(lost, won, images):
    """95 % interval of a difference of paired proportions, in points.

    Agresti and Min 2005, "Simple improved confidence intervals for comparing
    matched proportions": Wald's interval after adding half an image to each of
    the four outcomes, which keeps it honest where few images differ.

    Args:
        lost: images that only the first has right.
        won: images that only the second has right.
        images: their number.
    """
    lost, won, images = lost + 0.5, won + 0.5, images + 2
    middle = (lost - won) / images
    half = 1.96 * math.sqrt(lost + won - (lost - won) ** 2 / images) / images
    return 100 * (middle - half), 100 * (middle + half)


def _logit_difference(probabilities, expected, largest):
    """Largest difference of any logit, over the largest logit.

    The logarithm of a softmax is its logits less a number for each image; where
    a probability is below 1e-30, too little of it is left to tell.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        differences = np.abs(np.log(np.float64(probabilities)) - np.log(expected))
    return float(differences[expected > 1e-30].max() / largest)


def judge(name, comparison, limit):
    """Refuses an artifact that disagrees beyond the limit.

    Args:
        name: of the artifact.
        comparison: a `Comparison`.
        limit: a `Limit`.

    Raises:
        Disagreement: naming the limit.
    """
    found = comparison.logit_difference
    if limit.logits is not None and not found <= limit.logits:  # NaN included.
        raise Disagreement(
            f"{name} differs from its Keras model by {found:.1e} of the largest logit; "
            f"the limit is {limit.logits:.0e}"
        )
    if comparison.agreement < limit.agreement:
        raise Disagreement(
            f"{name} names the same class as its Keras model on {comparison.agreement:.2%} "
            f"of {comparison.images} images; the limit is {limit.agreement:.1%}"
        )
    lost = comparison.loss_interval[0]
    if limit.loss_points is not None and lost > limit.loss_points:
        raise Disagreement(
            f"{name} loses {comparison.loss_points:.1f} points of accuracy, at least "
            f"{lost:.1f} with 95 % confidence; the limit is {limit.loss_points}"
        )


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
        if manifest["format"] != FORMAT:
            problem = f"of format {manifest['format']}, where {FORMAT} is read"
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


def strangers(folder, manifest):
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
    problems = dict.fromkeys(strangers(folder, manifest), "is not of this bundle")
    for name, expected in _listed(manifest).items():
        if not os.path.isfile(os.path.join(folder, name)):
            problems[name] = "is missing"
        elif describe_files(folder, [name])[name] != expected:
            problems[name] = "is not the file that was exported (sha256)"
    return problems


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


def check_answers(answers, check):
    """Holds probabilities against those of a bundle's `check.npz`.

    Args:
        answers: (n, classes).
        check: with `probability` (n, classes), Keras's, `largest_logit`, the largest of
            its logits, and, of real images, `label` (n,).

    Returns:
        A dict with `agreement`, `logit_difference` and, of real images, `right`.
    """
    expected = np.float64(check["probability"])
    named = answers.argmax(axis=1)
    found = {
        "agreement": float((named == expected.argmax(axis=1)).mean()),
        "logit_difference": _logit_difference(
            answers, expected, check["largest_logit"]
        ),
    }
    if "label" in check:
        found["right"] = int((named == check["label"]).sum())
    return found


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
        print(f"unchecked: {some(unchecked, 20)}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
