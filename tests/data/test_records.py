import io
import os
import struct
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_preprocessing import measure_peak

from keras_resnet.data import record_index, records
from keras_resnet.support.errors import InputError

# Names of the image feature and the label feature in TF-slim and in TFDS. TensorFlow's
# ImageNet scripts use the names of TF-slim.
SLIM = ("image/encoded", "image/class/label")
TFDS = ("image", "label")


def make_image(image_index, format="JPEG"):
    """Returns an encoded image whose pixels and height depend on `image_index`."""
    random = np.random.default_rng(image_index)
    pixels = random.integers(0, 256, (5 + image_index % 7, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def make_example(image, label, feature_names=SLIM):
    features = {
        feature_names[0]: tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[image])
        ),
        feature_names[1]: tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label])
        ),
        "height": tf.train.Feature(int64_list=tf.train.Int64List(value=[5])),
    }
    features = tf.train.Features(feature=features)
    return tf.train.Example(features=features).SerializeToString()


def write_examples(path, examples):
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example)
    return str(path)


def write_dataset(folder, feature_names=SLIM, first_label=1, formats=("JPEG", "PNG")):
    """Writes three TFRecord files of 4, 5 and 6 records and returns their paths.

    The labels are from `first_label` to `first_label + 2`.
    """
    paths, image_index = [], 0
    for shard in range(3):
        examples = []
        for _ in range(4 + shard):
            image = make_image(image_index, formats[image_index % len(formats)])
            examples.append(
                make_example(image, first_label + image_index % 3, feature_names)
            )
            image_index += 1
        paths.append(write_examples(folder / f"train-{shard:05d}-of-00003", examples))
    return paths


def read_images(paths, name=SLIM[0]):
    """Returns the encoded images in TFRecord files, read in order by TensorFlow."""
    return [
        tf.train.Example.FromString(r).features.feature[name].bytes_list.value[0]
        for r in tf.data.TFRecordDataset(paths).as_numpy_iterator()
    ]


def build_index(paths, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", os.path.dirname(paths[0]))
        return record_index.index_records(paths, **options)


def flip_bit(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def paths(tmp_path):
    return write_dataset(tmp_path)


@pytest.mark.parametrize(
    ("feature_names", "first_label"),
    [(SLIM, 1), (TFDS, 0), (("image_raw", "label"), 0)],
)
def test_random_access_equals_reading_in_order(tmp_path, feature_names, first_label):
    paths = write_dataset(
        tmp_path, feature_names, first_label, ("JPEG", "PNG", "WEBP", "BMP", "GIF")
    )
    index = build_index(paths)
    assert len(index) == 15
    assert index.shard.tolist() == [0] * 4 + [1] * 5 + [2] * 6
    assert index.number.tolist() == [*range(4), *range(5), *range(6)]
    assert index.labels.tolist() == [0, 1, 2] * 5
    assert (index.image, index.first_label) == (feature_names[0], first_label)
    assert index.name(5) == f"{paths[1]} record 1"
    read = records.make_record_reader(index)
    for i, image in reversed(list(enumerate(read_images(paths, feature_names[0])))):
        assert read(i).numpy() == image
    for shard, offset, length in zip(
        index.shard, index.offset, index.length, strict=True
    ):
        with open(paths[shard], "rb") as file:  # Frames begin with the record's length.
            file.seek(offset)
            assert struct.unpack("<Q", file.read(8)) == (length,)


def test_pipeline_reads_records_in_any_order(paths):
    images, read = read_images(paths), records.make_record_reader(build_index(paths))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(15), 4))
    dataset = tf.data.Dataset.from_tensor_slices(order)
    dataset = dataset.map(read, num_parallel_calls=4, deterministic=True)
    assert list(dataset.as_numpy_iterator()) == [images[i] for i in order]
    batches = tf.data.Dataset.from_tensor_slices(order).batch(8)
    batches = batches.map(
        lambda indices: tf.map_fn(read, indices, fn_output_signature=tf.string),
        num_parallel_calls=4,
    )
    batched_images = np.concatenate(list(batches.as_numpy_iterator()))
    assert batched_images.tolist() == [images[i] for i in order]


