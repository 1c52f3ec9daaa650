"""Metadata and labels of `.tflite` files, which MediaPipe needs."""

import ast
import dataclasses
import io
import re
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from conftest import SHARED, run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from export.device import clients
from export.device.card import make_label_lines
from export.formats import metadata, saved_model, tflite
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import load_classifier
from keras_resnet.spec import Provenance
from keras_resnet.weights import registry

# Class names that contain commas, several kinds of line break, a backslash, other
# scripts, NUL, and a byte that is not valid UTF-8. Two names are equal.
CLASSES = (
    "zero, nought", "a\nb", "a\\nb", "zwei\u2028drei", "crane", "crane", "crane (2)",
    "鶴\0", "\udcff", " ß ",
)  # fmt: skip
# Lines of the label file for the class names in CLASSES.
LABELS = (
    "zero, nought", "a\\nb", "a\\nb (2)", "zwei\\u2028drei", "crane", "crane (3)",
    "crane (2)", "鶴\\x00", "\\udcff", " ß ",
)  # fmt: skip
# Strategy for class names, with frequent characters that file formats must escape.
CHARACTERS = st.sampled_from("\n\r\u2028\0\udcff,\"'|\\`*_<[&~ ") | st.characters()
NAMES = st.lists(CHARACTERS, max_size=6).map("".join)
FORMATS = ("float32", "int8")


def write_files(classifier, folder, calibration):
    """Writes `.tflite` files with metadata to a folder.

    Returns a dict from formats to the bytes of the files before metadata were added.
    """
    contents = {}
    for format in FORMATS:
        row = tflite.TFLITE_FORMATS[format]
        static_dir = str(folder / row.pixel_dtype)
        saved_model.write_static_model(classifier, static_dir, row.pixel_dtype)
        contents[format] = tflite.convert_to_tflite(static_dir, row, calibration)
        content = metadata.add_metadata(contents[format], classifier)
        (folder / f"{format}.tflite").write_bytes(content)
    return contents


@pytest.fixture(scope="module")
def colour_files(trained_run, digits, tmp_path_factory):
    """Classifier of RGB images, the dict from `write_files`, and the files' folder.

    The network reads only the red channel.
    """
    grey_classifier = load_classifier(str(trained_run))
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    classifier = dataclasses.replace(
        grey_classifier,
        model=keras.Model(image, grey_classifier.model(image[..., :1])),
        classes=CLASSES,
        preprocessing=Preprocessing(8, 8, 3),
        provenance=Provenance("net", publisher="Kranich & Söhne", licence="Apache-2.0"),
    )
    folder = tmp_path_factory.mktemp("in_colour")
    calibration = make_rgb_images(digits.train.images[:50])
    return classifier, write_files(classifier, folder, calibration), folder


def make_rgb_images(images):
    """Returns RGB images with the digit in red, and other digits in green and blue."""
    channels = (images, np.roll(images, 1, axis=0), np.roll(images, 2, axis=0))
    return np.concatenate(channels, axis=-1)


@pytest.fixture(scope="module")
def mp():
    """The package `mediapipe`. Skips the tests if its shared libraries are missing."""
    mediapipe = pytest.importorskip("mediapipe", reason="needs the extra mediapipe")
    try:
        mediapipe.Image(mediapipe.ImageFormat.SRGB, np.zeros((1, 1, 3), np.uint8))
    except OSError as error:
        pytest.skip(f"MediaPipe's shared libraries cannot be loaded: {error}")
    return mediapipe


def test_labels_are_unique_and_escaped():
    assert make_label_lines(CLASSES) == LABELS
    assert make_label_lines(["crane"] * 3) == ("crane", "crane (2)", "crane (3)")
    names = registry.class_names("imagenet")
    assert make_label_lines(names) == names


def test_every_label_is_one_line_for_every_client():
    # The ranges include every line break and every character that UTF-8 cannot encode.
    lines = make_label_lines(map(chr, [*range(0x3000), *range(0xD800, 0xE000)]))
    assert len(set(lines)) == len(lines) == 0x3800
    text = "".join(f"{line}\n" for line in lines).encode()
    assert len(text.decode().splitlines()) == len(text.split(b"\n")) - 1 == len(lines)


