"""The bundle, run by the clients that its users have."""

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
from keras_resnet.nets.graph import flat_layers
from keras_resnet.spec import VARIANTS, Provenance
from keras_resnet.support.errors import InputError
from keras_resnet.weights import registry
from keras_resnet.zoo import ResNet

FILES = {
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
DEFAULT = ("float32", "float16", "dynamic", "int8")  # fmt: skip


@pytest.fixture(scope="session")
def held_out(trained):
    """Held-out images, their labels, and the probabilities that Keras gives."""
    digits = sources.load_dataset("digits")
    model = load_classifier(str(trained)).model
    return digits.test.images, digits.test.labels, np.asarray(model(digits.test.images))


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_layout(exported):
    folder, _ = exported
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "saved_model/1/saved_model.pb").exists()
    assert (folder / "labels.txt").read_text().split() == list("0123456789")
    assert os.listdir(folder.parent) == ["demo"]


def test_manifest_is_true(exported, held_out):
    folder, _ = exported
    images, labels, expected = held_out
    found = manifest(folder)
    assert found["evaluation"]["images"] == 360
    assert (
        found["evaluation"]["keras_right"] == (expected.argmax(axis=1) == labels).sum()
    )
    for name, row in found["artifacts"].items():
        for path, file in row["files"].items():
            content = (folder / path).read_bytes()
            assert len(content) == file["bytes"]
            assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert row["bytes"] == sum(file["bytes"] for file in row["files"].values())
        assert row["runtime"] == ("TensorFlow" if name == "saved_model" else "LiteRT")
        assert row["latency_ms"] > 0
        assert row["agreement"] >= 0.95, name
    listed = {path for row in found["artifacts"].values() for path in row["files"]}
    there = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }
    others = {"labels.txt", "check.npz", "MODEL_CARD.md"}
    assert found["files"].keys() == others
    assert there == listed | others | {"manifest.json"}
    assert found["versions"]["keras"] == keras.__version__
    calibration = found["calibration"]
    assert (calibration["dataset"], len(set(calibration["images"]))) == ("digits", 200)
    evaluation = found["evaluation"]
    assert evaluation["images_by_class"] == np.bincount(labels).tolist()
    right = labels[expected.argmax(axis=1) == labels]
    assert evaluation["right_by_class"] == np.bincount(right).tolist()
    # Right counts, recounted through LiteRT alone.
    for name in DEFAULT:
        runner = Interpreter(str(folder / f"{name}.tflite")).get_signature_runner()
        answers = [
            runner(image=image[None])["probabilities"][0].argmax() for image in images
        ]
        assert found["artifacts"][name]["right"] == (answers == labels).sum()


def test_closing_table(exported):
    folder, printed = exported
    lines = printed[printed.index("artifact ") :].splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [
        "Keras",
        "saved_model/1",
        *(f"{name}.tflite" for name in DEFAULT),
    ]
    for line in lines[1:7]:
        assert "of 360" in line
    for word in ("size", "top-1", "agreement", "latency"):
        assert word in lines[0]
    assert str(folder) in printed


def test_tflite_contract(exported, held_out):
    """Names, types and shapes that clients rely on; uint8 in, static batch of 1."""
    folder, _ = exported
    images, _, expected = held_out
    for name in DEFAULT:
        interpreter = Interpreter(str(folder / f"{name}.tflite"))
        assert list(interpreter.get_signature_list()) == ["serving_default"]
        (entry,), (answer,) = (
            interpreter.get_input_details(),
            interpreter.get_output_details(),
        )
        assert (entry["dtype"], entry["shape"].tolist()) == (np.uint8, [1, 8, 8, 1])
        assert (answer["dtype"], answer["shape"].tolist()) == (np.float32, [1, 10])
        runner = interpreter.get_signature_runner("serving_default")
        assert list(runner.get_input_details()) == ["image"]
        assert list(runner.get_output_details()) == ["probabilities"]
        found = np.concatenate(
            [runner(image=i[None])["probabilities"] for i in images[:50]]
        )
        limit = {"float32": 1e-5, "float16": 0.02}.get(name, 0.3)
        assert np.abs(found - expected[:50]).max() < limit