def test_data_service_can_run_the_pipeline(paths):
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    worker = service.WorkerServer(service.WorkerConfig(address))
    dataset = tf.data.Dataset.range(15).map(
        records.make_record_reader(build_index(paths))
    )
    dataset = dataset.apply(service.distribute("parallel_epochs", dispatcher.target))
    assert sorted(dataset.as_numpy_iterator()) == sorted(read_images(paths))
    del worker


def test_dataset_written_by_tfds_can_be_indexed(tmp_path):
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
    files = records.find_record_files(f"tfrecord:{builder.data_dir}")
    assert files == {
        split: tuple(map(str, builder.info.splits[split].filepaths))
        for split in ("train", "test")
    }
    assert records.read_class_names(builder.data_dir) == ("x", "y", "z")
    index = build_index(files["train"])
    read = records.make_record_reader(index)
    for i, (_, example) in enumerate(examples):
        assert index.labels[i] == example["label"]
        np.testing.assert_array_equal(tf.io.decode_png(read(i)), example["image"])


@pytest.mark.parametrize(
    ("feature_names", "labels", "first_label", "expected"),
    [
        (SLIM, [1, 2, 3], None, [0, 1, 2]),  # Labels in TensorFlow's ImageNet files.
        (SLIM, [0, 1, 2], None, [0, 1, 2]),  # Labels in TF-slim's flowers dataset.
        (SLIM, [2, 3, 5], None, [2, 3, 5]),
        (SLIM, [2, 3, 5], 1, [1, 2, 4]),  # The test split lacks class 0.
        (SLIM, [1, 2, 3], 0, [1, 2, 3]),
        (TFDS, [1, 2, 3], None, [1, 2, 3]),
        (TFDS, [-1, -1, -1], None, [-1, -1, -1]),  # Test labels of TFDS's ImageNet.
        (TFDS, [0, -1, 2**40], None, [0, -1, 2**31 - 1]),  # 2**40 exceeds int32.
    ],
)
def test_labels_start_from_0(tmp_path, feature_names, labels, first_label, expected):
    path = write_examples(
        tmp_path / "a", [make_example(make_image(0), n, feature_names) for n in labels]
    )
    index = build_index([path], first_label=first_label)
    assert index.labels.tolist() == expected
    assert index.labels.dtype == np.int32


def find_record_offsets(path):
    """Returns the byte offsets of all records, and then the size of the file."""
    lengths = [len(r) for r in tf.data.TFRecordDataset(path).as_numpy_iterator()]
    return np.cumsum([0] + [length + 16 for length in lengths])


@pytest.mark.parametrize(
    ("byte_offset", "message"),
    [
        (20, r"1 of 15 records cannot be used: \S+00001-of-00003 record 2 \(damaged\)"),
        (8, r"1 of 15 records cannot be used: \S+00001-of-00003 record 2 \(damaged\)"),
        (-1, r"1 of 15 records cannot be used: \S+00001-of-00003 record 1 \(damaged\)"),
        (0, r"00001-of-00003 record 2 and all after it"),
        (6, r"00001-of-00003 record 2 and all after it"),
    ],
)
def test_changed_byte_is_reported(paths, byte_offset, message):
    """Changed bytes in a record's image, checksums and length are detected."""
    flip_bit(paths[1], find_record_offsets(paths[1])[2] + byte_offset)
    with pytest.raises(InputError, match=message):
        build_index(paths)


def test_changed_byte_in_the_first_record_is_reported(paths):
    flip_bit(paths[0], 20)
    with pytest.raises(
        InputError, match=r"1 of 15 .* \S+00000-of-00003 record 0 \(dam"
    ):
        build_index(paths)
    with pytest.raises(InputError, match="00000-of-00003 with no readable record"):
        build_index(paths[:1])


