"""Files of exported bundles, and artifacts in the libraries that users run."""

import csv
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
from children import run_child
from conftest import SHARED, assert_one_line, run_program, run_python
from matplotlib.image import imread

from export import artifacts, bundle, verify
from export.device import comparison
from keras_resnet.data import splits
from keras_resnet.evaluation.classifier import load_classifier
from keras_resnet.support.errors import InputError
from keras_resnet.weights import registry

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


@pytest.fixture(scope="module")
def keras_results(trained_run, digits):
    """Test images of digits, their labels, and the Keras model's probabilities."""
    model = load_classifier(str(trained_run)).model
    return digits.test.images, digits.test.labels, np.asarray(model(digits.test.images))


def read_manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_bundle_has_exactly_the_documented_files(exported_bundle):
    folder, _ = exported_bundle
    assert {path.name for path in folder.iterdir()} == BUNDLE_FILES
    assert (folder / "saved_model/1/saved_model.pb").exists()
    assert (folder / "labels.txt").read_text().split() == list("0123456789")


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


def run_card_examples(folder, tmp_path, images, code=""):
    """Runs a model card's Python examples, then `code`, without Keras.

    Returns the card's text and the output.
    """
    card_text = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    keras.utils.save_img(tmp_path / "image.jpg", np.kron(images[0], np.ones((9, 9, 1))))
    np.save(tmp_path / "pixels.npy", images)
    code_blocks = [part.split("```")[0] for part in card_text.split("```python\n")[1:]]
    code_lines = [
        f"""
import importlib.machinery, sys
class BlockingImporter:  # Fails on loading, because TensorFlow also looks for Keras.
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("keras", "keras_resnet", "export"):
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ImportError(spec.name + " is blocked")
    def exec_module(self, module):
        raise ImportError
sys.meta_path.insert(0, BlockingImporter())
import numpy as np; pixels = np.load({str(tmp_path / "pixels.npy")!r})"""
    ]
    for block in code_blocks:
        code_lines.append("probabilities = None")
        code_lines.append(block.replace("image.jpg", str(tmp_path / "image.jpg")))
        code_lines.append(
            "if probabilities is not None: print(*probabilities.argmax(1))"
        )
    process = run_python(
        "-c", "\n".join([*code_lines, code]), tmp_path, cwd=folder,
        env={"PYTHONPATH": ""},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return card_text, process.stdout


def test_clients_need_only_the_libraries_in_the_model_card(
    exported_bundle, keras_results, tmp_path
):
    """The examples of the model card and all signatures run without Keras."""
    folder, _ = exported_bundle
    images, labels, expected = keras_results
    enlarged_image = np.kron(images[1], np.ones((5, 5, 1)))
    for i, image in enumerate((images[0], enlarged_image)):
        keras.utils.save_img(tmp_path / f"{i}.png", image, scale=False)
    code = """
import os; os.chdir(sys.argv[1])
signatures = tf.saved_model.load(sys.argv[2]).signatures
outputs = signatures["serving_default"](image=tf.constant(pixels))
features = signatures["features"](image=tf.constant(pixels))["features"]
files = [open(name, "rb").read() for name in ("0.png", "1.png")]
top = signatures["image_bytes"](image_bytes=tf.constant(files))
np.savez("outputs.npz", probabilities=outputs["probabilities"], features=features,
    classes=top["classes"].numpy().astype(str), scores=top["scores"])
try:
    signatures["image_bytes"](image_bytes=tf.constant([files[0], files[1][:80]]))
except tf.errors.InvalidArgumentError:
    print("rejected")
"""
    code = code.replace("sys.argv[2]", repr(str(folder / "saved_model/1")))
    text, stdout = run_card_examples(folder, tmp_path, images, code)
    # LiteRT prints all predictions of int8.tflite. CompiledModel and TensorFlow print
    # only the first image's; TensorFlow reads this image from an enlarged JPEG.
    pattern = rf"\n([\d ]+)\n{labels[0]}\n\[\[b'{labels[0]}'.*\nrejected\n$"
    predictions = np.array(re.search(pattern, stdout, re.DOTALL)[1].split(), int)
    manifest = read_manifest(folder)
    agreement = np.mean(predictions == expected.argmax(axis=1))
    assert agreement == pytest.approx(manifest["artifacts"]["int8"]["agreement"])
    assert f"{manifest['evaluation']['keras_right']} of 360" in text
    assert "MediaPipe Tasks supports only RGB" in text
    assert 'echo \'{"signature_name": "image_bytes"' in text
    num_correct = manifest["evaluation"]["right_by_class"][3]
    assert f"| 3 | {num_correct} of {(labels == 3).sum()} |" in text
    outputs = np.load(tmp_path / "outputs.npz")
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
    assert outputs["features"].shape == (360, 64)
    top_indices = np.argsort(-expected[0])[:5]
    assert outputs["classes"][0].tolist() == [str(i) for i in top_indices]
    np.testing.assert_allclose(
        outputs["scores"][0], expected[0][top_indices], atol=1e-5
    )
    assert outputs["classes"][1][0] == str(labels[1])


@pytest.mark.clients
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
        return run_program(
            "tensorflow.python.tools.saved_model_cli",
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


@pytest.mark.clients
def test_artifacts_on_request_have_the_documented_inputs(
    trained_run, keras_results, tmp_path
):
    for name in ("onnx", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(name, reason="needs the extras onnx and openvino")
    folder = tmp_path / "demo"
    formats = ["int8_io", "float_io", "int16x8", "onnx", "openvino", "openvino_int8"]
    bundle.export(str(trained_run), str(folder), formats)
    images, labels, _ = keras_results
    rows = read_manifest(folder)["artifacts"]
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
    text, stdout = run_card_examples(folder, tmp_path, images[:5])
    predictions = " ".join(map(str, labels[:5]))
    # The examples for ONNX Runtime and OpenVINO print the predictions.
    assert stdout.count(predictions) == 2, stdout
    assert "30 times slower" in text


@pytest.mark.clients
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


def test_class_names_are_preserved(trained_run, digits, tmp_path):
    """Class names may have commas, newlines, duplicates and any Unicode character."""
    shutil.copytree(trained_run, tmp_path / "run")
    record = json.loads((trained_run / "run.json").read_text(encoding="utf-8"))
    record["classes"] = UNUSUAL_NAMES
    (tmp_path / "run/run.json").write_text(json.dumps(record), encoding="utf-8")
    manifest = bundle.export(
        str(tmp_path / "run"),
        str(tmp_path / "demo"),
        ["saved_model", "float32"],
        dataset=dataclasses.replace(digits, classes=UNUSUAL_NAMES, name="renamed"),
        images=40,
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
    png = tf.io.encode_png(digits.test.images[0])[None]
    top_classes = loaded_model.signatures["image_bytes"](image_bytes=png)[
        "classes"
    ].numpy()
    assert {name.decode() for name in top_classes[0]} <= set(UNUSUAL_NAMES)
    card_text = (tmp_path / "demo/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| two\\|three | " in card_text and "| one\\\\ntwo | " in card_text
    assert verify.verify(str(tmp_path / "demo"))[1]


def test_debug_quantization_reports_every_layer(trained_run, digits, tmp_path):
    """Calibration images may belong to any class and may be in subfolders."""
    for i, image in enumerate(digits.train.images[:7]):
        (tmp_path / "images" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(tmp_path / f"images/{i % 2}/{i}.png", image, scale=False)
    folder = tmp_path / "demo"
    process = run_program(
        "export", f"--model={trained_run}", f"--output={folder}", "--formats=int8_io",
        f"--calibration=folder:{tmp_path}/images", "--debug_quantization",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    manifest = read_manifest(folder)
    (row,) = manifest["artifacts"].values()
    # Microcontrollers need these dtypes: pixels and probabilities are int8.
    assert row["signatures"]["serving_default"] == {
        "inputs": {"image": ["int8", [1, 8, 8, 1], 1.0, -128]},
        "outputs": {"probabilities": ["int8", [1, 10], 1 / 256, -128]},
    }
    assert manifest["calibration"]["images"] == list(range(7))
    # Bundles are published, so they must not contain absolute paths.
    assert manifest["calibration"]["dataset"] == "folder:images"
    assert str(tmp_path) not in json.dumps(manifest)
    with (folder / "quantization.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    layers = [row["layer"] for row in rows]
    assert layers[:2] == ["normalization", "conv1_relu"]
    assert layers[-1] == "predictions"
    stdout = process.stdout
    printed_lines = stdout[stdout.index("layer  ") :].splitlines()[1 : 1 + len(rows)]
    for line, row in zip(printed_lines, rows, strict=True):
        assert line.split()[0] == row["layer"]
        assert float(line.split()[3]) == pytest.approx(float(row["sqnr_db"]), abs=0.06)
    assert imread(folder / "quantization.png").shape[2] == 4
    assert verify.verify(str(folder))[1]


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


def read_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bundle_is_replaced_only_by_a_bundle_that_agrees_with_keras(
    exported_bundle, trained_run, tmp_path, monkeypatch
):
    output = shutil.copytree(exported_bundle[0], tmp_path / "deep/demo")
    files_before = read_files(output)
    faulty_artifact = make_faulty_artifact("float32", shift_bias)
    with monkeypatch.context() as patch:
        patch.setitem(artifacts.ARTIFACTS, "float32", faulty_artifact)
        # The SavedModel, which is written first, agrees with Keras.
        with pytest.raises(
            comparison.Disagreement,
            match=r"of the largest logit; the limit is 1e-04.* No bundle was written",
        ):
            bundle.export(str(trained_run), str(output), ["float32", "saved_model"])
    assert read_files(output) == files_before
    assert os.listdir(output.parent) == ["demo"]
    options = {"model": str(trained_run), "output": str(output), "formats": ["dynamic"]}
    bundle.export(**options)
    files = {"dynamic.tflite", "labels.txt", "check.npz"}
    files |= {"MODEL_CARD.md", "manifest.json"}
    assert {path.name for path in output.iterdir()} == files
    assert os.listdir(output.parent) == ["demo"]
    # Folders with a manifest.json need not be bundles: web applications have one too.
    (output / "app.js").write_text("...")
    with pytest.raises(InputError, match=r"app\.js is unexpected"):
        bundle.export(**options)
    assert {path.name for path in output.iterdir()} == files | {"app.js"}


@pytest.mark.parametrize("user_file", ["saved_model/2/saved_model.pb", "notes.txt"])
def test_folder_with_user_files_is_not_replaced(
    exported_bundle, trained_run, tmp_path, user_file
):
    """Export keeps user files in a bundle, and in a folder without a manifest."""
    folder = shutil.copytree(exported_bundle[0], tmp_path / "demo")
    (folder / user_file).parent.mkdir(exist_ok=True)
    (folder / user_file).write_text("mine")
    with pytest.raises(InputError, match=f"{user_file} is unexpected"):
        bundle.export(str(trained_run), str(folder), ["float32"])
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"MODEL_CARD\.md is not part of"):
        bundle.export(str(trained_run), str(folder), ["float32"])
    assert (folder / user_file).read_text() == "mine"


def test_only_folders_are_replaced(exported_bundle, tmp_path, monkeypatch):
    """Export also refuses a link to a bundle, and the working directory."""
    folder = exported_bundle[0]
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(folder)
    for name in ("file", "link"):
        with pytest.raises(InputError, match=f"{name}', which is not a folder"):
            bundle.export("resnet18", str(tmp_path / name))
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="which is the working directory"):
        bundle.export("resnet18", f"../{folder.name}")


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


@pytest.mark.parametrize("name", ["saved_model", "float32"])
def test_full_disk_leaves_no_files(exported_bundle, trained_run, tmp_path, name):
    """A limit on file sizes simulates the full disk."""
    row = read_manifest(exported_bundle[0])["artifacts"][name]
    max_size = max(file["bytes"] for file in row["files"].values()) - 1
    process = run_child(
        "export", f"--model={trained_run}", "--output=demo", f"--formats={name}",
        cwd=tmp_path, faults=[("_limit_files", max_size)],
    )  # fmt: skip
    assert_one_line(process, "Could not write", row["path"])
    assert os.listdir(tmp_path) == []


def test_read_only_output_is_rejected(trained_run):
    with pytest.raises(InputError, match=r"must be writable.*/proc/demo"):
        bundle.export(str(trained_run), "/proc/demo", ["float32"], images=1)


def test_model_that_is_not_a_classifier_is_rejected(trained_run, tmp_path):
    model = load_classifier(str(trained_run)).model
    feature_model = keras.Model(model.input, model.get_layer("avg_pool").output)
    record = json.loads((trained_run / "run.json").read_text(encoding="utf-8"))
    record["classes"] = [f"feature {i}" for i in range(64)]
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    feature_model.save(tmp_path / "final.keras")
    with pytest.raises(InputError, match=r"classifier .* 'avg_pool'"):
        bundle.export(str(tmp_path), str(tmp_path / "demo"))


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
