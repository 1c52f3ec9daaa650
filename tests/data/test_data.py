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
from keras_resnet.data.sources import _files, load_dataset
from keras_resnet.spec import Provenance, find_recipe, steps_per_epoch
from keras_resnet.support.errors import InputError
from keras_resnet.training.run import train


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
    batches = pipelines.TrainingBatches(
        split=dataset.train,
        preprocessing=Preprocessing(*shape),
        recipe=recipe,
        replicas=replicas,
        seed=seed,
    )
    return list(batches.dataset(start, stop).as_numpy_iterator())


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
    steps = steps_per_epoch(len(digits.train), 64, 1)
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
    assert steps_per_epoch(len(digits.train), 4, 1) == 360
    assert steps_per_epoch(len(digits.train), 4, 2) == 359
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
    batches = pipelines.evaluation_batches(
        digits.test,
        pipelines.central_crop(Preprocessing(8, 8, 1)),
        batch_size,
        replicas,
    )
    batches = list(batches.as_numpy_iterator())
    assert len(batches) % replicas == 0
    counted = np.concatenate([weights for _, _, weights in batches]) > 0
    images = np.concatenate([images for images, _, _ in batches])[counted]
    labels = np.concatenate([labels for _, labels, _ in batches])[counted]
    np.testing.assert_array_equal(images, digits.test.images)
    np.testing.assert_array_equal(labels, digits.test.labels)


def test_folder_holds_a_fifth_of_each_class_out(folder):
    images = load_dataset(f"folder:{folder}")
    assert images.classes == ("blue", "red")
    assert np.bincount(images.train.labels).tolist() == [8, 16]
    assert np.bincount(images.test.labels).tolist() == [2, 4]
    assert not set(images.train.images) & set(images.test.images)
    views = pipelines.load_views(images.test, Preprocessing(16, 16, 3))
    colours = views.astype(float).mean(axis=(1, 2))
    np.testing.assert_array_equal(
        colours[:, 0] > colours[:, 2], images.test.labels == 1
    )


def test_folder_with_train_and_val(folder, tmp_path_factory):
    parent = tmp_path_factory.mktemp("parts")
    shutil.copytree(folder, parent / "train")
    shutil.copytree(folder, parent / "val")
    images = load_dataset(f"folder:{parent}")
    assert (len(images.train), len(images.test)) == (30, 30)
    (parent / "val" / "green").mkdir()
    with pytest.raises(
        InputError, match="classes that the training images lack: green"
    ):
        load_dataset(f"folder:{parent}")


def test_validation_images_come_before_test_images(folder):
    """Test images are for the end."""
    for part in ("train", "test", "val", "validation"):
        for name in ("blue", "red"):
            shutil.copytree(folder / name, folder / "parts" / part / name)
        if part == "train":
            continue
        images = load_dataset(f"folder:{folder}/parts")
        paths = [pathlib.Path(path) for path in images.test.images]
        found = {path.relative_to(folder / "parts").parts[0] for path in paths}
        assert found == {part}


