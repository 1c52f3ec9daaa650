"""Exported OpenVINO files in OpenVINO."""

import collections
import dataclasses
import importlib.util
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import run_python

from export.device import runtimes
from export.device.comparison import compare
from export.formats import openvino_ir, saved_model
from export.quantization import equalize

# The tests import OpenVINO themselves, so that other tests need not wait for it.
pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(
        not (importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf")),
        reason="needs the extra openvino",
    ),
]


@pytest.fixture(scope="module")
def ir_folder(classifier, digits, tmp_path_factory):
    """Folder that contains the exported folders `float32` and `int8`."""
    folder = tmp_path_factory.mktemp("openvino")
    openvino_ir.write_openvino(str(folder / "float32"), classifier)
    write_int8(folder / "int8", classifier, digits)
    return folder


def write_int8(folder, classifier, digits):
    """Writes int8 files of an equalised network, as `openvino_int8` exports do."""
    calibration = digits.train.images[:50]
    model = equalize.equalise(classifier.model, calibration)
    equalised_classifier = dataclasses.replace(classifier, model=model)
    openvino_ir.write_openvino(str(folder), equalised_classifier, calibration)


def test_files_have_the_documented_inputs_and_outputs(ir_folder):
    for name in ("float32", "int8"):
        assert runtimes.describe_openvino(str(ir_folder / name)) == {
            "serving_default": {
                "inputs": {"image": ["uint8", [1, 8, 8, 1]]},
                "outputs": {"probabilities": ["float32", [1, 10]]},
            }
        }
        assert {p.name for p in (ir_folder / name).iterdir()} == {
            "model.xml",
            "model.bin",
        }


def test_files_contain_classes_and_preprocessing(ir_folder, classifier):
    import openvino

    for name in ("float32", "int8"):
        model = openvino.Core().read_model(ir_folder / name / "model.xml")
        classes = json.loads(model.get_rt_info("classes").value)
        assert tuple(classes) == classifier.classes
        preprocessing = json.loads(model.get_rt_info("preprocessing").value)
        assert preprocessing == dataclasses.asdict(classifier.preprocessing)


def test_float32_agrees_with_keras(ir_folder, classifier, digits):
    classify = runtimes.open_openvino(str(ir_folder / "float32"))
    logits = saved_model.compute_reference_logits(classifier.model, digits.test.images)
    # `classify` must accept different batch sizes, and a second call must not overwrite
    # the probabilities that the first call returned.
    parts = [classify(digits.test.images[:1]), classify(digits.test.images[1:])]
    comparison = compare(np.concatenate(parts), logits, digits.test.labels)
    assert comparison.logit_difference < 1e-5
    assert comparison.agreement == 1


def test_int8_agrees_with_keras_and_runs_in_int8(ir_folder, classifier, digits):
    """All convolutions except the first run in int8."""
    import openvino

    classify = runtimes.open_openvino(str(ir_folder / "int8"))
    logits = saved_model.compute_reference_logits(classifier.model, digits.test.images)
    comparison = compare(classify(digits.test.images), logits, digits.test.labels)
    assert comparison.agreement >= 0.95
    assert comparison.loss_points < 1
    sizes = {p.parent.name: p.stat().st_size for p in ir_folder.glob("*/model.bin")}
    assert sizes["int8"] < 0.4 * sizes["float32"]
    model = openvino.Core().compile_model(
        ir_folder / "int8/model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    operations = [
        (info["layerType"].astype(str), info["runtimePrecision"].astype(str))
        for info in (o.get_rt_info() for o in model.get_runtime_model().get_ops())
    ]
    convolution_dtypes = [dtype for kind, dtype in operations if kind == "Convolution"]
    assert len(convolution_dtypes) == 7
    assert sum(dtype in ("u8", "i8") for dtype in convolution_dtypes) == 6


def test_graph_has_only_the_operations_of_the_paper(ir_folder):
    """Batch normalisation is folded into the convolutions."""
    num_blocks = 3
    num_convolutions = 1 + 2 * num_blocks
    float32_counts, int8_counts = (
        collections.Counter(node.get("type") for node in read_nodes(ir_folder / name))
        for name in ("float32", "int8")
    )
    for counts in (float32_counts, int8_counts):
        assert counts["Convolution"] == counts["ReLU"] == num_convolutions
        assert counts["MatMul"] == counts["SoftMax"] == counts["Transpose"] == 1
        # Each of the two shortcuts A subsamples by MaxPool and adds channels by Pad.
        assert counts["MaxPool"] == counts["Pad"] == 2
        assert not {kind for kind in counts if "BatchNorm" in kind}
    assert not {"FakeQuantize", "Multiply"} & float32_counts.keys()
    # The outputs of ReLUs, one input of each addition and the features are quantised.
    assert int8_counts["FakeQuantize"] == num_convolutions + num_blocks + 1
    # The dense layer and all convolutions except the first have int8 weights.
    data_elements = [node.find("data") for node in read_nodes(ir_folder / "int8")]
    element_types = [
        element.get("element_type") for element in data_elements if element is not None
    ]
    assert (
        element_types.count("i8") == int8_counts["Multiply"] == num_convolutions - 1 + 1
    )


def read_nodes(folder):
    return ElementTree.parse(folder / "model.xml").getroot().iter("layer")


def test_int8_is_reproducible(ir_folder, classifier, digits, tmp_path):
    write_int8(tmp_path / "again", classifier, digits)
    # model.xml is not compared, because OpenVINO numbers the nodes of all models in a
    # process consecutively, so the second model has other node numbers in this file.
    content = (tmp_path / "again/model.bin").read_bytes()
    assert content == (ir_folder / "int8/model.bin").read_bytes()


def test_ctrl_c_works_after_two_networks_were_deleted(ir_folder):
    """Ctrl-C would crash the process if each network had its own `openvino.Core`."""
    code = f"""
import os, signal, time
import numpy as np
from export.device import runtimes
folders = [{str(ir_folder)!r} + name for name in ("/float32", "/int8")]
opened = [runtimes.open_openvino(folder) for folder in folders]
for classify in opened:
    classify(np.zeros((1, 8, 8, 1), np.uint8))
del classify, opened[0], opened[0]
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    result = run_python("-c", code)
    assert (result.returncode, result.stdout) == (0, "interrupted\n"), result.stderr


def test_telemetry_is_disabled(trained_run, tmp_path):
    """OpenVINO sends no usage data, even if the home folder contains no opt-out."""
    code = f"""
from export.formats import openvino_ir
from keras_resnet.evaluation import load_classifier
classifier = load_classifier({str(trained_run)!r})
shape = (4, *classifier.preprocessing.shape)
import numpy as np, sys
images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
openvino_ir.write_openvino("int8", classifier, images)
print("openvino_telemetry" in sys.modules)
"""
    home = tmp_path / "home"
    home.mkdir()
    result = run_python("-c", code, cwd=tmp_path, env={"HOME": str(home)})
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "False"
    # The telemetry package would store the user's consent in this folder.
    assert not (home / "intel").exists()