def unescape(line):
    """Replaces Python's escapes of single characters, such as `\\n`."""
    pattern = r"\\([nrt]|x..|u.{4}|U.{8})"
    return re.sub(pattern, lambda match: ast.literal_eval(f"'{match[0]}'"), line)


@given(st.lists(NAMES, max_size=8))
def test_any_names_become_unique_lines_that_contain_the_names(names):
    lines = make_label_lines(names)
    assert len(set(lines)) == len(lines) == len(names)
    text = "".join(f"{line}\n" for line in lines).encode().decode()
    assert text.splitlines() == list(lines)
    for name, line in zip(names, lines, strict=True):
        if "\\" not in name:
            number = re.escape(unescape(line).removeprefix(name))
            assert re.fullmatch(r"(\\ \\\(\d+\\\))?", number), (name, line)
    printable_names = [*dict.fromkeys(n for n in names if n.isprintable())]
    assert make_label_lines(printable_names) == tuple(printable_names)


def test_the_label_file_is_appended_to_the_model(colour_files):
    classifier, original_contents, folder = colour_files
    for format in FORMATS:
        content = (folder / f"{format}.tflite").read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (entry,) = archive.infolist()
            assert entry.filename == "labels.txt"
            assert entry.compress_type == zipfile.ZIP_STORED
            assert archive.read(entry).decode().splitlines() == list(LABELS)
        # Adding metadata again gives the same bytes.
        assert metadata.add_metadata(original_contents[format], classifier) == content


@settings(max_examples=25)
@given(st.lists(NAMES, min_size=10, max_size=10))
def test_any_class_names_survive_in_the_file(colour_files, names):
    classifier, original_contents, _ = colour_files
    renamed_classifier = dataclasses.replace(classifier, classes=tuple(names))
    content = metadata.add_metadata(original_contents["int8"], renamed_classifier)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        lines = archive.read("labels.txt").decode().splitlines()
    assert lines == list(make_label_lines(names))
    assert list(Interpreter(model_content=content).get_signature_list())


def test_metadata_do_not_change_the_model(colour_files):
    """Weights and outputs are unchanged, and buffers are aligned to 16 bytes.

    Apart from the metadata, only the shape signatures of the tensors differ.
    """
    _, original_contents, folder = colour_files
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8, 3), np.uint8)
    for format in FORMATS:
        content = (folder / f"{format}.tflite").read_bytes()
        original_model = schema.Model.GetRootAs(original_contents[format])
        written_model = schema.Model.GetRootAs(content)
        assert content[4:8] == b"TFL3"
        assert read_buffers(written_model)[:-1] == read_buffers(original_model)
        assert {offset % 16 for offset in find_buffer_offsets(written_model)} == {0}
        models = [
            schema.ModelT.InitFromObj(model)
            for model in (original_model, written_model)
        ]
        assert models[1].metadata.pop().name == b"TFLITE_METADATA"
        models[0].buffers, models[1].buffers = [], []
        for original_tensor, written_tensor in zip(
            models[0].subgraphs[0].tensors, models[1].subgraphs[0].tensors, strict=True
        ):
            # `add_metadata` removes the signature, because LiteRT.js rejects it.
            assert written_tensor.shapeSignature is None
            original_tensor.shapeSignature = None
        expected, actual = (pack(model) for model in models)
        assert actual == expected
        assert b"min_runtime_version" in actual
        runners = [
            Interpreter(model_content=file).get_signature_runner("serving_default")
            for file in (original_contents[format], content)
        ]
        for image in images:
            expected, actual = (run(image=image)["probabilities"] for run in runners)
            np.testing.assert_array_equal(actual, expected)


def read_buffers(model):
    arrays = [model.Buffers(i).DataAsNumpy() for i in range(model.BuffersLength())]
    return [a.tobytes() if isinstance(a, np.ndarray) else b"" for a in arrays]


def find_buffer_offsets(model):
    """Returns the offsets of non-empty buffers, in bytes from the start of the file."""
    tables = [model.Buffers(i)._tab for i in range(model.BuffersLength())]
    return [table.Vector(table.Offset(4)) for table in tables if table.Offset(4)]