def test_saved_model_needs_tensorflow_alone(exported, held_out, tmp_path):
    folder, _ = exported
    images, labels, expected = held_out
    keras.utils.save_img(tmp_path / "0.png", images[0], scale=False)
    keras.utils.save_img(
        tmp_path / "1.png", np.kron(images[1], np.ones((5, 5, 1))), scale=False
    )
    np.savez(tmp_path / "images.npz", x=images)
    code = """
import sys
class Block:  # In the loader, since TensorFlow itself probes for Keras.
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("keras", "keras_resnet", "export"):
            import importlib.machinery
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ImportError(f"{spec.name} is blocked")
    def exec_module(self, module):
        raise ImportError
sys.meta_path.insert(0, Block())
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
images = np.load("images.npz")["x"]
answer = loaded.signatures["serving_default"](image=tf.constant(images))
features = loaded.signatures["features"](image=tf.constant(images))["features"]
files = [open(name, "rb").read() for name in ("0.png", "1.png")]
named = loaded.signatures["image_bytes"](image_bytes=tf.constant(files))
np.savez("answers.npz", probabilities=answer["probabilities"], features=features,
    classes=named["classes"].numpy().astype(str), scores=named["scores"])
try:
    loaded.signatures["image_bytes"](image_bytes=tf.constant([files[0], files[1][:80]]))
except tf.errors.InvalidArgumentError:
    print("refused")
"""
    result = run_python(
        "-c", code, folder / "saved_model/1", cwd=tmp_path, env={"PYTHONPATH": ""}
    )
    assert result.stdout == "refused\n", result.stderr
    found = np.load(tmp_path / "answers.npz")
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    assert found["features"].shape == (360, 64)
    order = np.argsort(-expected[0])[:5]
    assert found["classes"][0].tolist() == [str(i) for i in order]
    np.testing.assert_allclose(found["scores"][0], expected[0][order], atol=1e-5)
    assert found["classes"][1][0] == str(labels[1])


def test_saved_model_cli(trained, exported, held_out, tmp_path):
    """Pixels, and the bytes of a JPEG."""
    folder, _ = exported
    images, _, expected = held_out
    np.save(tmp_path / "image.npy", images[:3])
    # JPEG is lossy, and images are resized: Keras gets the pixels that came of it.
    enlarged = np.kron(images[0], np.ones((5, 5, 1), np.uint8))
    encoded = tf.io.encode_jpeg(enlarged)
    np.save(tmp_path / "bytes.npy", np.array([encoded.numpy()], object))
    run_folder = load_classifier(str(trained))
    seen = run_folder.preprocessing.read(encoded).numpy()
    by_jpeg = np.asarray(run_folder.model(seen[None]))[0]

    def run(signature, inputs):
        return run_python(
            "-c",
            "from tensorflow.python.tools.saved_model_cli import main; main()",
            "run", "--dir", folder / "saved_model/1", "--tag_set", "serve",
            "--signature_def", signature, "--inputs", inputs, "--outdir", tmp_path, "--overwrite",
        )  # fmt: skip

    result = run("serving_default", f"image={tmp_path}/image.npy")
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "probabilities.npy"), expected[:3], atol=1e-5
    )
    result = run("image_bytes", f"image_bytes={tmp_path}/bytes.npy")
    assert result.returncode == 0, result.stderr
    order = np.argsort(-by_jpeg)[:5]
    classes = np.load(tmp_path / "classes.npy", allow_pickle=True)
    assert [name.decode() for name in classes[0]] == [str(i) for i in order]
    scores = np.load(tmp_path / "scores.npy")
    np.testing.assert_allclose(scores[0], by_jpeg[order], atol=1e-5)


