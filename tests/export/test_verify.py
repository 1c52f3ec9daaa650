"""Bundles read again, with LiteRT and NumPy alone."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import assert_one_line, run_python, write_artifacts

from export import verify
from export.device.manifest import describe_files
from keras_resnet.evaluation.classifier import load_classifier


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of a bundle, to be changed."""
    return shutil.copytree(exported[0], tmp_path / "copy")


def run_verify(folder):
    """Where LiteRT and NumPy are all that is installed."""
    code = """
import importlib.machinery, runpy, sys
ALLOWED = {"numpy", "ai_edge_litert", "flatbuffers", "ml_dtypes", "google", "tqdm",
    "typing_extensions", "backports", "keras_resnet", "export"}
class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ALLOWED:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
    def exec_module(self, module):
        raise ImportError
sys.meta_path.insert(0, Block())
sys.argv = ["verify", sys.argv[1]]
runpy.run_module("export.verify", run_name="__main__", alter_sys=False)
"""
    return run_python("-c", code, folder)


def words(result):
    """What was printed, without the widths of columns."""
    return re.sub(" +", " ", result.stdout)


def test_a_bundle_is_verified_with_litert_and_numpy_alone(exported):
    folder, _ = exported
    result = run_verify(folder)
    assert result.returncode == 0, result.stderr
    found = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()}
    assert found == {
        "files": "ok",
        "saved_model/1": "unchecked",
        **{
            f"{name}.tflite": "ok" for name in ("float32", "float16", "dynamic", "int8")
        },
        "unchecked:": "saved_model/1",
    }
    # The counts are those of the same images, counted by Keras at export.
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    right = manifest["evaluation"]["keras_right"]
    assert f"100.0% of 360, {right} right (at export {right})" in result.stdout


def test_all_is_checked_where_all_is_installed(exported):
    rows, well = verify.verify(str(exported[0]))
    assert well and {verdict for _, verdict, _ in rows} == {"ok"}


def test_a_changed_file_is_named(copied):
    with (copied / "labels.txt").open("a") as file:
        file.write("11\n")
    (copied / "int8.tflite").unlink()
    (copied / "stranger.txt").write_text("...")
    result = run_verify(copied)
    assert result.returncode == 1
    for line in (
        "labels.txt is not the file that was exported",
        "int8.tflite is missing",
        "stranger.txt is not of this bundle",
    ):
        assert f"files wrong {line}" in words(result)
    assert "int8.tflite unchecked" in words(result)


@pytest.mark.parametrize(
    ("artifact", "words"),
    [("float32", "logits differ by"), ("int8", r"agreement 0.*, at export 1; right")],
)
def test_another_network_under_the_right_name_is_wrong(
    copied, trained, artifact, words
):
    """With a sha256 that fits: what a device would do that computes wrongly."""
    classifier = load_classifier(str(trained))
    head = classifier.model.get_layer("predictions")
    head.set_weights([np.roll(w, 1, axis=-1) for w in head.get_weights()])
    images = np.zeros((1, 8, 8, 1), np.uint8)
    write_artifacts(classifier, copied, [artifact], images)
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    path = f"{artifact}.tflite"
    files = describe_files(str(copied), [path])
    manifest["artifacts"][artifact]["files"] = files
    (copied / "manifest.json").write_text(json.dumps(manifest))
    rows, well = verify.verify(str(copied))
    assert not well
    (verdict, said), *_ = [found for name, *found in rows if name == path]
    assert verdict == "wrong" and re.search(words, said), said


def test_a_file_that_its_runtime_refuses_is_wrong_and_the_others_are_checked(copied):
    """Its sha256 made to fit."""
    (copied / "int8.tflite").write_bytes(b"no model" * 10)
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    rows = manifest["artifacts"]
    rows["int8"]["files"] = describe_files(str(copied), ["int8.tflite"])
    rows["float16"]["runtime"] = "Abacus"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    result = run_verify(copied)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "int8.tflite wrong LiteRT cannot run it: " in words(result)
    assert "float16.tflite unchecked this version does not know Abacus" in (
        words(result)
    )
    assert "dynamic.tflite ok " in words(result)


@pytest.mark.parametrize(
    "content",
    [
        None, "{", "[]", '{"format": 1}', '{"format": 2}',
        '{"format": 2, "files": {}, "artifacts": []}',
        '{"format": 2, "files": {}, "artifacts": {"int8": {"path": "int8.tflite"}}}',
    ],
)  # fmt: skip
def test_what_is_no_bundle(tmp_path, content):
    if content:
        (tmp_path / "manifest.json").write_text(content)
    result = run_verify(tmp_path)
    assert_one_line(result, "must be a folder that python -m export wrote")