def pack(model):
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder))
    return bytes(builder.Output())


@pytest.mark.clients
def test_mediapipe_reads_all_metadata_fields(colour_files, trained_run, mp):
    """All fields have the expected values in MediaPipe's reader of the metadata."""
    from mediapipe.tasks.metadata import metadata_schema_py_generated as schema_classes

    def read(content):
        assert schema_classes.ModelMetadata.ModelMetadataBufferHasIdentifier(content, 0)
        return schema_classes.ModelMetadataT.InitFromPackedBuf(content)

    classifier, _, folder = colour_files
    for format in FORMATS:
        content = (folder / f"{format}.tflite").read_bytes()
        model_metadata = read(read_buffers(schema.Model.GetRootAs(content))[-1])
        assert model_metadata.name == classifier.name.encode()
        assert model_metadata.author.decode() == "Kranich & Söhne"
        assert model_metadata.license == b"Apache-2.0"
        assert model_metadata.minParserVersion == b"1.0.0"
        (subgraph,) = model_metadata.subgraphMetadata
        (image,), (output,) = (
            subgraph.inputTensorMetadata,
            subgraph.outputTensorMetadata,
        )
        assert (image.name, output.name) == (b"image", b"probabilities")
        properties = image.content.contentProperties
        assert isinstance(properties, schema_classes.ImagePropertiesT)
        assert properties.colorSpace == schema_classes.ColorSpaceType.RGB
        assert (properties.defaultSize.height, properties.defaultSize.width) == (8, 8)
        (process_unit,) = image.processUnits
        assert isinstance(process_unit.options, schema_classes.NormalizationOptionsT)
        assert (process_unit.options.mean, process_unit.options.std) == ([0], [1])
        assert (image.stats.min, image.stats.max) == ([0], [255])
        assert isinstance(
            output.content.contentProperties, schema_classes.FeaturePropertiesT
        )
        (file,) = output.associatedFiles
        assert file.name == b"labels.txt"
        assert file.type == schema_classes.AssociatedFileType.TENSOR_AXIS_LABELS
    grey_metadata = read(metadata._pack_metadata(load_classifier(str(trained_run))))
    image = grey_metadata.subgraphMetadata[0].inputTensorMetadata[0]
    properties = image.content.contentProperties
    assert properties.colorSpace == schema_classes.ColorSpaceType.GRAYSCALE


@pytest.mark.clients
@pytest.mark.parametrize(("format", "limit"), [("float32", 1e-5), ("int8", 0.1)])
def test_mediapipe_classifies_jpegs(colour_files, digits, mp, tmp_path, format, limit):
    """MediaPipe and Keras compute equal scores from pixels that MediaPipe decodes."""
    image_module = pytest.importorskip("PIL.Image")
    classifier, _, folder = colour_files
    images, labels = make_rgb_images(digits.test.images[:40]), digits.test.labels[:40]
    predicted_indices = []
    vision = mp.tasks.vision
    path = str(folder / f"{format}.tflite")
    with vision.ImageClassifier.create_from_model_path(path) as client:
        for i, pixels in enumerate(images):
            file = tmp_path / f"{i}.jpg"
            image_module.fromarray(pixels).save(file, quality=95, subsampling=0)
            image = mp.Image.create_from_file(str(file))
            (head,) = client.classify(image).classifications
            assert head.head_name == "probabilities"
            categories = head.categories
            names = [c.category_name for c in categories]
            assert names == [LABELS[c.index] for c in categories]
            assert sorted(c.index for c in categories) == list(range(10))
            scores = np.zeros(10)
            scores[[c.index for c in categories]] = [c.score for c in categories]
            expected = np.asarray(classifier.model(image.numpy_view()[None]))[0]
            np.testing.assert_allclose(scores, expected, atol=limit)
            predicted_indices.append(categories[0].index)
    assert (np.array(predicted_indices) == labels).mean() >= 0.9


