"""Inference of a ResNet-50 with the artifacts of a bundle, compared with peers.

python -m benchmarks.serving --rounds=30

Each side is a separate process with the same weights, two threads and the same image of
224x224 pixels. The artifacts of this package come from `python -m export` and take raw
pixels. The peers are conversions of a `keras.applications.ResNet50` with these weights
and take normalised float32 pixels: a SavedModel from `model.export`, and TFLite and
OpenVINO files made from it, in int8 with the recipes of the guides of TFLite and NNCF.

- "settings": Thread settings of docs/how-to/serve.md.
- "any precision": OpenVINO chooses the precision of operations that are not int8, such
  as bfloat16 on CPUs that support it. Otherwise it computes in float32.
- "ONNX Runtime int8": The ONNX artifact of this package, quantised with ONNX Runtime's
  `quantize_static`, since tf2onnx does not run with this version of TensorFlow.
- "torch.compile": `benchmarks.torch_nets`, frozen, with other random weights; optional.

`peer/ours` is the median ratio over all rounds; above 1, this package is faster.
`start_ms` is the time from the import of the runtime to the first prediction.
`peak_mib` is the peak memory of the process. Bundles report the accuracy of int8.
"""

import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from benchmarks.serving_files import OURS, PEERS, load_images, prepare, preprocess
from benchmarks.side_by_side import compare, isolate, run, time_turns, write_results
from keras_resnet.support import InputError, filter_native_logs, progress_bar

THREADS = 2
CALLS = 5  # Number of calls in a turn. The first one starts with cold CPU caches.
# Peers of each side. The fastest artifact and the fastest peer are compared as well.
PAIRS = {
    "saved_model": ("keras",),
    "saved_model, settings": ("keras", "keras, settings"),
    "float32": ("keras, TFLite",),
    "int8": ("keras, TFLite int8", "float32"),
    "onnx": ("torch.compile",),
    "openvino": ("keras, OpenVINO",),
    "openvino, any precision": ("keras, OpenVINO, any precision",),
    "openvino_int8": ("keras, NNCF", "ONNX Runtime int8"),
    "openvino_int8, any precision": ("keras, NNCF, any precision",),
}


def _convert(dtype, images):
    """Returns raw pixels for uint8 inputs, else the input of keras.applications."""
    return images if np.dtype(dtype) == np.uint8 else preprocess(images)