def test_training_batches_of_a_folder(folder):
    images = load_dataset(f"folder:{folder}")
    for crop in (1.0, 0.8):
        batches = pipelines.TrainingBatches(
            split=images.train,
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
        load_dataset(name)
    assert words in str(error.value)


def test_folders_that_cannot_be_used(tmp_path):
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


def test_a_damaged_image_is_named(folder):
    whole = (folder / "red" / "04.jpg").read_bytes()
    (folder / "red" / "04.jpg").write_bytes(whole[: len(whole) // 3])
    images = load_dataset(f"folder:{folder}")
    with pytest.raises(InputError, match=r"1 of 6 images cannot be decoded.*04\.jpg"):
        damage.refuse_damaged(images.test, Preprocessing(16, 16, 3))
    damage.refuse_damaged(images.train, Preprocessing(16, 16, 3))


def test_a_batch_that_the_replicas_do_not_divide():
    pipelines.check_batch_size(64, 2)
    for batch_size in (63, 0):
        with pytest.raises(InputError, match=f"Received: batch_size={batch_size}"):
            pipelines.check_batch_size(batch_size, 2)


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
        found = load_dataset(name, str(tmp_path))
        assert found.classes == ("x", "y", "z")
        assert (len(found.train), len(found.test)) == (12, 5)
        assert found.shape == (shape if shape[0] else None)
        views = pipelines.load_views(found.test, Preprocessing(6, 6, 3))
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
    found = load_dataset("fashion_mnist", str(tmp_path))
    assert (len(found.train), len(found.test)) == (60_000, 10_000)
    assert found.shape == (28, 28, 1)
    assert np.bincount(found.test.labels).tolist() == [1000] * 10


def test_data_needs_no_network_or_optional_package():
    code = """
import sys
sys.modules["tensorflow_datasets"] = None
from keras_resnet import InputError, data
data.load_dataset("digits")
try:
    data.load_dataset("cifar10")
except InputError as error:
    print(error)
"""
    result = run_python("-c", code, cwd=os.path.dirname(ROOT))
    assert "keras-resnet-zoo[datasets]" in result.stdout, result.stderr


# Steps of a run


def gradient(height, width):
    """Red tells the column and green the row, in shares of 240; blue is 60."""
    y, x = (np.mgrid[0:height, 0:width] + 0.5) / [[[height]], [[width]]]
    return np.stack([x * 240, y * 240, 0 * x + 60], -1).round().astype(np.uint8)


def example(image, label):
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
            writer.write(example(image, label))


def encode(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same 22 pictures with 3 labels: in a folder, in records, as arrays."""
    folder = tmp_path_factory.mktemp("sources")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (22, 12, 15, 3), np.uint8)
    labels, images, paths = np.arange(22) % 3, [], []
    for i, image in enumerate(pixels):
        images.append(encode(image))
        paths.append(str(folder / f"{i:02d}.png"))
        (folder / f"{i:02d}.png").write_bytes(images[-1])
    for shard, part in ((0, slice(10)), (1, slice(10, 22))):
        write_records(
            folder / f"train-{shard}-of-2", images[part], 1 + labels[part].astype(int)
        )
    write_records(folder / "validation-0-of-1", images[:5], [1, 2, 3, 1, 2])
    os.environ["KERAS_HOME"], home = str(folder), os.environ.get("KERAS_HOME")
    records = load_dataset(f"tfrecord:{folder}").train
    os.environ.pop("KERAS_HOME")
    if home:
        os.environ["KERAS_HOME"] = home
    labels = labels.astype(np.int32)
    return {
        "folder": splits.Split(np.array(paths, object), labels, True),
        "records": records,
        "arrays": splits.Split(pixels, labels),
    }


def plan_of(split, replicas=1, here=None, size=(8, 9), **changes):
    crop = changes.pop("central", 1.0)
    return pipelines.TrainingBatches(
        split=split,
        preprocessing=Preprocessing(*size, 3, crop),
        service=changes.pop("service", ""),
        recipe=find_recipe("photographs", **{"batch_size": 8, **changes}),
        replicas=replicas,
        seed=3,
        local_replicas=here,
        classes=3,
        mean=(90.0, 100.0, 110.0),
    )


def batches_of(split, start, stop, *args, **options):
    batches = plan_of(split, *args, **options).dataset(start, stop)
    return list(batches.as_numpy_iterator())


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def together(parts):
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


CHANGES = {
    "padded": {"crop": "pad"},
    "cropped from the margin": {"crop": "pad", "central": 0.8},
    "the paper's": {"crop": "shorter_side", "colour": 0.1},
    "mixed": {"mixup": 0.2, "cutmix": 1.0, "repeats": 3, "erase": 0.5},
    "rand_augment": {"policy": "rand_augment"},
    "increasing": {"policy": "rand_augment_increasing", "magnitude": 7},
    "trivial_augment": {"policy": "trivial_augment", "crop": "pad", "cutmix": 1.0},
}


@pytest.mark.parametrize(
    "changes",
    [
        "mixed",
        *(pytest.param(c, marks=pytest.mark.full) for c in CHANGES if c != "mixed"),
    ],
)
def test_a_step_is_a_function_of_the_seed_and_its_number(sources, changes):
    """From wherever it is read, wherever the run begins, however it is shared."""
    changes = CHANGES[changes]
    whole = batches_of(sources["arrays"], 0, 7, **changes)
    assert [len(weights) for _, _, weights in whole] == [8, 8, 6, 8, 8, 6, 8]
    for images, _, weights in whole:
        assert images.shape[1:] == (8, 9, 3)
        assert weights.sum() == pytest.approx(1, rel=1e-6)
    assert_equal(batches_of(sources["folder"], 2, 7, **changes), whole[2:])
    assert_equal(batches_of(sources["records"], 4, 6, **changes), whole[4:6])
    mixed = "mixup" in changes or "cutmix" in changes
    unit = 2 if mixed else 1
    shared = batches_of(sources["arrays"], 1, 4, 2, **changes)
    assert_equal([together(shared[i : i + 2]) for i in (0, 2, 4)], whole[1:4])
    assert len(shared[0][0]) == len(shared[1][0]) == 4
    assert {len(shared[2][0]), len(shared[3][0])} == ({2, 4} if mixed else {3})
    for images, *_ in shared:
        assert len(images) % unit == 0
    # Two workers of two replicas each.
    parts = [
        batches_of(sources["arrays"], 0, 2, 4, here=here, **changes)
        for here in (range(2), range(2, 4))
    ]
    for step in range(2):
        found = [*parts[0][2 * step : 2 * step + 2], *parts[1][2 * step : 2 * step + 2]]
        assert_equal([together(found)], whole[step : step + 1])


def numbered(count, channels=3):
    """Images whose every pixel is their number."""
    images = np.zeros((count, 4, 4, channels), np.uint8)
    images += np.arange(count, dtype=np.uint8)[:, None, None, None]
    return splits.Split(images, np.arange(count, dtype=np.int32) % 3)


@pytest.mark.parametrize("replicas", [1, 2])
def test_places_of_step_are_what_its_batch_holds(replicas):
    split = numbered(50)
    for repeats in (1, 3):
        changes = {"crop": "pad", "pad": 0.0, "repeats": repeats, "batch_size": 12}
        plan = plan_of(split, replicas, size=(4, 4), **changes)
        found = list(plan.dataset(0, 12).as_numpy_iterator())
        for step in range(12):
            parts = found[step * replicas : (step + 1) * replicas]
            images, labels, _ = together(parts)
            places = plan.places_of_step(step)
            assert images[:, 0, 0, 0].tolist() == places.tolist()
            assert labels.tolist() == (places % 3).tolist()


def test_an_epoch_of_any_source_is_a_permutation():
    split, orders = numbered(50), []
    for epoch in range(3):
        found = batches_of(
            split, 5 * epoch, 5 * epoch + 5, crop="pad", size=(4, 4), batch_size=12,
            pad=0.0,
        )  # fmt: skip
        orders.append(together(found)[0][:, 0, 0, 0].tolist())
        assert sorted(orders[-1]) == list(range(50))
    assert orders[0] != orders[1] != orders[2]


def test_repeated_images_are_augmented_each_time_otherwise_and_apart():
    count = 36
    images = np.stack([gradient(8, 8)] * count)
    images[..., 2] = np.arange(count)[:, None, None]  # Its number, in blue.
    split = splits.Split(images, np.zeros(count, np.int32))
    found = batches_of(
        split, 0, 6, crop="pad", pad=0.25, repeats=3, batch_size=12, size=(8, 8)
    )
    assert len(found) == 6
    seen = []
    for images, _, _ in found[:3]:
        numbers = images[..., 2].max((1, 2))
        assert (np.bincount(numbers, minlength=count)[np.unique(numbers)] == 3).all()
        assert (numbers[0::2] != numbers[1::2]).all()
        seen += np.unique(numbers).tolist()
        for number in np.unique(numbers):
            copies = images[numbers == number]
            assert len({copy.tobytes() for copy in copies}) > 1
    assert len(seen) == len(set(seen)) == 12  # A third of the images in an epoch.


def test_hold_out_is_always_the_same_tenth():
    images = np.arange(50_000, dtype=np.uint16).reshape(-1, 1, 1, 1).view(np.uint8)
    split = splits.Split(images, np.arange(50_000, dtype=np.int32))
    dataset = splits.Dataset("some", ("a",), split, split.take([]), (1, 1, 2))
    found = splits.hold_out(dataset, 0.1)
    assert (len(found.train), len(found.test)) == (45_000, 5_000)
    both = np.concatenate([found.train.labels, found.test.labels])
    assert np.array_equal(np.sort(both), np.arange(50_000))
    again = splits.hold_out(dataset, 0.1)
    np.testing.assert_array_equal(found.test.labels, again.test.labels)
    chosen = np.random.default_rng(0).permutation(50_000)[:5_000]
    np.testing.assert_array_equal(found.test.labels, np.sort(chosen))
    np.testing.assert_array_equal(
        found.test.images.reshape(-1, 2).view(np.uint16)[:, 0], found.test.labels
    )


def box_seen(image, height, width):
    """The part of `gradient` that a crop shows: top, left, bottom, right; mirrored."""
    rows, columns = image[..., 1].mean(1) / 240, image[..., 0].mean(0) / 240
    mirrored = columns[0] > columns[-1]
    if mirrored:
        columns = columns[::-1]
    # Centres of the outermost pixels, and half a pixel more on each side.
    half = (rows[-1] - rows[0]) / (len(rows) - 1) / 2
    down = rows[0] - half, rows[-1] + half
    half = (columns[-1] - columns[0]) / (len(columns) - 1) / 2
    across = columns[0] - half, columns[-1] + half
    box = down[0] * height, across[0] * width, down[1] * height, across[1] * width
    return np.array(box), mirrored


@pytest.mark.parametrize("crop", ["inception", "shorter_side"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "arrays"])
@pytest.mark.parametrize("sides", [(120, 160), (20, 18)])
def test_what_a_crop_shows(tmp_path, crop, kind, sides):
    """Told by the colours; also of images that are smaller than the crop."""
    if kind == "arrays":
        split = splits.Split(np.stack([gradient(*sides)] * 40), np.zeros(40, np.int32))
    else:
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        path = tmp_path / "image"
        path.write_bytes(encode(gradient(*sides), kind, **options))
        split = splits.Split(np.array([str(path)] * 40), np.zeros(40, np.int32), True)
    side = 32
    ((images, _, _),) = batches_of(
        split, 0, 1, crop=crop, batch_size=40, size=(side, side)
    )
    assert images.shape == (40, side, side, 3)
    seen = [box_seen(image, *sides) for image in images]
    boxes = np.array([box for box, _ in seen])
    assert 5 < sum(mirrored for _, mirrored in seen) < 35
    slack = 1.5 + 0.02 * max(sides)
    assert (boxes[:, :2] >= -slack).all()
    assert (boxes[:, 2:] <= np.array(sides) + slack).all()
    height, width = (boxes[:, 2:] - boxes[:, :2]).T
    assert height.std() > 0.02 * sides[0]
    if crop == "inception":
        shares = height * width / np.prod(sides)
        assert shares.min() > 0.03
        assert shares.max() > 0.7
        if min(sides) > 100:
            ratios = width / height
            assert (ratios > 0.6).all()
            assert (ratios < 1.6).all()
    else:
        # The shorter side becomes from 256/224 to 480/224 of the crop's.
        most, least = (min(sides) * 224 / shorter for shorter in (256, 480))
        for length in (height, width):
            assert (length < most + slack).all()
            assert (length > least - slack).all()


# TFRecord files and large sets


@pytest.fixture
def slim(tmp_path, monkeypatch):
    """As TF-slim names them: 12 JPEG pictures to train on, 6 held out, labels from 1."""
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


def test_a_set_of_records(slim):
    folder, images = slim
    found = load_dataset(f"tfrecord:{folder}")
    assert found.classes == ("class 0", "class 1", "class 2")
    assert found.shape is None
    assert found.train.labels.tolist() == [0, 1, 2] * 4
    assert found.test.labels.tolist() == [0, 1, 2] * 2
    names = found.train.names()
    assert names[5] == f"{folder}/train-00001-of-00002 record 0"
    preprocessing = Preprocessing(16, 16, 3, 0.875)
    views = pipelines.load_views(found.test, preprocessing)
    in_memory = splits.Split(np.array(images[12:], object), found.test.labels)
    np.testing.assert_array_equal(views, pipelines.load_views(in_memory, preprocessing))
    batches = pipelines.evaluation_batches(
        found.test, pipelines.central_crop(preprocessing), 4, 2
    )
    batches = list(batches.as_numpy_iterator())
    assert [weights.tolist() for _, _, weights in batches] == [[1, 1], [1, 1], [1], [1]]
    np.testing.assert_array_equal(np.concatenate([b[0] for b in batches]), views)
    (folder / "labels.txt").write_text("cat\ndog\nfox\n")
    assert load_dataset(f"tfrecord:{folder}").classes == ("cat", "dog", "fox")
    only = load_dataset(f"tfrecord:{folder}", only_test=True)
    assert (len(only.train), len(only.test)) in {(0, 6), (12, 6)}


def test_both_splits_of_records(slim):
    folder, images = slim
    found = load_dataset(f"tfrecord:{folder}")
    both = found.train + found.test
    assert both.labels.tolist() == [0, 1, 2] * 6
    assert both.names() == found.train.names() + found.test.names()
    preprocessing = Preprocessing(16, 16, 3)
    in_memory = splits.Split(np.array(images, object), both.labels)
    np.testing.assert_array_equal(
        pipelines.load_views(both, preprocessing),
        pipelines.load_views(in_memory, preprocessing),
    )
    test = load_dataset(f"tfrecord:{folder}").test
    assert len(test.take([]) + test) == 6


@pytest.mark.parametrize("kind", ["records", "folder"])
def test_a_label_that_is_none_of_the_classes(slim, kind):
    folder, _ = slim
    (folder / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError) as error:
        load_dataset(f"tfrecord:{folder}")
    text = str(error.value)
    assert "\n" not in text
    assert "4 of 12 images have a label that is none of the 2 classes cat, dog" in text
    assert text.endswith(
        "label 2 of image " + f"{folder}/train-00000-of-00002 record 2"
    )


def test_a_record_that_changed_after_it_was_indexed(slim):
    folder, _ = slim
    train = load_dataset(f"tfrecord:{folder}").train
    path = folder / "train-00001-of-00002"
    content = bytearray(path.read_bytes())
    content[train.records.offset[6] + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.OpError):
        batches_of(train, 0, 2)
    with pytest.raises(
        InputError, match=r"has changed.*00001-of-00002 record 1 \(Data"
    ):
        damage.replace_damaged(train, Preprocessing(8, 8, 3), range(12))
    path.unlink()
    with pytest.raises(
        InputError, match=r"has changed.*00001-of-00002 record 0 \(NotF"
    ):
        damage.replace_damaged(train, Preprocessing(8, 8, 3), range(12))


def test_tfds_sets_of_records(tmp_path, monkeypatch):
    """Those of several sizes, and those too large for memory: the same pixels."""
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
                    "label": 1 + i % 2,  # Of class 0 there is none.
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
        in_memory = load_dataset(name, str(tmp_path))
        monkeypatch.setattr(tfds_sets, "_memory", lambda: 0)
        found = load_dataset(name, str(tmp_path))
        monkeypatch.undo()
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
        assert (in_memory.train.records is None) == bool(shape[0])
        assert found.train.records is not None
        assert found.classes == in_memory.classes == ("x", "y", "z")
        assert found.train.labels.tolist() == [1, 2] * 6
        assert found.train.labels.tolist() == in_memory.train.labels.tolist()
        for split in ("train", "test"):
            preprocessing = Preprocessing(6, 6, 3)
            views = pipelines.load_views(getattr(found, split), preprocessing)
            if shape[0]:
                pixels = [e["image"] for _, e in examples][: len(views)]
                np.testing.assert_array_equal(views, pixels)
        only = load_dataset(name, str(tmp_path), only_test=True)
        assert (len(only.train), len(only.test)) == (0, 5)
        ours, theirs = (
            batches_of(d.train, 1, 3, size=(6, 6), batch_size=5)
            for d in (found, in_memory)
        )
        assert_equal(ours, theirs)


# Damaged images


def many(folder, count, damaged=()):
    """A set of small JPEG files in two classes, of which some are cut off."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
        encoded = encode(pixels, "JPEG")
        if i in damaged:
            encoded = encoded[:-60]
        (folder / "ab"[i % 2] / f"{i:05d}.jpg").write_bytes(encoded)
    return _files(str(folder), ["a", "b"])


def test_the_next_good_image_stands_in_for_a_damaged_one(tmp_path, capsys):
    split = many(tmp_path / "set", 1200, (10, 2399))
    place = [n.endswith("00010.jpg") for n in split.names()].index(True)
    preprocessing = Preprocessing(8, 8, 3)
    assert damage.damaged_images(split, preprocessing, [3, place, place, 9]) == [place]
    found = damage.replace_damaged(split, preprocessing, [3, place, place, 9])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("1 of 1200 images cannot be decoded; ")
    assert "a/00010.jpg; others stand in" in line
    assert found.replaced == 1
    assert found.images[place] == split.images[place + 1]
    assert found.labels[place] == split.labels[place + 1]
    others = np.arange(1200) != place
    assert (found.images[others] == split.images[others]).all()
    # The first one stands in for the last.
    last = split.without([1199])
    assert last.images[-1] == split.images[0]


def test_too_many_damaged_images(tmp_path, capsys):
    split = many(tmp_path / "set", 1200, (10, 500))
    places = [
        place
        for place, name in enumerate(split.names())
        if name.endswith(("00010.jpg", "00500.jpg"))
    ]
    preprocessing = Preprocessing(8, 8, 3)
    found = damage.replace_damaged(split, preprocessing, places[:1])
    capsys.readouterr()
    with pytest.raises(InputError, match=r"00500\.jpg"):
        damage.replace_damaged(found, preprocessing, places)
    with pytest.raises(
        InputError, match=r"2 of 1200 .*a/00010\.jpg, .*a/00500\.jpg"
    ) as error:
        damage.replace_damaged(split, preprocessing, places)
    assert "\n" not in str(error.value)
    few = split.take(np.arange(900))
    with pytest.raises(InputError, match=r"2 of 900 .*a/00010\.jpg"):
        damage.replace_damaged(few, preprocessing, places[:1])


def test_another_fault_is_not_taken_for_a_damaged_image(tmp_path):
    split = many(tmp_path / "set", 4)
    fault = tf.errors.ResourceExhaustedError(None, None, "no memory")
    with pytest.raises(tf.errors.ResourceExhaustedError):
        damage.replace_damaged(split, Preprocessing(8, 8, 3), [0, 1], fault)
    with pytest.raises(InputError, match="Reading failed"):
        damage.replace_damaged(split, Preprocessing(8, 8, 3), [0, 1])


class Cut(keras.callbacks.Callback):
    """Ends a run as a power failure would, after some steps."""

    def __init__(self, steps):
        super().__init__()
        self.left = iter(range(steps - 1))  # Nothing that a checkpoint keeps.

    def on_train_batch_end(self, batch, logs=None):
        if next(self.left, None) is None:
            raise KeyboardInterrupt


def test_a_run_goes_on_without_a_damaged_image(tmp_path, capsys):
    """And a resumed one ends with the same bits, whichever side of it was cut."""
    from keras_resnet.training.run import train

    folder = tmp_path / "set"
    many(folder / "train", 1004, (77,))
    many(folder / "test", 10)

    def run(name, steps=1000):
        train(
            "cifar_resnet8",
            f"folder:{folder}",
            image_size=8,
            recipe="modern_cifar",
            batch_size=128,
            iterations=12,
            checkpoint_every=3,
            strategy="one_device",
            model_dir=str(tmp_path / name),
            callbacks=[Cut(steps)],
            verbose=0,
        )
        model = keras.models.load_model(tmp_path / name / "final.keras")
        return np.concatenate([w.ravel() for w in model.get_weights()])

    whole = run("whole")
    assert np.isfinite(whole).all()
    assert "1 of 1004 images cannot be decoded" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        run("cut", 10)
    np.testing.assert_array_equal(run("cut"), whole)


# A tf.data service

SERVICE = """
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
def services(*workers):
    """Dispatchers with so many workers, each in a process of its own; the addresses."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SERVICE, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for count in workers
    ]
    try:
        yield [process.stdout.readline().strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.full
def test_data_services(sources, monkeypatch):
    """The batches are the same as without, each once and in order.

    Two services take turns. One with two workers, of which each would prepare every
    step, is refused, and one without any.
    """
    changes = {"mixup": 0.2, "batch_size": 4}
    expected = batches_of(sources["folder"], 1, 8, **changes)
    shared = batches_of(sources["records"], 1, 4, 2)
    with services(1, 1, 2, 0) as (one, other, crowd, nobody):
        found = batches_of(sources["folder"], 1, 8, service=one, **changes)
        assert_equal(found, expected)
        both = f"{one}, {other}"
        found = batches_of(sources["folder"], 1, 8, service=both, **changes)
        assert_equal(found, expected)
        found = batches_of(sources["records"], 1, 4, 2, service=both)
        assert_equal(found, shared)
        with pytest.raises(InputError, match=f"have one worker.*={crowd} with 2$"):
            batches_of(sources["arrays"], 0, 3, service=crowd)
        monkeypatch.setattr(data_service, "SERVICE_TIMEOUT", 3)
        with pytest.raises(InputError, match=f"had no worker within.*={nobody}$"):
            batches_of(sources["arrays"], 0, 3, service=nobody)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("grpc://localhost:1", "No tf.data service answered within 1 s"),
        ("localhost:5000", "data_service is an address such as grpc://"),
        ("grpc://localhost", "data_service is an address such as grpc://"),
    ],
)
def test_a_data_service_that_is_not_there(sources, monkeypatch, address, words):
    monkeypatch.setattr(data_service, "SERVICE_TIMEOUT", 1)
    with pytest.raises(InputError, match=words) as error:
        batches_of(sources["arrays"], 0, 3, service=address)
    assert "\n" not in str(error.value)


# A set for a classifier


def own(labels=(0, 1, 1), classes=("a", "b"), **changes):
    """Somebody's arrays: three images of two classes, to train on and held out."""
    images = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8, 1)
    good = splits.Split(images, np.array([0, 1, 1], np.int32))
    split = splits.Split(changes.pop("images", images), np.array(labels))
    parts = {"train": good, "test": good, changes.pop("part", "train"): split}
    return splits.Dataset("mine", classes, **parts, shape=(8, 8, 1))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_own_labels_of_any_whole_numbers(dtype):
    found = splits.check_dataset(own(np.array([1, 0, 1], dtype)))
    assert found.train.labels.dtype == found.test.labels.dtype == np.int32
    assert found.train.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.zeros((3, 8, 8, 1))}, "images of float64 and shape (3, 8, 8, 1)"),
        ({"images": np.zeros((3, 8, 8, 1), int)}, "images of int64"),
        ({"images": np.zeros((3, 8, 8), np.uint8)}, "images of uint8 and shape (3, 8, 8)"),
        ({"labels": [[1, 0], [0, 1], [0, 1]]}, "labels of int64 and shape (3, 2)"),
        ({"labels": [0.0, 1.0, 1.0]}, "labels of float64"),
        ({"labels": [0, 1]}, "shape (2,) for 3 images"),
        ({"labels": [0, 1, 2]}, "with the label 2 of image 2"),
        ({"labels": [0, -1, 1]}, "with the label -1 of image 1"),
        ({"labels": [2**32, 1, 1]}, "with the label 4294967296 of image 0"),
    ],
)  # fmt: skip
def test_own_images_that_are_refused(part, changes, words, tmp_path):
    with pytest.raises(InputError) as error:
        train("cifar_resnet8", own(**changes, part=part), model_dir=tmp_path / "run")
    assert words in str(error.value) and "mine" in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_training_on_own_arrays(tmp_path, digits):
    """As somebody has them, with labels of 64 bits: the run is that of int32."""
    small = {"epochs": 1, "batch_size": 20, "verbose": 0, "strategy": "one_device"}
    rows = []
    for dtype in (np.int64, np.int32):
        parts = [
            splits.Split(split.images[:60], split.labels[:60].astype(dtype))
            for split in (digits.train, digits.test)
        ]
        mine = splits.Dataset("mine", digits.classes, *parts, digits.shape)
        folder = tmp_path / np.dtype(dtype).name
        rows.append(train("cifar_resnet8", mine, model_dir=folder, **small))
        assert (folder / "final.keras").exists()
    assert len(rows[0]) == 1 and rows[0] == rows[1]


