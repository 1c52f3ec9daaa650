"""Files of exported bundles, and artifacts in the libraries that users run."""

import dataclasses
import hashlib
import inspect
import json
import os
import re
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from conftest import (
    ROOT,
    SHARED,
    assert_one_line,
    run_program,
    run_python,
    write_artifacts,
)
from matplotlib.image import imread

from export import artifacts, bundle, verify
from export.device import comparison
from export.device.runtimes import RUNTIMES
from export.formats import saved_model
from keras_resnet.data import sources, splits
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import Classifier, load_classifier
from keras_resnet.nets.graph import list_layers
from keras_resnet.spec import VARIANTS, Provenance
from keras_resnet.support.errors import InputError
from keras_resnet.weights import registry
from keras_resnet.zoo import ResNet

BUNDLE_FILES = {
    "saved_model",
    "float32.tflite",
    "float16.tflite",
    "dynamic.tflite",
    "int8.tflite",
    "labels.txt",
    "check.npz",
    "MODEL_CARD.md",
    "manifest.json",
}
DEFAULT_TFLITE = ("float32", "float16", "dynamic", "int8")  # fmt: skip


@pytest.fixture(scope="session")
def keras_results(trained_run):
    """Test images of digits, their labels, and the Keras model's probabilities."""
    digits = sources.load_dataset("digits")
    model = load_classifier(str(trained_run)).model
    return digits.test.images, digits.test.labels, np.asarray(model(digits.test.images))


def read_manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_bundle_has_exactly_the_documented_files(exported_bundle):
    folder, _ = exported_bundle
    assert {path.name for path in folder.iterdir()} == BUNDLE_FILES
    assert (folder / "saved_model/1/saved_model.pb").exists()
    assert (folder / "labels.txt").read_text().split() == list("0123456789")
    assert os.listdir(folder.parent) == ["demo"]


def test_manifest_matches_the_files(exported_bundle, keras_results):
    folder, _ = exported_bundle
    images, labels, expected = keras_results
    manifest = read_manifest(folder)
    evaluation = manifest["evaluation"]
    assert evaluation["images"] == 360
    assert evaluation["keras_right"] == (expected.argmax(axis=1) == labels).sum()
    for name, row in manifest["artifacts"].items():
        for path, file in row["files"].items():
            content = (folder / path).read_bytes()
            assert len(content) == file["bytes"]
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert row["bytes"] == sum(file["bytes"] for file in row["files"].values())
        assert row["runtime"] == ("TensorFlow" if name == "saved_model" else "LiteRT")
        assert row["latency_ms"] > 0
        assert row["agreement"] >= 0.95, name
    listed_files = {
        path for row in manifest["artifacts"].values() for path in row["files"]
    }
    existing_files = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }
    other_files = {"labels.txt", "check.npz", "MODEL_CARD.md"}
    assert manifest["files"].keys() == other_files
    assert existing_files == listed_files | other_files | {"manifest.json"}
    assert manifest["versions"]["keras"] == keras.__version__
    calibration = manifest["calibration"]
    assert (calibration["dataset"], len(set(calibration["images"]))) == ("digits", 200)
    assert evaluation["images_by_class"] == np.bincount(labels).tolist()
    correct_labels = labels[expected.argmax(axis=1) == labels]
    assert evaluation["right_by_class"] == np.bincount(correct_labels).tolist()
    # Recount the correct predictions with LiteRT alone.
    for name in DEFAULT_TFLITE:
        runner = Interpreter(str(folder / f"{name}.tflite")).get_signature_runner()
        predictions = [
            runner(image=image[None])["probabilities"][0].argmax() for image in images
        ]
        assert manifest["artifacts"][name]["right"] == (predictions == labels).sum()


def test_summary_lists_keras_and_every_artifact(exported_bundle):
    folder, stdout = exported_bundle
    lines = stdout[stdout.index("artifact ") :].splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [
        "Keras",
        "saved_model/1",
        *(f"{name}.tflite" for name in DEFAULT_TFLITE),
    ]
    for line in lines[1:7]:
        assert "of 360" in line
    for word in ("size", "top-1", "agreement", "latency"):
        assert word in lines[0]
    assert str(folder) in stdout