def run_card(folder, tmp_path, images):
    """Runs the card's own lines of Python, as they stand; what each client says."""
    card_text = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    keras.utils.save_img(tmp_path / "image.jpg", np.kron(images[0], np.ones((9, 9, 1))))
    np.save(tmp_path / "pixels.npy", images)
    blocks = [part.split("```")[0] for part in card_text.split("```python\n")[1:]]
    code = [f"import numpy as np; pixels = np.load({str(tmp_path / 'pixels.npy')!r})"]
    for block in blocks:
        code.append("probabilities = None")
        code.append(block.replace("image.jpg", str(tmp_path / "image.jpg")))
        code.append("if probabilities is not None: print(*probabilities.argmax(1))")
    result = run_python("-c", "\n".join(code), cwd=folder)
    assert result.returncode == 0, result.stderr
    return card_text, result.stdout


def test_model_card_runs(exported, held_out, tmp_path):
    folder, _ = exported
    images, labels, expected = held_out
    text, printed = run_card(folder, tmp_path, images[:5])
    named = " ".join(map(str, labels[:5]))
    assert (expected[:5].argmax(axis=1) == labels[:5]).all()
    # LiteRT; its CompiledModel, with one picture; TensorFlow, with that one enlarged.
    assert f"\n{named}\n{labels[0]}\n[[b'" in printed
    assert f"[[b'{labels[0]}'" in printed
    assert "of 360 held-out images right" in text
    assert "MediaPipe Tasks takes networks for RGB only" in text
    assert 'echo \'{"signature_name": "image_bytes"' in text
    digit = manifest(folder)["evaluation"]["right_by_class"][3]
    assert f"| 3 | {digit} of {(held_out[1] == 3).sum()} |" in text