def test_own_images_without_any_held_out(tmp_path, digits):
    mine = splits.Dataset(
        "mine", digits.classes, digits.train, digits.test.take(slice(0)), digits.shape
    )
    with pytest.raises(InputError, match=r"too few held-out images.*mine with 0"):
        train("cifar_resnet8", mine, model_dir=tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_unnamed_classes_are_a_models_in_order(tmp_path, monkeypatch):
    from keras_resnet.evaluation.classifier import Classifier, load_images
    from keras_resnet.weights import registry

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    image = encode(gradient(9, 9), "JPEG")
    for name, labels in (("thousand", [1, 500, 1000]), ("ten", [1, 2, 10])):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "validation-0-of-1", [image] * 3, labels)
    names = registry.class_names("imagenet")
    provenance = Provenance("some")
    model = Classifier("some", None, names, Preprocessing(224, 224, 3), provenance)
    found = load_images(model, f"tfrecord:{tmp_path / 'thousand'}", only_test=True)
    assert found.classes == names
    assert found.test.labels.tolist() == [0, 499, 999]
    with pytest.raises(InputError, match="with the classes class 0"):
        load_images(model, f"tfrecord:{tmp_path / 'ten'}", only_test=True)


def test_evaluating_on_records(trained, tmp_path, monkeypatch, digits):
    """As on the same files in folders."""
    from keras_resnet.evaluate import evaluate

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    images = [encode(image[..., 0]) for image in digits.test.images[:60]]
    labels = digits.test.labels[:60]
    (tmp_path / "records").mkdir()
    write_records(tmp_path / "records" / "test-0-of-1", images, labels + 1)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / str(label) / f"{i}.png").write_bytes(image)
    found = [
        evaluate(
            str(trained),
            dataset=f"{kind}:{tmp_path / where}",
            output=str(tmp_path / kind),
        )
        for kind, where in (("tfrecord", "records"), ("folder", "folder"))
    ]
    assert found[0]["images"] == found[1]["images"] == 60
    assert found[0]["accuracy"] == found[1]["accuracy"] > 0.7
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
