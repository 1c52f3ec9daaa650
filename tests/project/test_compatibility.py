"""Tests that this version can use the files that version 0.1.0 wrote.

The files are in fixtures/v0.1.0.tar.xz. The README in this archive describes how they
were made.
"""

import hashlib
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
from conftest import ROOT, run_program, run_python
from safetensors.numpy import load_file

import keras_resnet
from keras_resnet.data import load_dataset
from keras_resnet.evaluation import load_classifier

TRAIN_COMMAND = (
    "keras_resnet.train", "--model=cifar_resnet8", "--dataset=digits",
    "--strategy=one_device",
)  # fmt: skip
FINETUNE_CHANGES = (
    "schedule=plateau", "warmup=0", "patience=1", "early_stopping=3", "ema=0.9",
    "checkpoint_every=10", "keep_checkpoints=1",
)  # fmt: skip


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


def test_a_finished_run_of_0_1_0_can_be_evaluated(archive, tmp_path):
    folder = copy_folder(archive, "finished", tmp_path)
    result = run_program(
        *TRAIN_COMMAND, "--epochs=2", f"--model_dir={folder}", cwd=tmp_path
    )
    assert "has ended; nothing to do" in result.stdout, result.stderr
    result = run_program("keras_resnet.evaluate", f"--model={folder}", cwd=tmp_path)
    assert "290 of 360 test images correct: top-1 80.56%" in result.stdout
    result = run_program("keras_resnet.runs", folder, "--csv", cwd=tmp_path)
    assert ",done,a4b038d" in result.stdout


# Tolerances of the next two tests: On machines with one CPU or without AVX-512, rounding
# changes the final weights by at most 1.2e-4 of the weights' norm in the first test, and
# by at most 5e-6 of the norm of the weights' update in the second test. If resuming
# changed the batches or the augmentation, the final weights would differ by 4e-2.
def test_a_killed_run_of_0_1_0_resumes(archive, tmp_path):
    folder = copy_folder(archive, "killed", tmp_path)
    result = run_program(
        *TRAIN_COMMAND, "--epochs=2", "--set=checkpoint_every=10", "--set=keep_checkpoints=1",
        f"--model_dir={folder}", cwd=tmp_path,
    )  # fmt: skip
    assert "Resuming after step 30 of 46." in result.stdout, result.stderr
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


def test_a_killed_run_of_0_1_0_with_callbacks_and_frozen_stages_resumes(
    archive, tmp_path
):
    """The run uses the plateau schedule, early stopping and a weight average."""
    folder = copy_folder(archive, "killed_finetune", tmp_path)
    initial_path = archive / "weights/resnet8-a.keras"
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["weights"] = str(initial_path)
    (folder / "run.json").write_text(json.dumps(record))
    result = run_program(
        *TRAIN_COMMAND, f"--weights={initial_path}", "--freeze=conv2..conv4", "--epochs=12",
        *(f"--set={change}" for change in FINETUNE_CHANGES), f"--model_dir={folder}",
        cwd=tmp_path,
    )  # fmt: skip
    assert "Resuming after step 80 of 276." in result.stdout, result.stderr
    assert "epoch 4/12" in result.stdout and "epoch 5/12" not in result.stdout
    uninterrupted_folder = archive / "whole_finetune"
    weights, expected_weights = (
        read_weights(f / "final.keras") for f in (folder, uninterrupted_folder)
    )
    update_norm = compute_distance(read_weights(initial_path), expected_weights)
    assert compute_distance(weights, expected_weights) < 5e-3 * update_norm


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
    result = run_program("keras_resnet.convert", source_path, target_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    arrays, expected_arrays = (
        load_file(target_path),
        load_file(archive / "weights/resnet8-a.safetensors"),
    )
    assert arrays.keys() == expected_arrays.keys()
    assert all((arrays[key] == expected_arrays[key]).all() for key in expected_arrays)


def test_a_bundle_of_0_1_0_passes_verification(archive):
    result = run_python("-m", "export.verify", archive / "bundle")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(" ok ") == 3


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


def test_studies_of_0_1_0_can_be_reported(archive, tmp_path):
    folder = copy_folder(archive, "studies", tmp_path)
    result = run_program(
        "keras_resnet.studies.all", "--report", "--images=200", f"--output={folder}",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(list(folder.rglob("report.html"))) == 10