@pytest.mark.parametrize("size", [11, 12, -1])
def test_truncated_file_is_refused(paths, size):
    """Only `size` bytes of the last record remain, or all but one byte if `size` is -1.

    TensorFlow ignores up to 11 remaining bytes, but `build_index` must report them.
    """
    offsets = find_record_offsets(paths[2])
    os.truncate(paths[2], offsets[5] + size if size > 0 else offsets[6] + size)
    with pytest.raises(InputError, match=r"\S+00002-of-00003 record 5 and all after"):
        build_index(paths)


def test_file_padded_with_zeros_is_refused(paths):
    os.truncate(paths[0], find_record_offsets(paths[0])[3] + 30)
    os.truncate(paths[0], 2**24)
    with pytest.raises(
        InputError, match=r"\S+00000-of-00003 record 3 and all after it"
    ):
        build_index(paths)


def test_few_damaged_records_are_left_out(tmp_path, capsys):
    encoded_example = make_example(make_image(0), 1)
    path = write_examples(tmp_path / "many", [encoded_example] * 2000)
    record_size = 16 + len(encoded_example)
    flip_bit(path, 7 * record_size + 30)
    flip_bit(path, 1999 * record_size + 30)
    for _ in range(2):  # The second index is loaded from the cache.
        index = build_index([path])
        expected_line = f"2 of 2000 records cannot be used: {path} record 7 (damaged), "
        assert capsys.readouterr().err.startswith(expected_line)
        assert len(index.damaged) == 2
        assert index.number.tolist() == [n for n in range(1999) if n != 7]
        # Record 7 is left out, so record 8 has index 7.
        assert records.make_record_reader(index)(7).numpy() == make_image(0)
    flip_bit(path, 1000 * record_size + 30)
    os.utime(path, (1, 1))
    with pytest.raises(InputError, match=r"^3 of 2000 records cannot be used"):
        build_index([path])


@pytest.mark.parametrize(
    ("third_record", "problem"),
    [
        (b"\xff" * 40, "damaged"),  # Not a tf.train.Example.
        (make_example(b"", 1), "no encoded image"),
        (
            make_example(b"\0" * 3072, 1),
            "no encoded image",
        ),  # Raw pixels, as in the binary files of CIFAR-10.
        (make_example(make_image(0), 1, ("other", SLIM[1])), "no encoded image"),
    ],
    ids=["no Example", "empty", "raw pixels", "another feature"],
)
def test_record_without_an_image_is_reported(tmp_path, third_record, problem):
    valid_records = [make_example(make_image(0), 1)] * 2
    path = write_examples(
        tmp_path / "a", [*valid_records, third_record, *valid_records]
    )
    with pytest.raises(InputError, match=rf"1 of 5 .* record 2 \({problem}\)"):
        build_index([path])


VALID_EXAMPLES = [make_example(make_image(i), 1 + i) for i in range(4)]


def replace_label(**feature_lists):
    """Returns an example whose label feature has another type or length."""
    example = tf.train.Example.FromString(VALID_EXAMPLES[0])
    label_feature = tf.train.Feature(**feature_lists)
    example.features.feature[SLIM[1]].CopyFrom(label_feature)
    return example.SerializeToString()


INVALID_EXAMPLES = [
    replace_label(float_list=tf.train.FloatList(value=[1])),
    replace_label(int64_list=tf.train.Int64List(value=[1, 2])),
    make_example(b"no image", 1),
    b"",
    b"\xff" * 20,
]


