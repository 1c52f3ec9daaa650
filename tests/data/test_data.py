import contextlib
import io
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, SHARED, run_python
from PIL import Image

from keras_resnet.data import damage, pipelines, splits, tfds_sets
from keras_resnet.data import service as data_service
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.sources import _make_split, load_dataset
from keras_resnet.spec import Provenance, count_steps, find_recipe
from keras_resnet.support.errors import InputError
from keras_resnet.training.run import train


@pytest.fixture
def folder(tmp_path):
    """A folder with 20 red and 10 blue images of different sizes in class folders."""
    random = np.random.default_rng(0)
    for name, count, channel in (("blue", 10, 2), ("red", 20, 0)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 60, (20 + i, 30, 3), np.uint8)
            pixels[..., channel] += 150
            suffix = ("png", "jpg", "bmp")[i % 3]
            Image.fromarray(pixels).save(tmp_path / name / f"{i:02d}.{suffix}")
        (tmp_path / name / "notes.txt").write_text("no image")
    return tmp_path


def take_digit_batches(dataset, shape, start, stop, replicas=1, seed=0, **changes):
    recipe = find_recipe("digits", **changes)
    batches = pipelines.TrainingBatches(
        split=dataset.train,
        preprocessing=Preprocessing(*shape),
        recipe=recipe,
        replicas=replicas,
        seed=seed,
    )
    return list(batches.dataset(start, stop).as_numpy_iterator())


def test_digits_equal_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    scikit_digits = load_digits()
    assert len(digits.train) + len(digits.test) == 1797
    assert len(digits.test) == 360  # A fifth of 1,797, rounded up.
    images = np.concatenate([digits.train.images, digits.test.images])
    images = np.round(images[..., 0] / (255 / 16)).astype(int)
    loaded_images = sorted(image.tobytes() for image in images)
    assert loaded_images == sorted(
        image.tobytes() for image in scikit_digits.images.astype(int)
    )
    assert np.bincount(digits.test.labels).min() >= 34  # The split is stratified.
    assert digits.classes == tuple("0123456789")


def test_an_epoch_has_every_image_once(digits):
    steps = count_steps(len(digits.train), 64, 1)
    assert steps == 23  # 1,437 images are 22 batches of 64 and one of 29.
    batches = take_digit_batches(digits, (8, 8, 1), 0, steps)
    assert [len(labels) for _, labels, _ in batches] == [64] * 22 + [29]
    labels = np.concatenate([labels for _, labels, _ in batches])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(digits.train.labels))
    for _, _, weights in batches:
        assert weights.sum() == pytest.approx(1, rel=1e-6)


