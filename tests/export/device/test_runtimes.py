"""Runtimes of artifacts, and conversion of pixels and outputs for LiteRT."""

import sys

import numpy as np
import pytest

from export.device import runtimes
from export.formats import onnx_model, openvino_ir


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("onnx", "onnx", onnx_model.to_onnx),
        ("onnxruntime", "onnx", lambda _: runtimes.open_onnx("x")),
        ("openvino", "openvino", lambda c: openvino_ir.write_openvino("x", c)),
        ("openvino", "openvino", lambda _: runtimes._get_openvino_core.__wrapped__()),
    ],
)
def test_a_missing_package_is_named(monkeypatch, classifier, package, extra, call):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"{package} is not installed: pip install 'keras-resnet-zoo\[{extra}\]'"
    with pytest.raises(runtimes.MissingRuntime, match=message):
        call(classifier)


def test_pixels_and_outputs_are_converted_for_quantised_tensors():
    """A stored integer q represents the value (q - zero point) * scale."""
    pixels = np.array([0, 1, 100, 255], np.uint8)
    details = {"dtype": np.int8, "quantization": (2.0, -120)}
    stored = runtimes.encode_pixels(pixels, details)
    # 0.5 is rounded to the even number 0, and 127.5 - 120 to 8.
    np.testing.assert_array_equal(stored, np.array([-120, -120, -70, 8], np.int8))
    assert stored.dtype == np.int8
    values = runtimes.decode_values(stored, details)
    np.testing.assert_array_equal(values, np.float32([0, 0, 100, 256]))
    stored = runtimes.encode_pixels(pixels, {"dtype": np.float32})
    assert stored.dtype == np.float32 and stored.tolist() == pixels.tolist()
    details = {"dtype": np.int8, "quantization": (0.5, 0)}
    stored = runtimes.encode_pixels(pixels, details)
    np.testing.assert_array_equal(stored, [0, 2, 127, 127])
