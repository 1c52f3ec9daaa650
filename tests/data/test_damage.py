"""Detection and replacement of damaged images."""

import contextlib
import dataclasses
import functools
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_pipelines import take_batches
from test_preprocessing import encode, make_noise, make_too_large_files
from test_records import make_example, write_examples

from keras_resnet.data import damage, splits
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.record_index import read_records
from keras_resnet.support.errors import InputError
from keras_resnet.training import network
from keras_resnet.training.run import train

PREPROCESSING = Preprocessing(8, 8, 3)


def make_split(count, damaged_indices=(), size=8):
    """Returns a split of encoded JPEG files. Files `damaged_indices` are truncated."""
    files = [encode(make_noise(size, size, seed), "JPEG") for seed in range(10)]
    images = np.array([files[i % 10] for i in range(count)], object)
    for index in damaged_indices:
        images[index] = images[index][:-60]
    return splits.Split(images, np.arange(count, dtype=np.int32) % 3)


def test_damaged_image_is_replaced_by_the_next_undamaged_one(capsys):
    split = make_split(1000, (10,))
    assert damage.find_damaged(split, PREPROCESSING, [12, 10, 10, 9]) == {10: ""}
    repaired_split = damage.replace_damaged(split, PREPROCESSING, [12, 10, 10, 9])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("1 of 1000 images cannot be decoded. ")
    assert "number 10" in line and "replace" in line
    assert repaired_split.damaged == (10,)
    sources = np.arange(1000)
    sources[10] = 11
    assert (repaired_split.images == split.images[sources]).all()
    assert (repaired_split.labels == split.labels[sources]).all()


def test_replacements_are_intact_images(monkeypatch):
    """No image follows the last image, so the first image replaces it."""
    monkeypatch.setattr(damage, "MAX_DAMAGED", 0.3)
    split = make_split(10, (3, 4, 9))
    repaired_split = damage.replace_damaged(split, PREPROCESSING, [9, 3])
    sources = [0, 1, 2, 5, 5, 5, 6, 7, 8, 0]
    assert (repaired_split.images == split.images[sources]).all()
    assert repaired_split.damaged == (3, 4, 9)
    for later_indices in ([3, 9], [9, 0, 4], [4, 3]):  # The order does not matter.
        other_split = split
        for index in later_indices:
            with contextlib.suppress(InputError):  # The image was replaced before.
                other_split = damage.replace_damaged(
                    other_split, PREPROCESSING, [index]
                )
        other_split = other_split.substitute([3, 4, 9])
        assert (other_split.images == repaired_split.images).all()
        assert (other_split.labels == repaired_split.labels).all()


def test_too_many_damaged_images_are_refused():
    """At most one in a thousand images may be damaged, counted since the start."""
    with pytest.raises(InputError, match=r"2 of 30 .*: number 5, number 9$"):
        damage.replace_damaged(make_split(30, (5, 9)), PREPROCESSING, [5])
    with pytest.raises(InputError, match="1 of 999 "):
        damage.replace_damaged(make_split(999, (5,)), PREPROCESSING, [5])
    # All images of a large dataset are not checked, as that would take long.
    split = dataclasses.replace(
        make_split(10_000, (5, 9)), damaged=tuple(range(91, 100))
    )
    assert len(damage.replace_damaged(split, PREPROCESSING, [5]).damaged) == 10
    with pytest.raises(InputError, match=r"11 of 10000 .*: number 5, number 9$"):
        damage.replace_damaged(split, PREPROCESSING, [5, 9])


def test_too_large_images_are_replaced_and_named(capsys, monkeypatch):
    monkeypatch.setattr(damage, "MAX_DAMAGED", 0.2)
    split = make_split(10)
    split.images[4] = next(make_too_large_files())[0]
    repaired_split = damage.replace_damaged(split, PREPROCESSING, range(10))
    assert repaired_split.damaged == (4,)
    message = "number 4 (60000 x 50000 pixels; at most 134,217,728 are accepted). In"
    assert message in capsys.readouterr().err


