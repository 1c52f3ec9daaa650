import io
import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnet.data import record_index, records
from keras_resnet.support.errors import InputError

# The names of TensorFlow's ImageNet scripts and TF-slim, and of TFDS.
SLIM = ("image/encoded", "image/class/label")
TFDS = ("image", "label")


def picture(number, kind="JPEG"):
    """An encoded picture, each of another size."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, (5 + number % 7, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def example(image, label, names=SLIM):
    features = {
        names[0]: tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        names[1]: tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "height": tf.train.Feature(int64_list=tf.train.Int64List(value=[5])),
    }
    features = tf.train.Features(feature=features)
    return tf.train.Example(features=features).SerializeToString()


def write(path, examples):
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for one in examples:
            writer.write(one)
    return str(path)


def write_set(folder, names=SLIM, first=1, kinds=("JPEG", "PNG")):
    """Three files of 4, 5 and 6 records; the labels are `first` to `first` + 2."""
    paths, number = [], 0
    for shard in range(3):
        examples = []
        for _ in range(4 + shard):
            image = picture(number, kinds[number % len(kinds)])
            examples.append(example(image, first + number % 3, names))
            number += 1
        paths.append(write(folder / f"train-{shard:05d}-of-00003", examples))
    return paths


def images_in(paths, name=SLIM[0]):
    """What TensorFlow reads from the beginning to the end."""
    return [
        tf.train.Example.FromString(r).features.feature[name].bytes_list.value[0]
        for r in tf.data.TFRecordDataset(paths).as_numpy_iterator()
    ]


def make_index(paths, **options):
    cache = os.path.join(os.path.dirname(paths[0]), "cache")
    return record_index.index(paths, **{"cache_dir": cache, **options})


def flip(path, place):
    """Changes a byte."""
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def paths(tmp_path):
    return write_set(tmp_path)


@pytest.mark.parametrize(
    ("names", "first"), [(SLIM, 1), (TFDS, 0), (("image_raw", "label"), 0)]
)
def test_random_access_gives_what_reading_in_order_gives(tmp_path, names, first):
    paths = write_set(tmp_path, names, first, ("JPEG", "PNG", "WEBP", "BMP", "GIF"))
    found = make_index(paths)
    assert len(found) == 15
    assert found.shard.tolist() == [0] * 4 + [1] * 5 + [2] * 6
    assert found.number.tolist() == [*range(4), *range(5), *range(6)]
    assert found.labels.tolist() == [0, 1, 2] * 5
    assert (found.image, found.first_label) == (names[0], first)
    assert found.name(5) == f"{paths[1]} record 1"
    read = records.reader(found)
    for place, image in reversed(list(enumerate(images_in(paths, names[0])))):
        assert read(place).numpy() == image
    for shard, offset, length in zip(
        found.shard, found.offset, found.length, strict=True
    ):
        with open(paths[shard], "rb") as opened:  # As the format is documented.
            opened.seek(offset)
            assert struct.unpack("<Q", opened.read(8)) == (length,)


@pytest.mark.parametrize("calls", [1, 4])
def test_reads_inside_a_pipeline_in_any_order(paths, calls):
    images, read = images_in(paths), records.reader(make_index(paths))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(15), 4))
    data = tf.data.Dataset.from_tensor_slices(order)
    data = data.map(read, num_parallel_calls=calls, deterministic=True)
    assert list(data.as_numpy_iterator()) == [images[place] for place in order]
    batches = tf.data.Dataset.from_tensor_slices(order).batch(8)
    batches = batches.map(
        lambda places: tf.map_fn(read, places, fn_output_signature=tf.string),
        num_parallel_calls=calls,
    )
    found = np.concatenate(list(batches.as_numpy_iterator()))
    assert found.tolist() == [images[place] for place in order]


def test_the_pipeline_can_be_sent_to_a_data_service(paths):
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    worker = service.WorkerServer(service.WorkerConfig(address))
    data = tf.data.Dataset.range(15).map(records.reader(make_index(paths)))
    data = data.apply(service.distribute("parallel_epochs", dispatcher.target))
    assert sorted(data.as_numpy_iterator()) == sorted(images_in(paths))
    del worker


def test_tfds(tmp_path):
    """A set that TFDS wrote."""
    tfds = pytest.importorskip("tensorflow_datasets")
    random = np.random.default_rng(0)
    examples = [
        (i, {"image": random.integers(0, 256, (4 + i, 6, 3), np.uint8), "label": i % 3})
        for i in range(12)
    ]
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
    }
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="mixed",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": examples, "test": examples[:5]},
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    files = records.find(f"tfrecord:{builder.data_dir}")
    assert files == {
        split: tuple(map(str, builder.info.splits[split].filepaths))
        for split in ("train", "test")
    }
    assert records.read_class_names(builder.data_dir) == ("x", "y", "z")
    found = record_index.index(files["train"], cache_dir=tmp_path)
    read = records.reader(found)
    for place, (_, one) in enumerate(examples):
        assert found.labels[place] == one["label"]
        np.testing.assert_array_equal(tf.io.decode_png(read(place)), one["image"])


@pytest.mark.parametrize(
    ("names", "labels", "first", "expected"),
    [
        (SLIM, [1, 2, 3], None, [0, 1, 2]),  # TensorFlow's ImageNet.
        (SLIM, [0, 1, 2], None, [0, 1, 2]),  # TF-slim's flowers.
        (SLIM, [2, 3, 5], None, [2, 3, 5]),
        (SLIM, [2, 3, 5], 1, [1, 2, 4]),  # Held out, of a set like the first.
        (SLIM, [1, 2, 3], 0, [1, 2, 3]),
        (TFDS, [1, 2, 3], None, [1, 2, 3]),
        (TFDS, [-1, -1, -1], None, [-1, -1, -1]),  # TFDS's ImageNet test images.
        (TFDS, [0, -1, 2**40], None, [0, -1, 2**31 - 1]),  # Beyond int32: no class.
    ],
)
def test_labels_count_from_0(tmp_path, names, labels, first, expected):
    path = write(tmp_path / "a", [example(picture(0), n, names) for n in labels])
    found = make_index([path], first_label=first)
    assert found.labels.tolist() == expected
    assert found.labels.dtype == np.int32


def begins(path):
    """Where each record of a file begins, from the documented format; its size."""
    lengths = [len(r) for r in tf.data.TFRecordDataset(path).as_numpy_iterator()]
    return np.cumsum([0] + [length + 16 for length in lengths])


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            20,
            r"1 of 15 records cannot be used: \S+00001-of-00003 record 2 \(damaged\);",
        ),
        (8, r"1 of 15 records cannot be used: \S+00001-of-00003 record 2 \(damaged\);"),
        (
            -1,
            r"1 of 15 records cannot be used: \S+00001-of-00003 record 1 \(damaged\);",
        ),
        (0, r"00001-of-00003 record 2 and all after it;"),
        (6, r"00001-of-00003 record 2 and all after it;"),
    ],
)
def test_a_changed_byte(paths, part, words):
    """Of the third record or around it: pixels, checksums, and its length."""
    flip(paths[1], begins(paths[1])[2] + part)
    with pytest.raises(InputError, match=words):
        make_index(paths)


def test_a_changed_byte_at_the_very_beginning(paths):
    flip(paths[0], 20)
    with pytest.raises(
        InputError, match=r"1 of 15 .* \S+00000-of-00003 record 0 \(dam"
    ):
        make_index(paths)
    with pytest.raises(
        InputError, match="00000-of-00003 with nothing that can be read"
    ):
        make_index(paths[:1])


@pytest.mark.parametrize("kept", [3, 11, 12, 40, -1])
def test_a_truncated_file(paths, kept):
    """However little there is of the last record: TensorFlow overlooks 11 bytes."""
    places = begins(paths[2])
    os.truncate(paths[2], places[5] + kept if kept > 0 else places[6] + kept)
    with pytest.raises(InputError, match=r"\S+00002-of-00003 record 5 and all after"):
        make_index(paths)


def test_a_file_filled_up_with_zeros(paths):
    os.truncate(paths[0], begins(paths[0])[3] + 30)
    os.truncate(paths[0], 2**24)
    with pytest.raises(
        InputError, match=r"\S+00000-of-00003 record 3 and all after it"
    ):
        make_index(paths)


def test_few_damaged_records_of_many_are_left_out(tmp_path, capsys):
    one = example(picture(0), 1)
    path = write(tmp_path / "many", [one] * 2000)
    place = 16 + len(one)
    flip(path, 7 * place + 30)
    flip(path, 1999 * place + 30)
    for _ in range(2):  # The second time as it was kept.
        found = make_index([path])
        line = f"2 of 2000 records cannot be used: {path} record 7 (damaged), "
        assert capsys.readouterr().err.startswith(line)
        assert len(found.damaged) == 2
        assert found.number.tolist() == [n for n in range(1999) if n != 7]
        assert records.reader(found)(7).numpy() == picture(0)  # Record 8.
    flip(path, 1000 * place + 30)
    os.utime(path, (1, 1))
    with pytest.raises(InputError, match=r"^3 of 2000 records cannot be used"):
        make_index([path])


@pytest.mark.parametrize(
    ("third", "problem"),
    [
        (b"\xff" * 40, "damaged"),  # No Example.
        (example(b"", 1), "no encoded image"),
        (example(b"\0" * 3072, 1), "no encoded image"),  # CIFAR's pixels.
        (example(picture(0), 1, ("other", SLIM[1])), "no encoded image"),
    ],
    ids=["no Example", "empty", "pixels", "another feature"],
)
def test_a_record_without_an_image(tmp_path, third, problem):
    ones = [example(picture(0), 1)] * 2
    path = write(tmp_path / "a", [*ones, third, *ones])
    with pytest.raises(InputError, match=rf"1 of 5 .* record 2 \({problem}\)"):
        make_index([path])


def test_files_of_something_else(tmp_path):
    with pytest.raises(InputError, match=r"Could not read records: .*nowhere"):
        make_index([str(tmp_path / "nowhere")])
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(tmp_path / "zipped"), options) as writer:
        writer.write(example(picture(0), 1))
    (tmp_path / "text").write_text("This is a text of more than some bytes. " * 9)
    (tmp_path / "empty").write_bytes(b"")
    write(tmp_path / "sound", [example(b"1", 1, ("audio", "label"))])
    for name, words in (
        ("zipped", "uncompressed TFRecord.*zipped with nothing"),
        ("text", "uncompressed TFRecord.*text with nothing"),
        ("empty", "uncompressed TFRecord.*empty with nothing"),
        ("sound", "sound with audio, height, label"),
    ):
        with pytest.raises(InputError, match=words):
            make_index([str(tmp_path / name)])


def test_a_file_that_changes_after_it_was_indexed(paths):
    images, found = images_in(paths), make_index(paths)
    flip(paths[0], found.offset[2] + 30)
    read = records.reader(found)
    assert read(1).numpy() == images[1]
    with pytest.raises(tf.errors.DataLossError):
        read(2)


def test_an_index_is_kept_until_a_file_changes(paths, tmp_path):
    seen = []
    first = make_index(paths, on_file=lambda: seen.append(1))
    assert len(seen) == 3
    again = make_index(paths, on_file=lambda: seen.append(1))
    assert len(seen) == 3
    assert len(os.listdir(tmp_path / "cache")) == 1
    for field in ("paths", "image", "first_label", "damaged"):
        assert getattr(again, field) == getattr(first, field)
    for field in ("shard", "number", "offset", "length", "labels"):
        np.testing.assert_array_equal(getattr(again, field), getattr(first, field))
        assert getattr(again, field).dtype == getattr(first, field).dtype
    os.utime(paths[0], (1, 1))
    make_index(paths, on_file=lambda: seen.append(1))
    assert len(seen) == 6
    make_index(paths[:2], on_file=lambda: seen.append(1))
    assert len(seen) == 8
    os.remove(paths[1])
    with pytest.raises(InputError, match="Could not read records"):
        make_index(paths)


@pytest.mark.parametrize("damage", ["cut", "flip", "other", "empty"])
def test_a_damaged_index_is_made_anew(paths, tmp_path, damage):
    make_index(paths)
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    if damage == "cut":
        kept.write_bytes(whole[: len(whole) // 2])
    elif damage == "flip":
        flip(kept, whole.index(b"offset.npy") + 150)
    elif damage == "other":
        np.savez(kept, shard=np.arange(3))
    else:
        kept.write_bytes(b"")
    assert make_index(paths).labels.tolist() == [0, 1, 2] * 5
    assert len(kept.read_bytes()) == len(whole)


def test_a_changed_byte_of_an_index_is_found_or_harmless(paths, tmp_path):
    make_index(paths)
    (kept,) = (tmp_path / "cache").iterdir()
    table = record_index._load(kept)
    for place in range(0, kept.stat().st_size, 3):
        flip(kept, place)
        found = record_index._load(kept)
        flip(kept, place)
        if found is not None:
            for name, column in table.items():
                np.testing.assert_array_equal(found[name], column)


def test_a_cache_that_cannot_be_written(paths, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    found = record_index.index(paths)
    assert len(found) == 15
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("The index of the records is not kept: ")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    record_index.index(paths)
    assert len(os.listdir(tmp_path / "records")) == 1


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"],
         2, "validation-00000-of-00001"),
        (["flowers_train_00000-of-00001.tfrecord", "flowers_validation_00000-of-00001.tfrecord"],
         1, "flowers_validation_00000-of-00001.tfrecord"),
        (["m-train.tfrecord-00000-of-00001", "m-test.tfrecord-00000-of-00001", "features.json"],
         1, "m-test.tfrecord-00000-of-00001"),
        (["train.tfrecords", "val.tfrecords", "notes-train.txt"], 1, "val.tfrecords"),
        (["train-0-of-1", "validation-0-of-1", "test-0-of-1"], 1, "validation-0-of-1"),
        (["train-0-of-1", "val-0-of-1", "test-0-of-1"], 1, "val-0-of-1"),
        (["train/a.tfrecord", "train/b.tfrecord", "train/.c.tfrecord", "val/a.tfrecord"],
         2, "val/a.tfrecord"),
        (["train/x-0-of-1", "train/y-0-of-1", "test/x-0-of-1"], 2, "test/x-0-of-1"),
    ],
)  # fmt: skip
def test_find(tmp_path, names, train, test):
    touch(tmp_path, *names)
    found = records.find(f"tfrecord:{tmp_path}")
    assert len(found["train"]) == train
    assert all("train" in os.path.relpath(p, tmp_path) for p in found["train"])
    assert list(found["train"]) == sorted(found["train"])
    assert found["test"] == (str(tmp_path / test),)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "with 0 and 0 files"),
        (["train-0-of-1"], "with 1 and 0 files"),
        (["val-0-of-1"], "with 0 and 1 files"),
        (["train.txt", "a.jpg"], "with 0 and 0 files"),
        (["train-00000-of-00004", "train-00003-of-00004", "val-0-of-1"],
         "2 of 4 files are missing, the first of them number 1. .*train-00000-of-00004$"),
        (["train-0-of-1", "train-0-of-2", "train-1-of-2", "val-0-of-1"], "more than one set"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_found(tmp_path, names, words):
    touch(tmp_path, *names)
    with pytest.raises(InputError, match=words):
        records.find(str(tmp_path))


def test_find_only_what_is_held_out(tmp_path):
    touch(tmp_path, "val-0-of-1")
    found = records.find(f"tfrecord:{tmp_path}", only_test=True)
    assert (len(found["train"]), len(found["test"])) == (0, 1)
    with pytest.raises(InputError, match="There is no such folder"):
        records.find("tfrecord:nowhere")


def test_class_names(tmp_path):
    assert records.read_class_names(f"tfrecord:{tmp_path}") is None
    file = tmp_path / "labels.txt"
    for text, names in (
        ("cat\ndog\n\n", ("cat", "dog")),
        ("cat\r\nhot: dog\r\n", ("cat", "hot: dog")),
        ("0:daisy\n1:tulips\n", ("daisy", "tulips")),
    ):
        file.write_bytes(text.encode())
        assert records.read_class_names(str(tmp_path)) == names
    imagenet = ["background"] + [f"class {i}" for i in range(1000)]
    file.write_text("\n".join(f"{i}:{name}" for i, name in enumerate(imagenet)))
    assert records.read_class_names(str(tmp_path)) == tuple(imagenet[1:])
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="must be text in UTF-8"):
        records.read_class_names(str(tmp_path))
