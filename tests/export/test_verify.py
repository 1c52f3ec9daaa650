"""Limits of agreement, against hand calculations, and bundles read again."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from conftest import assert_one_line, run_python, write_artifacts

from export import verify
from export.device import comparison
from export.device.manifest import describe_files
from keras_resnet.evaluation.classifier import load_classifier


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


LOGITS = np.array([[4.0, 1.0, -2.0], [0.0, 3.0, 1.0], [1.0, 2.0, 5.0], [2.0, 1.9, 0.0]])
LABELS = np.array([0, 1, 2, 1])
FLOAT32, FLOAT16, INT8 = (
    comparison.limit_of(precision, 360, modern=True)
    for precision in ("float32", "float16", "int8")
)


def test_the_same_outputs():
    found = comparison.compare(softmax(LOGITS), LOGITS, LABELS)
    assert (found.images, found.right, found.keras_right) == (4, 3, 3)
    assert found.agreement == 1
    assert found.loss_points == 0
    assert found.difference < 1e-12
    assert found.logit_difference < 1e-12


def test_a_difference_of_one_logit():
    """A logit that is 0.01 higher, of logits up to 5."""
    other = LOGITS.copy()
    other[2, 0] += 0.01
    found = comparison.compare(softmax(other), LOGITS, LABELS)
    # The softmax tells logits less the logarithm of their sum, which moves too.
    share = softmax(LOGITS)[2, 0]
    moved = math.log(1 + share * (math.exp(0.01) - 1))
    assert found.logit_difference == pytest.approx((0.01 - moved) / 5, rel=1e-6)
    with pytest.raises(
        comparison.Disagreement, match=r"differs .* by 2\.0e-03 .* limit is 1e-04"
    ):
        comparison.judge("float32", found, FLOAT32)


def test_paired_counts():
    """The artifact has the first wrong and the last right."""
    probabilities = softmax(LOGITS)[:, [1, 0, 2]][:, [0, 1, 2]]
    probabilities[1] = softmax(LOGITS)[1]
    found = comparison.compare(probabilities, LOGITS, LABELS)
    assert (found.right, found.keras_right) == (3, 3)
    assert found.agreement == 0.5
    assert found.loss_points == 0


@pytest.mark.parametrize(
    ("lost", "won", "images", "low", "high"),
    [
        # By hand, with b lost and c won of n:
        # ((b - c) -+ 1.96 sqrt(b + c + 1 - (b - c)^2 / (n + 2))) / (n + 2)
        (0, 0, 98, -1.96, 1.96),
        (8, 0, 198, 4 - 0.98 * math.sqrt(9 - 0.32), 4 + 0.98 * math.sqrt(9 - 0.32)),
        (3, 3, 348, -0.56 * math.sqrt(7), 0.56 * math.sqrt(7)),
    ],
)
def test_interval(lost, won, images, low, high):
    assert comparison.paired_interval(lost, won, images) == pytest.approx(
        (low, high), abs=1e-9
    )


def judged(lost, won, images):
    """Comparison of a classifier of two classes, `lost` and `won` times another."""
    labels = np.zeros(images, int)
    logits = np.tile([1.0, 0.0], (images, 1))
    logits[:won] = [0.0, 1.0]
    probabilities = np.tile([0.9, 0.1], (images, 1))
    probabilities[won : won + lost] = [0.1, 0.9]
    return comparison.compare(probabilities, logits, labels)


def test_lower_precision_may_lose_what_chance_explains():
    comparison.judge("int8", judged(3, 0, 360), INT8)
    comparison.judge("int8", judged(20, 15, 1000), INT8)


def test_a_shown_loss_is_refused():
    """12 of 360 lost is 3.3 points, at least 1.5."""
    with pytest.raises(
        comparison.Disagreement, match=r"int8 loses 3\.3 points .* limit is 0\.5"
    ):
        comparison.judge("int8", judged(12, 0, 360), INT8)


def test_disagreement_is_refused_though_nothing_is_lost():
    with pytest.raises(
        comparison.Disagreement, match=r"on 94\.00% of 100 images; the limit is 95\.0%"
    ):
        comparison.judge("int8", judged(3, 3, 100), INT8)
    comparison.judge("int8", judged(2, 2, 100), INT8)


@pytest.mark.parametrize("broken", [np.nan, 0.0])
def test_no_numbers_are_no_agreement(broken):
    found = comparison.compare(np.full_like(LOGITS, broken), LOGITS, LABELS)
    with pytest.raises(comparison.Disagreement):
        comparison.judge("float32", found, FLOAT32)


def test_float_artifacts_name_the_same_classes():
    """Logits that differ by little may still be another class, in a tie."""
    logits = np.array([[1.0, 1.0 - 1e-5, -2.0]] * 2)
    other = logits.copy()
    other[1, :2] = logits[1, 1::-1]
    found = comparison.compare(softmax(other), logits, np.array([0, 0]))
    assert found.logit_difference < 1e-4
    with pytest.raises(
        comparison.Disagreement, match=r"50\.00% of 2 .* limit is 100\.0%"
    ):
        comparison.judge("float32", found, FLOAT32)


def test_float16_may_differ_on_one_image_of_200():
    comparison.judge("float16", judged(1, 0, 200), FLOAT16)
    with pytest.raises(comparison.Disagreement, match=r"limit is 99\.5%"):
        comparison.judge("float16", judged(2, 0, 200), FLOAT16)


def test_limits_are_narrower_where_there_are_images_enough():
    """32 and 50 of 5,000 lost: 0.64 and 1.0 point, at least 0.41 and 0.71."""
    paper, modern = (comparison.limit_of("int8", 5000, m) for m in (False, True))
    assert comparison.limit_of("int8", 4999, False) == INT8
    comparison.judge("int8", judged(32, 0, 5000), modern)
    with pytest.raises(comparison.Disagreement, match=r"limit is 0\.3"):
        comparison.judge("int8", judged(32, 0, 5000), paper)
    with pytest.raises(comparison.Disagreement, match=r"limit is 0\.6"):
        comparison.judge("int8", judged(50, 0, 5000), modern)


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
        assert f"files                   wrong      {line}" in result.stdout
    assert "int8.tflite             unchecked" in result.stdout


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
    assert "int8.tflite             wrong      LiteRT cannot run it: " in result.stdout
    assert "float16.tflite          unchecked  this version does not know Abacus" in (
        result.stdout
    )
    assert "dynamic.tflite          ok " in result.stdout


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
