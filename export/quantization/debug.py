"""int8 beside float32, layer by layer.

Our own, after a trial of both: TensorFlow 2.21's QuantizationDebugger computes each layer
in float32 from int8's inputs, so that errors do not add up, and its direct comparison
reads memory that is in use again (a cosine of 0 in a sound layer); litert-quantizer
0.11's `compare_model` gives no scales, and an SQNR whose images are not added up.
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

from keras_resnet.support import format_table, to_csv, to_png, without_notes, write_file

from ..device import decode
from ..formats import TFLITE_FORMATS, convert_to_tflite

_REPORT_IMAGES = 16

# From an image to what each operation computes, as real numbers, by the tensor's name.
_Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class LayerError(NamedTuple):
    """How far the output of a layer is from float32's."""

    layer: str
    scale: float  # Value of one level of the output.
    error_in_levels: float  # Root mean square of the difference.
    sqnr_db: float  # Power of the output over that of the difference; 6 dB is a bit.
    cosine: float  # Of the two outputs.


def compare_layers(
    static: str, model: keras.Model, calibration: np.ndarray, images: np.ndarray
) -> list[LayerError]:
    """Compares each tensor of an int8 file with the same in float32.

    Errors add up along the network, as they do in use.

    Args:
        static: Path of a SavedModel of float32 pixels from `saved_model.write_static`.
        model: The model that it was written from, for the layers' names.
        calibration: Images for int8: uint8, (n, height, width, channels).
        images: Images to compare on, of the same shape; a few are enough.
    """
    float32 = dataclasses.replace(TFLITE_FORMATS["float32"], pixels="float32")
    run_exact, _ = _open(convert_to_tflite(static, float32, calibration))
    int8 = convert_to_tflite(static, TFLITE_FORMATS["float_io"], calibration)
    run_int8, scales = _open(int8)
    sums: dict[str, np.ndarray] = {}  # Over the images, by the name of a tensor.
    for image in images:
        expected, quantised = run_exact(image), run_int8(image)
        for name in [name for name in quantised if name in expected]:
            products = _sum_products(expected[name], quantised[name])
            sums[name] = sums.get(name, 0) + products
    places = {layer.name: place for place, layer in enumerate(model.layers)}
    return [
        _measure_error(layer, scales[name], sums[name])
        for name in sums
        if scales[name] and (layer := _find_layer(name, places))
    ]


def _open(content: bytes) -> tuple[_Run, dict[str, float]]:
    """Returns what runs a file, and the scale of each tensor (0 in float32), in order."""
    with warnings.catch_warnings(), without_notes():
        warnings.simplefilter("ignore")  # That all this needs memory.
        interpreter = Interpreter(
            model_content=content, experimental_preserve_all_tensors=True
        )
        interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]["index"]
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    outputs = [
        details[int(index)]
        for operation in interpreter._get_ops_details()
        if operation["op_name"] != "DELEGATE"
        for index in operation["outputs"]
    ]
    scales = {tensor["name"]: tensor["quantization"][0] for tensor in outputs}

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        interpreter.set_tensor(entry, image[None].astype(np.float32))
        interpreter.invoke()
        read = interpreter.get_tensor
        return {t["name"]: decode(read(t["index"]), t) for t in outputs}

    return run, scales


def _sum_products(expected: np.ndarray, quantised: np.ndarray) -> np.ndarray:
    """Returns the sums that `_measure_error` needs, which add up over images."""
    x, y = expected.astype(np.float64), quantised.astype(np.float64)
    sums = (x * x).sum(), (y * y).sum(), (x * y).sum(), ((x - y) ** 2).sum()
    return np.array([*sums, x.size])


def _measure_error(layer: str, scale: float, sums: np.ndarray) -> LayerError:
    power, quantised_power, product, error, size = sums
    return LayerError(
        layer,
        float(scale),
        float(np.sqrt(error / size) / scale),
        float(10 * np.log10(max(power, 1e-30) / max(error, 1e-30))),
        float(product / max(np.sqrt(power * quantised_power), 1e-30)),
    )


def _find_layer(tensor: str, places: dict[str, int]) -> str | None:
    """Returns the last layer in a tensor's name, `net_1/conv1_relu_1/Relu;...`, say."""
    parts = (re.sub(r"_\d+$", "", part) for part in re.split("[/;]", tensor))
    known = [part for part in parts if part in places]
    return max(known, key=places.__getitem__, default=None)


def write_layer_report(
    static: str,
    model: keras.Model,
    calibration: np.ndarray,
    images: np.ndarray,
    folder: str,
) -> None:
    """Prints where int8 departs from float32, in the first of the images.

    It writes `quantization.csv` and `quantization.png` into a folder. The other
    arguments are those of `compare_layers`.
    """
    errors = compare_layers(static, model, calibration, images[:_REPORT_IMAGES])
    head = ("layer", "scale", "error in levels", "SQNR", "cosine")
    cells = [
        (e.layer, f"{e.scale:.3g}", f"{e.error_in_levels:.2f}", f"{e.sqnr_db:.1f} dB",
         f"{e.cosine:.4f}")
        for e in errors
    ]  # fmt: skip
    print(format_table([head, *cells]), flush=True)
    csv = to_csv([error._asdict() for error in errors])
    write_file(os.path.join(folder, "quantization.csv"), csv)
    write_file(os.path.join(folder, "quantization.png"), draw_layers(errors))


def draw_layers(errors: list[LayerError]) -> bytes:
    """Draws the ratio of signal to noise of each layer, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5, 0.16 * len(errors) + 1), 4.5), layout="constrained")
    axes = figure.subplots()
    places, names = range(len(errors)), [error.layer for error in errors]
    axes.bar(places, [error.sqnr_db for error in errors])
    axes.set_xticks(places, names, rotation=90, fontsize=7)
    axes.margins(x=0.01)
    axes.set_ylabel("signal to quantisation noise (dB)")
    axes.set_title("int8 beside float32, layer by layer")
    return to_png(figure)