def test_tflite_files_have_fixed_tensor_names_and_dtypes(
    exported_bundle, keras_results
):
    """Clients rely on these names, dtypes and shapes. The default batch size is 1."""
    folder, _ = exported_bundle
    images, _, expected = keras_results
    for name in DEFAULT_TFLITE:
        interpreter = Interpreter(str(folder / f"{name}.tflite"))
        assert list(interpreter.get_signature_list()) == ["serving_default"]
        (image,), (output,) = (
            interpreter.get_input_details(),
            interpreter.get_output_details(),
        )
        assert (image["dtype"], image["shape"].tolist()) == (np.uint8, [1, 8, 8, 1])
        assert (output["dtype"], output["shape"].tolist()) == (np.float32, [1, 10])
        runner = interpreter.get_signature_runner("serving_default")
        assert list(runner.get_input_details()) == ["image"]
        assert list(runner.get_output_details()) == ["probabilities"]
        actual = np.concatenate(
            [runner(image=i[None])["probabilities"] for i in images[:50]]
        )
        limit = {"float32": 1e-5, "float16": 0.02}.get(name, 0.3)
        assert np.abs(actual - expected[:50]).max() < limit


def test_saved_model_needs_only_tensorflow(exported_bundle, keras_results, tmp_path):
    folder, _ = exported_bundle
    images, labels, expected = keras_results
    keras.utils.save_img(tmp_path / "0.png", images[0], scale=False)
    keras.utils.save_img(
        tmp_path / "1.png", np.kron(images[1], np.ones((5, 5, 1))), scale=False
    )
    np.savez(tmp_path / "images.npz", x=images)
    code = """
import sys
class BlockingImporter:  # Fails on loading, because TensorFlow also looks for Keras.
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("keras", "keras_resnet", "export"):
            import importlib.machinery
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ImportError(f"{spec.name} is blocked")
    def exec_module(self, module):
        raise ImportError
sys.meta_path.insert(0, BlockingImporter())
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
images = np.load("images.npz")["x"]
outputs = loaded.signatures["serving_default"](image=tf.constant(images))
features = loaded.signatures["features"](image=tf.constant(images))["features"]
files = [open(name, "rb").read() for name in ("0.png", "1.png")]
top = loaded.signatures["image_bytes"](image_bytes=tf.constant(files))
np.savez("outputs.npz", probabilities=outputs["probabilities"], features=features,
    classes=top["classes"].numpy().astype(str), scores=top["scores"])
try:
    loaded.signatures["image_bytes"](image_bytes=tf.constant([files[0], files[1][:80]]))
except tf.errors.InvalidArgumentError:
    print("rejected")
"""
    process = run_python(
        "-c", code, folder / "saved_model/1", cwd=tmp_path, env={"PYTHONPATH": ""}
    )
    assert process.stdout == "rejected\n", process.stderr
    outputs = np.load(tmp_path / "outputs.npz")
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
    assert outputs["features"].shape == (360, 64)
    top_indices = np.argsort(-expected[0])[:5]
    assert outputs["classes"][0].tolist() == [str(i) for i in top_indices]
    np.testing.assert_allclose(
        outputs["scores"][0], expected[0][top_indices], atol=1e-5
    )
    assert outputs["classes"][1][0] == str(labels[1])