@pytest.fixture(scope="module")
def extra(trained, tmp_path_factory):
    """A bundle of the artifacts that are written on request."""
    for name in ("onnx", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(name, reason="needs the extras onnx and openvino")
    folder = tmp_path_factory.mktemp("extra") / "demo"
    formats = ["int8_io", "float_io", "int16x8", "onnx", "openvino", "openvino_int8"]
    bundle.export(str(trained), str(folder), formats)
    return folder


def test_artifacts_on_request(extra, held_out, tmp_path):
    images, labels, _ = held_out
    found = manifest(extra)["artifacts"]
    contracts = {
        name: row["signatures"]["serving_default"]["inputs"]["image"]
        for name, row in found.items()
    }
    pixels, any_number = [1, 8, 8, 1], [-1, 8, 8, 1]
    assert contracts == {
        "int8_io": ["int8", pixels, 1.0, -128],
        "float_io": ["float32", pixels],
        "int16x8": ["uint8", pixels],
        "onnx": ["uint8", any_number],
        "openvino": ["uint8", pixels],
        "openvino_int8": ["uint8", pixels],
    }
    for name in ("onnx", "openvino"):
        assert found[name]["agreement"] == 1
        assert found[name]["logit_difference"] < 1e-4
    assert "30 times slower" in found["int16x8"]["note"]
    text, printed = run_card(extra, tmp_path, images[:5])
    named = " ".join(map(str, labels[:5]))
    assert printed.count(named) == 2, printed  # ONNX Runtime and OpenVINO.
    assert "30 times slower" in text


def test_a_bundle_for_the_browser(trained, tmp_path):
    """`--formats=web` alone brings what the page runs."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = tmp_path / "demo"
    result = run_program(
        "export", f"--model={trained}", f"--output={folder}", "--formats=web"
    )
    assert result.returncode == 0, result.stderr
    found = manifest(folder)["artifacts"]
    assert list(found) == ["float16", "int8", "web"]
    assert "web/index.html" in found["web"]["files"]
    copy = (folder / "web" / "int8.tflite").read_bytes()
    assert copy == (folder / "int8.tflite").read_bytes()
    rows, well = verify.verify(str(folder))
    assert well and ["web", "unchecked"] in [row[:2] for row in map(list, rows)]


ODD = ("zero, nought", "one\ntwo", "two|three", "crane", "crane", "鶴", *"6789")


def odd_dataset():
    """Digits whose classes have other names, all of which a file system can hold."""
    return dataclasses.replace(sources.load_dataset("digits"), classes=ODD, name="odd")


def test_names_of_classes_survive(trained, tmp_path):
    """Commas, newlines, doubles and any Unicode, in every file that has names."""
    shutil.copytree(trained, tmp_path / "run")
    record = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    record["classes"] = ODD
    (tmp_path / "run/run.json").write_text(json.dumps(record), encoding="utf-8")
    found = bundle.export(
        str(tmp_path / "run"),
        str(tmp_path / "demo"),
        ["saved_model", "float32"],
        dataset=odd_dataset(),
    )
    assert manifest(tmp_path / "demo")["classes"] == list(ODD) == found["classes"]
    lines = (tmp_path / "demo/labels.txt").read_text(encoding="utf-8").split("\n")
    assert lines[:6] == [
        "zero, nought", "one\\ntwo", "two|three", "crane", "crane (2)", "鶴",
    ]  # fmt: skip
    assert len(set(lines[:10])) == 10 and lines[10:] == [""]
    with zipfile.ZipFile(tmp_path / "demo/float32.tflite") as inside:
        assert inside.read("labels.txt").decode() == "\n".join(lines)
    served = tf.saved_model.load(str(tmp_path / "demo/saved_model/1"))
    png = tf.io.encode_png(sources.load_dataset("digits").test.images[0])[None]
    named = served.signatures["image_bytes"](image_bytes=png)["classes"].numpy()
    assert {name.decode() for name in named[0]} <= set(ODD)
    card_text = (tmp_path / "demo/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| two\\|three | " in card_text and "| one\\\\ntwo | " in card_text
    # Images of a data set that is not known to be free are not given on.
    with np.load(tmp_path / "demo/check.npz") as check:
        assert "label" not in check and len(check["image"]) > 100
        shown = {
            image.tobytes() for image in sources.load_dataset("digits").test.images
        }
        assert not shown & {image.tobytes() for image in check["image"]}
    assert verify.verify(str(tmp_path / "demo"))[1]


def test_calibration_images_are_none_of_the_evaluated(trained, tmp_path):
    """Of a data set whose training images begin with the held-out ones."""
    digits = sources.load_dataset("digits")
    mixed = dataclasses.replace(
        digits, name="mixed", train=digits.test + digits.train.take(np.arange(100))
    )
    found = bundle.export(
        str(trained), str(tmp_path / "demo"), ["int8"], dataset=mixed, seed=3
    )
    calibration = found["calibration"]
    assert min(calibration["images"]) >= 360
    assert calibration["left_out_as_evaluated"] > 100
    assert len(calibration["images"]) + calibration["left_out_as_evaluated"] == 200
    with pytest.raises(InputError, match="must not be among the evaluated ones"):
        same = dataclasses.replace(digits, name="same", train=digits.test)
        bundle.export(str(trained), str(tmp_path / "no"), ["int8"], dataset=same)
    nothing = dataclasses.replace(digits, train=digits.train.take(np.arange(0)))
    with pytest.raises(InputError, match=r"images to calibrate with.*folder:PATH"):
        bundle.export(str(trained), str(tmp_path / "no"), ["int8"], dataset=nothing)
    assert os.listdir(tmp_path) == ["demo"]


def test_calibration_on_a_folder(trained, tmp_path):
    """Pictures of any class, right in the folder or below it."""
    images = sources.load_dataset("digits").train.images[:7]
    for i, image in enumerate(images):
        (tmp_path / "pictures" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(tmp_path / f"pictures/{i % 2}/{i}.png", image, scale=False)
    options = {
        "model": str(trained),
        "formats": ["int8"],
        "output": str(tmp_path / "d"),
    }
    found = bundle.export(calibration=f"folder:{tmp_path}/pictures", **options)
    assert found["calibration"]["images"] == list(range(7))
    # A bundle is given on: without the folders of this machine.
    assert found["calibration"]["dataset"] == "folder:pictures"
    assert str(tmp_path) not in json.dumps(found)
    with pytest.raises(InputError, match=r"Received: folder:.*nothing, which has none"):
        bundle.export(calibration=f"folder:{tmp_path}/nothing", **options)


def test_debug_quantization(trained, tmp_path):
    result = run_program(
        "export", f"--model={trained}", f"--output={tmp_path / 'demo'}",
        "--formats=int8", "--debug_quantization",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = (tmp_path / "demo/quantization.csv").read_text().splitlines()
    assert rows[0].startswith("layer,scale,")
    layers = [row.split(",")[0] for row in rows[1:]]
    assert layers[:2] == ["normalization", "conv1_relu"]
    assert layers[-1] == "predictions"
    for layer in layers:
        assert layer in result.stdout
    assert imread(tmp_path / "demo/quantization.png").shape[2] == 4
    assert verify.verify(str(tmp_path / "demo"))[1]


def test_a_bundle_is_replaced_and_other_things_are_not(trained, tmp_path):
    output = tmp_path / "deep" / "demo"
    export = {"model": str(trained), "output": str(output), "formats": ["float32"]}
    bundle.export(**export)
    bundle.export(**{**export, "formats": ["dynamic"]})
    files = {"dynamic.tflite", *FILES} - {f"{name}.tflite" for name in DEFAULT[:2]}
    files -= {"saved_model", "int8.tflite"}
    assert {p.name for p in output.iterdir()} == files
    # A web application has a manifest.json too.
    (output / "app.js").write_text("...")
    with pytest.raises(InputError, match="which holds other files"):
        bundle.export(**export)
    assert {p.name for p in output.iterdir()} == files | {"app.js"}


@pytest.mark.parametrize("stranger", ["saved_model/2/saved_model.pb", "notes.txt"])
def test_what_a_user_put_beside_is_not_replaced(exported, trained, tmp_path, stranger):
    """Another version for TensorFlow Serving, say; and no bundle at all."""
    folder = shutil.copytree(exported[0], tmp_path / "demo")
    (folder / stranger).parent.mkdir(exist_ok=True)
    (folder / stranger).write_text("mine")
    with pytest.raises(InputError, match=f"other files, such as {stranger}"):
        bundle.export(str(trained), str(folder), ["float32"])
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"other files, such as MODEL_CARD\.md"):
        bundle.export(str(trained), str(folder), ["float32"])
    assert (folder / stranger).read_text() == "mine"


def test_options_of_a_call():
    """What a notebook gives by position, and every flag by keyword."""
    parameters = inspect.signature(bundle.export).parameters
    assert list(parameters)[:3] == ["model", "output", "formats"]
    assert set(parameters) - {"model", "output", "formats"} == {
        "weights", "image_size", "dataset", "data_dir", "images", "calibration", "seed",
        "share_images", "debug_quantization",
    }  # fmt: skip
    with pytest.raises(InputError, match="seed must be 0 or more"):
        bundle.export("resnet18", "no", seed=-1)


def test_no_format(trained, tmp_path):
    with pytest.raises(InputError, match="Name at least one format: saved_model"):
        bundle.export(str(trained), str(tmp_path / "demo"), formats=[])


def perturbed(name, change):
    """The artifact's row with a conversion that changes the weights first."""
    row = artifacts.ARTIFACTS[name]

    def write(path, source):
        model = keras.models.clone_model(source.classifier.model)
        model.set_weights(source.classifier.model.get_weights())
        change(model)
        broken = dataclasses.replace(source.classifier, model=model)
        row.write(path, dataclasses.replace(source, classifier=broken))

    return dataclasses.replace(row, write=write)


def nudge(model):
    """Changes one bias by a hundredth: no label changes."""
    head = model.get_layer("predictions")
    head.bias.assign(head.bias + np.eye(10)[4] * 0.01)


def break_labels(model):
    """Shifts the classes by one."""
    head = model.get_layer("predictions")
    head.set_weights([np.roll(w, 1, axis=-1) for w in head.get_weights()])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("float32", nudge, "of the largest logit; the limit is 1e-04"),
        ("saved_model", nudge, "of the largest logit; the limit is 1e-04"),
        ("float16", break_labels, "the limit is 99.5%"),
        ("int8", break_labels, "the limit is 95.0%"),
    ],
)
def test_a_broken_conversion_is_refused_and_leaves_no_file(
    trained, tmp_path, monkeypatch, name, change, words
):
    monkeypatch.setitem(artifacts.ARTIFACTS, name, perturbed(name, change))
    with pytest.raises(comparison.Disagreement) as error:
        bundle.export(str(trained), str(tmp_path / "demo"), formats=["dynamic", name])
    assert words in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_bundle_survives_a_failed_export(trained, tmp_path, monkeypatch):
    output = tmp_path / "demo"
    bundle.export(str(trained), str(output), formats=["float32"])
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    monkeypatch.setitem(artifacts.ARTIFACTS, "float32", perturbed("float32", nudge))
    with pytest.raises(comparison.Disagreement):
        bundle.export(str(trained), str(output), formats=["float32"])
    assert before == {path.name: path.read_bytes() for path in output.iterdir()}
    assert os.listdir(tmp_path) == ["demo"]


