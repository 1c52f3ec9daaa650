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
import tempfile

import numpy as np

from keras_resnet.data import Dataset
from keras_resnet.evaluation import Classifier, load_classifier, load_images
from keras_resnet.nets import fold
from keras_resnet.support import (
    InputError,
    machine,
    replace_folder_when_whole,
    takes_options,
    versions,
    write_file,
)

from .artifacts import ARTIFACTS, Source, order_formats
from .device import (
    LABELS_FILE,
    MANIFEST_FORMAT,
    Manifest,
    find_strangers,
    label_lines,
    read_manifest,
    without_folders,
    write_description,
)
from .formats import check_model
from .making import make_artifact, time_artifacts
from .options import ExportOptions
from .proof import Proof, choose_calibration, prove_on, write_check
from .quantization import write_layer_report


@takes_options(
    ExportOptions, order=("model", "output", "formats"), required=("model", "output")
)
def export(options: ExportOptions) -> Manifest:
    """Writes a bundle, whole and proven, or nothing.

    An earlier bundle in `output` is replaced. With `debug_quantization`, the bundle
    also has `quantization.csv` and `quantization.png`. Images of a data set whose
    licence allows it are in check.npz whatever `share_images` is.

    Args:
        {options}

    Returns:
        The content of manifest.json.

    Raises:
        InputError: An argument cannot be used, or (`Disagreement`) an artifact differs
            from the Keras model by more than its limit.
        OSError: The folder cannot be written.
    """
    formats = order_formats(options.formats)
    output = os.path.normpath(options.output)
    if options.seed < 0:
        raise InputError(f"seed must be 0 or more. Received: seed={options.seed}")
    _refuse_to_replace(output)
    classifier = load_classifier(options.model, options.weights, options.image_size)
    check_model(classifier.model)
    dataset = load_images(classifier, options.dataset, options.data_dir)
    proof = prove_on(dataset, options.images, classifier, options.share_images)
    manifest = _describe(classifier, dataset, proof)
    calibration = np.empty((0, *classifier.preprocessing.shape), np.uint8)
    if options.debug_quantization or any(ARTIFACTS[n].calibrated for n in formats):
        calibration, manifest["calibration"] = choose_calibration(
            options, dataset, classifier.preprocessing, proof
        )
    with (
        replace_folder_when_whole(output) as folder,
        tempfile.TemporaryDirectory() as scratch,
    ):
        folded = dataclasses.replace(classifier, model=fold(classifier.model))
        source = Source(folded, calibration, folder, scratch)
        if options.debug_quantization:
            static = source.static("float32")
            write_layer_report(static, folded.model, calibration, proof.images, folder)
        artifacts = {name: make_artifact(name, source, proof) for name in formats}
        manifest["artifacts"] = {name: a.row for name, a in artifacts.items()}
        latency = time_artifacts(classifier.model, artifacts, proof.images[:1])
        manifest["evaluation"]["keras_latency_ms"] = latency
        lines = "".join(f"{line}\n" for line in label_lines(classifier.classes))
        write_file(os.path.join(folder, LABELS_FILE), lines)
        write_check(os.path.join(folder, "check.npz"), proof)
        write_description(folder, manifest)
    return manifest


def _refuse_to_replace(output: str) -> None:
    """Refuses a path where there is anything but, at most, an earlier bundle."""
    if not os.path.lexists(output):
        return
    if os.path.islink(output) or not os.path.isdir(output):
        problem = "which is no folder"
    elif os.path.samefile(output, os.curdir):
        problem = "the folder that the program runs in"
    else:
        others = os.listdir(output)
        with contextlib.suppress(InputError):  # Without a manifest, all are others.
            others = others and find_strangers(output, read_manifest(output))
        if not others:
            return
        problem = f"which holds other files, such as {min(others)}"
    raise InputError(
        "output must be a new or empty folder, or an earlier bundle, which is "
        f"replaced. Received: {output!r}, {problem}"
    )


def _describe(classifier: Classifier, dataset: Dataset, proof: Proof) -> Manifest:
    """The manifest, without artifacts and files."""
    right = proof.logits.argmax(axis=1) == proof.labels
    count, name = len(classifier.classes), without_folders(dataset.name)
    settings = classifier.provenance.to_settings()
    labels = [proof.labels[right], proof.labels]
    by_class = [np.bincount(values, minlength=count).tolist() for values in labels]
    return {
        "format": MANIFEST_FORMAT,
        "name": classifier.model.name,
        "classes": list(classifier.classes),
        "settings": {key: without_folders(value) for key, value in settings.items()},
        "preprocessing": dataclasses.asdict(classifier.preprocessing),
        "evaluation": {
            "dataset": name,
            "split": "held out",
            "images": len(right),
            "keras_right": int(right.sum()),
            "right_by_class": by_class[0],
            "images_by_class": by_class[1],
        },
        "check": {
            "images": len(proof.check["image"]),
            "of": name if "label" in proof.check else "patterns",
        },
        "versions": versions(),
        "machine": machine(),
        "calibration": None,
        "artifacts": {},
        "files": {},
    }
