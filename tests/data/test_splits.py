"""Splits and datasets, also those created by users."""

import os

import numpy as np
import pytest

from keras_resnet.data import splits
from keras_resnet.support.errors import InputError
from keras_resnet.training.run import train


def make_user_dataset(labels=(0, 1, 1), classes=("a", "b"), **changes):
    """Returns a dataset of arrays with three images in each split.

    `labels` and the keyword `images` replace the valid arrays of one split. The keyword
    `part` names this split, by default "train".
    """
    images = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8, 1)
    valid_split = splits.Split(images, np.array([0, 1, 1], np.int32))
    split = splits.Split(changes.pop("images", images), np.array(labels))
    parts = {
        "train": valid_split,
        "test": valid_split,
        changes.pop("part", "train"): split,
    }
    return splits.Dataset("mine", classes, **parts, shape=(8, 8, 1))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_user_labels_of_any_integer_dtype_become_int32(dtype):
    dataset = splits.check_dataset(make_user_dataset(np.array([1, 0, 1], dtype)))
    assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.int32
    assert dataset.train.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((3, 8, 8, 1))}, "images of dtype float64 and shape (3, 8, 8, 1)"),
        ({"images": np.zeros((3, 8, 8, 1), int)}, "images of dtype int64"),
        ({"images": np.zeros((3, 8, 8), np.uint8)}, "images of dtype uint8 and shape (3, 8, 8)"),
        ({"labels": [[1, 0], [0, 1], [0, 1]]}, "labels of dtype int64 and shape (3, 2)"),
        ({"labels": [0.0, 1.0, 1.0]}, "labels of dtype float64"),
        ({"labels": [0, 1]}, "shape (2,) for 3 images"),
        ({"labels": [0, 1, 2]}, "with label 2 of image 2"),
        ({"labels": [0, -1, 1]}, "with label -1 of image 1"),
        ({"labels": [2**32, 1, 1]}, "with label 4294967296 of image 0"),
    ],
)  # fmt: skip
def test_invalid_user_datasets_are_refused(part, changes, message, tmp_path):
    with pytest.raises(InputError) as error:
        train(
            "cifar_resnet8",
            make_user_dataset(**changes, part=part),
            model_dir=tmp_path / "run",
        )
    assert message in str(error.value) and "mine" in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_user_dataset_without_validation_images_is_refused(tmp_path, digits):
    dataset = splits.Dataset(
        "mine", digits.classes, digits.train, digits.test.take(slice(0)), digits.shape
    )
    with pytest.raises(InputError, match=r"validation split.*mine with 0"):
        train("cifar_resnet8", dataset, model_dir=tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_hold_out_always_selects_the_same_images():
    images = np.arange(50_000, dtype=np.uint16).reshape(-1, 1, 1, 1).view(np.uint8)
    split = splits.Split(images, np.arange(50_000, dtype=np.int32))
    dataset = splits.Dataset("some", ("a",), split, split.take([]), (1, 1, 2))
    divided_dataset = splits.hold_out(dataset, 0.1)
    assert (len(divided_dataset.train), len(divided_dataset.test)) == (45_000, 5_000)
    all_labels = np.concatenate(
        [divided_dataset.train.labels, divided_dataset.test.labels]
    )
    assert np.array_equal(np.sort(all_labels), np.arange(50_000))
    repeated = splits.hold_out(dataset, 0.1)
    np.testing.assert_array_equal(divided_dataset.test.labels, repeated.test.labels)
    expected = np.random.default_rng(0).permutation(50_000)[:5_000]
    np.testing.assert_array_equal(divided_dataset.test.labels, np.sort(expected))
    np.testing.assert_array_equal(
        divided_dataset.test.images.reshape(-1, 2).view(np.uint16)[:, 0],
        divided_dataset.test.labels,
    )
