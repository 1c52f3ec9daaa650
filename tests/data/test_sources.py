"""Loading of datasets by name."""

import os
import pathlib
import shutil
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_preprocessing import encode, make_noise
from test_records import make_example, write_examples

from keras_resnet.data import load_dataset, pipelines, sources, splits
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluate import evaluate
from keras_resnet.evaluation.classifier import Classifier, load_images
from keras_resnet.spec import Provenance, find_recipe
from keras_resnet.support.errors import InputError
from keras_resnet.weights import registry


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


def assert_colours_match(images, labels):
    """Asserts that images with label 1 are red, and that the others are blue."""
    colours = images.astype(float).mean(axis=(1, 2))
    np.testing.assert_array_equal(colours[:, 0] > colours[:, 2], labels == 1)


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


# Folders of images


def test_undivided_folder_holds_out_a_fifth_of_each_class(folder):
    dataset = load_dataset(f"folder:{folder}")
    assert dataset.classes == ("blue", "red")
    assert np.bincount(dataset.train.labels).tolist() == [8, 16]
    assert np.bincount(dataset.test.labels).tolist() == [2, 4]
    assert not set(dataset.train.images) & set(dataset.test.images)
    pixels = pipelines.load_views(dataset.test, Preprocessing(16, 16, 3))
    assert_colours_match(pixels, dataset.test.labels)
    batches = pipelines.TrainingBatches(
        split=dataset.train,
        preprocessing=Preprocessing(16, 20, 3, crop=0.8),
        recipe=find_recipe("photographs", batch_size=10, crop="pad"),
        replicas=2,
        seed=0,
    )
    batches = list(batches.dataset(1, 5).as_numpy_iterator())
    assert [len(labels) for _, labels, _ in batches] == [5] * 8
    for images, labels, _ in batches:
        assert images.shape[1:] == (16, 20, 3)
        assert_colours_match(images, labels)


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


# Names of class folders that Linux permits, except those of hidden folders and splits.
FOLDER_NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1
).filter(
    lambda name: (
        not name.startswith(".")
        and name not in ("train", "validation", "val", "test")
        and len(os.fsencode(name)) < 256
    )
)


@settings(max_examples=30)
@given(st.dictionaries(FOLDER_NAMES, st.integers(5, 12), min_size=2, max_size=4))
def test_class_names_are_the_sorted_names_of_folders(tmp_path_factory, counts):
    """Every fifth file of a class is held out."""
    folder = tmp_path_factory.mktemp("classes")
    for name, count in counts.items():
        (folder / name).mkdir()
        for i in range(count):
            (folder / name / f"{i:02d}.JPG").touch()
    (folder / ".hidden").mkdir()
    dataset = load_dataset(f"folder:{folder}")
    assert dataset.classes == tuple(sorted(counts))
    for split, is_held_out in ((dataset.train, False), (dataset.test, True)):
        expected = [
            (str(folder / name / f"{i:02d}.JPG"), label)
            for label, name in enumerate(dataset.classes)
            for i in range(counts[name])
            if (i % 5 == 4) == is_held_out
        ]
        assert list(zip(split.images, split.labels, strict=True)) == expected
    test_only_dataset = load_dataset(f"folder:{folder}", only_test=True)
    assert len(test_only_dataset.test) == sum(counts.values())


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
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(InputError, match=r"must be valid UTF-8\. Received: b'\\xff'"):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "loop"])
def test_special_files_are_refused_by_name(folder, kind):
    path = folder / "red" / "sub" / "special.png"
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)  # Opening it would wait forever.
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK)
    else:
        path.symlink_to("special.png" if kind == "loop" else "nowhere")
    with pytest.raises(InputError, match=f"regular files.* {path}$"):
        load_dataset(f"folder:{folder}")
    assert str(path) in sources.find_images([str(folder)])


def test_links_to_images_are_followed_but_not_links_to_folders(folder):
    (folder / "red" / "link.png").symlink_to(folder / "blue" / "00.png")
    (folder / "red" / "device.png").symlink_to("/dev/null")
    (folder / "red" / "folder.png").mkdir()
    (folder / "red" / "loop").symlink_to(folder)
    with pytest.raises(InputError, match=r"device\.png"):
        load_dataset(f"folder:{folder}")
    (folder / "red" / "device.png").unlink()
    dataset = load_dataset(f"folder:{folder}", only_test=True)
    assert np.bincount(dataset.test.labels).tolist() == [10, 21]
    assert str(folder / "red" / "link.png") in dataset.test.images


# TFRecord files


def write_records(path, images, labels):
    examples = [make_example(*item) for item in zip(images, labels, strict=True)]
    write_examples(path, examples)


