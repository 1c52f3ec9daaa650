"""The bundle: every artifact of a network, proven and described.

saved_model/1/          in TensorFlow Serving's layout
float32.tflite float16.tflite dynamic.tflite int8.tflite
labels.txt              a class a line, in the order of the probabilities
check.npz               images and Keras's answers, for `python -m export.verify`
MODEL_CARD.md
manifest.json           sha256, sizes, signatures, accuracy, agreement, latency

and whatever else was asked for: see `ARTIFACTS`.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile

import numpy as np
import tensorflow as tf

from keras_resnet.evaluation import load_classifier, load_images
from keras_resnet.nets import fold
from keras_resnet.support import InputError, choose, machine, versions, write_file

from .artifacts import ARTIFACTS, Source
from .calibration import calibration_split, choose_calibration
from .device import (
    MANIFEST_FORMAT,
    RUNTIMES,
    Disagreement,
    check_answers,
    compare,
    describe_files,
    find_strangers,
    judge,
    label_lines,
    read_manifest,
    time_in_turn,
    write_description,
)
from .formats import check_model
from .proof import prove_on, write_check
from .quantization import REPAIR, write_debug

# Images for signatures beside that of `probabilities`.
CHECKED_TWICE = 8


def export(
    model,
    output,
    formats=None,
    weights=None,
    image_size=None,
    dataset=None,
    data_dir=None,
    images=2000,
    calibration=None,
    seed=0,
    share_images=False,
    debug_quantization=False,
):
    """Writes a bundle, whole and proven, or nothing.

    Args:
        model: a run folder, a `.keras` file, or the name of a network.
        output: the folder to write; an earlier bundle there is replaced.
        formats: keys of `ARTIFACTS`; `None` is those that are marked as default.
        weights: with the name of a network; see `keras_resnet.ResNet50`.
        image_size: with the name of a network; height and width of its input in
            pixels.
        dataset: with the held-out images to check on, a name or a
            `keras_resnet.data.Dataset`; `None` is the one that the model was trained
            on.
        data_dir: where TFDS keeps its sets.
        images: number of held-out images to check on, at most.
        calibration: what int8 is calibrated on: `"folder:PATH"`, every image below
            it, or the training images of a data set; `None` is those of `dataset`.
        seed: of the choice of calibration images.
        share_images: whether held-out images may be given on with the bundle, in
            check.npz; of data sets whose licence allows it they are anyway.
        debug_quantization: whether to show where, layer by layer, int8 departs from
            float32, in print, `quantization.csv` and `quantization.png`.

    Returns:
        The manifest, a dict as in `manifest.json`.

    Raises:
        InputError: an argument cannot be used.
        verify.Disagreement: an artifact differs from the Keras model by more
            than its limit.
        OSError: the folder cannot be written.
    """
    formats = _in_order(formats)
    output = os.path.normpath(output)
    if seed < 0:
        raise InputError(f"seed must be 0 or more. Received: seed={seed}")
    _refuse_to_replace(output)
    classifier = load_classifier(model, weights, image_size)
    check_model(classifier.model)
    dataset = load_images(classifier, dataset, data_dir)
    proof = prove_on(dataset, images, classifier, share_images)
    calibrated = [name for name in formats if ARTIFACTS[name].calibrated]
    images, chosen = np.empty((0, *classifier.preprocessing.shape), np.uint8), None
    if calibrated or debug_quantization:
        split = calibration_split(calibration, dataset, data_dir)
        images, chosen = choose_calibration(
            split, classifier.preprocessing, seed, proof.images
        )
    manifest = _describe(classifier, dataset, proof) | {
        "calibration": chosen
        and {"dataset": _public(calibration or dataset.name), **chosen},
    }
    with _beside(output) as folder, tempfile.TemporaryDirectory() as scratch:
        folded = dataclasses.replace(classifier, model=fold(classifier.model))
        source = Source(folded, images, folder, scratch)
        if debug_quantization:
            write_debug(source, proof.images, folder)
        rows, functions = {}, {}
        for name in formats:
            rows[name], functions[name] = _make(name, source, proof)
        manifest["artifacts"] = rows
        _time(manifest, classifier, functions, proof.images[:1])
        names = label_lines(classifier.classes)
        write_file(os.path.join(folder, "labels.txt"), "".join(f"{n}\n" for n in names))
        write_check(os.path.join(folder, "check.npz"), proof)
        write_description(folder, manifest)
    return manifest


def _in_order(formats):
    """The artifacts to write: those asked for and what they are made of."""
    if formats is None:
        return [name for name, artifact in ARTIFACTS.items() if artifact.default]
    for name in formats:
        choose("format", name, ARTIFACTS)
    if not formats:
        raise InputError(f"Name at least one format: {', '.join(ARTIFACTS)}")
    wanted = set(formats).union(*(ARTIFACTS[name].needs for name in formats))
    return [name for name in ARTIFACTS if name in wanted]


def _refuse_to_replace(output):
    """Refuses a path where there is anything but, at most, a bundle of ours.

    Raises:
        InputError: saying what is there.
    """
    if not os.path.lexists(output):
        return
    if os.path.islink(output) or not os.path.isdir(output):
        problem = "which is no folder"
    elif os.path.samefile(output, os.curdir):
        problem = "the folder that the program runs in"
    else:
        there = os.listdir(output)
        with contextlib.suppress(InputError):  # No bundle: all of it is other files.
            there = there and find_strangers(output, read_manifest(output))
        if not there:
            return
        problem = f"which holds other files, such as {min(there)}"
    raise InputError(
        "output must be a new or empty folder, or an earlier bundle, which is "
        f"replaced. Received: {output!r}, {problem}"
    )


def _describe(classifier, dataset, proof):
    """The manifest's part that is known before there is an artifact."""
    right = proof.logits.argmax(axis=1) == proof.labels
    count = len(classifier.classes)
    return {
        "format": MANIFEST_FORMAT,
        "name": classifier.model.name,
        "classes": list(classifier.classes),
        "settings": {key: _public(value) for key, value in classifier.settings.items()},
        "preprocessing": dataclasses.asdict(classifier.preprocessing),
        "evaluation": {
            "dataset": _public(dataset.name),
            "split": "held out",
            "images": len(right),
            "keras_right": int(right.sum()),
            "right_by_class": np.bincount(
                proof.labels[right], minlength=count
            ).tolist(),
            "images_by_class": np.bincount(proof.labels, minlength=count).tolist(),
        },
        "check": {
            "images": len(proof.check["image"]),
            "of": _public(dataset.name) if "label" in proof.check else "patterns",
        },
        "versions": versions(),
        "machine": machine(),
    }