@pytest.mark.clients
def test_code_of_the_model_card_runs_with_mediapipe(colour_files, digits, mp, tmp_path):
    """The code in the model card converts grey JPEG files to RGB for MediaPipe."""
    image_module = pytest.importorskip("PIL.Image")
    classifier, _, folder = colour_files
    file = tmp_path / "image.jpg"
    image_module.fromarray(digits.test.images[0][..., 0]).save(file, quality=95)
    (tmp_path / "int8.tflite").write_bytes((folder / "int8.tflite").read_bytes())
    # This code runs in another process and ends with `os._exit`, because MediaPipe may
    # wait forever when a client that raised an error is garbage-collected.
    code = """
import os, mediapipe as mp
client = mp.tasks.vision.ImageClassifier.create_from_model_path("int8.tflite")
try:
    client.classify(mp.Image.create_from_file("image.jpg"))
except ValueError as error:
    print(error, flush=True)
os._exit(0)
"""
    result = run_python("-c", code, cwd=tmp_path, timeout=60)
    assert "sizes do not match" in result.stdout, result.stderr
    card_code = clients.CLIENTS["mediapipe"].format_code("int8.tflite", 10)
    result = run_python("-c", card_code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    predictions = eval(result.stdout)
    pixels = np.array(image_module.open(file).convert("RGB"))
    expected = np.asarray(classifier.model(pixels[None]))[0]
    assert len(predictions) == 5
    assert (
        predictions[0][0] == LABELS[expected.argmax()] == LABELS[digits.test.labels[0]]
    )
    assert predictions[0][1] == pytest.approx(expected.max(), abs=0.1)


@pytest.mark.clients
def test_mediapipe_rejects_networks_for_grey_images(trained_run, digits, mp, tmp_path):
    """MediaPipe only supports networks for RGB images, as the model card says."""
    write_files(load_classifier(str(trained_run)), tmp_path, digits.train.images[:10])
    with pytest.raises(ValueError, match="Only RGB"):
        mp.tasks.vision.ImageClassifier.create_from_model_path(
            str(tmp_path / "float32.tflite")
        )


@pytest.mark.clients
@pytest.mark.full
@pytest.mark.shared_data
def test_mediapipe_agrees_with_keras_on_photographs(mp, tmp_path):
    """With a published ResNet-18, MediaPipe and Keras compute equal scores.

    The images are cropped to the network's input size first, because MediaPipe would
    change the aspect ratio of the original files.
    """
    result = run_python(SHARED.parent / "tools/expand_weights.py", tmp_path)
    assert result.returncode == 0, result.stderr
    classifier = load_classifier(str(tmp_path / "resnet18.safetensors"))
    files = sorted((SHARED / "imagenet/jpeg100").glob("*.JPEG"))
    cropped_images = [classifier.preprocessing.load(file) for file in files]
    write_files(classifier, tmp_path, np.stack(cropped_images))
    for i, pixels in enumerate(cropped_images):
        keras.utils.save_img(tmp_path / f"{i}.jpg", pixels, scale=False, quality=95)
    images = [mp.Image.create_from_file(f"{tmp_path}/{i}.jpg") for i in range(100)]
    pixels = np.stack([image.numpy_view() for image in images])
    # MediaPipe is compared with LiteRT in int8, and with Keras in float32.
    runner = Interpreter(str(tmp_path / "int8.tflite")).get_signature_runner()
    expected_scores = {
        "float32": classifier.model.predict(pixels, verbose=0),
        "int8": runner(image=pixels)["probabilities"],
    }
    for format, scores in expected_scores.items():
        path = str(tmp_path / f"{format}.tflite")
        with mp.tasks.vision.ImageClassifier.create_from_model_path(path) as client:
            for i, image in enumerate(images):
                (head,) = client.classify(image).classifications
                indices = [category.index for category in head.categories]
                assert [c.category_name for c in head.categories] == [
                    classifier.classes[index] for index in indices
                ]
                best_scores = [category.score for category in head.categories]
                np.testing.assert_allclose(best_scores, scores[i, indices], atol=1e-4)
                assert best_scores[0] == max(best_scores) >= scores[i].max() - 1e-4
        # The images show every tenth class, beginning with class 3.
        assert (scores.argmax(axis=1) == 10 * np.arange(100) + 3).sum() >= 65
