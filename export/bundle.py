"""The bundle: every artifact of a network, proven and described.

saved_model/1/          in TensorFlow Serving's layout
float32.tflite float16.tflite dynamic.tflite int8.tflite
labels.txt              a class a line, in the order of the probabilities
MODEL_CARD.md
manifest.json           sha256, sizes, signatures, accuracy, agreement, latency
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_resnet import data, pipelines
from keras_resnet.classifiers import load_classifier, load_images
from keras_resnet.errors import InputError, choose
from keras_resnet.run_folders import machine, versions, write_file

from . import card, latency, saved_model, tflite, verify

CALIBRATION_IMAGES = 200


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One kind of artifact.

    Attributes:
        path: in the bundle.
        write: function of (path, classifier, static SavedModel, calibration images).
        open: from the path to a function from uint8 images to probabilities.
        signatures: from the path to its signatures.
        exact: whether it computes in float32, and must give the same logits.
    """

    path: str
    write: Callable
    open: Callable
    signatures: Callable
    exact: bool


def _tflite(format):
    return Artifact(
        f"{format}.tflite",
        lambda path, classifier, static, images: tflite.write_tflite(
            static, path, format, images
        ),
        tflite.open_tflite,
        tflite.signatures,
        exact=format == "float32",
    )


ARTIFACTS = {
    "saved_model": Artifact(
        "saved_model/1",
        lambda path, classifier, static, images: saved_model.write_saved_model(
            classifier, path
        ),
        saved_model.open_saved_model,
        saved_model.signatures,
        exact=True,
    ),
    **{format: _tflite(format) for format in tflite.FORMATS},
}