def test_saved_model_cli_runs_both_signatures(
    trained_run, exported_bundle, keras_results, tmp_path
):
    folder, _ = exported_bundle
    images, _, expected = keras_results
    np.save(tmp_path / "image.npy", images[:3])
    # JPEG is lossy and the image is resized, so Keras must predict the decoded pixels.
    enlarged_image = np.kron(images[0], np.ones((5, 5, 1), np.uint8))
    jpeg = tf.io.encode_jpeg(enlarged_image)
    np.save(tmp_path / "bytes.npy", np.array([jpeg.numpy()], object))
    classifier = load_classifier(str(trained_run))
    pixels = classifier.preprocessing.read(jpeg).numpy()
    jpeg_expected = np.asarray(classifier.model(pixels[None]))[0]

    def run_cli(signature, inputs):
        return run_python(
            "-c",
            "from tensorflow.python.tools.saved_model_cli import main; main()",
            "run", "--dir", folder / "saved_model/1", "--tag_set", "serve",
            "--signature_def", signature, "--inputs", inputs, "--outdir", tmp_path, "--overwrite",
        )  # fmt: skip

    process = run_cli("serving_default", f"image={tmp_path}/image.npy")
    assert process.returncode == 0, process.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "probabilities.npy"), expected[:3], atol=1e-5
    )
    process = run_cli("image_bytes", f"image_bytes={tmp_path}/bytes.npy")
    assert process.returncode == 0, process.stderr
    order = np.argsort(-jpeg_expected)[:5]
    classes = np.load(tmp_path / "classes.npy", allow_pickle=True)
    assert [name.decode() for name in classes[0]] == [str(i) for i in order]
    scores = np.load(tmp_path / "scores.npy")
    np.testing.assert_allclose(scores[0], jpeg_expected[order], atol=1e-5)


def run_card_examples(folder, tmp_path, images):
    """Runs a model card's Python examples. Returns the card's text and the output."""
    card_text = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    keras.utils.save_img(tmp_path / "image.jpg", np.kron(images[0], np.ones((9, 9, 1))))
    np.save(tmp_path / "pixels.npy", images)
    code_blocks = [part.split("```")[0] for part in card_text.split("```python\n")[1:]]
    code_lines = [
        f"import numpy as np; pixels = np.load({str(tmp_path / 'pixels.npy')!r})"
    ]
    for block in code_blocks:
        code_lines.append("probabilities = None")
        code_lines.append(block.replace("image.jpg", str(tmp_path / "image.jpg")))
        code_lines.append(
            "if probabilities is not None: print(*probabilities.argmax(1))"
        )
    process = run_python("-c", "\n".join(code_lines), cwd=folder)
    assert process.returncode == 0, process.stderr
    return card_text, process.stdout


def test_python_examples_of_the_model_card_run(
    exported_bundle, keras_results, tmp_path
):
    folder, _ = exported_bundle
    images, labels, expected = keras_results
    text, stdout = run_card_examples(folder, tmp_path, images[:5])
    predictions = " ".join(map(str, labels[:5]))
    assert (expected[:5].argmax(axis=1) == labels[:5]).all()
    # LiteRT prints the predictions of five images. CompiledModel and TensorFlow print
    # only the first image's; TensorFlow reads this image from an enlarged JPEG.
    assert f"\n{predictions}\n{labels[0]}\n[[b'" in stdout
    assert f"[[b'{labels[0]}'" in stdout
    assert f"{read_manifest(folder)['evaluation']['keras_right']} of 360" in text
    assert "MediaPipe Tasks supports only RGB" in text
    assert 'echo \'{"signature_name": "image_bytes"' in text
    num_correct = read_manifest(folder)["evaluation"]["right_by_class"][3]
    assert f"| 3 | {num_correct} of {(keras_results[1] == 3).sum()} |" in text


