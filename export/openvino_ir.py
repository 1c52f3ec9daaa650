"""OpenVINO's own files, in float32 or, by NNCF, in int8."""

import contextlib
import io
import logging
import os
import sys

from . import onnx_model
from .runtimes import needs


def write_openvino(path, classifier, calibration=None):
    """Writes a classifier as OpenVINO reads it: `model.xml` and `model.bin`.

    It takes `image`, uint8 (n, height, width, channels) with any n, normalises
    inside and gives `probabilities`, float32 (n, classes). `classes` and
    `preprocessing`, in JSON, stand under `rt_info`.

    Args:
        path: of the folder to write.
        classifier: a `keras_resnet.classifiers.Classifier`.
        calibration: uint8 (n, height, width, channels). If given, weights, for each
            channel, and activations are int8, in ranges that hold all values that
            arise from these images; not those of the first convolution.

    Raises:
        InputError: as `onnx_model.to_onnx`, or a distribution is not installed.
    """
    with needs("openvino"), _without_telemetry():
        import onnx  # noqa: F401
        import openvino

        if calibration is not None:
            import nncf
            from nncf.quantization import range_estimator
    graph = onnx_model.to_onnx(classifier).SerializeToString()
    # Not Core().read_model, in whose graph NNCF finds no biases to correct.
    model = openvino.convert_model(io.BytesIO(graph))
    if calibration is not None:
        nncf.set_log_level(logging.ERROR)
        nodes = model.get_ordered_ops()
        stem = next(n for n in nodes if n.get_type_name() == "Convolution")
        model = nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in calibration]),
            subset_size=len(calibration),
            preset=nncf.QuantizationPreset.MIXED,
            # The first convolution stays in float: NNCF would give it 7 bits, for
            # CPUs without VNNI, and it does little of the work and much of the harm.
            ignored_scope=nncf.IgnoredScope(names=[stem.get_friendly_name()]),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # The default averages the ranges of the images, and cuts more off.
                activations_range_estimator_params=(
                    range_estimator.RangeEstimatorParametersSet.MINMAX
                ),
            ),
        )
    for key, value in onnx_model.metadata(classifier).items():
        model.set_rt_info(value, key)
    os.makedirs(path, exist_ok=True)
    # Half precision, the default, would cost the exactness that float32 is for.
    openvino.save_model(model, os.path.join(path, "model.xml"), compress_to_fp16=False)


@contextlib.contextmanager
def _without_telemetry():
    """Keeps OpenVINO and NNCF, imported within, from reporting their use.

    Both report to their makers unless the user has objected; without this module
    they do not.
    """
    name = "openvino_telemetry"
    known = name in sys.modules
    sys.modules.setdefault(name, None)
    try:
        yield
    finally:
        if not known:
            del sys.modules[name]