def test_order_depends_on_epoch_and_seed(digits):
    first_epoch_batches = take_digit_batches(digits, (8, 8, 1), 0, 1)
    second_epoch_batches = take_digit_batches(digits, (8, 8, 1), 23, 24)
    other_seed_batches = take_digit_batches(digits, (8, 8, 1), 0, 1, seed=1)
    repeated_batches = take_digit_batches(digits, (8, 8, 1), 0, 1)
    assert not np.array_equal(first_epoch_batches[0][1], second_epoch_batches[0][1])
    assert not np.array_equal(first_epoch_batches[0][1], other_seed_batches[0][1])
    for a, b in zip(first_epoch_batches[0], repeated_batches[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("start", [1, 17, 22, 23, 40])
def test_resuming_in_mid_epoch_gives_the_batches_of_an_uninterrupted_run(digits, start):
    uninterrupted_batches = take_digit_batches(digits, (8, 8, 1), 0, 50)
    resumed_batches = take_digit_batches(digits, (8, 8, 1), start, 50)
    assert len(resumed_batches) == 50 - start
    for expected, batch in zip(
        uninterrupted_batches[start:], resumed_batches, strict=True
    ):
        for expected_array, array in zip(expected, batch, strict=True):
            np.testing.assert_array_equal(expected_array, array)


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_the_batch_of_a_single_device(digits, replicas):
    single_device_batches = take_digit_batches(digits, (8, 8, 1), 0, 25)
    shared_batches = take_digit_batches(digits, (8, 8, 1), 0, 25, replicas)
    for step, batch in enumerate(single_device_batches):
        parts = shared_batches[step * replicas : (step + 1) * replicas]
        part_sizes = [len(labels) for _, labels, _ in parts]
        assert max(part_sizes) - min(part_sizes) <= 1
        assert min(part_sizes) > 0
        for i in range(3):
            np.testing.assert_array_equal(
                np.concatenate([p[i] for p in parts]), batch[i]
            )


def test_no_replica_gets_an_empty_part(digits):
    """The last of 1,437 images is left out if two replicas share batches of 4.

    A batch of this image alone would have no image for the second replica.
    """
    assert count_steps(len(digits.train), 4, 1) == 360
    assert count_steps(len(digits.train), 4, 2) == 359
    parts = take_digit_batches(digits, (8, 8, 1), 357, 361, replicas=2, batch_size=4)
    assert [len(labels) for _, labels, _ in parts] == [2] * 8


def test_augmentation_shifts_by_one_pixel_and_pads_with_zeros(digits):
    images, labels, _ = take_digit_batches(digits, (8, 8, 1), 0, 1)[0]
    crops = {}
    for image, label in zip(digits.train.images, digits.train.labels, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        for y in range(3):
            for x in range(3):
                crops[padded[y : y + 8, x : x + 8].tobytes()] = label, (y, x)
    matches = [crops[image.tobytes()] for image in images]
    assert [label for label, _ in matches] == labels.tolist()
    assert len({offset for _, offset in matches}) == 9


@pytest.mark.parametrize(
    ("batch_size", "replicas"), [(360, 1), (100, 2), (14, 2), (128, 4)]
)
def test_evaluation_uses_every_image_once(digits, batch_size, replicas):
    batches = pipelines.evaluation_batches(
        digits.test,
        pipelines.central_crop(Preprocessing(8, 8, 1)),
        batch_size,
        replicas,
    )
    batches = list(batches.as_numpy_iterator())
    assert len(batches) % replicas == 0
    is_image = np.concatenate([weights for _, _, weights in batches]) > 0
    images = np.concatenate([images for images, _, _ in batches])[is_image]
    labels = np.concatenate([labels for _, labels, _ in batches])[is_image]
    np.testing.assert_array_equal(images, digits.test.images)
    np.testing.assert_array_equal(labels, digits.test.labels)


def test_undivided_folder_holds_out_a_fifth_of_each_class(folder):
    dataset = load_dataset(f"folder:{folder}")
    assert dataset.classes == ("blue", "red")
    assert np.bincount(dataset.train.labels).tolist() == [8, 16]
    assert np.bincount(dataset.test.labels).tolist() == [2, 4]
    assert not set(dataset.train.images) & set(dataset.test.images)
    pixels = pipelines.load_views(dataset.test, Preprocessing(16, 16, 3))
    colours = pixels.astype(float).mean(axis=(1, 2))
    np.testing.assert_array_equal(
        colours[:, 0] > colours[:, 2], dataset.test.labels == 1
    )


def test_folders_train_and_val_are_the_two_splits(folder, tmp_path_factory):
    dataset_folder = tmp_path_factory.mktemp("parts")
    shutil.copytree(folder, dataset_folder / "train")
    shutil.copytree(folder, dataset_folder / "val")
    dataset = load_dataset(f"folder:{dataset_folder}")
    assert (len(dataset.train), len(dataset.test)) == (30, 30)
    (dataset_folder / "val" / "green").mkdir()
    with pytest.raises(
        InputError, match="classes that the training images lack: green"
    ):
        load_dataset(f"folder:{dataset_folder}")


def test_validation_folders_are_preferred_to_test_folders(folder):
    """A folder "validation" is preferred to "val", and "val" to "test"."""
    for part in ("train", "test", "val", "validation"):
        for name in ("blue", "red"):
            shutil.copytree(folder / name, folder / "parts" / part / name)
        if part == "train":
            continue
        dataset = load_dataset(f"folder:{folder}/parts")
        paths = [pathlib.Path(path) for path in dataset.test.images]
        splits_used = {path.relative_to(folder / "parts").parts[0] for path in paths}
        assert splits_used == {part}


def test_training_batches_are_read_from_a_folder(folder):
    dataset = load_dataset(f"folder:{folder}")
    for crop in (1.0, 0.8):
        batches = pipelines.TrainingBatches(
            split=dataset.train,
            preprocessing=Preprocessing(16, 20, 3, crop),
            recipe=find_recipe("photographs", batch_size=10),
            replicas=2,
            seed=0,
        )
        batches = list(batches.dataset(1, 5).as_numpy_iterator())
        assert [len(labels) for _, labels, _ in batches] == [5, 5, 2, 2, 5, 5, 5, 5]
        for pixels, labels, _ in batches:
            assert pixels.shape[1:] == (16, 20, 3)
            colours = pixels.astype(float).mean(axis=(1, 2))
            np.testing.assert_array_equal(colours[:, 0] > colours[:, 2], labels == 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:nowhere", "The folder does not exist"),
        ("cifar_10", "The dataset does not exist"),
        ("no such", "The dataset does not exist"),
    ],
)
def test_unknown_dataset_is_refused(name, message):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(InputError) as error:
        load_dataset(name)
    assert message in str(error.value)


def test_folders_without_enough_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="at least two folders"):
        load_dataset(f"folder:{tmp_path}")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="There are no images"):
        load_dataset(f"folder:{tmp_path}")
    for name in ("a", "b"):
        Image.new("RGB", (9, 9)).save(tmp_path / name / "one.png")
    with pytest.raises(InputError, match=r"Each class needs .* \[0, 0\]"):
        load_dataset(f"folder:{tmp_path}")


