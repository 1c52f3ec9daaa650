"""Batches for training and evaluation."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from test_preprocessing import encode
from test_records import build_index, make_example, write_examples

from keras_resnet.data import pipelines, splits
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.spec import RUN_FORMAT, count_steps, find_recipe
from keras_resnet.support.errors import InputError


def take_digit_batches(
    dataset, start, stop, replicas=1, seed=0, run_format=RUN_FORMAT, **changes
):
    batches = pipelines.TrainingBatches(
        split=dataset.train,
        preprocessing=Preprocessing(8, 8, 1),
        recipe=find_recipe("digits", **changes),
        replicas=replicas,
        seed=seed,
        format=run_format,
    )
    return list(batches.dataset(start, stop).as_numpy_iterator())


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, expected_batch in zip(batches, expected, strict=True):
        for a, b in zip(batch, expected_batch, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def join_parts(parts):
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def test_an_epoch_has_every_image_once(digits):
    steps = count_steps(len(digits.train), find_recipe("digits", batch_size=100), 1)
    assert steps == 14  # 1,437 images are 14 batches of 100; 37 images are left out.
    batches = take_digit_batches(digits, 0, steps, batch_size=100)
    assert [len(labels) for _, labels, _ in batches] == [100] * 14
    steps = count_steps(len(digits.train), find_recipe("digits", batch_size=150), 1)
    assert steps == 10  # 1,437 images are 9 batches of 150 and one of 87.
    batches = take_digit_batches(digits, 0, steps, batch_size=150)
    assert [len(labels) for _, labels, _ in batches] == [150] * 9 + [87]
    labels = np.concatenate([labels for _, labels, _ in batches])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(digits.train.labels))
    for _, _, weights in batches:
        assert weights.sum() == pytest.approx(1, rel=1e-6)


def test_order_depends_on_epoch_and_seed(digits):
    batches = take_digit_batches(digits, 0, 24)
    first_epoch_labels, second_epoch_labels = batches[0][1], batches[22][1]
    other_seed_batches = take_digit_batches(digits, 0, 1, seed=1)
    assert not np.array_equal(first_epoch_labels, second_epoch_labels)
    assert not np.array_equal(first_epoch_labels, other_seed_batches[0][1])


def test_resuming_in_mid_epoch_gives_the_batches_of_an_uninterrupted_run(digits):
    uninterrupted_batches = take_digit_batches(digits, 0, 50)
    assert len(uninterrupted_batches) == 50
    for start in (0, 17, 21, 22, 40):
        resumed_batches = take_digit_batches(digits, start, 50)
        assert_equal(resumed_batches, uninterrupted_batches[start:])


def test_replicas_share_the_batch_of_a_single_device(digits):
    single_device_batches = take_digit_batches(digits, 0, 25)
    for replicas in (2, 4):
        shared_batches = take_digit_batches(digits, 0, 25, replicas)
        for step, batch in enumerate(single_device_batches):
            parts = shared_batches[step * replicas : (step + 1) * replicas]
            part_sizes = [len(labels) for _, labels, _ in parts]
            assert max(part_sizes) - min(part_sizes) <= 1
            assert min(part_sizes) > 0
            assert_equal([join_parts(parts)], [batch])


def test_no_replica_gets_an_empty_part(digits):
    """The last of 1,437 images is left out if batches have 4 images.

    A batch of this image alone would have no image for the second replica. In runs of
    format 1, only several replicas left it out.
    """
    recipe = find_recipe("digits", batch_size=4)
    steps = {
        (replicas, run_format): count_steps(1437, recipe, replicas, run_format)
        for replicas in (1, 2)
        for run_format in (1, 2)
    }
    assert steps == {(1, 1): 360, (1, 2): 359, (2, 1): 359, (2, 2): 359}
    for run_format in (1, 2):
        parts = take_digit_batches(
            digits, 357, 361, 2, run_format=run_format, batch_size=4
        )
        assert [len(labels) for _, labels, _ in parts] == [2] * 8


def test_batch_size_must_be_a_multiple_of_the_replicas():
    pipelines.check_batch_size(64, 2)
    for batch_size in (63, 0):
        with pytest.raises(InputError, match=f"Received: batch_size={batch_size}"):
            pipelines.check_batch_size(batch_size, 2)


# Of the 360 images, 7 replicas get 52 each, so that there are 4 padding images.
@pytest.mark.parametrize(
    ("batch_size", "replicas"), [(360, 1), (100, 2), (14, 2), (70, 7)]
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


def store_splits(folder):
    """Returns a dict of splits that store the same 22 images of 3 classes in three ways.

    "folder" has image files, "records" has TFRecord files, and "arrays" has pixels in
    memory.
    """
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (22, 12, 15, 3), np.uint8)
    labels = np.arange(22, dtype=np.int32) % 3
    images = [encode(image, "PNG") for image in pixels]
    examples = [make_example(*item) for item in zip(images, 1 + labels, strict=True)]
    image_paths = [str(folder / f"{i:02d}.png") for i in range(22)]
    for path, image in zip(image_paths, images, strict=True):
        with open(path, "wb") as file:
            file.write(image)
    record_paths = [
        write_examples(folder / "train-0-of-2", examples[:10]),
        write_examples(folder / "train-1-of-2", examples[10:]),
    ]
    records = build_index(record_paths)
    return {
        "folder": splits.Split(np.array(image_paths, object), labels, True),
        "records": splits.Split(np.arange(22), records.labels, records=records),
        "arrays": splits.Split(pixels, labels),
    }


@pytest.fixture(scope="module")
def stored_splits(tmp_path_factory):
    return store_splits(tmp_path_factory.mktemp("sources"))


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
        pytest.param(name, marks=[] if name == "mixed" else pytest.mark.full)
        for name in RECIPE_CHANGES
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
    two_replicas = take_batches(stored_splits["folder"], 1, 4, 2, **changes)
    assert_equal(
        [join_parts(two_replicas[i : i + 2]) for i in (0, 2, 4)], expected[1:4]
    )
    assert len(two_replicas[0][0]) == len(two_replicas[1][0]) == 4
    is_mixed = "mixup" in changes or "cutmix" in changes
    assert {len(two_replicas[2][0]), len(two_replicas[3][0])} == (
        {2, 4} if is_mixed else {3}
    )
    if is_mixed:  # Both images of a pair are in the same part.
        assert all(len(images) % 2 == 0 for images, *_ in two_replicas)
    # The second of two workers has the last two of four replicas.
    last_parts = take_batches(
        stored_splits["records"], 0, 2, 4, local_replicas=range(2, 4), **changes
    )
    for step in (0, 1):
        last_half = [column[4:] for column in expected[step]]
        assert_equal([join_parts(last_parts[2 * step : 2 * step + 2])], [last_half])


def make_numbered_split(count, channels=3):
    """Returns a split of images whose pixels all equal the image's index."""
    images = np.zeros((count, 4, 4, channels), np.uint8)
    images += np.arange(count, dtype=np.uint8)[:, None, None, None]
    return splits.Split(images, np.arange(count, dtype=np.int32) % 3)


