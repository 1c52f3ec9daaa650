"""Metadata and labels of `.tflite` files, read by MediaPipe, which needs them."""

import dataclasses
import io
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from conftest import SHARED, run_python

from export.device import clients
from export.device.labels import label_lines
from export.formats import metadata, saved_model, tflite
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import load_classifier
from keras_resnet.spec import Provenance
from keras_resnet.weights import registry

# Commas, line breaks of several kinds, a backslash, other scripts, a NUL, a byte of a
# file name that is no UTF-8, names that occur twice.
CLASSES = (
    "zero, nought", "a\nb", "a\\nb", "zwei\u2028drei", "crane", "crane", "crane (2)",
    "鶴\0", "\udcff", " ß ",
)  # fmt: skip
LABELS = (
    "zero, nought", "a\\nb", "a\\nb (2)", "zwei\\u2028drei", "crane", "crane (3)",
    "crane (2)", "鶴\\x00", "\\udcff", " ß ",
)  # fmt: skip
FORMATS = ("float32", "int8")


def convert(classifier, folder, calibration):
    """Writes a classifier's files, and gives the bytes that the converter gave."""
    found = {}
    for format in FORMATS:
        row = tflite.TFLITE_FORMATS[format]
        static = str(folder / row.pixels)
        saved_model.write_static(classifier, static, row.pixels)
        found[format] = tflite.convert_to_tflite(static, row, calibration)
        content = metadata.add_metadata(found[format], classifier)
        (folder / f"{format}.tflite").write_bytes(content)
    return found


@pytest.fixture(scope="module")
def in_colour(trained, digits, tmp_path_factory):
    """A net for RGB images of which it reads the red channel, its files, the folder."""
    run = load_classifier(str(trained))
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    classifier = dataclasses.replace(
        run,
        model=keras.Model(image, run.model(image[..., :1])),
        classes=CLASSES,
        preprocessing=Preprocessing(8, 8, 3),
        provenance=Provenance("net", publisher="Kranich & Söhne", licence="Apache-2.0"),
    )
    folder = tmp_path_factory.mktemp("in_colour")
    calibration = colour(digits.train.images[:100])
    return classifier, convert(classifier, folder, calibration), folder


def colour(images):
    """A digit in red, and others in green and blue."""
    channels = (images, np.roll(images, 1, axis=0), np.roll(images, 2, axis=0))
    return np.concatenate(channels, axis=-1)


@pytest.fixture(scope="module")
def mp():
    """MediaPipe, which loads its shared libraries with the first image."""
    mediapipe = pytest.importorskip("mediapipe", reason="needs the extra mediapipe")
    try:
        mediapipe.Image(mediapipe.ImageFormat.SRGB, np.zeros((1, 1, 3), np.uint8))
    except OSError as error:
        pytest.skip(f"MediaPipe's shared libraries cannot be loaded: {error}")
    return mediapipe


def test_labels():
    assert label_lines(CLASSES) == LABELS
    assert label_lines(["crane"] * 3) == ("crane", "crane (2)", "crane (3)")
    names = registry.class_names("imagenet")
    assert label_lines(names) == names


def test_labels_are_a_line_each_in_every_client():
    # All at which anything breaks lines, and all that UTF-8 cannot hold.
    lines = label_lines(map(chr, [*range(0x3000), *range(0xD800, 0xE000)]))
    assert len(set(lines)) == len(lines) == 0x3800
    text = "".join(f"{line}\n" for line in lines).encode()
    assert len(text.decode().splitlines()) == len(text.split(b"\n")) - 1 == len(lines)


def test_the_labels_file_lies_behind_the_model(in_colour):
    classifier, plain, folder = in_colour
    for format in FORMATS:
        content = (folder / f"{format}.tflite").read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (entry,) = archive.infolist()
            assert entry.filename == "labels.txt"
            assert entry.compress_type == zipfile.ZIP_STORED
            assert archive.read(entry).decode().splitlines() == list(LABELS)
        # The same model gives the same file.
        assert metadata.add_metadata(plain[format], classifier) == content


