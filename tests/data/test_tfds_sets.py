"""Datasets of TFDS (TensorFlow Datasets)."""

import os
import sys

import numpy as np
import pytest
from conftest import SHARED, run_python
from test_pipelines import assert_equal, take_batches

from keras_resnet.data import load_dataset, pipelines, tfds_sets
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.support.errors import InputError


def store_dataset(folder, name, shape, features=("image", "label")):
    """Prepares a dataset with TFDS; returns its 12 training images.

    The first five images are also the test images. Class 0, "x", has no images.
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    random = np.random.default_rng(0)
    images = [
        random.integers(0, 256, (shape[0] or 6 + i, 6, 3), np.uint8) for i in range(12)
    ]
    image_name, label_name = features
    examples = [
        (i, {image_name: image, label_name: 1 + i % 2})
        for i, image in enumerate(images)
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                image_name: tfds.features.Image(shape=shape),
                label_name: tfds.features.ClassLabel(names=["x", "y", "z"]),
            }
        ),
        split_datasets={"train": examples, "test": examples[:5]},
        data_dir=folder,
        disable_shuffling=True,
    )
    return images


def load_and_check(folder, name):
    dataset = load_dataset(name, str(folder))
    assert dataset.classes == ("x", "y", "z")
    assert dataset.train.labels.tolist() == [1, 2] * 6
    assert dataset.test.labels.tolist() == [1, 2, 1, 2, 1]
    test_only_dataset = load_dataset(name, str(folder), only_test=True)
    assert (len(test_only_dataset.train), len(test_only_dataset.test)) == (0, 5)
    return dataset


def test_large_datasets_are_read_from_their_files(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    images = store_dataset(tmp_path, "level", (6, 6, 3))
    dataset_in_memory = load_and_check(tmp_path, "level")
    assert dataset_in_memory.shape == (6, 6, 3)
    np.testing.assert_array_equal(dataset_in_memory.train.images, images)
    np.testing.assert_array_equal(dataset_in_memory.test.images, images[:5])
    monkeypatch.setattr(tfds_sets, "_find_memory_size", lambda: 0)
    dataset = load_and_check(tmp_path, "level")
    assert dataset.train.records is not None
    views = pipelines.load_views(dataset.test, Preprocessing(6, 6, 3))
    np.testing.assert_array_equal(views, images[:5])
    batches, expected_batches = (
        take_batches(d.train, 1, 3, size=(6, 6), batch_size=5)
        for d in (dataset, dataset_in_memory)
    )
    assert_equal(batches, expected_batches)


def test_images_of_several_sizes_are_read_from_their_files(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    images = store_dataset(tmp_path, "uneven", (None, None, 3))
    dataset = load_and_check(tmp_path, "uneven")
    assert dataset.shape is None
    preprocessing = Preprocessing(6, 6, 3)
    views = pipelines.load_views(dataset.train, preprocessing)
    expected = [preprocessing.view(image) for image in images]
    np.testing.assert_array_equal(views, expected)


def test_datasets_without_images_and_labels_are_refused(tmp_path):
    store_dataset(tmp_path, "segments", (6, 6, 3), features=("image", "segment"))
    with pytest.raises(InputError, match=r"image and label.*'segments' with splits"):
        load_dataset("segments", str(tmp_path))


@pytest.mark.shared_data
@pytest.mark.full
def test_fashion_mnist_can_be_loaded_after_tfds_prepared_it(tmp_path):
    """`prepare_tfds.py` prepares the dataset with TFDS from the original files."""
    pytest.importorskip("tensorflow_datasets")
    script = SHARED.parent / "tools" / "prepare_tfds.py"
    result = run_python(script, tmp_path, "fashion_mnist", timeout=600)
    assert result.returncode == 0, result.stderr
    dataset = load_dataset("fashion_mnist", str(tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert dataset.shape == (28, 28, 1)
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10


def test_tfds_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert len(load_dataset("digits").train) == 1437
    with pytest.raises(InputError, match=r"keras-resnet-zoo\[datasets\]"):
        load_dataset("cifar10")


class Builder:
    """A dataset builder that fails while it downloads."""

    name, data_dir = "mnist", "/data"

    def __init__(self, error):
        self.error = error

    def download_and_prepare(self):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        # A missing manual download, a missing library, no network, and a full disk.
        AssertionError("Manual directory /data/manual does not exist"),
        ModuleNotFoundError("No module named 'scipy'"),
        ConnectionError("Name or service not known"),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_tfds_is_one_line(error):
    with pytest.raises(InputError) as raised:
        tfds_sets._prepare(Builder(error))
    message = str(raised.value)
    assert message.startswith("Could not prepare mnist in /data. ")
    assert message.endswith(f"({type(error).__name__}: {error})")
    assert "\n" not in message


def test_memory_size_is_known_on_all_systems(monkeypatch):
    assert 2**29 < tfds_sets._find_memory_size() < 2**50
    monkeypatch.delattr(os, "sysconf")  # Windows does not have it.
    assert tfds_sets._find_memory_size() == 2**33