def test_an_odd_image_is_not_lost_when_images_are_mixed():
    """Both images of a pair are in the same part, so the parts of 5 are 2 and 3."""
    for replicas, sizes in ((1, [8, 5]), (2, [4, 4, 2, 3])):
        parts = take_batches(
            make_numbered_split(13), 0, 2, replicas, size=(4, 4), crop="pad", mixup=0.2
        )
        assert [len(images) for images, _, _ in parts] == sizes


@pytest.mark.parametrize("repeats", [1, 3])
def test_step_indices_match_the_batch(repeats):
    training_batches = make_training_batches(
        make_numbered_split(50), replicas=2, size=(4, 4), crop="pad", pad=0.0,
        repeats=repeats, batch_size=14,
    )  # fmt: skip
    parts = list(training_batches.dataset(0, 10).as_numpy_iterator())
    for step in (0, 3, 4, 9):  # An epoch has four steps.
        images, labels, _ = join_parts(parts[2 * step : 2 * step + 2])
        indices = training_batches.find_step_indices(step)
        assert images[:, 0, 0, 0].tolist() == indices.tolist()
        assert labels.tolist() == (indices % 3).tolist()


def test_epochs_are_different_permutations():
    batches = take_batches(
        make_numbered_split(50), 0, 12, crop="pad", size=(4, 4), batch_size=14, pad=0.0
    )
    orders = [
        join_parts(batches[start : start + 4])[0][:, 0, 0, 0].tolist()
        for start in (0, 4, 8)
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_repeated_images_are_augmented_differently_and_never_paired():
    count = 36
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
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


def collect_streams(monkeypatch, run_format, num_seeds):
    """Returns the seeds that reach TensorFlow's stateless functions, as int64 pairs.

    For each seed of a run, epoch 7 and step 7 are planned, and two images are mixed.
    """
    streams = []

    def record(module, name, seed_argument):
        function = getattr(module, name)

        def call(*args, **options):
            streams.append(tuple(np.int64(args[seed_argument])))
            return function(*args, **options)

        monkeypatch.setattr(module, name, call)

    record(tf.random, "stateless_uniform", 1)
    record(tf.random.experimental, "stateless_shuffle", 1)
    record(pipelines, "mix", 2)
    images, number = np.zeros((2, 8, 8, 3), np.uint8), tf.constant(7, tf.int64)
    for seed in range(num_seeds):
        batches = dataclasses.replace(
            make_training_batches(make_numbered_split(8), mixup=0.2, batch_size=4),
            seed=seed,
            format=run_format,
        )
        batches._plan_epoch(number)
        indices, _, _, steps, counts = batches._plan_step(number, tf.range(2))
        batches._finish_step(images, indices, steps, counts)
    monkeypatch.undo()
    return streams


def test_seeds_and_purposes_share_no_random_numbers(monkeypatch):
    """With the seeds of format 1, most of the streams occur several times."""
    streams = collect_streams(monkeypatch, run_format=2, num_seeds=100)
    assert len(set(streams)) == len(streams) == 100 * 4
    old_streams = collect_streams(monkeypatch, run_format=1, num_seeds=10)
    assert (len(old_streams), len(set(old_streams))) == (10 * 4, 10 + 3)