@settings(max_examples=30)
@given(
    st.lists(
        st.sampled_from(VALID_EXAMPLES)
        | st.sampled_from(INVALID_EXAMPLES)
        | st.binary(max_size=30),
        min_size=1,
        max_size=6,
    ),
    st.just(None)
    | st.tuples(st.sampled_from(["cut", "flip", "insert"]), st.floats(0, 1)),
)
def test_any_file_is_refused_or_read_exactly(tmp_path_factory, examples, edit):
    path = tmp_path_factory.mktemp("any") / "file"
    write_examples(path, examples)
    content = bytearray(path.read_bytes())
    if edit:
        position = round(edit[1] * (len(content) - 1))
        if edit[0] == "cut":
            del content[position:]
        elif edit[0] == "flip":
            content[position] ^= 1
        else:
            content.insert(position, 0)
        path.write_bytes(content)
    try:
        index = build_index([str(path)])
    except InputError as error:
        assert "\n" not in str(error)
        assert edit or not set(examples) <= set(VALID_EXAMPLES)
        return
    read = records.make_record_reader(index)
    # A file that was cut between two records is a valid file with fewer records.
    assert len(index) == len(examples) or edit[0] == "cut"
    for i in range(len(index)):
        number = VALID_EXAMPLES.index(examples[i])
        assert read(i).numpy() == make_image(number)
        assert index.labels[i] == 1 + number - index.first_label


def test_unsupported_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"Could not read .*nowhere"):
        build_index([str(tmp_path / "nowhere")])
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(tmp_path / "zipped"), options) as writer:
        writer.write(make_example(make_image(0), 1))
    (tmp_path / "text").write_text("This is a text of more than some bytes. " * 9)
    (tmp_path / "empty").write_bytes(b"")
    write_examples(tmp_path / "sound", [make_example(b"1", 1, ("audio", "label"))])
    for name, message in (
        ("zipped", "uncompressed TFRecord.*zipped with no readable"),
        ("text", "uncompressed TFRecord.*text with no readable"),
        ("empty", "uncompressed TFRecord.*empty with no readable"),
        ("sound", "sound with audio, height, label"),
    ):
        with pytest.raises(InputError, match=message):
            build_index([str(tmp_path / name)])


def test_file_that_changes_after_indexing_is_detected(paths):
    images, index = read_images(paths), build_index(paths)
    flip_bit(paths[0], index.offset[2] + 30)
    read = records.make_record_reader(index)
    assert read(1).numpy() == images[1]
    with pytest.raises(tf.errors.DataLossError):
        read(2)


def test_index_is_cached_until_a_file_changes(paths, tmp_path):
    on_file_calls = []
    index = build_index(paths, on_file=lambda: on_file_calls.append(1))
    assert len(on_file_calls) == 3
    loaded_index = build_index(paths, on_file=lambda: on_file_calls.append(1))
    assert len(on_file_calls) == 3
    assert len(os.listdir(tmp_path / "records")) == 1
    for field in ("paths", "image", "first_label", "damaged"):
        assert getattr(loaded_index, field) == getattr(index, field)
    for field in ("shard", "number", "offset", "length", "labels"):
        np.testing.assert_array_equal(
            getattr(loaded_index, field), getattr(index, field)
        )
        assert getattr(loaded_index, field).dtype == getattr(index, field).dtype
    os.utime(paths[0], (1, 1))
    build_index(paths, on_file=lambda: on_file_calls.append(1))
    assert len(on_file_calls) == 6
    build_index(paths[:2], on_file=lambda: on_file_calls.append(1))
    assert len(on_file_calls) == 8
    os.remove(paths[1])
    with pytest.raises(InputError, match="Could not read"):
        build_index(paths)


@pytest.mark.parametrize("damage", ["cut", "flip", "other", "empty"])
def test_damaged_index_is_built_again(paths, tmp_path, damage):
    build_index(paths)
    (index_path,) = (tmp_path / "records").iterdir()
    content = index_path.read_bytes()
    if damage == "cut":
        index_path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        flip_bit(index_path, content.index(b"offset.npy") + 150)
    elif damage == "other":
        np.savez(index_path, shard=np.arange(3))
    else:
        index_path.write_bytes(b"")
    assert build_index(paths).labels.tolist() == [0, 1, 2] * 5
    assert len(index_path.read_bytes()) == len(content)


