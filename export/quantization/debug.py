"""Where int8 departs from float32, layer by layer."""

import dataclasses
import os
import re
import warnings

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from keras_resnet.support import to_png, write_file

from ..device import decode
from ..formats import TFLITE_FORMATS, convert_to_tflite

_DEBUG_IMAGES = 16


def debug_quantization(static, model, calibration, images):
    """Compares each tensor of an int8 file with the same in float32.

    Errors add up along the network, as they do in use.

    Args:
        static: path of a SavedModel of float32 pixels, as
            `saved_model.write_static` writes.
        model: the `keras.Model` that it was written of, for the layers' names.
        calibration: uint8 (n, height, width, channels), to calibrate int8 with.
        images: of the same form, to compare on; a few are enough.

    Returns:
        A list of dicts, one for each layer in the order of the network: `layer`;
        `scale` of its output, the value of one level; `error_in_levels`, root mean
        square of the difference; `sqnr_db`, ratio of the power of the output to that
        of the difference, in decibels (6 is one bit); `cosine` of the two outputs.
    """
    exact, int8 = (
        convert_to_tflite(
            static, dataclasses.replace(row, pixels="float32"), calibration
        )
        for row in (TFLITE_FORMATS["float32"], TFLITE_FORMATS["float_io"])
    )
    sums, scales = {}, {}
    for (expected, _), (found, its_scales) in zip(
        _outputs(exact, images), _outputs(int8, images), strict=True
    ):
        scales |= its_scales
        for name in found.keys() & expected.keys():
            x, y = np.float64(expected[name]), np.float64(found[name])
            new = [
                (x * x).sum(),
                (y * y).sum(),
                (x * y).sum(),
                ((x - y) ** 2).sum(),
                x.size,
            ]
            sums[name] = sums.get(name, 0) + np.array(new)
    rows = []
    places = {layer.name: place for place, layer in enumerate(model.layers)}
    for name, scale in scales.items():
        made_by = [re.sub(r"_\d+$", "", part) for part in re.split("[/;]", name)]
        made_by = [part for part in made_by if part in places]
        if name not in sums or not scale or not made_by:
            continue
        power, other, product, error, size = sums[name]
        rows.append(
            {
                "layer": max(made_by, key=places.get),
                "scale": float(scale),
                "error_in_levels": float(np.sqrt(error / size) / scale),
                "sqnr_db": float(10 * np.log10(max(power, 1e-30) / max(error, 1e-30))),
                "cosine": float(product / max(np.sqrt(power * other), 1e-30)),
            }
        )
    return rows


def _outputs(content, images):
    """Runs a `.tflite` file and keeps what each operation gives.

    Yields:
        For each image, dicts from a tensor's name to its values as real numbers,
        and to its scale, 0 where it is not quantised; in the order of the graph.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That all this needs memory.
        interpreter = Interpreter(
            model_content=content, experimental_preserve_all_tensors=True
        )
    interpreter.allocate_tensors()
    runner_input = interpreter.get_input_details()[0]["index"]
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    made = [
        details[int(index)]
        for operation in interpreter._get_ops_details()
        if operation["op_name"] != "DELEGATE"
        for index in operation["outputs"]
    ]
    for image in images:
        interpreter.set_tensor(runner_input, np.float32(image[None]))
        interpreter.invoke()
        values, scales = {}, {}
        for tensor in made:
            name, (scale, _) = tensor["name"], tensor["quantization"]
            value = interpreter.get_tensor(tensor["index"])
            values[name] = decode(value, tensor)
            scales[name] = scale
        yield values, scales


def write_debug(source, images, folder):
    """Prints where int8 departs from float32, and writes it down.

    Args:
        source: an `artifacts.Source`.
        images: uint8 (n, height, width, channels), of which some are used.
        folder: to write `quantization.csv` and `quantization.png` into.
    """
    rows = debug_quantization(
        source.static("float32"),
        source.classifier.model,
        source.calibration,
        images[:_DEBUG_IMAGES],
    )
    print(_debug_table(rows), flush=True)
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    text = "".join(",".join(map(str, line)) + "\n" for line in lines)
    write_file(os.path.join(folder, "quantization.csv"), text)
    write_file(os.path.join(folder, "quantization.png"), draw(rows))


def _debug_table(rows):
    """The rows of `debug_quantization` as text."""
    width = max(len(row["layer"]) for row in rows)
    lines = [
        f"{'layer':<{width}}{'scale':>10}{'error in levels':>17}{'SQNR':>10}{'cosine':>9}"
    ]
    for row in rows:
        lines.append(
            f"{row['layer']:<{width}}{row['scale']:>10.3g}{row['error_in_levels']:>17.2f}"
            f"{row['sqnr_db']:>7.1f} dB{row['cosine']:>9.4f}"
        )
    return "\n".join(lines)


def draw(rows):
    """Draws the rows of `debug_quantization`: signal to noise of each layer, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5, 0.16 * len(rows) + 1), 4.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(rows)), [row["sqnr_db"] for row in rows])
    axes.set_xticks(
        range(len(rows)), [row["layer"] for row in rows], rotation=90, fontsize=7
    )
    axes.margins(x=0.01)
    axes.set_ylabel("signal to quantisation noise (dB)")
    axes.set_title("int8 beside float32, layer by layer")
    return to_png(figure)
