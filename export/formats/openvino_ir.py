"""OpenVINO's own files, in float32 or, by NNCF, in int8."""

import io
import logging
import os
from typing import TYPE_CHECKING

import numpy as np

from keras_resnet.evaluation import Classifier

from ..device import needs, without_telemetry
from .onnx_model import describe_classifier, to_onnx

if TYPE_CHECKING:
    import openvino


def write_openvino(
    path: str, classifier: Classifier, calibration: np.ndarray | None = None
) -> None:
    """Writes a classifier as OpenVINO reads it: `model.xml` and `model.bin`.

    It takes `image`, uint8 (1, height, width, channels), normalises inside and
    gives `probabilities`, float32 (1, classes); OpenVINO's `reshape` makes it take
    more. (An open batch costs 3 % of int8's time.) `classes` and `preprocessing`, in
    JSON, stand under `rt_info`.

    Args:
        path: Folder to write.
        classifier: The classifier.
        calibration: uint8, (n, height, width, channels). If given, weights, for each
            channel, and activations are int8, in ranges that hold all values that
            arise from these images; not those of the first convolution. A network
            whose channels are equalised (see `quantization.equalise`) loses less. For
            CPUs with VNNI or AMX, as Intel's since 2019 and AMD's since 2022: on
            older ones sums may overflow.

    Raises:
        InputError: As `onnx_model.to_onnx`, or a distribution is not installed.
    """
    with needs("openvino"), without_telemetry():
        import onnx  # noqa: F401
        import openvino

        if calibration is not None:
            import nncf.quantization.range_estimator  # noqa: F401
    graph = to_onnx(classifier).SerializeToString()
    # Not Core().read_model, in whose graph NNCF finds no biases to correct.
    model = openvino.convert_model(io.BytesIO(graph))
    if calibration is not None:
        model = _quantize(model, calibration)
    model.reshape([1, *classifier.preprocessing.shape])
    for key, value in describe_classifier(classifier).items():
        model.set_rt_info(value, key)
    os.makedirs(path, exist_ok=True)
    # Half precision, the default, would cost the exactness that float32 is for.
    openvino.save_model(model, os.path.join(path, "model.xml"), compress_to_fp16=False)


def _quantize(model: "openvino.Model", calibration: np.ndarray) -> "openvino.Model":
    """Returns a model in int8; see `write_openvino`."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    nodes = model.get_ordered_ops()
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet
    stem = next(n for n in nodes if n.get_type_name() == "Convolution")
    return nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in calibration]),
        subset_size=len(calibration),
        preset=nncf.QuantizationPreset.MIXED,
        # It does little of the work and much of the harm.
        ignored_scope=nncf.IgnoredScope(names=[stem.get_friendly_name()]),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # Else weights get 7 bits, for CPUs without VNNI.
            overflow_fix=nncf.OverflowFix.DISABLE,
            # The default averages the ranges of the images, and cuts more off.
            activations_range_estimator_params=ranges.MINMAX,
        ),
    )