def test_changed_byte_of_an_index_is_detected_or_harmless(paths, tmp_path):
    build_index(paths)
    (index_path,) = (tmp_path / "records").iterdir()
    sizes = list(map(os.path.getsize, paths))
    table = record_index._load_table(index_path, sizes)
    for offset in range(0, index_path.stat().st_size, 3):
        flip_bit(index_path, offset)
        loaded_table = record_index._load_table(index_path, sizes)
        flip_bit(index_path, offset)
        if loaded_table is not None:
            for name, column in table.items():
                np.testing.assert_array_equal(loaded_table[name], column)


CRAFTED_COLUMNS = [
    {"shard": np.full(15, 3, np.int32)},
    {"shard": np.full(15, -1, np.int32)},
    {"offset": np.full(15, 10**6)},
    {"offset": np.full(15, 2**63 - 1)},
    {"offset": np.full(15, -1)},
    {"length": np.full(15, 10**9)},
    {"length": np.full(15, 2**63 - 1)},
    {"labels": np.full(15, -2, np.int32)},
    {"labels": np.zeros(16, np.int32)},
    {"labels": np.zeros((15, 1), np.int32)},
    {"offset": np.zeros(15)},
    {"shard": np.full(15, "a")},
    dict.fromkeys(("labels", "number", "shard"), np.zeros(0, np.int32))
    | dict.fromkeys(("offset", "length"), np.zeros(0, np.int64)),
    {"image": np.array("secret")},
]


def test_crafted_indices_are_ignored(paths, tmp_path):
    build_index(paths)
    (index_path,) = (tmp_path / "records").iterdir()
    sizes = list(map(os.path.getsize, paths))
    with np.load(index_path) as arrays:
        table = dict(arrays)
    for columns in ({}, *CRAFTED_COLUMNS):
        np.savez(tmp_path / "crafted.npz", **table | columns)
        loaded_table = record_index._load_table(tmp_path / "crafted.npz", sizes)
        assert (loaded_table is None) == bool(columns), columns


def test_index_that_declares_a_large_array_takes_no_memory(paths, tmp_path):
    """Uncompressed, the first file would take 4 GB. The second file only claims to."""
    build_index(paths)
    (index_path,) = (tmp_path / "records").iterdir()
    header = str({"descr": "<i4", "fortran_order": False, "shape": (10**9,)}).encode()
    header = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header) + 1) + header + b"\n"
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with zipfile.ZipFile(index_path, "w", compression) as archive:
            archive.writestr("shard.npy", header + bytes(10**6))
        assert record_index._load_table(index_path, [1, 1, 1]) is None
        assert measure_peak(lambda: build_index(paths)) < 50
        index_path.unlink()
    os.mkfifo(index_path)  # Opening it would wait forever.
    assert record_index._load_table(index_path, [1, 1, 1]) is None


@pytest.mark.parametrize("length", [2**30, 2**40, 2**63 - 1, 2**64 - 1])
def test_record_with_a_large_length_takes_no_memory(paths, length):
    """TensorFlow would allocate the length, and crash if that is impossible."""
    frame = struct.pack("<Q", length)
    frame += struct.pack("<I", mask_checksum(frame)) + bytes(40)
    with open(paths[1], "ab") as file:
        file.write(frame)
    with pytest.raises(InputError, match=r"1 of 16 records .* record 5 and all after"):
        build_index(paths)


def mask_checksum(content):
    """Returns the checksum of TFRecord files: CRC-32C, rotated and shifted."""
    crc = 2**32 - 1
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 2**32 - 1
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def test_empty_records_are_unusable_but_no_damage_to_others(paths):
    """A record of 0 bytes is valid, unlike zeros that fill an incomplete download."""
    empty = struct.pack("<QI", 0, mask_checksum(bytes(8)))
    empty += struct.pack("<I", mask_checksum(b""))
    with open(paths[1], "ab") as file:
        file.write(empty)
    with pytest.raises(InputError, match=r"1 of 16 records .* record 5 \(no encoded"):
        build_index(paths)