def export(
    model,
    output,
    formats=tuple(ARTIFACTS),
    weights=None,
    image_size=None,
    dataset=None,
    data_dir=None,
    images=2000,
    seed=0,
):
    """Writes a bundle, whole and proven, or nothing.

    Args:
        model: a run folder, a `.keras` file, or the name of a network.
        output: the folder to write; an earlier bundle there is replaced.
        formats: keys of `ARTIFACTS`.
        weights: with the name of a network; see `keras_resnet.ResNet50`.
        image_size: with the name of a network; height and width of its input in
            pixels.
        dataset: with the held-out images to check on; `None` is the one that
            the model was trained on.
        data_dir: where TFDS keeps its sets.
        images: number of held-out images to check on, at most.
        seed: of the choice of calibration images among the training images.

    Returns:
        The manifest, a dict as in `manifest.json`.

    Raises:
        InputError: an argument cannot be used.
        verify.Disagreement: an artifact differs from the Keras model by more
            than its limit.
        OSError: the folder cannot be written.
    """
    for name in formats:
        choose("format", name, ARTIFACTS)
    output = os.path.normpath(output)
    if not formats:
        raise InputError(f"Name at least one format: {', '.join(ARTIFACTS)}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more. Received: seed={seed}")
    if not _may_replace(output):
        raise InputError(
            "output must be a new or empty folder, or an earlier bundle, which is "
            f"replaced. Received: {output!r}, which holds other files"
        )
    classifier = load_classifier(model, weights, image_size)
    saved_model.check_model(classifier.model)
    source = load_images(classifier, dataset, data_dir)
    chosen = np.linspace(0, len(source.test) - 1, min(images, len(source.test))).astype(
        int
    )
    held_out, labels = _views(source.test, chosen, classifier.preprocessing)
    calibrated = np.random.default_rng(seed).permutation(len(source.train))
    calibrated = np.sort(calibrated[:CALIBRATION_IMAGES])
    calibration, _ = _views(source.train, calibrated, classifier.preprocessing)
    logits = saved_model.reference(classifier.model, held_out)

    parent = os.path.dirname(output) or "."
    try:
        os.makedirs(parent, exist_ok=True)
        beside = tempfile.mkdtemp(prefix=f".{os.path.basename(output)}.", dir=parent)
    except OSError as error:
        raise InputError(
            f"output must be in a folder that can be written. Received: {output!r} "
            f"({error.strerror})"
        ) from None
    try:
        manifest = {
            "format": 1,
            "name": classifier.model.name,
            "settings": classifier.settings,
            "preprocessing": dataclasses.asdict(classifier.preprocessing),
            "evaluation": {
                "dataset": source.name,
                "split": "held out",
                "images": len(labels),
                "keras_right": int((logits.argmax(axis=1) == labels).sum()),
            },
            "calibration": {
                "dataset": source.name,
                "split": "train",
                "seed": seed,
                "images": calibrated.tolist(),
            },
            "limits": {
                "logits": verify.CLOSE,
                "loss_points": verify.LOSS_POINTS,
                "agreement": verify.AGREEMENT,
            },
            "latency": "median of 30 calls with one image, all CPUs, in milliseconds",
            "versions": versions(),
            "machine": machine(),
        }
        _write_artifacts(beside, classifier, formats, calibration)
        manifest["artifacts"], classifiers = _judge_artifacts(
            beside, formats, held_out, logits, labels
        )
        _measure(manifest, classifier, classifiers, held_out[:1])
        write_file(
            os.path.join(beside, "labels.txt"),
            "".join(f"{c}\n" for c in classifier.classes),
        )
        write_file(
            os.path.join(beside, "MODEL_CARD.md"),
            card.model_card(manifest, classifier.classes),
        )
        write_file(
            os.path.join(beside, "manifest.json"),
            json.dumps(manifest, indent=2, ensure_ascii=False) + "\n",
        )
        os.chmod(beside, 0o755)
        _replace(beside, output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return manifest


def _may_replace(output):
    """Whether there is nothing at a path but, at most, a bundle of ours."""
    if not os.path.lexists(output):
        return True
    if os.path.islink(output) or not os.path.isdir(output):
        return False
    ours = {"manifest.json", "labels.txt", "MODEL_CARD.md"}
    ours |= {artifact.path.split("/")[0] for artifact in ARTIFACTS.values()}
    return set(os.listdir(output)) <= ours


def _views(split, places, preprocessing):
    """The chosen images of a split, as the network sees them, and their labels."""
    chosen = split.take(places)
    try:
        return pipelines.load_views(chosen, preprocessing), chosen.labels
    except tf.errors.OpError:
        data.refuse_damaged(chosen, preprocessing)
        raise


def _write_artifacts(folder, classifier, formats, calibration):
    with tempfile.TemporaryDirectory() as static:
        saved_model.write_static(classifier, static)
        for name in formats:
            artifact = ARTIFACTS[name]
            print(f"converting to {artifact.path}", flush=True)
            path = os.path.join(folder, artifact.path)
            artifact.write(path, classifier, static, calibration)


def _judge_artifacts(folder, formats, images, logits, labels):
    """Opens each artifact and refuses it if it disagrees.

    Returns:
        The rows of the manifest, by format, and what `Artifact.open` gave.
    """
    rows, classifiers = {}, {}
    for name in formats:
        artifact = ARTIFACTS[name]
        path = os.path.join(folder, artifact.path)
        print(f"checking {artifact.path} on {len(images)} held-out images", flush=True)
        classifiers[name] = artifact.open(path)
        comparison = verify.compare(classifiers[name](images), logits, labels)
        verify.judge(name, comparison, artifact.exact)
        files = _files(folder, path)
        rows[name] = {
            "path": artifact.path,
            "bytes": sum(file["bytes"] for file in files.values()),
            **dataclasses.asdict(comparison),
            "logit_difference": comparison.logit_difference if artifact.exact else None,
            "signatures": artifact.signatures(path),
            "files": files,
        }
    return rows, classifiers


def _measure(manifest, classifier, classifiers, image):
    """Enters the latency of each artifact, and of the Keras model, compiled."""
    compiled = tf.function(classifier.model, reduce_retracing=True)
    times = latency.measure(
        {
            "keras": lambda pixels: compiled(
                tf.constant(pixels), training=False
            ).numpy(),
            **classifiers,
        },
        image,
    )
    manifest["evaluation"]["keras_latency_ms"] = round(times["keras"], 3)
    for name, row in manifest["artifacts"].items():
        row["latency_ms"] = round(times[name], 3)


def _files(folder, path):
    """Size and sha256 of each file of an artifact, by its path in the bundle."""
    paths = [path]
    if os.path.isdir(path):
        paths = sorted(
            os.path.join(where, f) for where, _, fs in os.walk(path) for f in fs
        )
    found = {}
    for each in paths:
        with open(each, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = os.path.relpath(each, folder).replace(os.sep, "/")
        found[name] = {"bytes": os.path.getsize(each), "sha256": digest}
    return found


def _replace(new, path):
    """Puts a folder in the place of another, if there is one."""
    if not os.path.lexists(path):
        os.rename(new, path)
        return
    old = f"{new}.old"
    os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def table(manifest):
    """The closing table: each artifact beside the Keras model, as text."""
    count = manifest["evaluation"]["images"]

    def row(name, size, right, agreement, difference, milliseconds):
        return (
            f"{name:<16}{size:>10}{right:>7} of {count:<6}{right / count:>8.2%}"
            f"{agreement:>11}{difference:>13}{milliseconds:>11.2f}"
        )

    evaluation = manifest["evaluation"]
    lines = [
        f"{'artifact':<16}{'size':>10}{'right':>7}{'':<10}{'top-1':>8}"
        f"{'agreement':>11}{'difference':>13}{'latency ms':>11}",
        row(
            "Keras",
            "",
            evaluation["keras_right"],
            "",
            "",
            evaluation["keras_latency_ms"],
        ),
    ]
    for entry in manifest["artifacts"].values():
        lines.append(
            row(
                entry["path"],
                f"{entry['bytes'] / 1e6:.2f} MB",
                entry["right"],
                f"{entry['agreement']:.2%}",
                f"{entry['difference']:.1e}",
                entry["latency_ms"],
            )
        )
    return "\n".join(lines)