def test_error_message_names_the_damaged_image(folder):
    content = (folder / "red" / "04.jpg").read_bytes()
    (folder / "red" / "04.jpg").write_bytes(content[: len(content) // 3])
    dataset = load_dataset(f"folder:{folder}")
    with pytest.raises(InputError, match=r"1 of 6 images cannot be decoded.*04\.jpg"):
        damage.refuse_damaged(dataset.test, Preprocessing(16, 16, 3))
    damage.refuse_damaged(dataset.train, Preprocessing(16, 16, 3))


def test_batch_size_must_be_a_multiple_of_the_replicas():
    pipelines.check_batch_size(64, 2)
    for batch_size in (63, 0):
        with pytest.raises(InputError, match=f"Received: batch_size={batch_size}"):
            pipelines.check_batch_size(batch_size, 2)


def test_tfds_datasets_are_loaded_unchanged(tmp_path):
    """The images of "tiny" have one size, and the images of "mixed" have several."""
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
        dataset = load_dataset(name, str(tmp_path))
        assert dataset.classes == ("x", "y", "z")
        assert (len(dataset.train), len(dataset.test)) == (12, 5)
        assert dataset.shape == (shape if shape[0] else None)
        views = pipelines.load_views(dataset.test, Preprocessing(6, 6, 3))
        assert views.shape == (5, 6, 6, 3)
        for (_, example), loaded_image, label in zip(
            examples["test"], views, dataset.test.labels, strict=True
        ):
            assert label == example["label"]
            if shape[0]:
                np.testing.assert_array_equal(loaded_image, example["image"])


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


def test_data_needs_no_network_or_optional_package():
    script = """
import sys
sys.modules["tensorflow_datasets"] = None
from keras_resnet import InputError, data
data.load_dataset("digits")
try:
    data.load_dataset("cifar10")
except InputError as error:
    print(error)
"""
    result = run_python("-c", script, cwd=os.path.dirname(ROOT))
    assert "keras-resnet-zoo[datasets]" in result.stdout, result.stderr


# Training steps


def make_gradient(height, width):
    """Returns an image in which red grows from left to right and green downwards.

    Red and green grow from 0 to 240. Blue is 60.
    """
    y, x = (np.mgrid[0:height, 0:width] + 0.5) / [[[height]], [[width]]]
    return np.stack([x * 240, y * 240, 0 * x + 60], -1).round().astype(np.uint8)


def make_example(image, label):
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "image/class/label": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label])
        ),
    }
    features = tf.train.Features(feature=features)
    return tf.train.Example(features=features).SerializeToString()


def write_records(path, images, labels):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image, label in zip(images, labels, strict=True):
            writer.write(make_example(image, label))


def encode(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def stored_splits(tmp_path_factory):
    """Dict of three splits, which store the same 22 images of 3 classes in three ways.

    "folder" has image files, "records" has TFRecord files, and "arrays" has pixels in
    memory.
    """
    folder = tmp_path_factory.mktemp("sources")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (22, 12, 15, 3), np.uint8)
    labels, images, paths = np.arange(22) % 3, [], []
    for i, image in enumerate(pixels):
        images.append(encode(image))
        paths.append(str(folder / f"{i:02d}.png"))
        (folder / f"{i:02d}.png").write_bytes(images[-1])
    for shard, shard_slice in ((0, slice(10)), (1, slice(10, 22))):
        write_records(
            folder / f"train-{shard}-of-2",
            images[shard_slice],
            1 + labels[shard_slice].astype(int),
        )
    write_records(folder / "validation-0-of-1", images[:5], [1, 2, 3, 1, 2])
    os.environ["KERAS_HOME"], original_home = str(folder), os.environ.get("KERAS_HOME")
    records = load_dataset(f"tfrecord:{folder}").train
    os.environ.pop("KERAS_HOME")
    if original_home:
        os.environ["KERAS_HOME"] = original_home
    labels = labels.astype(np.int32)
    return {
        "folder": splits.Split(np.array(paths, object), labels, True),
        "records": records,
        "arrays": splits.Split(pixels, labels),
    }


def make_training_batches(
    split, replicas=1, local_replicas=None, size=(8, 9), **changes
):
    central_crop = changes.pop("central", 1.0)
    return pipelines.TrainingBatches(
        split=split,
        preprocessing=Preprocessing(*size, 3, central_crop),
        service=changes.pop("service", ""),
        recipe=find_recipe("photographs", **{"batch_size": 8, **changes}),
        replicas=replicas,
        seed=3,
        local_replicas=local_replicas,
        num_classes=3,
        mean=(90.0, 100.0, 110.0),
    )