def test_a_full_disk_leaves_nothing(trained, tmp_path):
    """A limit on the size of files stands for the disk."""
    code = f"""
import resource
from export.bundle import export
for limit in (20_000, 250_000):  # Within the SavedModel; within the float32 file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        export({str(trained)!r}, "demo", formats=["saved_model", "float32"])
    except OSError as error:
        print("OSError:", " ".join(str(error).split()))
"""
    result = run_python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("OSError: ") == 2
    assert os.listdir(tmp_path) == []


def test_a_read_only_target(trained):
    result = run_program("export", f"--model={trained}", "--output=/proc/demo")
    assert_one_line(result, "can be written", "/proc/demo")


def test_a_model_that_is_no_classifier(trained, tmp_path):
    run = load_classifier(str(trained))
    features = keras.Model(run.model.input, run.model.get_layer("avg_pool").output)
    (tmp_path / "run.json").write_bytes((trained / "run.json").read_bytes())
    features.save(tmp_path / "final.keras")
    with pytest.raises(InputError, match="ends in the layers avg_pool"):
        bundle.export(str(tmp_path), str(tmp_path / "demo"))


@pytest.mark.full
def test_calibration_is_seeded(trained, tmp_path):
    chosen = []
    for seed in (0, 0, 1):
        bundle.export(str(trained), str(tmp_path / "demo"), formats=["int8"], seed=seed)
        chosen.append(manifest(tmp_path / "demo")["calibration"]["images"])
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", "B"),
        ("resnet50", "A"),
        ("resnet50", "B"),
        ("resnet34", "C"),
        ("plainnet18", "none"),
        ("plainnet20", "none"),
    ],
)
def test_other_kinds_of_network(name, kind, tmp_path):
    """Photograph nets, trained for an epoch on digits enlarged to 32x32."""
    from keras_resnet.training.run import train

    train(
        name,
        shortcut=kind,
        image_size=32,
        epochs=1,
        batch_size=256,
        strategy="one_device",
        model_dir=str(tmp_path / "run"),
        verbose=0,
    )
    found = bundle.export(
        str(tmp_path / "run"),
        str(tmp_path / "demo"),
        formats=["saved_model", "float32", "float16"],
        images=100,
    )
    for row in found["artifacts"].values():
        assert row["agreement"] == 1
    assert found["artifacts"]["float32"]["logit_difference"] <= 1e-4