def test_the_model_is_the_same(in_colour):
    """All that LiteRT's schema tells, and every answer; weights aligned to 16 bytes."""
    _, plain, folder = in_colour
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8, 3), np.uint8)
    for format in FORMATS:
        content = (folder / f"{format}.tflite").read_bytes()
        before = schema.Model.GetRootAs(plain[format])
        after = schema.Model.GetRootAs(content)
        assert content[4:8] == b"TFL3"
        assert buffers(after)[:-1] == buffers(before)
        assert {place % 16 for place in places(after)} == {0}
        models = [schema.ModelT.InitFromObj(each) for each in (before, after)]
        assert models[1].metadata.pop().name == b"TFLITE_METADATA"
        models[0].buffers, models[1].buffers = [], []
        for old, new in zip(
            models[0].subgraphs[0].tensors, models[1].subgraphs[0].tensors, strict=True
        ):
            # LiteRT.js refuses an open batch.
            assert new.shapeSignature is None
            old.shapeSignature = None
        expected, found = (packed(model) for model in models)
        assert found == expected
        assert b"min_runtime_version" in found
        runners = [
            Interpreter(model_content=each).get_signature_runner("serving_default")
            for each in (plain[format], content)
        ]
        for image in images:
            expected, found = (run(image=image)["probabilities"] for run in runners)
            np.testing.assert_array_equal(found, expected)


def buffers(model):
    found = [model.Buffers(i).DataAsNumpy() for i in range(model.BuffersLength())]
    return [data.tobytes() if isinstance(data, np.ndarray) else b"" for data in found]


def places(model):
    """Where each buffer's data begin in the file."""
    tables = [model.Buffers(i)._tab for i in range(model.BuffersLength())]
    return [table.Vector(table.Offset(4)) for table in tables if table.Offset(4)]


def packed(model):
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder))
    return bytes(builder.Output())


@pytest.mark.clients
def test_what_the_metadata_say(in_colour, trained, mp):
    """Read by the code that MediaPipe generates from the schema."""
    from mediapipe.tasks.metadata import metadata_schema_py_generated as fields

    def read(content):
        assert fields.ModelMetadata.ModelMetadataBufferHasIdentifier(content, 0)
        return fields.ModelMetadataT.InitFromPackedBuf(content)

    classifier, _, folder = in_colour
    for format in FORMATS:
        content = (folder / f"{format}.tflite").read_bytes()
        found = read(buffers(schema.Model.GetRootAs(content))[-1])
        assert found.name == classifier.name.encode()
        assert found.author.decode() == "Kranich & Söhne"
        assert found.license == b"Apache-2.0"
        assert found.minParserVersion == b"1.0.0"
        (graph,) = found.subgraphMetadata
        (image,), (answer,) = graph.inputTensorMetadata, graph.outputTensorMetadata
        assert (image.name, answer.name) == (b"image", b"probabilities")
        picture = image.content.contentProperties
        assert isinstance(picture, fields.ImagePropertiesT)
        assert picture.colorSpace == fields.ColorSpaceType.RGB
        assert (picture.defaultSize.height, picture.defaultSize.width) == (8, 8)
        (unit,) = image.processUnits
        assert isinstance(unit.options, fields.NormalizationOptionsT)
        assert (unit.options.mean, unit.options.std) == ([0], [1])
        assert (image.stats.min, image.stats.max) == ([0], [255])
        assert isinstance(answer.content.contentProperties, fields.FeaturePropertiesT)
        (file,) = answer.associatedFiles
        assert file.name == b"labels.txt"
        assert file.type == fields.AssociatedFileType.TENSOR_AXIS_LABELS
    grey = read(metadata._describe(load_classifier(str(trained)))).subgraphMetadata[0]
    picture = grey.inputTensorMetadata[0].content.contentProperties
    assert picture.colorSpace == fields.ColorSpaceType.GRAYSCALE


@pytest.mark.clients
@pytest.mark.parametrize(("format", "limit"), [("float32", 1e-5), ("int8", 0.1)])
def test_mediapipe_classifies_jpegs(in_colour, digits, mp, tmp_path, format, limit):
    """Every name and score, on the pixels that MediaPipe itself has decoded."""
    image_module = pytest.importorskip("PIL.Image")
    classifier, _, folder = in_colour
    images, labels = colour(digits.test.images[:40]), digits.test.labels[:40]
    best = []
    vision = mp.tasks.vision
    path = str(folder / f"{format}.tflite")
    with vision.ImageClassifier.create_from_model_path(path) as client:
        for i, pixels in enumerate(images):
            file = tmp_path / f"{i}.jpg"
            image_module.fromarray(pixels).save(file, quality=95, subsampling=0)
            picture = mp.Image.create_from_file(str(file))
            (head,) = client.classify(picture).classifications
            assert head.head_name == "probabilities"
            found = head.categories
            assert [c.category_name for c in found] == [LABELS[c.index] for c in found]
            assert sorted(c.index for c in found) == list(range(10))
            scores = np.zeros(10)
            scores[[c.index for c in found]] = [c.score for c in found]
            expected = np.asarray(classifier.model(picture.numpy_view()[None]))[0]
            np.testing.assert_allclose(scores, expected, atol=limit)
            best.append(found[0].index)
    assert (np.array(best) == labels).mean() >= 0.9


