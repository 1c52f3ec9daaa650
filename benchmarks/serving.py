"""Latency of a ResNet-50 with the artifacts of a bundle, compared with peers.

python -m benchmarks.serving --rounds=30

Each implementation has its own process with two threads. All use the same weights and
the same image of 224x224 pixels. This package's artifacts are written as by `python -m
export` and take raw pixels. The peers take normalised float32 pixels. One peer is a
SavedModel, which Keras's `model.export` wrote for a `keras.applications.ResNet50`.
Other peers are conversions of this SavedModel to TFLite and OpenVINO. Conversions to
int8 follow the guides of TFLite and NNCF. Names of implementations can contain:

- "settings": TensorFlow uses the thread settings of docs/how-to/serve.md.
- "any precision": OpenVINO chooses the precision of operations that are not int8, such
  as bfloat16 on CPUs that support it. Otherwise, these operations use float32.
- "ONNX Runtime int8": The ONNX artifact of this package, quantised with ONNX Runtime's
  `quantize_static`, since tf2onnx does not run with this version of TensorFlow.
- "torch.compile": `benchmarks.torch_nets`, frozen, with other random weights; optional.

`peer/ours` is the peer's latency divided by this package's, as the median over all
rounds; above 1, this package is faster. `start_ms` is the time from the import of the
runtime to the first prediction. `peak_mib` is the peak memory of the process. The
accuracy of artifacts is not measured here; every bundle reports it.
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

from benchmarks.serving_files import FILE_NAMES, load_images, prepare_file, preprocess
from benchmarks.side_by_side import isolate, make_row, run, time_turns, write_results
from keras_resnet.support import InputError, filter_cpp_logs, progress_bar

NUM_THREADS = 2
NUM_CALLS = 5  # Calls per turn. The first call of a turn has cold CPU caches.
# Peers by implementation of this package. `main` also pairs the fastest of each side.
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


def _prepare_input(dtype, images):
    """Returns the images for a uint8 input, or normalised pixels for other dtypes."""
    return images if np.dtype(dtype) == np.uint8 else preprocess(images)


def open_saved_model(path, images, use_single_inter_op_thread=False):
    """Returns a function that classifies `images` with a SavedModel."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(NUM_THREADS)
    if use_single_inter_op_thread:
        tf.config.threading.set_inter_op_parallelism_threads(1)
    saved_model = tf.saved_model.load(path)
    serve = saved_model.signatures["serving_default"]
    ((name, spec),) = serve.structured_input_signature[1].items()
    images = _prepare_input(spec.dtype.as_numpy_dtype, images)

    # The default argument keeps the variables of the SavedModel alive.
    def predict(saved_model=saved_model):
        (probabilities,) = serve(**{name: tf.constant(images)}).values()
        return probabilities.numpy()

    return predict


def open_litert(path, images):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path, num_threads=NUM_THREADS).get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    inputs = {name: _prepare_input(details["dtype"], images)}
    return lambda: next(iter(runner(**inputs).values()))


def open_onnx_runtime(path, images):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = NUM_THREADS
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": images})[0]


def open_openvino(path, images, precision="f32"):
    import openvino

    options = {"INFERENCE_NUM_THREADS": NUM_THREADS, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        options["INFERENCE_PRECISION_HINT"] = precision
    model_path = os.path.join(path, "model.xml")
    model = openvino.Core().compile_model(model_path, "CPU", options)
    images = _prepare_input(model.input(0).element_type.to_dtype(), images)
    return lambda: model(images)[0]


def open_torch(path, images):
    import torch

    from benchmarks.torch_nets import build

    torch.set_num_threads(NUM_THREADS)
    torch._inductor.config.freezing = True
    network = build("resnet50", 1000).eval().to(memory_format=torch.channels_last)
    network = torch.compile(network)
    pixels = torch.from_numpy(preprocess(images)).permute(0, 3, 1, 2)

    def predict():
        with torch.no_grad():
            return network(pixels).numpy()

    return predict


# Function that loads a file, name of the file, and further arguments of the function.
IMPLEMENTATIONS = {
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


def start_model(name, folder, batch_size, stats_dir):
    """Saves start time and memory of a model. Returns a function that runs one turn."""
    from export.device.timing import measure_peak_memory

    open_model, file_name, *args = IMPLEMENTATIONS[name]
    images = np.resize(load_images(folder), (batch_size, 224, 224, 3))
    start_time = time.perf_counter()
    with filter_cpp_logs():
        predict = open_model(os.path.join(folder, file_name), images, *args)
        predict()
    start_ms = 1e3 * (time.perf_counter() - start_time)
    peak_mib = measure_peak_memory() / 2**20
    with open(os.path.join(stats_dir, name), "w") as file:
        json.dump({"start_ms": round(start_ms), "peak_mib": round(peak_mib)}, file)

    def run_turn():
        for _ in range(NUM_CALLS):
            predict()

    return run_turn


def compare_pair(ours, peer, times, batch_size, stats_dir):
    """Returns a result row that compares an implementation with a peer."""
    columns = {}
    for role, name in (("ours", ours), ("peer", peer)):
        with open(os.path.join(stats_dir, name)) as file:
            columns |= {f"{role}_{key}": v for key, v in json.load(file).items()}
    settings = {"ours": ours, "batch": batch_size, "threads": NUM_THREADS}
    row = make_row({"ours": times[ours], peer: times[peer]}, peer, NUM_CALLS)
    return settings | row | columns


def prepare_files(folder):
    os.makedirs(folder, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    progress = progress_bar("preparing", len(FILE_NAMES))
    with ProcessPoolExecutor(1, context) as pool, progress as advance:
        for name in FILE_NAMES:
            pool.submit(prepare_file, name, folder).result()
            advance()


def main(num_rounds, batch_size, folder):
    for name in ("onnx", "onnxruntime", "openvino", "nncf"):
        if not importlib.util.find_spec(name):
            raise InputError(
                "This benchmark runs every artifact and needs pip install "
                f"'keras-resnet-zoo[onnx,openvino]'. Missing: {name}"
            )
    has_torch = importlib.util.find_spec("torch")
    names = [name for name in IMPLEMENTATIONS if has_torch or name != "torch.compile"]
    with tempfile.TemporaryDirectory() as stats_dir:
        folder = os.path.abspath(folder or os.path.join(stats_dir, "files"))
        prepare_files(folder)
        turns = {}
        with progress_bar("starting", len(names)) as advance:
            # Start the processes one after another, so that start times are comparable.
            for name in names:
                turns[name] = isolate(start_model, name, folder, batch_size, stats_dir)
                turns[name]()
                advance()
        # During the pause, the threads of the previous call stop busy-waiting.
        times = time_turns(turns, num_rounds, lambda: time.sleep(0.02))
        pairs = [(a, b) for a, peers in PAIRS.items() for b in peers if b in times]
        names_by_speed = sorted(times, key=lambda name: statistics.median(times[name]))
        ours = next(name for name in names_by_speed if name in PAIRS)
        pairs.append((ours, next(name for name in names_by_speed if name not in PAIRS)))
        rows = [compare_pair(*pair, times, batch_size, stats_dir) for pair in pairs]
        write_results("serving", rows)


if __name__ == "__main__":
    run(
        main,
        rounds=(30, "Number of turns of each implementation."),
        batch=(1, "Number of images in a batch."),
        folder=(None, "Folder of the prepared files. Default: a temporary folder."),
    )