def _public(value):
    """A setting without the folders of this machine: of `folder:/a/b`, `folder:b`."""
    if not isinstance(value, str):
        return value
    kind, colon, path = value.rpartition(":")
    return kind + colon + os.path.basename(path) if os.path.isabs(path) else value


def _make(name, source, proof):
    """Writes an artifact, opens it and refuses it if it disagrees.

    Returns:
        Its row of the manifest, and a function from uint8 images to probabilities,
        `None` where no program here can run it.
    """
    artifact = ARTIFACTS[name]
    path = os.path.join(source.bundle, artifact.path)
    note = f" ({artifact.note})" if artifact.note else ""
    print(f"writing {artifact.path}{note}", flush=True)
    artifact.write(path, source)
    row = {"path": artifact.path, "runtime": artifact.runtime}
    row |= {"precision": artifact.precision, "note": artifact.note}
    if source.repair:
        row["repair"] = source.repair
    classify = None
    if artifact.runtime:
        count = len(proof.labels)
        print(f"checking {artifact.path} on {count} held-out images", flush=True)
        runtime = RUNTIMES[artifact.runtime]
        classify = runtime.open(path)
        answers = runtime.predict(classify, proof.images)
        comparison = compare(answers, proof.logits, proof.labels)
        limit = proof.limit(artifact)
        try:
            judge(name, comparison, limit)
            artifact.check(path, source.classifier, proof.images[:CHECKED_TWICE])
        except Disagreement as error:
            # The repair is for TFLite's way to round.
            mendable = artifact.calibrated and artifact.runtime == "LiteRT"
            if source.repair or not mendable:
                raise Disagreement(
                    f"{error}. Nothing was written; --formats can leave {name} out"
                ) from None
            print(f"{error}. Trying again: {REPAIR}", flush=True)
            return _make(name, source.repaired(), proof)
        row |= dataclasses.asdict(comparison)
        if limit.logits is None:
            del row["logit_difference"]
        row["limit"] = dataclasses.asdict(limit)
        again = runtime.predict(classify, proof.check["image"])
        row["check"] = check_answers(again, proof.check)
        if limit.logits is None:
            del row["check"]["logit_difference"]
        row["signatures"] = runtime.describe(path)
    files = describe_files(source.bundle, [artifact.path])
    row["bytes"] = sum(file["bytes"] for file in files.values())
    row["files"] = files
    return row, classify


def _time(manifest, classifier, functions, image):
    """Enters the latency of each artifact, and of the Keras model, compiled."""
    compiled = tf.function(classifier.model, reduce_retracing=True)

    def keras_model(pixels):
        return compiled(tf.constant(pixels), training=False).numpy()

    functions = {name: call for name, call in functions.items() if call}
    times = time_in_turn({"keras": keras_model, **functions}, image)
    manifest["evaluation"]["keras_latency_ms"] = round(times.pop("keras"), 3)
    for name, milliseconds in times.items():
        manifest["artifacts"][name]["latency_ms"] = round(milliseconds, 3)


@contextlib.contextmanager
def _beside(output):
    """A folder beside a bundle that takes its place if all goes well."""
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
        yield beside
        os.chmod(beside, 0o755)
        _replace(beside, output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
