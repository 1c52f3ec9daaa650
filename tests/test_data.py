import os
import shutil

import numpy as np
import pytest
from conftest import ROOT, SHARED, run_python
from PIL import Image

from keras_resnet import data
from keras_resnet.errors import InputError
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.recipes import find_recipe


@pytest.fixture(scope="module")
def digits():
    return data.load_dataset("digits")


@pytest.fixture
def folder(tmp_path):
    """20 red and 10 blue pictures of different sizes, in folders."""
    random = np.random.default_rng(0)
    for name, count, channel in (("blue", 10, 2), ("red", 20, 0)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 60, (20 + i, 30, 3), np.uint8)
            pixels[..., channel] += 150
            ending = ("png", "jpg", "bmp")[i % 3]
            Image.fromarray(pixels).save(tmp_path / name / f"{i:02d}.{ending}")
        (tmp_path / name / "notes.txt").write_text("no image")
    return tmp_path


def take(dataset, shape, start, stop, replicas=1, seed=0, **changes):
    recipe = find_recipe("digits", **changes)
    batches = data.training_batches(
        dataset.train, Preprocessing(*shape), recipe, replicas, seed, start, stop
    )
    return list(batches.as_numpy_iterator())


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    theirs = load_digits()
    assert len(digits.train) + len(digits.test) == 1797
    assert len(digits.test) == 360  # A fifth.
    images = np.concatenate([digits.train.images, digits.test.images])
    images = np.round(images[..., 0] / (255 / 16)).astype(int)
    ours = sorted(image.tobytes() for image in images)
    assert ours == sorted(image.tobytes() for image in theirs.images.astype(int))
    assert np.bincount(digits.test.labels).min() >= 34  # Stratified.
    assert digits.classes == tuple("0123456789")


def test_an_epoch_has_every_image_once(digits):
    steps = data.steps_per_epoch(digits.train, 64, 1)
    assert steps == 23  # 1,437 images: 22 batches of 64 and one of 29.
    batches = take(digits, (8, 8, 1), 0, steps)
    assert [len(labels) for _, labels, _ in batches] == [64] * 22 + [29]
    labels = np.concatenate([labels for _, labels, _ in batches])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(digits.train.labels))
    for _, _, weights in batches:
        assert weights.sum() == pytest.approx(1, rel=1e-6)


def test_each_epoch_has_another_order_and_each_seed_too(digits):
    first, second = take(digits, (8, 8, 1), 0, 1), take(digits, (8, 8, 1), 23, 24)
    other = take(digits, (8, 8, 1), 0, 1, seed=1)
    again = take(digits, (8, 8, 1), 0, 1)
    assert not np.array_equal(first[0][1], second[0][1])
    assert not np.array_equal(first[0][1], other[0][1])
    for a, b in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("start", [1, 17, 22, 23, 40])
def test_resuming_anywhere_gives_what_an_undisturbed_run_sees(digits, start):
    whole, rest = take(digits, (8, 8, 1), 0, 50), take(digits, (8, 8, 1), start, 50)
    assert len(rest) == 50 - start
    for a, b in zip(whole[start:], rest, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_the_batch_of_one_device(digits, replicas):
    alone = take(digits, (8, 8, 1), 0, 25)
    shared = take(digits, (8, 8, 1), 0, 25, replicas)
    for step, batch in enumerate(alone):
        parts = shared[step * replicas : (step + 1) * replicas]
        sizes = [len(labels) for _, labels, _ in parts]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0
        for i in range(3):
            np.testing.assert_array_equal(
                np.concatenate([p[i] for p in parts]), batch[i]
            )


def test_no_replica_gets_an_empty_part(digits):
    """Of 1,437 images, 479 steps of 3 leave none and 359 of 4 leave one."""
    assert data.steps_per_epoch(digits.train, 4, 1) == 360
    assert data.steps_per_epoch(digits.train, 4, 2) == 359
    parts = take(digits, (8, 8, 1), 357, 361, replicas=2, batch_size=4)
    assert [len(labels) for _, labels, _ in parts] == [2] * 8


def test_augmentation_moves_by_a_pixel_and_pads_with_zeros(digits):
    images, labels, _ = take(digits, (8, 8, 1), 0, 1)[0]
    known = {}
    for image, label in zip(digits.train.images, digits.train.labels, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        for y in range(3):
            for x in range(3):
                known[padded[y : y + 8, x : x + 8].tobytes()] = label, (y, x)
    found = [known[image.tobytes()] for image in images]
    assert [label for label, _ in found] == labels.tolist()
    assert len({move for _, move in found}) == 9


@pytest.mark.parametrize(
    ("batch_size", "replicas"), [(360, 1), (100, 2), (14, 2), (128, 4)]
)
def test_evaluation_counts_every_image_once(digits, batch_size, replicas):
    batches = data.evaluation_batches(
        digits.test, data.central(Preprocessing(8, 8, 1)), batch_size, replicas
    )
    batches = list(batches.as_numpy_iterator())
    assert len(batches) % replicas == 0
    counted = np.concatenate([weights for _, _, weights in batches]) > 0
    images = np.concatenate([images for images, _, _ in batches])[counted]
    labels = np.concatenate([labels for _, labels, _ in batches])[counted]
    np.testing.assert_array_equal(images, digits.test.images)
    np.testing.assert_array_equal(labels, digits.test.labels)


def test_folder_holds_a_fifth_of_each_class_out(folder):
    images = data.load_dataset(f"folder:{folder}")
    assert images.classes == ("blue", "red")
    assert np.bincount(images.train.labels).tolist() == [8, 16]
    assert np.bincount(images.test.labels).tolist() == [2, 4]
    assert not set(images.train.images) & set(images.test.images)
    views = data.load_views(images.test, Preprocessing(16, 16, 3))
    colours = views.astype(float).mean(axis=(1, 2))
    np.testing.assert_array_equal(
        colours[:, 0] > colours[:, 2], images.test.labels == 1
    )


def test_folder_with_train_and_val(folder, tmp_path_factory):
    parent = tmp_path_factory.mktemp("parts")
    shutil.copytree(folder, parent / "train")
    shutil.copytree(folder, parent / "val")
    images = data.load_dataset(f"folder:{parent}")
    assert (len(images.train), len(images.test)) == (30, 30)
    (parent / "val" / "green").mkdir()
    with pytest.raises(
        InputError, match="classes that the training images lack: green"
    ):
        data.load_dataset(f"folder:{parent}")


def test_training_batches_of_a_folder(folder):
    images = data.load_dataset(f"folder:{folder}")
    for crop in (1.0, 0.8):
        batches = data.training_batches(
            images.train,
            Preprocessing(16, 20, 3, crop),
            find_recipe("photographs", batch_size=10),
            2,
            seed=0,
            start=1,
            stop=5,
        )
        batches = list(batches.as_numpy_iterator())
        assert [len(labels) for _, labels, _ in batches] == [5, 5, 2, 2, 5, 5, 5, 5]
        for pixels, labels, _ in batches:
            assert pixels.shape[1:] == (16, 20, 3)
            colours = pixels.astype(float).mean(axis=(1, 2))
            np.testing.assert_array_equal(colours[:, 0] > colours[:, 2], labels == 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder:nowhere", "There is no such folder"),
        ("cifar_10", "There is no such data set"),
        ("no such", "There is no such data set"),
    ],
)
def test_unknown_data_set(name, words):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(InputError) as error:
        data.load_dataset(name)
    assert words in str(error.value)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="at least two folders"):
        data.load_dataset(f"folder:{tmp_path}")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="There are no images"):
        data.load_dataset(f"folder:{tmp_path}")
    for name in ("a", "b"):
        Image.new("RGB", (9, 9)).save(tmp_path / name / "one.png")
    with pytest.raises(InputError, match=r"Each class needs .* \[0, 0\]"):
        data.load_dataset(f"folder:{tmp_path}")