@pytest.fixture
def slim_dataset(tmp_path, monkeypatch):
    """A folder of TFRecord files in the format of TF-slim, and a list of its images.

    There are 12 training images and 6 validation images. The labels are from 1 to 3.
    """
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    folder = tmp_path / "slim"
    images = [encode(make_noise(20 + i, 30, i), "JPEG") for i in range(18)]
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
    joined_split = dataset.train + dataset.test
    assert joined_split.labels.tolist() == [0, 1, 2] * 6
    assert joined_split.names() == names + dataset.test.names()
    assert len(dataset.test.take([]) + dataset.test) == 6
    preprocessing = Preprocessing(16, 16, 3, 0.875)
    views = pipelines.load_views(joined_split, preprocessing)
    split_in_memory = splits.Split(np.array(images, object), joined_split.labels)
    np.testing.assert_array_equal(
        views, pipelines.load_views(split_in_memory, preprocessing)
    )
    batches = pipelines.evaluation_batches(
        dataset.test, pipelines.central_crop(preprocessing), 4, 2
    )
    batches = list(batches.as_numpy_iterator())
    assert [weights.tolist() for _, _, weights in batches] == [[1, 1], [1, 1], [1], [1]]
    np.testing.assert_array_equal(np.concatenate([b[0] for b in batches]), views[12:])
    (folder / "labels.txt").write_text("cat\ndog\nfox\n")
    assert load_dataset(f"tfrecord:{folder}").classes == ("cat", "dog", "fox")
    for path in folder.glob("train-*"):
        path.unlink()
    test_only_dataset = load_dataset(f"tfrecord:{folder}", only_test=True)
    assert (len(test_only_dataset.train), len(test_only_dataset.test)) == (0, 6)


def test_label_outside_of_the_classes_is_refused(slim_dataset):
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


def test_classes_without_names_get_the_class_names_of_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    image = encode(make_noise(9, 9), "JPEG")
    for name, labels in (("thousand", [1, 500, 1000]), ("ten", [1, 2, 10])):
        write_records(tmp_path / name / "validation-0-of-1", [image] * 3, labels)
    names = registry.class_names("imagenet")
    provenance = Provenance("some")
    model = Classifier("some", None, names, Preprocessing(224, 224, 3), provenance)
    dataset = load_images(model, f"tfrecord:{tmp_path / 'thousand'}", only_test=True)
    assert dataset.classes == names
    assert dataset.test.labels.tolist() == [0, 499, 999]
    with pytest.raises(InputError, match="with the classes class 0"):
        load_images(model, f"tfrecord:{tmp_path / 'ten'}", only_test=True)


@pytest.mark.slow
def test_evaluating_on_records_equals_evaluating_on_a_folder(
    trained_run, tmp_path, monkeypatch, digits
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    images = [encode(image[..., 0], "PNG") for image in digits.test.images[:60]]
    labels = digits.test.labels[:60]
    write_records(tmp_path / "tfrecord" / "test-0-of-1", images, labels + 1)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / str(label) / f"{i}.png").write_bytes(image)
    records_result, folder_result = (
        evaluate(
            str(trained_run),
            dataset=f"{kind}:{tmp_path / kind}",
            output=str(tmp_path / f"report of {kind}"),
            strategy="one_device",
        )
        for kind in ("tfrecord", "folder")
    )
    assert records_result["images"] == folder_result["images"] == 60
    assert records_result["accuracy"] == folder_result["accuracy"] > 0.7
    assert records_result["loss"] == pytest.approx(folder_result["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2_000_000_000], "at most 131,072 classes.* labels up to 2,000,000,000"),
        ([0, 2**63 - 1], "at most 131,072 classes.* labels up to 2,147,483,647"),
        ([0, 2**17], "at most 131,072 classes.* labels up to 131,072"),
        ([0, -5], "have a label that is none of the 1 classes"),
    ],
)
def test_labels_that_are_no_class_are_refused(tmp_path, monkeypatch, labels, message):
    """TFDS's feature names are used, since a lowest label of 1 would be shifted."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    image = encode(make_noise(8, 8), "PNG")
    examples = [make_example(image, label, ("image", "label")) for label in labels]
    write_examples(tmp_path / "train-0-of-1", examples)
    write_examples(tmp_path / "val-0-of-1", examples[:1])
    with pytest.raises(InputError, match=message):
        load_dataset(f"tfrecord:{tmp_path}")


def test_too_many_class_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    example = make_example(encode(make_noise(8, 8), "PNG"), 0)
    for name in ("train-0-of-1", "val-0-of-1"):
        write_examples(tmp_path / name, [example])
    (tmp_path / "labels.txt").write_text("a\n" * (2**17 + 1))
    with pytest.raises(InputError, match="at most 131,072 classes"):
        load_dataset(f"tfrecord:{tmp_path}")
    (tmp_path / "labels.txt").write_bytes(bytes(2**24 + 1))
    with pytest.raises(InputError, match="at most 16,777,216 bytes"):
        load_dataset(f"tfrecord:{tmp_path}")