def test_messages_contain_no_control_characters(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(damage, "MAX_DAMAGED", 0.5)
    paths = [str(tmp_path / name) for name in ("a\x1b[31m\n.jpg", "b.jpg")]
    for path, content in zip(paths, make_split(2, (0,)).images, strict=True):
        with open(path, "wb") as file:
            file.write(content)
    split = splits.Split(np.array(paths, object), np.zeros(2, np.int32), are_paths=True)
    damage.replace_damaged(split, PREPROCESSING, [0])
    (line,) = capsys.readouterr().err.splitlines()
    assert r"/a\x1b[31m\n.jpg" in line


def test_other_errors_are_not_mistaken_for_damaged_images():
    read_error = tf.errors.ResourceExhaustedError(None, None, "no memory")
    with pytest.raises(tf.errors.ResourceExhaustedError):
        damage.replace_damaged(make_split(4), PREPROCESSING, [0, 1], read_error)
    with pytest.raises(InputError, match="Reading failed"):
        damage.replace_damaged(make_split(4), PREPROCESSING, [0, 1])


def test_error_message_names_the_damaged_file(tmp_path):
    paths = [str(tmp_path / name) for name in ("intact.jpg", "damaged.jpg")]
    for path, content in zip(paths, make_split(2, (1,)).images, strict=True):
        with open(path, "wb") as file:
            file.write(content)
    split = splits.Split(np.array(paths, object), np.zeros(2, np.int32), are_paths=True)
    message = rf"1 of 2 images cannot be decoded.*: {paths[1]}$"
    with pytest.raises(InputError, match=message):
        damage.refuse_damaged(split, PREPROCESSING)
    damage.refuse_damaged(split.take([0]), PREPROCESSING)


@pytest.fixture
def changed_records(tmp_path, monkeypatch):
    """Path and split of three records. The second one was changed after indexing."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    examples = [make_example(image, 1) for image in make_split(3).images]
    path = tmp_path / "train-0-of-1"
    write_examples(path, examples)
    split = read_records([path])
    content = bytearray(path.read_bytes())
    content[split.records.offset[1] + 100] ^= 1
    path.write_bytes(content)
    return path, split


@pytest.mark.slow
def test_training_batches_with_a_changed_record_raise_an_error(changed_records):
    with pytest.raises(tf.errors.OpError):
        take_batches(changed_records[1], 0, 2)


def test_record_that_changed_after_indexing_is_refused(changed_records):
    path, split = changed_records
    with pytest.raises(InputError, match=rf"has changed.*{path} record 1 \(DataLoss"):
        damage.replace_damaged(split, PREPROCESSING, range(3))
    path.unlink()
    with pytest.raises(InputError, match=rf"has changed.*{path} record 0 \(NotFound"):
        damage.replace_damaged(split, PREPROCESSING, range(3))


class AfterStep5(keras.callbacks.Callback):
    """Calls a function after the second step of the second epoch of three steps."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1):
            self.function()


@pytest.mark.slow
def test_training_continues_without_damaged_images(tmp_path, capsys, monkeypatch):
    """Damaged images are replaced in the same way if a run is interrupted and resumed.

    The weights therefore equal those of an uninterrupted run. Only the resumed run has
    labels of dtype int64, which must not matter either. The files of the damaged images
    lack only their ends, so that most random crops of them are readable.
    """
    monkeypatch.setattr(damage, "MAX_DAMAGED", 0.1)
    # Images 0, 13, 26 and 39 are read for the pixel statistics.
    monkeypatch.setattr(network, "MAX_STATISTICS_IMAGES", 4)
    train_split = make_split(40, (0, 1, 20), size=64)
    folder, cut_folder = tmp_path / "whole", tmp_path / "cut"

    def train_and_read_weights(folder, label_dtype, function):
        labels = train_split.labels.astype(label_dtype)
        train(
            "cifar_resnet8",
            splits.Dataset(
                "mine",
                ("a", "b", "c"),
                dataclasses.replace(train_split, labels=labels),
                make_split(10),
                (8, 8, 3),
            ),
            recipe="digits",
            crop="inception",
            batch_size=16,
            iterations=6,
            checkpoint_every=2,
            strategy="one_device",
            model_dir=str(folder),
            callbacks=[AfterStep5(function)],
            verbose=0,
        )
        lines = capsys.readouterr().err.splitlines()
        counts = [line.split(" images cannot be decoded")[0] for line in lines]
        # Checkpoints remember image 20, which is found before the interruption.
        assert counts == ["2 of 40", "3 of 40"][: 1 if folder == cut_folder else 2]
        model = keras.models.load_model(folder / "final.keras")
        return np.concatenate([w.ravel() for w in model.get_weights()])

    # The copy is what an interruption after step 5 leaves on disk.
    copy_folder = functools.partial(shutil.copytree, folder, cut_folder)
    weights = train_and_read_weights(folder, np.int32, copy_folder)
    assert np.isfinite(weights).all()
    resumed_weights = train_and_read_weights(cut_folder, np.int64, lambda: None)
    np.testing.assert_array_equal(resumed_weights, weights)
