"""Command `export.verify`, with only LiteRT and NumPy installed."""

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
def bundle_copy(exported_bundle, tmp_path):
    """A copy of a bundle that a test may change."""
    return shutil.copytree(exported_bundle[0], tmp_path / "copy")


def run_verify(folder):
    """Runs `export.verify` with only LiteRT, NumPy and their dependencies."""
    code = """
import importlib.machinery, runpy, sys
ALLOWED = {"numpy", "ai_edge_litert", "flatbuffers", "ml_dtypes", "google", "tqdm",
    "typing_extensions", "backports", "keras_resnet", "export"}
class BlockingImporter:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ALLOWED:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
    def exec_module(self, module):
        raise ImportError
sys.meta_path.insert(0, BlockingImporter())
sys.argv = ["verify", sys.argv[1]]
runpy.run_module("export.verify", run_name="__main__", alter_sys=False)
"""
    return run_python("-c", code, folder)


def join_columns(process):
    """Returns the standard output with single spaces between columns."""
    return re.sub(" +", " ", process.stdout)


def test_bundle_is_verified_with_only_litert_and_numpy(exported_bundle):
    folder, _ = exported_bundle
    process = run_verify(folder)
    assert process.returncode == 0, process.stderr
    verdicts = {
        line.split()[0]: line.split()[1] for line in process.stdout.splitlines()
    }
    assert verdicts == {
        "files": "ok",
        "saved_model/1": "unchecked",
        **{
            f"{name}.tflite": "ok" for name in ("float32", "float16", "dynamic", "int8")
        },
        "unchecked:": "saved_model/1",
    }
    # check.npz contains all 360 test images, so verify counts `keras_right` correct ones.
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    num_correct = manifest["evaluation"]["keras_right"]
    for words in (
        "100.0% of 360",
        f"{num_correct} correct",
        f"at export {num_correct}",
    ):
        assert words in process.stdout


def test_every_artifact_is_checked_if_its_runtime_is_installed(exported_bundle):
    findings, passed = verify.verify(str(exported_bundle[0]))
    assert passed and {finding.verdict for finding in findings} == {"ok"}


def test_changed_files_are_named(bundle_copy):
    with (bundle_copy / "labels.txt").open("a") as file:
        file.write("11\n")
    (bundle_copy / "int8.tflite").unlink()
    (bundle_copy / "unexpected.txt").write_text("...")
    process = run_verify(bundle_copy)
    assert process.returncode == 1
    for line in (
        "labels.txt differs",
        "int8.tflite is missing",
        "unexpected.txt is unexpected",
    ):
        assert f"files wrong {line}" in join_columns(process)
    assert "int8.tflite unchecked" in join_columns(process)


@pytest.mark.parametrize(
    ("artifact", "pattern"),
    [("float32", "logits differ by"), ("int8", r"agreement 0.*, at export 1; right")],
)
def test_different_network_with_matching_sha256_is_wrong(
    bundle_copy, trained_run, artifact, pattern
):
    """The different network simulates a device that computes incorrectly."""
    classifier = load_classifier(str(trained_run))
    head = classifier.model.get_layer("predictions")
    head.set_weights([np.roll(w, 1, axis=-1) for w in head.get_weights()])
    images = np.zeros((1, 8, 8, 1), np.uint8)
    write_artifacts(classifier, bundle_copy, [artifact], images)
    manifest = json.loads((bundle_copy / "manifest.json").read_text(encoding="utf-8"))
    path = f"{artifact}.tflite"
    files = describe_files(str(bundle_copy), [path])
    manifest["artifacts"][artifact]["files"] = files
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    findings, passed = verify.verify(str(bundle_copy))
    assert not passed
    (finding,) = [finding for finding in findings if finding.artifact == path]
    assert finding.verdict == "wrong" and re.search(pattern, finding.details), finding


def test_unreadable_artifact_is_wrong_and_others_are_checked(bundle_copy):
    """The manifest lists the sha256 of the damaged file, so only LiteRT rejects it."""
    (bundle_copy / "int8.tflite").write_bytes(b"no model" * 10)
    manifest = json.loads((bundle_copy / "manifest.json").read_text(encoding="utf-8"))
    rows = manifest["artifacts"]
    rows["int8"]["files"] = describe_files(str(bundle_copy), ["int8.tflite"])
    rows["float16"]["runtime"] = "Abacus"
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    process = run_verify(bundle_copy)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "int8.tflite wrong LiteRT failed: " in join_columns(process)
    assert "float16.tflite unchecked this version does not support Abacus" in (
        join_columns(process)
    )
    assert "dynamic.tflite ok " in join_columns(process)


@pytest.mark.parametrize(
    "content",
    [
        None, "{", "[]", '{"format": 1}', '{"format": 2}',
        '{"format": 2, "files": {}, "artifacts": []}',
        '{"format": 2, "files": {}, "artifacts": {"int8": {"path": "int8.tflite"}}}',
    ],
)  # fmt: skip
def test_folder_without_valid_manifest_is_rejected(tmp_path, content):
    if content:
        (tmp_path / "manifest.json").write_text(content)
    process = run_verify(tmp_path)
    assert_one_line(process, "must be a folder that python -m export wrote")
