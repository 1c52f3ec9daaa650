"""The bundle, run by the clients that its users have."""

import dataclasses
import hashlib
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from conftest import assert_one_line, run_program, run_python

from export import bundle, saved_model, tflite, verify
from keras_resnet import data
from keras_resnet.classifiers import load_classifier
from keras_resnet.errors import InputError

FILES = {
    "saved_model", "float32.tflite", "float16.tflite", "dynamic.tflite", "int8.tflite",
    "labels.txt", "MODEL_CARD.md", "manifest.json",
}  # fmt: skip


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """A bundle made by the program, and what the program printed."""
    folder = tmp_path_factory.mktemp("artifacts") / "demo"
    result = run_program("export", f"--model={trained}", f"--output={folder}")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


@pytest.fixture(scope="session")
def held_out(trained):
    """Held-out images, their labels, and the probabilities that Keras gives."""
    digits = data.load_dataset("digits")
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
        assert row["latency_ms"] > 0
        assert row["agreement"] >= 0.95, name
    listed = {path for row in found["artifacts"].values() for path in row["files"]}
    there = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    } - {"labels.txt", "MODEL_CARD.md", "manifest.json"}
    assert listed == there
    assert found["versions"]["keras"] == keras.__version__
    calibration = found["calibration"]
    assert (calibration["split"], len(set(calibration["images"]))) == ("train", 200)
    # Right counts, recounted through LiteRT alone.
    for name in tflite.FORMATS:
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
        *(f"{name}.tflite" for name in ("float32", "float16", "dynamic", "int8")),
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
    for name in tflite.FORMATS:
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


def test_int8_computes_in_int8(exported):
    folder, _ = exported
    details = Interpreter(str(folder / "int8.tflite")).get_tensor_details()
    kernels = [
        d
        for d in details
        if len(d["shape"]) == 4 and d["shape"][1:3].tolist() == [3, 3]
    ]
    assert len(kernels) >= 7
    for kernel in kernels:
        assert kernel["dtype"] == np.int8
        # Per-channel scales.
        assert len(kernel["quantization_parameters"]["scales"]) == kernel["shape"][0]
    sizes = {
        name: (folder / f"{name}.tflite").stat().st_size for name in tflite.FORMATS
    }
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]


def test_saved_model_stores_each_variable_once(exported, trained):
    folder, _ = exported
    variables = tf.train.list_variables(
        str(folder / "saved_model/1/variables/variables")
    )
    stored = sum(
        np.prod(shape, dtype=int) for name, shape in variables if "GRAPH" not in name
    )
    assert stored == load_classifier(str(trained)).model.count_params()


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


def test_saved_model_cli(exported, held_out, tmp_path):
    folder, _ = exported
    images, _, expected = held_out
    np.save(tmp_path / "image.npy", images[:3])
    keras.utils.save_img(tmp_path / "0.png", images[0], scale=False)
    np.save(
        tmp_path / "bytes.npy", np.array([(tmp_path / "0.png").read_bytes()], object)
    )

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
    assert np.load(tmp_path / "classes.npy", allow_pickle=True)[0, 0].decode() == str(
        expected[0].argmax()
    )


def test_model_card_runs(exported, held_out, tmp_path):
    """The card's own lines of code, run as they stand."""
    folder, _ = exported
    images, labels, _ = held_out
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    lite, served = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    keras.utils.save_img(tmp_path / "image.png", images[0], scale=False)
    np.save(tmp_path / "image.npy", images[0])
    code = (
        f"import numpy as np; pixels = np.load({str(tmp_path / 'image.npy')!r})\n{lite}\n"
        "print(probabilities.argmax())\n"
        f"{served.replace('image.png', str(tmp_path / 'image.png'))}"
    )
    result = run_python("-c", code, cwd=folder)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == str(labels[0])
    assert lines[1].startswith(f"[[b'{labels[0]}'")
    assert "of 360 held-out images right" in card


def test_a_bundle_is_replaced_and_other_things_are_not(trained, tmp_path):
    output = tmp_path / "deep" / "demo"
    export = {"model": str(trained), "output": str(output), "formats": ["float32"]}
    bundle.export(**export)
    bundle.export(**{**export, "formats": ["dynamic"]})
    files = {"dynamic.tflite", "labels.txt", "MODEL_CARD.md", "manifest.json"}
    assert {p.name for p in output.iterdir()} == files
    # A web application has a manifest.json too.
    (output / "app.js").write_text("...")
    with pytest.raises(InputError, match="which holds other files"):
        bundle.export(**export)
    assert {p.name for p in output.iterdir()} == files | {"app.js"}


def test_no_format(trained, tmp_path):
    with pytest.raises(InputError, match="Name at least one format: saved_model"):
        bundle.export(str(trained), str(tmp_path / "demo"), formats=[])


def perturbed(name, change):
    """The artifact's row with a conversion that changes the weights first."""
    row = bundle.ARTIFACTS[name]

    def write(path, run, static, calibration):
        model = keras.models.clone_model(run.model)
        model.set_weights(run.model.get_weights())
        change(model)
        broken = dataclasses.replace(run, model=model)
        saved_model.write_static(broken, static)
        row.write(path, broken, static, calibration)

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
        ("float16", break_labels, "the limit is 95%"),
        ("int8", break_labels, "the limit is 95%"),
    ],
)
def test_a_broken_conversion_is_refused_and_leaves_no_file(
    trained, tmp_path, monkeypatch, name, change, words
):
    monkeypatch.setitem(bundle.ARTIFACTS, name, perturbed(name, change))
    with pytest.raises(verify.Disagreement) as error:
        bundle.export(str(trained), str(tmp_path / "demo"), formats=["dynamic", name])
    assert words in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_bundle_survives_a_failed_export(trained, tmp_path, monkeypatch):
    output = tmp_path / "demo"
    bundle.export(str(trained), str(output), formats=["float32"])
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    monkeypatch.setitem(bundle.ARTIFACTS, "float32", perturbed("float32", nudge))
    with pytest.raises(verify.Disagreement):
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


def test_calibration_is_seeded(trained, tmp_path):
    chosen = []
    for seed in (0, 0, 1):
        bundle.export(str(trained), str(tmp_path / "demo"), formats=["int8"], seed=seed)
        chosen.append(manifest(tmp_path / "demo")["calibration"]["images"])
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", "B"),
        pytest.param("resnet50", "A", marks=pytest.mark.full),
        pytest.param("resnet50", "B", marks=pytest.mark.full),
        pytest.param("resnet34", "C", marks=pytest.mark.full),
        pytest.param("plainnet18", "none", marks=pytest.mark.full),
        pytest.param("plainnet20", "none", marks=pytest.mark.full),
    ],
)
def test_other_kinds_of_network(name, kind, tmp_path):
    """Photograph nets, trained for an epoch on digits enlarged to 32x32."""
    from keras_resnet.training import train

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
