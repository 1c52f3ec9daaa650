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
from keras_resnet.support.errors import InputError


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


def test_different_network_with_matching_sha256_is_wrong(bundle_copy, trained_run):
    """The different network simulates a device that computes incorrectly."""
    classifier = load_classifier(str(trained_run))
    head = classifier.model.get_layer("predictions")
    head.set_weights([np.roll(w, 1, axis=-1) for w in head.get_weights()])
    write_artifacts(classifier, bundle_copy, ["float32", "dynamic"])
    manifest = json.loads((bundle_copy / "manifest.json").read_text(encoding="utf-8"))
    for name in ("float32", "dynamic"):
        files = describe_files(str(bundle_copy), [f"{name}.tflite"])
        manifest["artifacts"][name]["files"] = files
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    findings, passed = verify.verify(str(bundle_copy))
    assert not passed
    details = {f.artifact: f.details for f in findings if f.verdict == "wrong"}
    assert details.keys() == {"float32.tflite", "dynamic.tflite"}
    assert "logits differ by" in details["float32.tflite"]
    assert re.search(r"agreement 0.*, at export .*; right", details["dynamic.tflite"])


def test_bundle_without_check_images_is_wrong(bundle_copy):
    (bundle_copy / "check.npz").unlink()
    findings, passed = verify.verify(bundle_copy)
    assert (findings, passed) == ([("files", "wrong", "check.npz is missing")], False)


def test_results_may_drift_a_little(bundle_copy):
    """Of 360 images, 3 may differ in float32 and float16, and 18 in int8."""
    manifest = json.loads((bundle_copy / "manifest.json").read_text(encoding="utf-8"))
    # Better results at export have the same effect as worse results on the device.
    drifts = {"float32": (0.009, 3), "float16": (0, 4), "dynamic": (0.049, 18)}
    drifts["int8"] = (0.051, 0)
    for name, (agreement, right) in drifts.items():
        manifest["artifacts"][name]["check"]["agreement"] += agreement
        manifest["artifacts"][name]["check"]["right"] += right
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    findings, _ = verify.verify(bundle_copy)
    details = {f.artifact: f.details for f in findings if f.verdict == "wrong"}
    assert details.keys() == {"float16.tflite", "int8.tflite"}
    assert re.fullmatch(r"right \d+, at export \d+", details["float16.tflite"])
    assert re.fullmatch(r"agreement .*, at export 1\.\d+", details["int8.tflite"])


def test_unreadable_artifact_is_wrong_and_others_are_checked(bundle_copy):
    """The manifest lists the sha256 of the damaged file, so only LiteRT rejects it."""
    (bundle_copy / "int8.tflite").write_bytes(b"no model" * 10)
    manifest = json.loads((bundle_copy / "manifest.json").read_text(encoding="utf-8"))
    rows = manifest["artifacts"]
    rows["int8"]["files"] = describe_files(str(bundle_copy), ["int8.tflite"])
    rows["float16"]["runtime"] = "Abacus"
    rows["saved_model"]["runtime"] = None
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    process = run_verify(bundle_copy)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "int8.tflite wrong LiteRT failed: " in join_columns(process)
    assert "float16.tflite unchecked this version does not support Abacus" in (
        join_columns(process)
    )
    assert "saved_model/1 unchecked runs only in browsers" in join_columns(process)
    assert "dynamic.tflite ok " in join_columns(process)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        ("{", "it is damaged or does not describe a bundle"),
        ("[]", "it is damaged"),
        ('{"format": 1}', "its format is 1, not 2"),
        ('{"format": 2}', "it is damaged"),
        ('{"format": 3}', "its format is 3, not 2"),
        ('{"format": 2, "files": {}, "artifacts": []}', "it is damaged"),
        (
            '{"format": 2, "files": {}, "artifacts": {"int8": {"path": "int8.tflite"}}}',
            "it is damaged",
        ),
    ],
)
def test_folder_without_valid_manifest_is_rejected(tmp_path, content, problem):
    if content:
        (tmp_path / "manifest.json").write_text(content)
    message = f"must be a folder that python -m export wrote.*cannot be used: {problem}"
    with pytest.raises(InputError, match=message):
        verify.verify(tmp_path)


def test_missing_folder_is_reported_in_one_line(tmp_path):
    process = run_verify(tmp_path / "none")
    assert_one_line(process, "must be a folder that python -m export wrote", "none")