def take_batches(split, start, stop, *args, **options):
    batches = make_training_batches(split, *args, **options).dataset(start, stop)
    return list(batches.as_numpy_iterator())


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, expected_batch in zip(batches, expected, strict=True):
        for a, b in zip(batch, expected_batch, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def join_parts(parts):
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


RECIPE_CHANGES = {
    "padded": {"crop": "pad"},
    "cropped from the margin": {"crop": "pad", "central": 0.8},
    "scale augmentation": {"crop": "shorter_side", "colour": 0.1},
    "mixed": {"mixup": 0.2, "cutmix": 1.0, "repeats": 3, "erase": 0.5},
    "rand_augment": {"policy": "rand_augment"},
    "increasing": {"policy": "rand_augment_increasing", "magnitude": 7},
    "trivial_augment": {"policy": "trivial_augment", "crop": "pad", "cutmix": 1.0},
}


@pytest.mark.parametrize(
    "changes",
    [
        "mixed",
        *(
            pytest.param(c, marks=pytest.mark.full)
            for c in RECIPE_CHANGES
            if c != "mixed"
        ),
    ],
)
def test_batch_is_a_function_of_seed_and_step(stored_splits, changes):
    """A batch does not depend on the storage of images or on the number of replicas.

    A batch does not depend on the step at which the pipeline starts either.
    """
    changes = RECIPE_CHANGES[changes]
    expected = take_batches(stored_splits["arrays"], 0, 7, **changes)
    assert [len(weights) for _, _, weights in expected] == [8, 8, 6, 8, 8, 6, 8]
    for images, _, weights in expected:
        assert images.shape[1:] == (8, 9, 3)
        assert weights.sum() == pytest.approx(1, rel=1e-6)
    assert_equal(take_batches(stored_splits["folder"], 2, 7, **changes), expected[2:])
    assert_equal(take_batches(stored_splits["records"], 4, 6, **changes), expected[4:6])
    is_mixed = "mixup" in changes or "cutmix" in changes
    group_size = 2 if is_mixed else 1
    two_replicas = take_batches(stored_splits["arrays"], 1, 4, 2, **changes)
    assert_equal(
        [join_parts(two_replicas[i : i + 2]) for i in (0, 2, 4)], expected[1:4]
    )
    assert len(two_replicas[0][0]) == len(two_replicas[1][0]) == 4
    assert {len(two_replicas[2][0]), len(two_replicas[3][0])} == (
        {2, 4} if is_mixed else {3}
    )
    for images, *_ in two_replicas:
        assert len(images) % group_size == 0
    # Two workers have two replicas each.
    parts = [
        take_batches(
            stored_splits["arrays"], 0, 2, 4, local_replicas=local_replicas, **changes
        )
        for local_replicas in (range(2), range(2, 4))
    ]
    for step in range(2):
        step_parts = [
            *parts[0][2 * step : 2 * step + 2],
            *parts[1][2 * step : 2 * step + 2],
        ]
        assert_equal([join_parts(step_parts)], expected[step : step + 1])


def make_numbered_split(count, channels=3):
    """Returns a split of images whose pixels all equal the image's index."""
    images = np.zeros((count, 4, 4, channels), np.uint8)
    images += np.arange(count, dtype=np.uint8)[:, None, None, None]
    return splits.Split(images, np.arange(count, dtype=np.int32) % 3)


@pytest.mark.parametrize("replicas", [1, 2])
def test_step_indices_match_the_batch(replicas):
    split = make_numbered_split(50)
    for repeats in (1, 3):
        changes = {"crop": "pad", "pad": 0.0, "repeats": repeats, "batch_size": 12}
        training_batches = make_training_batches(
            split, replicas, size=(4, 4), **changes
        )
        batches = list(training_batches.dataset(0, 12).as_numpy_iterator())
        for step in range(12):
            parts = batches[step * replicas : (step + 1) * replicas]
            images, labels, _ = join_parts(parts)
            indices = training_batches.find_step_indices(step)
            assert images[:, 0, 0, 0].tolist() == indices.tolist()
            assert labels.tolist() == (indices % 3).tolist()


def test_epochs_are_different_permutations():
    split, epoch_orders = make_numbered_split(50), []
    for epoch in range(3):
        batches = take_batches(
            split, 5 * epoch, 5 * epoch + 5, crop="pad", size=(4, 4), batch_size=12,
            pad=0.0,
        )  # fmt: skip
        epoch_orders.append(join_parts(batches)[0][:, 0, 0, 0].tolist())
        assert sorted(epoch_orders[-1]) == list(range(50))
    assert epoch_orders[0] != epoch_orders[1] != epoch_orders[2]


def test_repeated_images_are_augmented_differently_and_never_paired():
    count = 36
    images = np.stack([make_gradient(8, 8)] * count)
    images[..., 2] = np.arange(count)[:, None, None]  # Blue is the index of the image.
    split = splits.Split(images, np.zeros(count, np.int32))
    batches = take_batches(
        split, 0, 6, crop="pad", pad=0.25, repeats=3, batch_size=12, size=(8, 8)
    )
    assert len(batches) == 6
    distinct_indices = []
    for images, _, _ in batches[:3]:
        indices = images[..., 2].max((1, 2))
        assert (np.bincount(indices, minlength=count)[np.unique(indices)] == 3).all()
        assert (indices[0::2] != indices[1::2]).all()
        distinct_indices += np.unique(indices).tolist()
        for index in np.unique(indices):
            copies = images[indices == index]
            assert len({copy.tobytes() for copy in copies}) > 1
    # As each image is repeated three times, an epoch contains a third of the images.
    assert len(distinct_indices) == len(set(distinct_indices)) == 12


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


def measure_box(image, height, width):
    """Finds the box that a crop of a `make_gradient` image shows, using the colours.

    Returns:
        The box (top, left, bottom, right) in pixels, and whether the crop is mirrored.
    """
    row_positions, column_positions = (
        image[..., 1].mean(1) / 240,
        image[..., 0].mean(0) / 240,
    )
    is_mirrored = column_positions[0] > column_positions[-1]
    if is_mirrored:
        column_positions = column_positions[::-1]
    # The edges are half a pixel outside of the centres of the outermost pixels.
    half_pixel = (row_positions[-1] - row_positions[0]) / (len(row_positions) - 1) / 2
    row_bounds = row_positions[0] - half_pixel, row_positions[-1] + half_pixel
    half_pixel = (
        (column_positions[-1] - column_positions[0]) / (len(column_positions) - 1) / 2
    )
    column_bounds = column_positions[0] - half_pixel, column_positions[-1] + half_pixel
    (top, bottom), (left, right) = row_bounds, column_bounds
    box = top * height, left * width, bottom * height, right * width
    return np.array(box), is_mirrored


@pytest.mark.parametrize("crop", ["inception", "shorter_side"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "arrays"])
@pytest.mark.parametrize("sides", [(120, 160), (20, 18)])
def test_crops_show_plausible_boxes(tmp_path, crop, kind, sides):
    """The boxes that random crops show are measured by `measure_box`.

    Images of 20x18 pixels are smaller than the crop.
    """
    if kind == "arrays":
        split = splits.Split(
            np.stack([make_gradient(*sides)] * 40), np.zeros(40, np.int32)
        )
    else:
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        path = tmp_path / "image"
        path.write_bytes(encode(make_gradient(*sides), kind, **options))
        split = splits.Split(np.array([str(path)] * 40), np.zeros(40, np.int32), True)
    crop_side = 32
    ((images, _, _),) = take_batches(
        split, 0, 1, crop=crop, batch_size=40, size=(crop_side, crop_side)
    )
    assert images.shape == (40, crop_side, crop_side, 3)
    measurements = [measure_box(image, *sides) for image in images]
    boxes = np.array([box for box, _ in measurements])
    assert 5 < sum(is_mirrored for _, is_mirrored in measurements) < 35
    tolerance = 1.5 + 0.02 * max(sides)
    assert (boxes[:, :2] >= -tolerance).all()
    assert (boxes[:, 2:] <= np.array(sides) + tolerance).all()
    height, width = (boxes[:, 2:] - boxes[:, :2]).T
    assert height.std() > 0.02 * sides[0]
    if crop == "inception":
        area_fractions = height * width / np.prod(sides)
        assert area_fractions.min() > 0.03
        assert area_fractions.max() > 0.7
        if min(sides) > 100:
            aspect_ratios = width / height
            assert (aspect_ratios > 0.6).all()
            assert (aspect_ratios < 1.6).all()
    else:
        # The shorter side is resized to between 256/224 and 480/224 of the crop's side.
        max_length, min_length = (
            min(sides) * 224 / shorter_side for shorter_side in (256, 480)
        )
        for lengths in (height, width):
            assert (lengths < max_length + tolerance).all()
            assert (lengths > min_length - tolerance).all()


# TFRecord files and large datasets


@pytest.fixture
def slim_dataset(tmp_path, monkeypatch):
    """A folder of TFRecord files in the format of TF-slim, and a list of its images.

    There are 12 training images and 6 validation images. The labels are from 1 to 3.
    """
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    folder = tmp_path / "slim"
    folder.mkdir()
    random = np.random.default_rng(1)
    images = [
        encode(random.integers(0, 256, (20 + i, 30, 3), np.uint8), "JPEG", quality=95)
        for i in range(18)
    ]
    labels = [1 + i % 3 for i in range(18)]
    write_records(folder / "train-00000-of-00002", images[:5], labels[:5])
    write_records(folder / "train-00001-of-00002", images[5:12], labels[5:12])
    write_records(folder / "validation-00000-of-00001", images[12:], labels[12:])
    return folder, images


def test_tfrecord_dataset_equals_its_images_in_memory(slim_dataset):
    folder, images = slim_dataset
    dataset = load_dataset(f"tfrecord:{folder}")
    assert dataset.classes == ("class 0", "class 1", "class 2")
    assert dataset.shape is None
    assert dataset.train.labels.tolist() == [0, 1, 2] * 4
    assert dataset.test.labels.tolist() == [0, 1, 2] * 2
    names = dataset.train.names()
    assert names[5] == f"{folder}/train-00001-of-00002 record 0"
    preprocessing = Preprocessing(16, 16, 3, 0.875)
    views = pipelines.load_views(dataset.test, preprocessing)
    split_in_memory = splits.Split(np.array(images[12:], object), dataset.test.labels)
    np.testing.assert_array_equal(
        views, pipelines.load_views(split_in_memory, preprocessing)
    )
    batches = pipelines.evaluation_batches(
        dataset.test, pipelines.central_crop(preprocessing), 4, 2
    )
    batches = list(batches.as_numpy_iterator())
    assert [weights.tolist() for _, _, weights in batches] == [[1, 1], [1, 1], [1], [1]]
    np.testing.assert_array_equal(np.concatenate([b[0] for b in batches]), views)
    (folder / "labels.txt").write_text("cat\ndog\nfox\n")
    assert load_dataset(f"tfrecord:{folder}").classes == ("cat", "dog", "fox")
    test_only_dataset = load_dataset(f"tfrecord:{folder}", only_test=True)
    assert (len(test_only_dataset.train), len(test_only_dataset.test)) in {
        (0, 6),
        (12, 6),
    }


def test_joined_splits_of_records_keep_their_images(slim_dataset):
    folder, images = slim_dataset
    dataset = load_dataset(f"tfrecord:{folder}")
    joined_split = dataset.train + dataset.test
    assert joined_split.labels.tolist() == [0, 1, 2] * 6
    assert joined_split.names() == dataset.train.names() + dataset.test.names()
    preprocessing = Preprocessing(16, 16, 3)
    split_in_memory = splits.Split(np.array(images, object), joined_split.labels)
    np.testing.assert_array_equal(
        pipelines.load_views(joined_split, preprocessing),
        pipelines.load_views(split_in_memory, preprocessing),
    )
    test_split = load_dataset(f"tfrecord:{folder}").test
    assert len(test_split.take([]) + test_split) == 6


@pytest.mark.parametrize("kind", ["records", "folder"])
def test_label_outside_of_the_classes_is_refused(slim_dataset, kind):
    folder, _ = slim_dataset
    (folder / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError) as error:
        load_dataset(f"tfrecord:{folder}")
    message = str(error.value)
    assert "\n" not in message
    assert (
        "4 of 12 images have a label that is none of the 2 classes cat, dog" in message
    )
    assert message.endswith(
        "label 2 of image " + f"{folder}/train-00000-of-00002 record 2"
    )


def test_record_that_changed_after_indexing_is_refused(slim_dataset):
    folder, _ = slim_dataset
    train_split = load_dataset(f"tfrecord:{folder}").train
    path = folder / "train-00001-of-00002"
    content = bytearray(path.read_bytes())
    content[train_split.records.offset[6] + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.OpError):
        take_batches(train_split, 0, 2)
    with pytest.raises(
        InputError, match=r"has changed.*00001-of-00002 record 1 \(Data"
    ):
        damage.replace_damaged(train_split, Preprocessing(8, 8, 3), range(12))
    path.unlink()
    with pytest.raises(
        InputError, match=r"has changed.*00001-of-00002 record 0 \(NotF"
    ):
        damage.replace_damaged(train_split, Preprocessing(8, 8, 3), range(12))


def test_large_tfds_datasets_are_read_from_their_files(tmp_path, monkeypatch):
    """Datasets with images of several sizes are always read from their files."""
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    random = np.random.default_rng(0)
    for name, shape in (("level", (6, 6, 3)), ("uneven", (None, None, 3))):
        examples = [
            (
                i,
                {
                    "image": random.integers(
                        0, 256, (6 if shape[0] else 6 + i, 6, 3), np.uint8
                    ),
                    "label": 1 + i % 2,  # Class 0 has no images.
                },
            )
            for i in range(12)
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
            split_datasets={"train": examples, "test": examples[:5]},
            data_dir=tmp_path,
            disable_shuffling=True,
        )
        dataset_in_memory = load_dataset(name, str(tmp_path))
        monkeypatch.setattr(tfds_sets, "_find_memory_size", lambda: 0)
        dataset_from_files = load_dataset(name, str(tmp_path))
        monkeypatch.undo()
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
        assert (dataset_in_memory.train.records is None) == bool(shape[0])
        assert dataset_from_files.train.records is not None
        assert (
            dataset_from_files.classes == dataset_in_memory.classes == ("x", "y", "z")
        )
        assert dataset_from_files.train.labels.tolist() == [1, 2] * 6
        assert (
            dataset_from_files.train.labels.tolist()
            == dataset_in_memory.train.labels.tolist()
        )
        for split in ("train", "test"):
            preprocessing = Preprocessing(6, 6, 3)
            views = pipelines.load_views(
                getattr(dataset_from_files, split), preprocessing
            )
            if shape[0]:
                pixels = [e["image"] for _, e in examples][: len(views)]
                np.testing.assert_array_equal(views, pixels)
        test_only_dataset = load_dataset(name, str(tmp_path), only_test=True)
        assert (len(test_only_dataset.train), len(test_only_dataset.test)) == (0, 5)
        batches, expected_batches = (
            take_batches(d.train, 1, 3, size=(6, 6), batch_size=5)
            for d in (dataset_from_files, dataset_in_memory)
        )
        assert_equal(batches, expected_batches)


# Damaged images


def write_jpeg_split(folder, count, damaged_indices=()):
    """Writes JPEG files in two class folders and returns a split of these files.

    The files whose indices are in `damaged_indices` are truncated.
    """
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
        encoded = encode(pixels, "JPEG")
        if i in damaged_indices:
            encoded = encoded[:-60]
        (folder / "ab"[i % 2] / f"{i:05d}.jpg").write_bytes(encoded)
    return _make_split(str(folder), ["a", "b"])


def test_damaged_image_is_replaced_by_the_next_undamaged_one(tmp_path, capsys):
    split = write_jpeg_split(tmp_path / "set", 1200, (10, 2399))
    index = [n.endswith("00010.jpg") for n in split.names()].index(True)
    preprocessing = Preprocessing(8, 8, 3)
    assert damage.find_damaged(split, preprocessing, [3, index, index, 9]) == [index]
    repaired_split = damage.replace_damaged(split, preprocessing, [3, index, index, 9])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("1 of 1200 images cannot be decoded. ")
    assert "a/00010.jpg" in line and "replaced" in line
    assert repaired_split.num_replaced == 1
    assert repaired_split.images[index] == split.images[index + 1]
    assert repaired_split.labels[index] == split.labels[index + 1]
    is_undamaged = np.arange(1200) != index
    assert (repaired_split.images[is_undamaged] == split.images[is_undamaged]).all()
    # No image follows the last image, so the first image replaces it.
    split_without_last = split.substitute([1199])
    assert split_without_last.images[-1] == split.images[0]


def test_too_many_damaged_images_are_refused(tmp_path, capsys):
    split = write_jpeg_split(tmp_path / "set", 1200, (10, 500))
    indices = [
        index
        for index, name in enumerate(split.names())
        if name.endswith(("00010.jpg", "00500.jpg"))
    ]
    preprocessing = Preprocessing(8, 8, 3)
    repaired_split = damage.replace_damaged(split, preprocessing, indices[:1])
    capsys.readouterr()
    with pytest.raises(InputError, match=r"00500\.jpg"):
        damage.replace_damaged(repaired_split, preprocessing, indices)
    with pytest.raises(
        InputError, match=r"2 of 1200 .*a/00010\.jpg, .*a/00500\.jpg"
    ) as error:
        damage.replace_damaged(split, preprocessing, indices)
    assert "\n" not in str(error.value)
    smaller_split = split.take(np.arange(900))
    with pytest.raises(InputError, match=r"2 of 900 .*a/00010\.jpg"):
        damage.replace_damaged(smaller_split, preprocessing, indices[:1])


def test_other_errors_are_not_mistaken_for_damaged_images(tmp_path):
    split = write_jpeg_split(tmp_path / "set", 4)
    read_error = tf.errors.ResourceExhaustedError(None, None, "no memory")
    with pytest.raises(tf.errors.ResourceExhaustedError):
        damage.replace_damaged(split, Preprocessing(8, 8, 3), [0, 1], read_error)
    with pytest.raises(InputError, match="Reading failed"):
        damage.replace_damaged(split, Preprocessing(8, 8, 3), [0, 1])


class Interruption(keras.callbacks.Callback):
    """Interrupts a training run without warning after `steps` steps."""

    def __init__(self, steps):
        super().__init__()
        # An iterator, unlike a number, is not restored when a run is resumed.
        self.remaining_steps = iter(range(steps - 1))

    def on_train_batch_end(self, batch, logs=None):
        if next(self.remaining_steps, None) is None:
            raise KeyboardInterrupt


def test_training_continues_without_a_damaged_image(tmp_path, capsys):
    """A damaged image is replaced in the same way if a run is interrupted and resumed.

    The weights therefore equal those of an uninterrupted run.
    """
    from keras_resnet.training.run import train

    folder = tmp_path / "set"
    write_jpeg_split(folder / "train", 1004, (77,))
    write_jpeg_split(folder / "test", 10)

    def train_and_read_weights(run_name, steps=1000):
        train(
            "cifar_resnet8",
            f"folder:{folder}",
            image_size=8,
            recipe="modern_cifar",
            batch_size=128,
            iterations=12,
            checkpoint_every=3,
            strategy="one_device",
            model_dir=str(tmp_path / run_name),
            callbacks=[Interruption(steps)],
            verbose=0,
        )
        model = keras.models.load_model(tmp_path / run_name / "final.keras")
        return np.concatenate([w.ravel() for w in model.get_weights()])

    uninterrupted_weights = train_and_read_weights("whole")
    assert np.isfinite(uninterrupted_weights).all()
    assert "1 of 1004 images cannot be decoded" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        train_and_read_weights("cut", 10)
    np.testing.assert_array_equal(train_and_read_weights("cut"), uninterrupted_weights)


# A tf.data service

SERVICE_SCRIPT = """
import sys, time
import tensorflow as tf
service = tf.data.experimental.service
dispatcher = service.DispatchServer()
address = dispatcher.target.split("://")[1]
workers = [
    service.WorkerServer(service.WorkerConfig(address)) for _ in range(int(sys.argv[1]))
]
print(dispatcher.target, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def run_services(*worker_counts):
    """Runs one data service for each number in `worker_counts`.

    Each service runs in its own process. The services' addresses are yielded.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SERVICE_SCRIPT, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for count in worker_counts
    ]
    try:
        yield [process.stdout.readline().strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.full
def test_data_services_give_the_batches_of_a_local_pipeline(stored_splits, monkeypatch):
    """One service or two services can be used. Each service must have one worker."""
    changes = {"mixup": 0.2, "batch_size": 4}
    expected = take_batches(stored_splits["folder"], 1, 8, **changes)
    expected_two_replicas = take_batches(stored_splits["records"], 1, 4, 2)
    with run_services(1, 1, 2, 0) as (
        first_address,
        second_address,
        two_worker_address,
        no_worker_address,
    ):
        batches = take_batches(
            stored_splits["folder"], 1, 8, service=first_address, **changes
        )
        assert_equal(batches, expected)
        addresses = f"{first_address}, {second_address}"
        batches = take_batches(
            stored_splits["folder"], 1, 8, service=addresses, **changes
        )
        assert_equal(batches, expected)
        batches = take_batches(stored_splits["records"], 1, 4, 2, service=addresses)
        assert_equal(batches, expected_two_replicas)
        with pytest.raises(
            InputError, match=f"have one worker.*={two_worker_address} with 2 workers$"
        ):
            take_batches(stored_splits["arrays"], 0, 3, service=two_worker_address)
        monkeypatch.setattr(data_service, "SERVICE_TIMEOUT", 3)
        with pytest.raises(
            InputError, match=f"no worker within.*={no_worker_address}$"
        ):
            take_batches(stored_splits["arrays"], 0, 3, service=no_worker_address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("grpc://localhost:1", "no answer within 1 s"),
        ("localhost:5000", "an address such as grpc://host:5000"),
        ("grpc://localhost", "an address such as grpc://host:5000"),
    ],
)
def test_unavailable_data_service_is_refused(
    stored_splits, monkeypatch, address, message
):
    monkeypatch.setattr(data_service, "SERVICE_TIMEOUT", 1)
    with pytest.raises(InputError, match=message) as error:
        take_batches(stored_splits["arrays"], 0, 3, service=address)
    assert "\n" not in str(error.value)