@pytest.mark.clients
def test_the_card_s_lines_for_mediapipe(in_colour, digits, mp, tmp_path):
    """Grey JPEGs, which MediaPipe refuses unless they are made RGB."""
    image_module = pytest.importorskip("PIL.Image")
    classifier, _, folder = in_colour
    file = tmp_path / "image.jpg"
    image_module.fromarray(digits.test.images[0][..., 0]).save(file, quality=95)
    (tmp_path / "int8.tflite").write_bytes((folder / "int8.tflite").read_bytes())
    # In a process of its own that ends at once: where a client has failed, MediaPipe
    # may wait for ever when it is collected.
    refused = """
import os, mediapipe as mp
client = mp.tasks.vision.ImageClassifier.create_from_model_path("int8.tflite")
try:
    client.classify(mp.Image.create_from_file("image.jpg"))
except ValueError as error:
    print(error, flush=True)
os._exit(0)
"""
    result = run_python("-c", refused, cwd=tmp_path, timeout=60)
    assert "sizes do not match" in result.stdout, result.stderr
    lines = clients.CLIENTS["mediapipe"].lines("int8.tflite", 10)
    result = run_python("-c", lines, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = eval(result.stdout)
    pixels = np.array(image_module.open(file).convert("RGB"))
    expected = np.asarray(classifier.model(pixels[None]))[0]
    assert len(found) == 5
    assert found[0][0] == LABELS[expected.argmax()] == LABELS[digits.test.labels[0]]
    assert found[0][1] == pytest.approx(expected.max(), abs=0.1)


@pytest.mark.clients
def test_mediapipe_refuses_nets_for_grey_images(trained, digits, mp, tmp_path):
    """As the card says of them."""
    convert(load_classifier(str(trained)), tmp_path, digits.train.images[:10])
    with pytest.raises(ValueError, match="Only RGB"):
        mp.tasks.vision.ImageClassifier.create_from_model_path(
            str(tmp_path / "float32.tflite")
        )


@pytest.mark.clients
@pytest.mark.full
@pytest.mark.shared_data
def test_mediapipe_on_photographs(mp, tmp_path):
    """A real ResNet-18; JPEGs cropped as the net sees them, so that none is squashed."""
    result = run_python(SHARED.parent / "tools/expand_weights.py", tmp_path)
    assert result.returncode == 0, result.stderr
    classifier = load_classifier(str(tmp_path / "resnet18.safetensors"))
    files = sorted((SHARED / "imagenet/jpeg100").glob("*.JPEG"))
    crops = [classifier.preprocessing.load(file) for file in files]
    convert(classifier, tmp_path, np.stack(crops))
    for i, pixels in enumerate(crops):
        keras.utils.save_img(tmp_path / f"{i}.jpg", pixels, scale=False, quality=95)
    pictures = [mp.Image.create_from_file(f"{tmp_path}/{i}.jpg") for i in range(100)]
    pixels = np.stack([picture.numpy_view() for picture in pictures])
    # What int8 loses is judged elsewhere: here LiteRT tells what it should give.
    runner = Interpreter(str(tmp_path / "int8.tflite")).get_signature_runner()
    expected = {
        "float32": classifier.model.predict(pixels, verbose=0),
        "int8": runner(image=pixels)["probabilities"],
    }
    for format, scores in expected.items():
        path = str(tmp_path / f"{format}.tflite")
        with mp.tasks.vision.ImageClassifier.create_from_model_path(path) as client:
            for i, picture in enumerate(pictures):
                (head,) = client.classify(picture).classifications
                places = [category.index for category in head.categories]
                assert [c.category_name for c in head.categories] == [
                    classifier.classes[place] for place in places
                ]
                found = [category.score for category in head.categories]
                np.testing.assert_allclose(found, scores[i, places], atol=1e-4)
                assert found[0] == max(found) >= scores[i].max() - 1e-4
        # Every tenth class, from the fourth on.
        assert (scores.argmax(axis=1) == 10 * np.arange(100) + 3).sum() >= 65