@pytest.mark.full
@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_export_of_real_networks(name, tmp_path):
    """Published weights, judged on photographs that they were not calibrated on."""
    result = run_python(SHARED.parent / "tools/expand_weights.py", tmp_path)
    assert result.returncode == 0, result.stderr
    with np.load(SHARED / "imagenet/imagenet_crops200.npz") as crops:
        held_out = splits.Split(crops["x"], crops["y"].astype(np.int32))
    names = registry.class_names("imagenet")
    found = bundle.export(
        str(tmp_path / f"{name}.safetensors"),
        str(tmp_path / "demo"),
        ["float32", "float16", "int8"],
        dataset=splits.Dataset("crops200", tuple(names), held_out, held_out, None),
        calibration=f"folder:{SHARED}/imagenet/jpeg100",
    )
    assert found["evaluation"]["images"] == 200
    assert found["evaluation"]["keras_right"] >= 130
    rows = found["artifacts"]
    assert list(rows) == ["float32", "float16", "int8"]
    assert rows["float32"]["agreement"] == 1
    assert rows["float32"]["logit_difference"] <= 1e-4
    assert rows["float16"]["agreement"] >= 0.995
    assert rows["int8"]["agreement"] >= 0.95
    assert rows["int8"]["loss_interval"][0] <= 0.5
    assert verify.verify(str(tmp_path / "demo"))[1]


