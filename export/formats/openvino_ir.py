"""Files in OpenVINO's own format, in float32 or quantised to int8 by NNCF."""

import io
import logging
import os
from typing import TYPE_CHECKING

import numpy as np

from keras_resnet.evaluation import Classifier

from ..device import disable_telemetry, require_extra
from .onnx_model import describe_classifier, to_onnx

if TYPE_CHECKING:
    import openvino


def write_openvino(
    path: str, classifier: Classifier, calibration: np.ndarray | None = None
) -> None:
    """Writes a classifier to OpenVINO's files `model.xml` and `model.bin`.

    The input is `image`, uint8, (1, height, width, channels). The graph normalises the
    image. The output is `probabilities`, float32, (1, classes). The batch size is fixed
    to 1, because a variable batch size makes int8 3 % slower. OpenVINO's `reshape` can
    enlarge the batch. `rt_info` contains `classes` and `preprocessing` as JSON.

    With a calibration set, uint8, (n, height, width, channels), the weights (one scale
    per output channel) and activations are int8, except in the first convolution. The
    ranges of the activations include all values that the calibration images produce.
    Networks with equalised channels (see `quantization.equalise`) lose less accuracy.
    Use int8 on CPUs with VNNI or AMX (Intel since 2019, AMD since 2022). On older CPUs,
    sums of int8 products may overflow.

    Raises:
        InputError: If `to_onnx` raises this error, or if the package `openvino` or
            `nncf` is not installed.
    """
    with require_extra("openvino"), disable_telemetry():
        import onnx  # noqa: F401
        import openvino

        if calibration is not None:
            import nncf.quantization.range_estimator  # noqa: F401
    onnx_content = to_onnx(classifier).SerializeToString()
    # In a model from `Core().read_model`, NNCF would not find the biases to correct.
    model = openvino.convert_model(io.BytesIO(onnx_content))
    if calibration is not None:
        model = _quantize(model, calibration)
    model.reshape([1, *classifier.preprocessing.shape])
    for key, value in describe_classifier(classifier).items():
        model.set_rt_info(value, key)
    os.makedirs(path, exist_ok=True)
    # By default, OpenVINO saves weights as float16, which would make float32 inexact.
    openvino.save_model(model, os.path.join(path, "model.xml"), compress_to_fp16=False)


def _quantize(model: "openvino.Model", calibration: np.ndarray) -> "openvino.Model":
    import nncf

    nncf.set_log_level(logging.ERROR)
    nodes = model.get_ordered_ops()
    estimators = nncf.quantization.range_estimator.RangeEstimatorParametersSet
    stem = next(n for n in nodes if n.get_type_name() == "Convolution")
    return nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in calibration]),
        subset_size=len(calibration),
        preset=nncf.QuantizationPreset.MIXED,
        # int8 would make the first convolution slightly faster but far less accurate.
        ignored_scope=nncf.IgnoredScope(names=[stem.get_friendly_name()]),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # The default limits weights to 7 bits to avoid overflows without VNNI.
            overflow_fix=nncf.OverflowFix.DISABLE,
            # The default averages the images' ranges, which clips large activations.
            activations_range_estimator_params=estimators.MINMAX,
        ),
    )