def open_saved_model(path, images, settings=False):
    """Returns a function that predicts with a SavedModel, on the given images."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    if settings:
        tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]
    ((name, spec),) = serve.structured_input_signature[1].items()
    images = _convert(spec.dtype.as_numpy_dtype, images)

    def predict(keep=loaded):
        (probabilities,) = serve(**{name: tf.constant(images)}).values()
        return probabilities.numpy()

    return predict


def open_litert(path, images):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path, num_threads=THREADS).get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    inputs = {name: _convert(details["dtype"], images)}
    return lambda: next(iter(runner(**inputs).values()))


def open_onnx_runtime(path, images):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": images})[0]


def open_openvino(path, images, hint="f32"):
    import openvino

    options = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
    if hint:
        options["INFERENCE_PRECISION_HINT"] = hint
    file = os.path.join(path, "model.xml")
    model = openvino.Core().compile_model(file, "CPU", options)
    images = _convert(model.input(0).element_type.to_dtype(), images)
    return lambda: model(images)[0]


def open_torch(path, images):
    import torch

    from benchmarks.torch_nets import build

    torch.set_num_threads(THREADS)
    torch._inductor.config.freezing = True
    network = build("resnet50", 1000).eval().to(memory_format=torch.channels_last)
    network = torch.compile(network)
    pixels = torch.from_numpy(preprocess(images)).permute(0, 3, 1, 2)

    def predict():
        with torch.no_grad():
            return network(pixels).numpy()

    return predict


# Function that opens the side, name of its file, and further arguments of the function.
SIDES = {
    "saved_model": (open_saved_model, "saved_model"),
    "keras": (open_saved_model, "keras"),
    "saved_model, settings": (open_saved_model, "saved_model", True),
    "keras, settings": (open_saved_model, "keras", True),
    "float32": (open_litert, "float32"),
    "keras, TFLite": (open_litert, "keras.tflite"),
    "int8": (open_litert, "int8"),
    "keras, TFLite int8": (open_litert, "keras_int8.tflite"),
    "onnx": (open_onnx_runtime, "onnx"),
    "ONNX Runtime int8": (open_onnx_runtime, "onnx_int8"),
    "openvino": (open_openvino, "openvino"),
    "keras, OpenVINO": (open_openvino, "keras_openvino"),
    "openvino, any precision": (open_openvino, "openvino", None),
    "keras, OpenVINO, any precision": (open_openvino, "keras_openvino", None),
    "openvino_int8": (open_openvino, "openvino_int8"),
    "keras, NNCF": (open_openvino, "keras_nncf"),
    "openvino_int8, any precision": (open_openvino, "openvino_int8", None),
    "keras, NNCF, any precision": (open_openvino, "keras_nncf", None),
    "torch.compile": (open_torch, ""),
}


def serve(name, folder, batch, notes):
    """Opens a side, writes start time and memory, and returns a function for a turn."""
    from export.device.timing import peak_memory

    open_side, file, *args = SIDES[name]
    images = np.resize(load_images(folder), (batch, 224, 224, 3))
    begin = time.perf_counter()
    with filter_native_logs():
        predict = open_side(os.path.join(folder, file), images, *args)
        predict()
    start = 1e3 * (time.perf_counter() - begin)
    peak = peak_memory() / 2**20
    with open(os.path.join(notes, name), "w") as file:
        json.dump({"start_ms": round(start), "peak_mib": round(peak)}, file)

    def turn():
        for _ in range(CALLS):
            predict()

    return turn


def make_row(ours, peer, times, notes):
    """Returns the measurements of two sides as columns."""
    columns = {}
    for side, name in (("ours", ours), ("peer", peer)):
        with open(os.path.join(notes, name)) as file:
            columns |= {f"{side}_{key}": v for key, v in json.load(file).items()}
    return compare({"ours": times[ours], peer: times[peer]}, peer, CALLS) | columns


def prepare_files(folder):
    """Makes the files that are missing in the folder."""
    os.makedirs(folder, exist_ok=True)
    files, spawn = (*OURS, *PEERS), multiprocessing.get_context("spawn")
    bar = progress_bar("preparing", len(files))
    with ProcessPoolExecutor(1, spawn) as pool, bar as advance:
        for file in files:
            pool.submit(prepare, file, folder).result()
            advance()


def main(rounds, batch, folder):
    """Measures all sides in turn and writes `results/serving.csv`."""
    for name in ("onnx", "onnxruntime", "openvino", "nncf"):
        if not importlib.util.find_spec(name):
            raise InputError(
                "This benchmark runs every artifact and needs pip install "
                f"'keras-resnet-zoo[onnx,openvino]'. Missing: {name}"
            )
    has_torch = importlib.util.find_spec("torch")
    names = [name for name in SIDES if has_torch or name != "torch.compile"]
    with tempfile.TemporaryDirectory() as notes:
        folder = os.path.abspath(folder or os.path.join(notes, "files"))
        prepare_files(folder)
        sides = {}
        with progress_bar("starting", len(names)) as advance:
            for name in names:  # One at a time, so that start times are comparable.
                sides[name] = isolate(serve, name, folder, batch, notes)
                sides[name]()
                advance()
        # The pause lets the thread pools of the previous side stop spinning.
        times = time_turns(sides, rounds, lambda: time.sleep(0.02))
        pairs = [(a, b) for a, peers in PAIRS.items() for b in peers if b in times]
        fastest = sorted(times, key=lambda name: statistics.median(times[name]))
        ours = next(name for name in fastest if name in PAIRS)
        pairs.append((ours, next(name for name in fastest if name not in PAIRS)))
        about = {"batch": batch, "threads": THREADS}
        rows = [{"ours": a, **about, **make_row(a, b, times, notes)} for a, b in pairs]
        write_results("serving", rows)


if __name__ == "__main__":
    run(
        main,
        rounds=(30, "Number of turns of each side."),
        batch=(1, "Number of images in a batch."),
        folder=(None, "Folder that keeps the prepared files for later runs."),
    )