@pytest.fixture(scope="module")
def extra_bundle(trained_run, tmp_path_factory):
    """Folder of a bundle with artifacts that are not written by default."""
    for name in ("onnx", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(name, reason="needs the extras onnx and openvino")
    folder = tmp_path_factory.mktemp("extra") / "demo"
    formats = ["int8_io", "float_io", "int16x8", "onnx", "openvino", "openvino_int8"]
    bundle.export(str(trained_run), str(folder), formats)
    return folder


def test_artifacts_on_request_have_the_documented_inputs(
    extra_bundle, keras_results, tmp_path
):
    images, labels, _ = keras_results
    rows = read_manifest(extra_bundle)["artifacts"]
    inputs = {
        name: row["signatures"]["serving_default"]["inputs"]["image"]
        for name, row in rows.items()
    }
    fixed_shape, dynamic_shape = [1, 8, 8, 1], [-1, 8, 8, 1]
    assert inputs == {
        "int8_io": ["int8", fixed_shape, 1.0, -128],
        "float_io": ["float32", fixed_shape],
        "int16x8": ["uint8", fixed_shape],
        "onnx": ["uint8", dynamic_shape],
        "openvino": ["uint8", fixed_shape],
        "openvino_int8": ["uint8", fixed_shape],
    }
    for name in ("onnx", "openvino"):
        assert rows[name]["agreement"] == 1
        assert rows[name]["logit_difference"] < 1e-4
    assert "30 times slower" in rows["int16x8"]["note"]
    text, stdout = run_card_examples(extra_bundle, tmp_path, images[:5])
    predictions = " ".join(map(str, labels[:5]))
    # The examples for ONNX Runtime and OpenVINO print the predictions.
    assert stdout.count(predictions) == 2, stdout
    assert "30 times slower" in text


def test_web_bundle_also_has_the_artifacts_that_the_page_runs(trained_run, tmp_path):
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = tmp_path / "demo"
    process = run_program(
        "export", f"--model={trained_run}", f"--output={folder}", "--formats=web"
    )
    assert process.returncode == 0, process.stderr
    rows = read_manifest(folder)["artifacts"]
    assert list(rows) == ["float16", "int8", "web"]
    assert "web/index.html" in rows["web"]["files"]
    web_copy = (folder / "web" / "int8.tflite").read_bytes()
    assert web_copy == (folder / "int8.tflite").read_bytes()
    findings, passed = verify.verify(str(folder))
    assert passed and ("web", "unchecked") in [finding[:2] for finding in findings]


UNUSUAL_NAMES = (
    "zero, nought",
    "one\ntwo",
    "two|three",
    "crane",
    "crane",
    "鶴",
    *"6789",
)


def load_renamed_digits():
    """Returns the digits with class names that are difficult to store in text files."""
    digits = sources.load_dataset("digits")
    return dataclasses.replace(digits, classes=UNUSUAL_NAMES, name="renamed")


def test_class_names_are_preserved(trained_run, tmp_path):
    """Class names may have commas, newlines, duplicates and any Unicode character."""
    shutil.copytree(trained_run, tmp_path / "run")
    record = json.loads((trained_run / "run.json").read_text(encoding="utf-8"))
    record["classes"] = UNUSUAL_NAMES
    (tmp_path / "run/run.json").write_text(json.dumps(record), encoding="utf-8")
    manifest = bundle.export(
        str(tmp_path / "run"),
        str(tmp_path / "demo"),
        ["saved_model", "float32"],
        dataset=load_renamed_digits(),
    )
    assert (
        read_manifest(tmp_path / "demo")["classes"]
        == list(UNUSUAL_NAMES)
        == manifest["classes"]
    )
    lines = (tmp_path / "demo/labels.txt").read_text(encoding="utf-8").split("\n")
    assert lines[:6] == [
        "zero, nought", "one\\ntwo", "two|three", "crane", "crane (2)", "鶴",
    ]  # fmt: skip
    assert len(set(lines[:10])) == 10 and lines[10:] == [""]
    with zipfile.ZipFile(tmp_path / "demo/float32.tflite") as archive:
        assert archive.read("labels.txt").decode() == "\n".join(lines)
    loaded_model = tf.saved_model.load(str(tmp_path / "demo/saved_model/1"))
    png = tf.io.encode_png(sources.load_dataset("digits").test.images[0])[None]
    top_classes = loaded_model.signatures["image_bytes"](image_bytes=png)[
        "classes"
    ].numpy()
    assert {name.decode() for name in top_classes[0]} <= set(UNUSUAL_NAMES)
    card_text = (tmp_path / "demo/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| two\\|three | " in card_text and "| one\\\\ntwo | " in card_text
    # The licence of this dataset is unknown, so check.npz has no test images.
    with np.load(tmp_path / "demo/check.npz") as check:
        assert "label" not in check and len(check["image"]) > 100
        test_images = {
            image.tobytes() for image in sources.load_dataset("digits").test.images
        }
        assert not test_images & {image.tobytes() for image in check["image"]}
    assert verify.verify(str(tmp_path / "demo"))[1]


def test_calibration_excludes_test_images(trained_run, tmp_path):
    """The training images of this dataset include all test images."""
    digits = sources.load_dataset("digits")
    mixed_digits = dataclasses.replace(
        digits, name="mixed", train=digits.test + digits.train.take(np.arange(100))
    )
    manifest = bundle.export(
        str(trained_run), str(tmp_path / "demo"), ["int8"], dataset=mixed_digits, seed=3
    )
    calibration = manifest["calibration"]
    assert min(calibration["images"]) >= 360
    assert calibration["left_out_as_evaluated"] > 100
    assert len(calibration["images"]) + calibration["left_out_as_evaluated"] == 200
    with pytest.raises(InputError, match="calibration images are test images"):
        leaked_digits = dataclasses.replace(digits, name="same", train=digits.test)
        bundle.export(
            str(trained_run), str(tmp_path / "no"), ["int8"], dataset=leaked_digits
        )
    digits_without_training = dataclasses.replace(
        digits, train=digits.train.take(np.arange(0))
    )
    with pytest.raises(InputError, match=r"calibration images.*folder:PATH"):
        bundle.export(
            str(trained_run),
            str(tmp_path / "no"),
            ["int8"],
            dataset=digits_without_training,
        )
    assert os.listdir(tmp_path) == ["demo"]


def test_calibration_images_may_come_from_a_folder(trained_run, tmp_path):
    """Calibration images may belong to any class and may be in subfolders."""
    images = sources.load_dataset("digits").train.images[:7]
    for i, image in enumerate(images):
        (tmp_path / "images" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(tmp_path / f"images/{i % 2}/{i}.png", image, scale=False)
    options = {
        "model": str(trained_run),
        "formats": ["int8"],
        "output": str(tmp_path / "d"),
    }
    manifest = bundle.export(calibration=f"folder:{tmp_path}/images", **options)
    assert manifest["calibration"]["images"] == list(range(7))
    # Bundles are published, so they must not contain absolute paths.
    assert manifest["calibration"]["dataset"] == "folder:images"
    assert str(tmp_path) not in json.dumps(manifest)
    with pytest.raises(InputError, match=r"Received: folder:.*nothing, which has none"):
        bundle.export(calibration=f"folder:{tmp_path}/nothing", **options)


def test_debug_quantization_reports_every_layer(trained_run, tmp_path):
    process = run_program(
        "export", f"--model={trained_run}", f"--output={tmp_path / 'demo'}",
        "--formats=int8", "--debug_quantization",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    rows = (tmp_path / "demo/quantization.csv").read_text().splitlines()
    assert rows[0].startswith("layer,scale,")
    layers = [row.split(",")[0] for row in rows[1:]]
    assert layers[:2] == ["normalization", "conv1_relu"]
    assert layers[-1] == "predictions"
    for layer in layers:
        assert layer in process.stdout
    assert imread(tmp_path / "demo/quantization.png").shape[2] == 4
    assert verify.verify(str(tmp_path / "demo"))[1]


def test_only_a_bundle_is_replaced(trained_run, tmp_path):
    output = tmp_path / "deep" / "demo"
    options = {"model": str(trained_run), "output": str(output), "formats": ["float32"]}
    bundle.export(**options)
    bundle.export(**{**options, "formats": ["dynamic"]})
    files = {"dynamic.tflite", *BUNDLE_FILES} - {
        f"{name}.tflite" for name in DEFAULT_TFLITE[:2]
    }
    files -= {"saved_model", "int8.tflite"}
    assert {p.name for p in output.iterdir()} == files
    # Folders with a manifest.json need not be bundles: web applications have one too.
    (output / "app.js").write_text("...")
    with pytest.raises(InputError, match=r"other files, such as app\.js"):
        bundle.export(**options)
    assert {p.name for p in output.iterdir()} == files | {"app.js"}


@pytest.mark.parametrize("user_file", ["saved_model/2/saved_model.pb", "notes.txt"])
def test_folder_with_user_files_is_not_replaced(
    exported_bundle, trained_run, tmp_path, user_file
):
    """Export keeps user files in a bundle, and in a folder without a manifest."""
    folder = shutil.copytree(exported_bundle[0], tmp_path / "demo")
    (folder / user_file).parent.mkdir(exist_ok=True)
    (folder / user_file).write_text("mine")
    with pytest.raises(InputError, match=f"other files, such as {user_file}"):
        bundle.export(str(trained_run), str(folder), ["float32"])
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"other files, such as MODEL_CARD\.md"):
        bundle.export(str(trained_run), str(folder), ["float32"])
    assert (folder / user_file).read_text() == "mine"


def test_three_parameters_of_export_are_positional():
    """`model`, `output` and `formats` are positional, and all other flags keywords."""
    parameters = inspect.signature(bundle.export).parameters
    assert list(parameters)[:3] == ["model", "output", "formats"]
    assert set(parameters) - {"model", "output", "formats"} == {
        "weights", "image_size", "dataset", "data_dir", "images", "calibration", "seed",
        "share_images", "debug_quantization",
    }  # fmt: skip
    with pytest.raises(InputError, match="seed must be 0 or more"):
        bundle.export("resnet18", "no", seed=-1)


def test_empty_formats_are_rejected(trained_run, tmp_path):
    with pytest.raises(InputError, match=r"formats must not be empty.* saved_model"):
        bundle.export(str(trained_run), str(tmp_path / "demo"), formats=[])


def make_faulty_artifact(name, change_model):
    """Returns the artifact `name`, whose `write` first calls `change_model(model)`."""
    artifact = artifacts.ARTIFACTS[name]

    def write(path, source):
        model = keras.models.clone_model(source.classifier.model)
        model.set_weights(source.classifier.model.get_weights())
        change_model(model)
        changed_classifier = dataclasses.replace(source.classifier, model=model)
        artifact.write(path, dataclasses.replace(source, classifier=changed_classifier))

    return dataclasses.replace(artifact, write=write)


def shift_bias(model):
    """Adds 0.01 to one bias, which changes no predicted class."""
    head = model.get_layer("predictions")
    head.bias.assign(head.bias + np.eye(10)[4] * 0.01)


def roll_classes(model):
    """Shifts all classes by one."""
    head = model.get_layer("predictions")
    head.set_weights([np.roll(w, 1, axis=-1) for w in head.get_weights()])


@pytest.mark.parametrize(
    ("name", "change_model", "words"),
    [
        ("float32", shift_bias, "of the largest logit; the limit is 1e-04"),
        ("saved_model", shift_bias, "of the largest logit; the limit is 1e-04"),
        ("float16", roll_classes, "the limit is 99.5%"),
        ("int8", roll_classes, "the limit is 95.0%"),
    ],
)
def test_faulty_conversion_is_rejected_and_leaves_no_file(
    trained_run, tmp_path, monkeypatch, name, change_model, words
):
    monkeypatch.setitem(
        artifacts.ARTIFACTS, name, make_faulty_artifact(name, change_model)
    )
    with pytest.raises(comparison.Disagreement) as error:
        bundle.export(
            str(trained_run), str(tmp_path / "demo"), formats=["dynamic", name]
        )
    assert words in str(error.value)
    assert os.listdir(tmp_path) == []


def test_failed_export_keeps_the_earlier_bundle(trained_run, tmp_path, monkeypatch):
    output = tmp_path / "demo"
    bundle.export(str(trained_run), str(output), formats=["float32"])
    files_before = {path.name: path.read_bytes() for path in output.iterdir()}
    monkeypatch.setitem(
        artifacts.ARTIFACTS, "float32", make_faulty_artifact("float32", shift_bias)
    )
    with pytest.raises(comparison.Disagreement):
        bundle.export(str(trained_run), str(output), formats=["float32"])
    assert files_before == {path.name: path.read_bytes() for path in output.iterdir()}
    assert os.listdir(tmp_path) == ["demo"]


def test_full_disk_leaves_no_files(trained_run, tmp_path):
    """A limit on file sizes simulates the full disk."""
    code = f"""
import resource
from export.bundle import export
for limit in (20_000, 250_000):  # Too small for the SavedModel and for float32.tflite.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        export({str(trained_run)!r}, "demo", formats=["saved_model", "float32"])
    except OSError as error:
        print("OSError:", " ".join(str(error).split()))
"""
    process = run_python("-c", code, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("OSError: ") == 2
    assert os.listdir(tmp_path) == []


def test_read_only_output_is_reported_in_one_line(trained_run):
    process = run_program("export", f"--model={trained_run}", "--output=/proc/demo")
    assert_one_line(process, "must be writable", "/proc/demo")


def test_model_that_is_not_a_classifier_is_rejected(trained_run, tmp_path):
    model = load_classifier(str(trained_run)).model
    feature_model = keras.Model(model.input, model.get_layer("avg_pool").output)
    (tmp_path / "run.json").write_bytes((trained_run / "run.json").read_bytes())
    feature_model.save(tmp_path / "final.keras")
    with pytest.raises(InputError, match=r"classifier .* 'avg_pool'"):
        bundle.export(str(tmp_path), str(tmp_path / "demo"))


@pytest.mark.full
def test_calibration_is_seeded(trained_run, tmp_path):
    indices = []
    for seed in (0, 0, 1):
        bundle.export(
            str(trained_run), str(tmp_path / "demo"), formats=["int8"], seed=seed
        )
        indices.append(read_manifest(tmp_path / "demo")["calibration"]["images"])
    assert indices[0] == indices[1] != indices[2]


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "shortcut"),
    [
        ("resnet18", "B"),
        ("resnet50", "A"),
        ("resnet50", "B"),
        ("resnet34", "C"),
        ("plainnet18", "none"),
        ("plainnet20", "none"),
    ],
)
def test_trained_imagenet_architectures_agree_with_keras(name, shortcut, tmp_path):
    """The networks are trained for one epoch on digits enlarged to 32x32 pixels."""
    from keras_resnet.training.run import train

    train(
        name,
        shortcut=shortcut,
        image_size=32,
        epochs=1,
        batch_size=256,
        strategy="one_device",
        model_dir=str(tmp_path / "run"),
        verbose=0,
    )
    manifest = bundle.export(
        str(tmp_path / "run"),
        str(tmp_path / "demo"),
        formats=["saved_model", "float32", "float16"],
        images=100,
    )
    for row in manifest["artifacts"].values():
        assert row["agreement"] == 1
    assert manifest["artifacts"]["float32"]["logit_difference"] <= 1e-4


@pytest.mark.full
@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_artifacts_of_published_weights_agree_with_keras(name, tmp_path):
    """The calibration images are not among the 200 ImageNet test images."""
    process = run_python(SHARED.parent / "tools/expand_weights.py", tmp_path)
    assert process.returncode == 0, process.stderr
    with np.load(SHARED / "imagenet/imagenet_crops200.npz") as crops:
        split = splits.Split(crops["x"], crops["y"].astype(np.int32))
    names = registry.class_names("imagenet")
    manifest = bundle.export(
        str(tmp_path / f"{name}.safetensors"),
        str(tmp_path / "demo"),
        ["float32", "float16", "int8"],
        dataset=splits.Dataset("crops200", tuple(names), split, split, None),
        calibration=f"folder:{SHARED}/imagenet/jpeg100",
    )
    assert manifest["evaluation"]["images"] == 200
    assert manifest["evaluation"]["keras_right"] >= 130
    rows = manifest["artifacts"]
    assert list(rows) == ["float32", "float16", "int8"]
    assert rows["float32"]["agreement"] == 1
    assert rows["float32"]["logit_difference"] <= 1e-4
    assert rows["float16"]["agreement"] >= 0.995
    assert rows["int8"]["agreement"] >= 0.95
    assert rows["int8"]["loss_interval"][0] <= 0.5
    assert verify.verify(str(tmp_path / "demo"))[1]


def make_untrained_classifier(name, size, **options):
    """Builds an untrained network with batch normalisation statistics of random images.

    Returns:
        The network as a `Classifier`, the images, and the network's logits for them.
    """
    images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    keras.utils.set_random_seed(0)
    pixels = keras.Input((size, size, 3), name="image")
    normalised_pixels = keras.layers.Rescaling(1 / 64, -2.0)(pixels)
    model = ResNet(name, input_tensor=normalised_pixels, classes=10, **options)
    for layer in list_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # Moving statistics become those of the next batch.
    model(images, training=True)
    preprocessing = Preprocessing(size, size, 3)
    classifier = Classifier(
        name, model, tuple("0123456789"), preprocessing, Provenance(name)
    )
    return classifier, images, saved_model.compute_reference_logits(model, images)


def assert_agreement(paths, images, logits):
    """Asserts that artifacts agree with the logits of the Keras model.

    `paths` maps names of artifacts to paths. int8 artifacts only have to run, because
    rounding dominates in untrained networks.
    """
    for artifact, path in paths.items():
        runtime = RUNTIMES[artifacts.ARTIFACTS[artifact].runtime]
        probabilities = runtime.predict(runtime.open(path), images)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=0.02)
        if artifact in ("saved_model", "float32"):
            labels = logits.argmax(axis=1)
            difference = comparison.compare(probabilities, logits, labels)
            comparison.check_limit(artifact, difference, comparison.LIMITS["float32"])
        elif artifact == "float16":
            # Rounding may change the prediction if two classes are almost tied.
            runner_up, highest = np.sort(logits, axis=1)[:, -2:].T
            is_clear = highest - runner_up > 0.01 * np.abs(logits).max()
            predictions = probabilities.argmax(axis=1)
            assert (predictions == logits.argmax(axis=1))[is_clear].all(), artifact


SMALL_OPTIONS = {"stem": "cifar", "blocks": (1, 1, 1), "width": 16}
ARCHITECTURES = {
    "shortcut A": ("cifar_resnet8", {"shortcut": "A"}),
    "shortcut B": ("cifar_resnet8", {"shortcut": "B"}),
    "shortcut C": ("cifar_resnet8", {"shortcut": "C"}),
    "plain": ("cifar_plainnet8", {}),
    "bottleneck": ("resnet50", SMALL_OPTIONS),
    "pre-activation": ("resnet50v2", SMALL_OPTIONS),
    "squeeze and excitation": ("cifar_resnet8", {"se": True}),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_artifacts_of_small_networks_agree_with_keras(architecture, tmp_path):
    """The networks are untrained. A test marked `full` exports all variants."""
    name, options = ARCHITECTURES[architecture]
    classifier, images, logits = make_untrained_classifier(name, 16, **options)
    # If the logits did not depend on the image, the test would prove nothing.
    assert np.ptp(logits, axis=0).max() > 0.05 * np.abs(logits).max()
    formats = ["saved_model", "float32", "int8"]
    paths = write_artifacts(classifier, tmp_path, formats, images)
    assert_agreement(paths, images, logits)


# Pairs of variant and shortcut: all shortcuts for the paper's variants, else one.
ALL_VARIANTS = [
    (name, shortcut)
    for name in VARIANTS
    for shortcut in ("ABC" if re.fullmatch(r"resnet\d+", name) else [None])
]


@pytest.mark.full
@pytest.mark.parametrize(("name", "shortcut"), ALL_VARIANTS)
def test_artifacts_of_all_variants_agree_with_keras(name, shortcut, tmp_path):
    """The networks are untrained, and their images have 32x32 pixels.

    Each network is tested in its own process, because TensorFlow never frees loaded
    networks. A dozen of them would take 20 GB.
    """
    code = f"import test_bundle as t; t.check_variant({name!r}, {shortcut!r}, {str(tmp_path)!r})"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = run_python("-c", code, timeout=1800, env={"PYTHONPATH": paths})
    assert process.returncode == 0, process.stderr


def check_variant(name, shortcut, folder):
    classifier, images, logits = make_untrained_classifier(name, 32, shortcut=shortcut)
    formats = ["saved_model", "float32", "float16", "int8"]
    paths = write_artifacts(classifier, folder, formats, images)
    assert_agreement(paths, images, logits)