# Datasets created by users


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


def test_training_on_int64_labels_equals_training_on_int32_labels(tmp_path, digits):
    options = {"epochs": 1, "batch_size": 20, "verbose": 0, "strategy": "one_device"}
    histories = []
    for dtype in (np.int64, np.int32):
        parts = [
            splits.Split(split.images[:60], split.labels[:60].astype(dtype))
            for split in (digits.train, digits.test)
        ]
        dataset = splits.Dataset("mine", digits.classes, *parts, digits.shape)
        folder = tmp_path / np.dtype(dtype).name
        histories.append(train("cifar_resnet8", dataset, model_dir=folder, **options))
        assert (folder / "final.keras").exists()
    assert len(histories[0]) == 1 and histories[0] == histories[1]


def test_user_dataset_without_validation_images_is_refused(tmp_path, digits):
    dataset = splits.Dataset(
        "mine", digits.classes, digits.train, digits.test.take(slice(0)), digits.shape
    )
    with pytest.raises(InputError, match=r"validation split.*mine with 0"):
        train("cifar_resnet8", dataset, model_dir=tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_classes_without_names_get_the_class_names_of_the_model(tmp_path, monkeypatch):
    from keras_resnet.evaluation.classifier import Classifier, load_images
    from keras_resnet.weights import registry

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    image = encode(make_gradient(9, 9), "JPEG")
    for name, labels in (("thousand", [1, 500, 1000]), ("ten", [1, 2, 10])):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "validation-0-of-1", [image] * 3, labels)
    names = registry.class_names("imagenet")
    provenance = Provenance("some")
    model = Classifier("some", None, names, Preprocessing(224, 224, 3), provenance)
    dataset = load_images(model, f"tfrecord:{tmp_path / 'thousand'}", only_test=True)
    assert dataset.classes == names
    assert dataset.test.labels.tolist() == [0, 499, 999]
    with pytest.raises(InputError, match="with the classes class 0"):
        load_images(model, f"tfrecord:{tmp_path / 'ten'}", only_test=True)


def test_evaluating_on_records_equals_evaluating_on_a_folder(
    trained_run, tmp_path, monkeypatch, digits
):
    from keras_resnet.evaluate import evaluate

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    images = [encode(image[..., 0]) for image in digits.test.images[:60]]
    labels = digits.test.labels[:60]
    (tmp_path / "records").mkdir()
    write_records(tmp_path / "records" / "test-0-of-1", images, labels + 1)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / str(label) / f"{i}.png").write_bytes(image)
    results = [
        evaluate(
            str(trained_run),
            dataset=f"{kind}:{tmp_path / folder}",
            output=str(tmp_path / kind),
        )
        for kind, folder in (("tfrecord", "records"), ("folder", "folder"))
    ]
    assert results[0]["images"] == results[1]["images"] == 60
    assert results[0]["accuracy"] == results[1]["accuracy"] > 0.7
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)
