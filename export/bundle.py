"""Writing of bundles. A bundle is a folder with the checked artifacts of a network.

saved_model/1/          SavedModel in TensorFlow Serving's folder layout
float32.tflite float16.tflite dynamic.tflite int8.tflite
labels.txt              one class per line, in the order of the probabilities
check.npz               images and the Keras model's outputs for `export.verify`
MODEL_CARD.md           description for users of the artifacts
manifest.json           sha256, sizes, signatures, accuracy, agreement, latency

A bundle may also contain other artifacts; see `ARTIFACTS`.
"""

import dataclasses
import os
from tempfile import TemporaryDirectory

import numpy as np

from keras_resnet import support
from keras_resnet.data import Dataset
from keras_resnet.evaluation import Classifier, load_classifier, load_images
from keras_resnet.nets import fold
from keras_resnet.support import InputError, takes_options, write_file

from . import device
from .artifacts import ARTIFACTS, Source, resolve_formats
from .device import Manifest, make_label_lines, strip_folders, write_description
from .formats import check_model
from .making import make_artifact, time_artifacts
from .options import ExportOptions
from .quantization import write_layer_report
from .reference import Reference, choose_calibration, get_reference, write_check


@takes_options(
    ExportOptions,
    first_names=("model", "output", "formats"),
    required_names=("model", "output"),
)
def export(options: ExportOptions) -> Manifest:
    """Writes a bundle atomically, after comparing every artifact with the Keras model.

    Replaces an earlier bundle in `output`. With `debug_quantization`, the bundle also
    contains `quantization.csv` and `quantization.png`. If the licence of the dataset
    allows it, check.npz contains test images even without `share_images`.

    Args:
        {options}

    Returns:
        The content of manifest.json.

    Raises:
        InputError: If an argument is invalid.
        Disagreement: If an artifact differs too much from the Keras model.
        OSError: If the folder cannot be written.
    """
    formats = resolve_formats(options.formats)
    output = os.path.normpath(options.output)
    if options.seed < 0:
        raise InputError(f"seed must be 0 or more. Received: seed={options.seed}")
    _check_replaceable(output)
    classifier = load_classifier(options.model, options.weights, options.image_size)
    check_model(classifier.model)
    dataset = load_images(classifier, options.dataset, options.data_dir)
    reference = get_reference(dataset, options.images, classifier, options.share_images)
    manifest = _new_manifest(classifier, dataset, reference)
    calibration = np.empty((0, *classifier.preprocessing.shape), np.uint8)
    if options.debug_quantization or any(ARTIFACTS[n].calibrated for n in formats):
        calibration, manifest["calibration"] = choose_calibration(
            options, dataset, classifier.preprocessing, reference
        )
    # If the export is killed, the next export removes both folders.
    with (
        support.replace_folder_atomically(output) as folder,
        TemporaryDirectory(dir=folder) as temp_dir,
    ):
        folded_network = dataclasses.replace(classifier, model=fold(classifier.model))
        source = Source(folded_network, calibration, folder, temp_dir)
        if options.debug_quantization:
            path = source.get_static_model("float32")
            write_layer_report(
                path, folded_network.model, calibration, reference.images, folder
            )
        artifacts = {name: make_artifact(name, source, reference) for name in formats}
        manifest["artifacts"] = {name: a.row for name, a in artifacts.items()}
        latency = time_artifacts(classifier.model, artifacts, reference.images[:1])
        manifest["evaluation"]["keras_latency_ms"] = latency
        text = "".join(f"{line}\n" for line in make_label_lines(classifier.classes))
        write_file(os.path.join(folder, device.LABELS_FILE), text)
        write_check(os.path.join(folder, "check.npz"), reference)
        write_description(folder, manifest)
        _check_replaceable(output)  # The folder may have changed in the meantime.
    return manifest


def _check_replaceable(output: str) -> None:
    """Raises `InputError` unless `output` is new, empty, or an unchanged bundle."""
    if not os.path.lexists(output):
        return
    if os.path.islink(output) or not os.path.isdir(output):
        problem = "which is not a folder"
    elif os.path.samefile(output, os.curdir):
        problem = "which is the working directory"
    else:
        problems = _find_foreign_files(output)
        if not problems:
            return
        name, reason = min(problems.items())
        problem = f"in which {name} {reason}. Move such files to another folder"
    raise InputError(
        "output must be a new or empty folder, or a bundle to replace. "
        f"Received: {output!r}, {problem}"
    )


def _find_foreign_files(folder: str) -> dict[str, str]:
    """Returns the reason why export must keep a file, by path of the file."""
    if not (names := os.listdir(folder)):
        return {}
    try:
        manifest = device.read_manifest(folder)
    except InputError:
        return dict.fromkeys(names, "is not part of a bundle")
    own_paths = {*device.OTHER_FILES, *(a.path for a in ARTIFACTS.values())}
    paths = {*manifest["files"], *(r["path"] for r in manifest["artifacts"].values())}
    problems = device.check_files(folder, manifest)
    problems |= dict.fromkeys(paths - own_paths, "is not a file that export writes")
    return {name: p for name, p in problems.items() if p != "is missing"}


def _new_manifest(
    classifier: Classifier, dataset: Dataset, reference: Reference
) -> Manifest:
    """Returns a manifest whose entries `artifacts` and `files` are still empty."""
    is_correct = reference.logits.argmax(axis=1) == reference.labels
    num_classes, dataset_name = len(classifier.classes), strip_folders(dataset.name)
    settings = classifier.provenance.to_settings()
    label_groups = [reference.labels[is_correct], reference.labels]
    counts = [np.bincount(g, minlength=num_classes).tolist() for g in label_groups]
    return {
        "format": device.MANIFEST_FORMAT,
        "name": classifier.model.name,
        "classes": list(classifier.classes),
        "settings": {key: strip_folders(value) for key, value in settings.items()},
        "preprocessing": dataclasses.asdict(classifier.preprocessing),
        "evaluation": {
            "dataset": dataset_name,
            "split": "held out",
            "images": len(is_correct),
            "keras_right": int(is_correct.sum()),
            "right_by_class": counts[0],
            "images_by_class": counts[1],
        },
        "check": {
            "images": len(reference.check["image"]),
            "of": dataset_name if "label" in reference.check else "patterns",
        },
        "versions": support.find_versions(),
        "machine": support.describe_machine(),
        "calibration": None,
        "artifacts": {},
        "files": {},
    }
