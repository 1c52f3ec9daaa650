"""Tests that this version can use the files that version 0.1.0 wrote.

The files are in fixtures/v0.1.0.tar.xz. The README in this archive describes how they
were made.
"""

import dataclasses
import hashlib
import html
import io
import json
import os
import shutil
import tarfile
import zipfile

import h5py
import keras
import numpy as np
import pytest
from children import run_child
from conftest import ROOT
from make_run_fixtures import (
    FIXTURES,
    MAX_ROUNDING,
    RUN_FLAGS,
    find_machine,
    train_for_losses,
)
from safetensors.numpy import load_file

import keras_resnet
from export.verify import verify
from keras_resnet.convert import convert
from keras_resnet.data import load_dataset
from keras_resnet.evaluate import evaluate
from keras_resnet.evaluation import load_classifier
from keras_resnet.runs import list_runs
from keras_resnet.spec import Execution, Recipe
from keras_resnet.studies.all import STUDIES, run_all
from keras_resnet.studies.lib import study as study_module
from keras_resnet.training import train

# Options of the commands that started the runs, without those of single runs.
RUN_OPTIONS = {
    "model": "cifar_resnet8",
    "dataset": "digits",
    "strategy": "one_device",
    "verbose": 2,
}
CHECKPOINT_OPTIONS = {"checkpoint_every": 10, "keep_checkpoints": 1}
FINETUNE_OPTIONS = {
    "freeze": "conv2..conv4",
    "epochs": 12,
    "schedule": "plateau",
    "warmup": 0,
    "patience": 1,
    "early_stopping": 3,
    "ema": 0.9,
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Folder that contains the files of fixtures/v0.1.0.tar.xz."""
    folder = tmp_path_factory.mktemp("compatibility")
    with tarfile.open(ROOT / "tests/fixtures/v0.1.0.tar.xz") as file:
        file.extractall(folder, filter="data")
    return folder / "v0.1.0"


@pytest.fixture(scope="module")
def reference_arrays(archive):
    """Dict of arrays: input images, and what version 0.1.0 computed from the images."""
    return dict(np.load(archive / "weights/answers.npz"))


def copy_folder(archive, name, tmp_path):
    return shutil.copytree(archive / name, tmp_path / name)


def read_weights(path):
    """Returns the weights of a `.keras` file as a dict from names to float64 arrays."""
    arrays = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()].astype(np.float64)

    with zipfile.ZipFile(path) as file:
        content = file.read("model.weights.h5")
    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(collect)
    return arrays


def compute_distance(first_arrays, second_arrays):
    """Returns the Euclidean distance between the arrays of two dicts."""
    return np.sqrt(
        sum(
            ((first_arrays[k] - second_arrays[k]) ** 2).sum()
            for k in second_arrays
            if k in first_arrays
        )
    )


def remove_defaults(folder):
    """Removes all settings with default values from a `run.json`.

    The file then looks like one of a version that did not have these settings.
    """
    record = json.loads((folder / "run.json").read_text())
    settings, names = record["settings"], set()
    for field in (*dataclasses.fields(Recipe), *dataclasses.fields(Execution)):
        default = (
            list(field.default) if isinstance(field.default, tuple) else field.default
        )
        if settings[field.name] == default:
            del settings[field.name]
            names.add(field.name)
    assert {"repeats", "ema", "sync_bn", "tensorboard", "sizes"} < names
    (folder / "run.json").write_text(json.dumps(record))


def test_a_finished_run_of_0_1_0_can_be_evaluated(archive, tmp_path, capsys):
    folder = copy_folder(archive, "finished", tmp_path)
    remove_defaults(folder)
    assert train(**RUN_OPTIONS, epochs=2, model_dir=folder) == []
    assert "has ended; nothing to do" in capsys.readouterr().out
    result = evaluate(folder)
    assert (round(result["accuracy"] * 360), result["images"]) == (290, 360)
    (run,) = list_runs(folder)
    assert (run["state"], run["commit"][:7]) == ("done", "a4b038d")


# Tolerances of the next two tests: On machines with one CPU or without AVX-512, rounding
# changes the final weights by at most 1.2e-4 of the weights' norm in the first test, and
# by at most 5e-6 of the norm of the weights' update in the second test. If resuming
# changed the batches or the augmentation, the final weights would differ by 4e-2.
def test_a_killed_run_of_0_1_0_resumes(archive, tmp_path, capsys):
    folder = copy_folder(archive, "killed", tmp_path)
    remove_defaults(folder)
    train(**RUN_OPTIONS, **CHECKPOINT_OPTIONS, epochs=2, model_dir=folder)
    assert "Resuming after step 30 of 46." in capsys.readouterr().out
    uninterrupted_folder = archive / "finished"
    weights, expected_weights = (
        read_weights(f / "final.keras") for f in (folder, uninterrupted_folder)
    )
    assert weights.keys() == expected_weights.keys()
    weights_norm = np.sqrt(sum((array**2).sum() for array in expected_weights.values()))
    assert compute_distance(weights, expected_weights) < 2e-3 * weights_norm
    metrics = [
        np.genfromtxt(f / "metrics.csv", delimiter=",")
        for f in (folder, uninterrupted_folder)
    ]
    np.testing.assert_allclose(*metrics, rtol=1e-2, atol=4e-3)


@pytest.mark.slow
def test_a_killed_run_of_0_1_0_with_callbacks_and_frozen_stages_resumes(
    archive, tmp_path, capsys
):
    """The run uses the plateau schedule, early stopping and a weight average."""
    folder = copy_folder(archive, "killed_finetune", tmp_path)
    initial_path = archive / "weights/resnet8-a.keras"
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["weights"] = str(initial_path)
    (folder / "run.json").write_text(json.dumps(record))
    options = RUN_OPTIONS | CHECKPOINT_OPTIONS | FINETUNE_OPTIONS
    train(**options, weights=str(initial_path), model_dir=folder)
    output = capsys.readouterr().out
    assert "Resuming after step 80 of 276." in output
    assert "epoch 4/12" in output and "epoch 5/12" not in output
    uninterrupted_folder = archive / "whole_finetune"
    weights, expected_weights = (
        read_weights(f / "final.keras") for f in (folder, uninterrupted_folder)
    )
    update_norm = compute_distance(read_weights(initial_path), expected_weights)
    assert compute_distance(weights, expected_weights) < 5e-3 * update_norm


@pytest.mark.slow
def test_a_killed_run_of_format_2_resumes(tmp_path):
    with tarfile.open(FIXTURES / "format2.tar.xz") as file:
        file.extractall(tmp_path, filter="data")
    with tarfile.open(FIXTURES / "v0.1.0.tar.xz") as file:
        file.extract("v0.1.0/weights/resnet8-a.keras", tmp_path, filter="data")
    initial_path = tmp_path / "v0.1.0/weights/resnet8-a.keras"
    folder, whole_folder = tmp_path / "format2/killed", tmp_path / "format2/whole"
    record = json.loads((folder / "run.json").read_text())
    assert (record["format"], record["devices"], record["final_sha256"]) == (
        2,
        [],
        None,
    )
    record["settings"]["weights"] = str(initial_path)
    (folder / "run.json").write_text(json.dumps(record))
    flags = [*RUN_FLAGS, f"--weights={initial_path}", f"--model_dir={folder}"]
    result = run_child("keras_resnet.train", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Resuming after step 80 of 264." in result.stdout
    weights, expected_weights = (
        read_weights(f / "final.keras") for f in (folder, whole_folder)
    )
    update_norm = compute_distance(read_weights(initial_path), expected_weights)
    assert compute_distance(weights, expected_weights) < 5e-3 * update_norm
    rows, expected_rows = (
        np.genfromtxt(f / "metrics.csv", delimiter=",") for f in (folder, whole_folder)
    )
    np.testing.assert_allclose(rows, expected_rows, rtol=1e-2, atol=4e-3)


@pytest.mark.slow
def test_a_short_run_has_the_recorded_losses(tmp_path):
    """The losses are equal bit for bit on the kind of machine that recorded them.

    The random numbers of images and kernels, and the arithmetic of the steps, therefore
    change only on purpose. With seed 1, the validation loss is 4 % higher.
    """
    recorded = json.loads((FIXTURES / "losses.json").read_text())
    lines = train_for_losses(tmp_path)
    if find_machine() == recorded["machine"]:
        assert lines == recorded["metrics"]
    assert lines[0] == recorded["metrics"][0]
    losses, expected_losses = (
        np.array(text[1].split(","), float)[[1, 3]]
        for text in (lines, recorded["metrics"])
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=MAX_ROUNDING)


@pytest.mark.parametrize(
    ("file", "shortcut"),
    [
        ("resnet8-a.keras", "A"),
        ("resnet8-a.weights.h5", "A"),
        ("resnet8-a.safetensors", "A"),
        ("resnet8-b.keras", "B"),
    ],
)
def test_weights_of_0_1_0_load(archive, reference_arrays, file, shortcut):
    path = str(archive / "weights" / file)
    classifier = load_classifier(path)
    assert classifier.classes == tuple("0123456789")
    network = keras_resnet.ResNet(
        "cifar_resnet8", weights=path, classes=10, input_shape=(8, 8, 1),
        shortcut=shortcut, classifier_activation=None,
    )  # fmt: skip
    name = shortcut.lower()
    expected_logits = reference_arrays[f"{name}_logits"]
    logits = np.asarray(network(reference_arrays["image"], training=False))
    np.testing.assert_allclose(
        logits, expected_logits, atol=1e-4 * np.abs(expected_logits).max()
    )
    probabilities = np.asarray(
        classifier.model(reference_arrays["image"], training=False)
    )
    np.testing.assert_allclose(
        probabilities, reference_arrays[f"{name}_probabilities"], atol=1e-4
    )


def test_a_network_of_0_1_0_opens_with_keras_alone(archive, reference_arrays):
    model = keras.models.load_model(archive / "finished/final.keras")
    probabilities = np.asarray(model(reference_arrays["image"], training=False))
    np.testing.assert_allclose(
        probabilities, reference_arrays["finished_probabilities"], atol=1e-4
    )


@pytest.mark.parametrize("suffix", ["keras", "weights.h5"])
def test_weights_of_0_1_0_are_converted(archive, tmp_path, suffix):
    source_path, target_path = (
        archive / f"weights/resnet8-a.{suffix}",
        tmp_path / "a.safetensors",
    )
    convert(str(source_path), str(target_path))
    arrays, expected_arrays = (
        load_file(target_path),
        load_file(archive / "weights/resnet8-a.safetensors"),
    )
    assert arrays.keys() == expected_arrays.keys()
    assert all((arrays[key] == expected_arrays[key]).all() for key in expected_arrays)


def test_a_bundle_of_0_1_0_passes_verification(archive):
    findings, passed = verify(archive / "bundle")
    assert passed and [finding.verdict for finding in findings] == ["ok"] * 3


def test_a_record_index_of_0_1_0_is_read(archive, tmp_path, monkeypatch):
    """The index gets a wrong label. The dataset must have this label, which proves that
    the index was read.
    """
    records_folder = tmp_path / "records"
    records_folder.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    index = json.loads((archive / "records/tfrecord-index.json").read_text())
    for split_name, label in (("train", 10), ("validation", 9)):
        names = (os.path.basename(path) for path in index[split_name]["paths"])
        paths = [str(archive / "tfrecord" / name) for name in names]
        file_stats = [(os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in paths]
        key = hashlib.sha256(json.dumps([1, paths, file_stats]).encode()).hexdigest()[
            :32
        ]
        index_arrays = dict(np.load(archive / "records" / index[split_name]["index"]))
        index_arrays["labels"][-1] = label
        np.savez(records_folder / f"{key}.npz", **index_arrays)
    dataset = load_dataset(f"tfrecord:{archive / 'tfrecord'}")
    assert dataset.train.labels.tolist() == [*index["train"]["labels"][:-1], 9]
    assert dataset.test.labels.tolist() == [*index["validation"]["labels"][:-1], 8]
    assert dataset.train.records.offset.tolist() == index["train"]["offset"]
    assert dataset.train.records.length.tolist() == index["train"]["length"]
    assert len(list(records_folder.iterdir())) == 2


def test_studies_of_0_1_0_can_be_reported(archive, tmp_path, monkeypatch):
    """Figures are drawn but not rendered, because rendering takes most of the time."""
    folder = copy_folder(archive, "studies", tmp_path)
    figures = []
    monkeypatch.setattr(study_module, "to_png", lambda f: figures.append(f) or b"PNG")
    run_all({"images": 200, "output": str(folder)}, report_only=True)
    assert len(figures) == len(STUDIES) == 9
    (common_report,) = folder.glob("*/report.html")
    pages = {path: path.read_text("utf-8") for path in folder.rglob("report.html")}
    assert len(pages) == 10
    for path in folder.rglob("study.json"):
        command = html.escape(json.loads(path.read_text())["command"])
        assert command in pages[path.parent / "report.html"]
        assert command in pages[common_report]