def test_special_files_are_not_opened(paths, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=f"regular file. Received: {tmp_path}/pipe"):
        build_index([paths[0], str(tmp_path / "pipe")])
    os.mkfifo(tmp_path / "labels.txt")
    with pytest.raises(InputError, match=f"regular file .*{tmp_path}/labels.txt"):
        records.read_class_names(str(tmp_path))
    os.symlink("nowhere", tmp_path / "link")
    with pytest.raises(InputError, match=r"Could not read .*link"):
        build_index([str(tmp_path / "link")])
    os.symlink(paths[0], tmp_path / "intact_link")
    assert len(build_index([str(tmp_path / "intact_link")])) == 4


def test_index_is_used_if_it_cannot_be_cached(paths, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    index = record_index.index_records(paths)
    assert len(index) == 15
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("The index of the records is not cached: ")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    record_index.index_records(paths)
    assert len(os.listdir(tmp_path / "records")) == 1


def create_files(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("names", "num_train", "test_file"),
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
def test_files_of_both_splits_are_found(tmp_path, names, num_train, test_file):
    create_files(tmp_path, *names)
    files = records.find_record_files(f"tfrecord:{tmp_path}")
    assert len(files["train"]) == num_train
    assert all("train" in os.path.relpath(p, tmp_path) for p in files["train"])
    assert list(files["train"]) == sorted(files["train"])
    assert files["test"] == (str(tmp_path / test_file),)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "with 0 training files and 0 validation"),
        (["train-0-of-1"], "with 1 training files and 0 validation"),
        (["val-0-of-1"], "with 0 training files and 1 validation"),
        (["train.txt", "a.jpg"], "with 0 training files and 0 validation"),
        (["train-00000-of-00004", "train-00003-of-00004", "val-0-of-1"],
         "2 of 4 files are missing, starting with number 1. .*train-00000-of-00004$"),
        (["train-00000-of-999999999999", "val-0-of-1"],
         "999999999998 of 999999999999 files are missing, starting with number 1. "),
        ([f"train-0-of-{'9' * 200}", "val-0-of-1"], "starting with number 1. "),
        (["train-0-of-2", "train-7-of-2", "val-0-of-1"], "1 of 2 .* with number 1. "),
        (["train-0-of-1", "train-0-of-2", "train-1-of-2", "val-0-of-1"], "several datasets"),
    ],
)  # fmt: skip
def test_missing_files_are_reported(tmp_path, names, message):
    create_files(tmp_path, *names)
    with pytest.raises(InputError, match=message):
        records.find_record_files(str(tmp_path))


def test_training_files_may_be_missing(tmp_path):
    create_files(tmp_path, "val-0-of-1")
    files = records.find_record_files(f"tfrecord:{tmp_path}", only_test=True)
    assert (len(files["train"]), len(files["test"])) == (0, 1)
    with pytest.raises(InputError, match="folder does not exist"):
        records.find_record_files("tfrecord:nowhere")


CLASS_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name == name.strip() and name.splitlines() == [name]
)


@given(st.lists(CLASS_NAMES, min_size=1), st.sampled_from(["\n", "\r\n"]))
def test_class_names_may_contain_any_characters(tmp_path_factory, names, line_end):
    folder = tmp_path_factory.mktemp("names")
    for lines in names, [f"{i}:{name}" for i, name in enumerate(names)]:
        text = line_end.join(lines) + line_end
        (folder / "labels.txt").write_bytes(text.encode())
        assert records.read_class_names(str(folder)) == tuple(names)


def test_class_names_are_read_from_labels_files(tmp_path):
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
    with pytest.raises(InputError, match="must be UTF-8 text"):
        records.read_class_names(str(tmp_path))
