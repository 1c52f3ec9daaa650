"""Comparison of int8 and float32 outputs, layer by layer.

Two existing tools are not used. The QuantizationDebugger of TensorFlow 2.21 computes
each float32 layer from int8 inputs, which hides how errors accumulate. The debugger's
mode for direct comparison reads reused buffers (cosine 0 for a correct layer).
`compare_model` of litert-quantizer 0.11 returns no scales and no SQNR over all images.
"""

import dataclasses
import os
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from keras_resnet import support

from ..device import decode_values
from ..formats import TFLITE_FORMATS, convert_to_tflite

_NUM_REPORT_IMAGES = 16  # Number of images in a report.

# Function that runs a file on one image. Returns dequantised outputs by tensor name.
_RunFunction = Callable[[np.ndarray], dict[str, np.ndarray]]


class LayerError(NamedTuple):
    """Difference between the int8 and the float32 output of a layer."""

    layer: str
    scale: float  # Size of one quantisation step ("level") of the output.
    error_in_levels: float  # Root mean square of the difference, in levels.
    sqnr_db: float  # Signal-to-quantisation-noise ratio; 6 dB correspond to one bit.
    cosine: float  # Cosine similarity of the two outputs.


def compare_layers(
    static_dir: str, model: keras.Model, calibration: np.ndarray, images: np.ndarray
) -> list[LayerError]:
    """Compares the layer outputs of an int8 file with those of a float32 file.

    Both files run the whole network, so the error of a layer includes the errors of all
    earlier layers. Returns one item per quantised layer output, in network order.

    Args:
        static_dir: Folder that `write_static_model` wrote with float32 pixels.
        model: Keras model that `static_dir` was written from.
        calibration: Calibration set, uint8, (n, height, width, channels).
        images: A few images to run both files on, uint8, shaped like `calibration`.
    """
    row = dataclasses.replace(TFLITE_FORMATS["float32"], pixel_dtype="float32")
    run_float32, _ = _load_file(convert_to_tflite(static_dir, row, calibration))
    row = TFLITE_FORMATS["float_io"]
    run_int8, scales = _load_file(convert_to_tflite(static_dir, row, calibration))
    sums: dict[str, np.ndarray] = {}  # By tensor name, see `_sum_products`.
    for image in images:
        exact, quantised = run_float32(image), run_int8(image)
        for name in [name for name in quantised if name in exact]:
            sums[name] = sums.get(name, 0) + _sum_products(exact[name], quantised[name])
    indices = {layer.name: index for index, layer in enumerate(model.layers)}
    return [
        _measure_error(layer, scales[name], sums[name])
        for name in sums
        if scales[name] and (layer := _find_layer(name, indices))
    ]


def _load_file(content: bytes) -> tuple[_RunFunction, dict[str, float]]:
    """Returns a function that runs the file, and the tensors' scales (0: float32)."""
    with warnings.catch_warnings(), support.filter_cpp_logs():
        # The interpreter warns that preserving all tensors needs more memory.
        warnings.simplefilter("ignore")
        interpreter = Interpreter(
            model_content=content, experimental_preserve_all_tensors=True
        )
        interpreter.allocate_tensors()
    input_index = interpreter.get_input_details()[0]["index"]
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    outputs = [
        details[int(index)]
        for operation in interpreter._get_ops_details()
        if operation["op_name"] != "DELEGATE"
        for index in operation["outputs"]
    ]
    scales = {tensor["name"]: tensor["quantization"][0] for tensor in outputs}

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        interpreter.set_tensor(input_index, image[None].astype(np.float32))
        interpreter.invoke()
        get = interpreter.get_tensor
        return {t["name"]: decode_values(get(t["index"]), t) for t in outputs}

    return run, scales


def _sum_products(expected: np.ndarray, quantised: np.ndarray) -> np.ndarray:
    """Returns the sums of x², y², xy and (x - y)² over two tensors, and their size."""
    x, y = expected.astype(np.float64), quantised.astype(np.float64)
    sums = (x * x).sum(), (y * y).sum(), (x * y).sum(), ((x - y) ** 2).sum()
    return np.array([*sums, x.size])


def _measure_error(layer: str, scale: float, sums: np.ndarray) -> LayerError:
    expected_power, quantised_power, product, error, size = sums
    return LayerError(
        layer,
        float(scale),
        float(np.sqrt(error / size) / scale),
        float(10 * np.log10(max(expected_power, 1e-30) / max(error, 1e-30))),
        float(product / max(np.sqrt(expected_power * quantised_power), 1e-30)),
    )


def _find_layer(tensor_name: str, indices: dict[str, int]) -> str | None:
    """Returns the last layer in a tensor name like `net_1/conv1_relu_1/Relu;...`."""
    parts = (re.sub(r"_\d+$", "", part) for part in re.split("[/;]", tensor_name))
    names = [part for part in parts if part in indices]
    return max(names, key=indices.__getitem__, default=None)


def write_layer_report(
    static_dir: str,
    model: keras.Model,
    calibration: np.ndarray,
    images: np.ndarray,
    folder: str,
) -> None:
    """Prints the result of `compare_layers` for the first 16 images.

    Also writes this result to `quantization.csv` and `quantization.png` in `folder`.
    For the arguments except `folder`, see `compare_layers`.
    """
    errors = compare_layers(static_dir, model, calibration, images[:_NUM_REPORT_IMAGES])
    header = ("layer", "scale", "error in levels", "SQNR", "cosine")
    rows = [
        (e.layer, f"{e.scale:.3g}", f"{e.error_in_levels:.2f}", f"{e.sqnr_db:.1f} dB",
         f"{e.cosine:.4f}")
        for e in errors
    ]  # fmt: skip
    print(support.format_table([header, *rows]), flush=True)
    csv = support.to_csv([error._asdict() for error in errors])
    support.write_file(os.path.join(folder, "quantization.csv"), csv)
    figure = draw_layer_errors(errors)
    support.write_file(os.path.join(folder, "quantization.png"), figure)


def draw_layer_errors(errors: list[LayerError]) -> bytes:
    """Draws each layer's signal-to-noise ratio and returns the figure as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5, 0.16 * len(errors) + 1), 4.5), layout="constrained")
    axes = figure.subplots()
    positions, names = range(len(errors)), [error.layer for error in errors]
    axes.bar(positions, [error.sqnr_db for error in errors])
    axes.set_xticks(positions, names, rotation=90, fontsize=7)
    axes.margins(x=0.01)
    axes.set_ylabel("signal to quantisation noise (dB)")
    axes.set_title("int8 compared with float32, layer by layer")
    return support.to_png(figure)