def test_a_damaged_image_is_named(folder):
    whole = (folder / "red" / "04.jpg").read_bytes()
    (folder / "red" / "04.jpg").write_bytes(whole[: len(whole) // 3])
    images = data.load_dataset(f"folder:{folder}")
    with pytest.raises(InputError, match=r"1 of 6 images cannot be decoded.*04\.jpg"):
        data.refuse_damaged(images.test, Preprocessing(16, 16, 3))
    data.refuse_damaged(images.train, Preprocessing(16, 16, 3))


def test_a_batch_that_the_replicas_do_not_divide():
    data.check_batch_size(64, 2)
    for batch_size in (63, 0):
        with pytest.raises(InputError, match=f"Received: batch_size={batch_size}"):
            data.check_batch_size(batch_size, 2)


def test_tfds(tmp_path):
    """Sets that TFDS prepared here: of one size, and of several."""
    tfds = pytest.importorskip("tensorflow_datasets")
    random = np.random.default_rng(0)
    for name, shape in (("tiny", (6, 6, 3)), ("mixed", (None, None, 3))):
        examples = {}
        for split, count in (("train", 12), ("test", 5)):
            examples[split] = [
                (
                    i,
                    {
                        "image": random.integers(
                            0, 256, (6 if shape[0] else 6 + i, 6, 3), np.uint8
                        ),
                        "label": i % 3,
                    },
                )
                for i in range(count)
            ]
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape),
                    "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
                }
            ),
            split_datasets=examples,
            data_dir=tmp_path,
            disable_shuffling=True,
        )
        found = data.load_dataset(name, str(tmp_path))
        assert found.classes == ("x", "y", "z")
        assert (len(found.train), len(found.test)) == (12, 5)
        assert found.shape == (shape if shape[0] else None)
        views = data.load_views(found.test, Preprocessing(6, 6, 3))
        assert views.shape == (5, 6, 6, 3)
        for (_, example), view, label in zip(
            examples["test"], views, found.test.labels, strict=True
        ):
            assert label == example["label"]
            if shape[0]:
                np.testing.assert_array_equal(view, example["image"])


@pytest.mark.shared_data
@pytest.mark.full
def test_tfds_fashion_mnist(tmp_path):
    """The real set, prepared from its original files."""
    pytest.importorskip("tensorflow_datasets")
    script = SHARED.parent / "tools" / "prepare_tfds.py"
    result = run_python(script, tmp_path, "fashion_mnist", timeout=600)
    assert result.returncode == 0, result.stderr
    found = data.load_dataset("fashion_mnist", str(tmp_path))
    assert (len(found.train), len(found.test)) == (60_000, 10_000)
    assert found.shape == (28, 28, 1)
    assert np.bincount(found.test.labels).tolist() == [1000] * 10


def test_data_needs_no_network_or_optional_package():
    code = """
import sys
sys.modules["tensorflow_datasets"] = None
from keras_resnet import data
data.load_dataset("digits")
try:
    data.load_dataset("cifar10")
except data.InputError as error:
    print(error)
"""
    result = run_python("-c", code, cwd=os.path.dirname(ROOT))
    assert "keras-resnet-zoo[datasets]" in result.stdout, result.stderr