def untrained(name, size, **variation):
    """A network with statistics of batch normalisation from random images.

    Returns:
        A `Classifier`, the images, and the logits that Keras gives for them.
    """
    images = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    keras.utils.set_random_seed(0)
    pixels = keras.Input((size, size, 3), name="image")
    normalised = keras.layers.Rescaling(1 / 64, -2.0)(pixels)
    model = ResNet(name, input_tensor=normalised, classes=10, **variation)
    for layer in flat_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # The statistics are those of these images.
    model(images, training=True)
    preprocessing = Preprocessing(size, size, 3)
    network = Classifier(
        name, model, tuple("0123456789"), preprocessing, Provenance(name)
    )
    return network, images, saved_model.reference_logits(model, images)


def assert_agreement(paths, images, logits):
    """Of the artifacts with Keras; int8 of random weights says little: it is only run."""
    for artifact, path in paths.items():
        runtime = RUNTIMES[artifacts.ARTIFACTS[artifact].runtime]
        answers = runtime.predict(runtime.open(path), images)
        np.testing.assert_allclose(answers.sum(axis=1), 1, atol=0.02)
        if artifact in ("saved_model", "float32"):
            found = comparison.compare(answers, logits, logits.argmax(axis=1))
            comparison.judge(artifact, found, comparison.LIMITS["float32"])
        elif artifact == "float16":
            # Of images between two classes rounding decides.
            second, first = np.sort(logits, axis=1)[:, -2:].T
            sure = first - second > 0.01 * np.abs(logits).max()
            named = answers.argmax(axis=1)
            assert (named == logits.argmax(axis=1))[sure].all(), artifact


SMALL = {"stem": "cifar", "blocks": (1, 1, 1), "width": 16}
KINDS = {
    "shortcut A": ("cifar_resnet8", {"shortcut": "A"}),
    "shortcut B": ("cifar_resnet8", {"shortcut": "B"}),
    "shortcut C": ("cifar_resnet8", {"shortcut": "C"}),
    "plain": ("cifar_plainnet8", {}),
    "bottleneck": ("resnet50", SMALL),
    "pre-activation": ("resnet50v2", SMALL),
    "squeeze and excitation": ("cifar_resnet8", {"se": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_network(kind, tmp_path):
    """Small and untrained; `test_the_zoo` has all of them whole."""
    name, variation = KINDS[kind]
    network, images, logits = untrained(name, 16, **variation)
    # Else any image would do, and any normalisation.
    assert np.ptp(logits, axis=0).max() > 0.05 * np.abs(logits).max()
    formats = ["saved_model", "float32", "int8"]
    paths = write_artifacts(network, tmp_path, formats, images)
    assert_agreement(paths, images, logits)


# Every network, the paper's with every shortcut.
ZOO = [
    (name, kind)
    for name in VARIANTS
    for kind in ("ABC" if re.fullmatch(r"resnet\d+", name) else [None])
]


@pytest.mark.full
@pytest.mark.parametrize(("name", "kind"), ZOO)
def test_the_zoo(name, kind, tmp_path):
    """Untrained, at 32x32; in a process of its own, since TensorFlow keeps what it
    has loaded: 20 GB after a dozen of them.
    """
    code = (
        f"import test_bundle; test_bundle.prove({name!r}, {kind!r}, {str(tmp_path)!r})"
    )
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = run_python("-c", code, timeout=1800, env={"PYTHONPATH": places})
    assert result.returncode == 0, result.stderr


def prove(name, kind, folder):
    network, images, logits = untrained(name, 32, shortcut=kind)
    formats = ["saved_model", "float32", "float16", "int8"]
    paths = write_artifacts(network, folder, formats, images)
    assert_agreement(paths, images, logits)
