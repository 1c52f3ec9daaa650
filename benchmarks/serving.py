"""Inference of a ResNet-50: the bundle's artifacts beside its peers.

python -m benchmarks.serving --rounds=30

Every side has a process, in it the same weights, two threads and the same image of
224x224. Ours is what `python -m export` writes: it takes raw pixels. The peers are
what users of `keras.applications.ResNet50` make of those weights: a SavedModel by
`model.export`, from it TFLite's files and OpenVINO's, in int8 by the recipes of
TFLite's guide and of NNCF's; they get pixels that are normalised already, in float32.
"settings" are those of docs/serving.md. OpenVINO computes in float32, or what is not
int8 in what it chooses ("any precision": bfloat16 where the CPU has it). ONNX Runtime
has our graph, quantised by its own `quantize_static`, since tf2onnx does not run
beside this TensorFlow. PyTorch (skipped where it is not installed) is
`benchmarks.torch_nets`, frozen, by `torch.compile`, with random weights of its own.

`peer/ours` is the median over the rounds; above 1 ours is faster. `start_ms` is
from before the runtime's import to the first answer, `peak_mib` the most memory of
the process. All weights are random: what int8 costs in accuracy, the bundle tells.
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

from benchmarks.serving_files import OURS, PEERS, load_images, prepare, prepared
from benchmarks.side_by_side import alone, compare, run, take_turns, write_results
from keras_resnet.support import InputError, progress_bar, without_notes

THREADS = 2
CALLS = 5  # In a turn; the first finds the caches full of another side's weights.
# What each is compared with; last come the fastest of ours and of the peers.
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


def _for(dtype, images):
    """Raw pixels for what takes them, else what keras.applications takes."""
    return images if np.dtype(dtype) == np.uint8 else prepared(images)


def tensorflow(path, images, settings=False):
    """Returns a function that runs a SavedModel, as those below run theirs."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    if settings:
        tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]
    ((name, spec),) = serve.structured_input_signature[1].items()
    images = _for(spec.dtype.as_numpy_dtype, images)

    def answer(keep=loaded):
        (probabilities,) = serve(**{name: tf.constant(images)}).values()
        return probabilities.numpy()

    return answer


def litert(path, images):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path, num_threads=THREADS).get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    given = {name: _for(details["dtype"], images)}
    return lambda: next(iter(runner(**given).values()))


def onnx_runtime(path, images):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": images})[0]


def openvino(path, images, hint="f32"):
    import openvino

    options = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
    if hint:
        options["INFERENCE_PRECISION_HINT"] = hint
    file = os.path.join(path, "model.xml")
    model = openvino.Core().compile_model(file, "CPU", options)
    images = _for(model.input(0).element_type.to_dtype(), images)
    return lambda: model(images)[0]


def torch_compiled(path, images):
    import torch

    from benchmarks.torch_nets import build

    torch.set_num_threads(THREADS)
    torch._inductor.config.freezing = True
    network = build("resnet50", 1000).eval().to(memory_format=torch.channels_last)
    network = torch.compile(network)
    pixels = torch.from_numpy(prepared(images)).permute(0, 3, 1, 2)

    def answer():
        with torch.no_grad():
            return network(pixels).numpy()

    return answer


# What opens it, the file, and further arguments.
SIDES = {
    "saved_model": (tensorflow, "saved_model"),
    "keras": (tensorflow, "keras"),
    "saved_model, settings": (tensorflow, "saved_model", True),
    "keras, settings": (tensorflow, "keras", True),
    "float32": (litert, "float32"),
    "keras, TFLite": (litert, "keras.tflite"),
    "int8": (litert, "int8"),
    "keras, TFLite int8": (litert, "keras_int8.tflite"),
    "onnx": (onnx_runtime, "onnx"),
    "ONNX Runtime int8": (onnx_runtime, "onnx_int8"),
    "openvino": (openvino, "openvino"),
    "keras, OpenVINO": (openvino, "keras_openvino"),
    "openvino, any precision": (openvino, "openvino", None),
    "keras, OpenVINO, any precision": (openvino, "keras_openvino", None),
    "openvino_int8": (openvino, "openvino_int8"),
    "keras, NNCF": (openvino, "keras_nncf"),
    "openvino_int8, any precision": (openvino, "openvino_int8", None),
    "keras, NNCF, any precision": (openvino, "keras_nncf", None),
    "torch.compile": (torch_compiled, ""),
}


def serve(name, folder, batch, notes):
    """Opens a side and notes what that took; returns a function of a turn."""
    from export.device.timing import peak_memory

    open_side, file, *args = SIDES[name]
    images = np.resize(load_images(folder), (batch, 224, 224, 3))
    begin = time.perf_counter()
    with without_notes():
        answer = open_side(os.path.join(folder, file), images, *args)
        answer()
    start = 1e3 * (time.perf_counter() - begin)
    peak = peak_memory() / 2**20
    with open(os.path.join(notes, name), "w") as file:
        json.dump({"start_ms": round(start), "peak_mib": round(peak)}, file)

    def turn():
        for _ in range(CALLS):
            answer()

    return turn


def row_of(ours, peer, times, notes):
    """Returns what was measured of two sides, as columns."""
    facts = {}
    for whose, name in (("ours", ours), ("peer", peer)):
        with open(os.path.join(notes, name)) as file:
            facts |= {f"{whose}_{key}": fact for key, fact in json.load(file).items()}
    return compare({"ours": times[ours], peer: times[peer]}, peer, CALLS) | facts


def prepare_files(folder):
    """Makes the files that the folder lacks."""
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
                "This benchmark runs every artifact: pip install "
                f"'keras-resnet-zoo[onnx,openvino]'. Received: no {name}"
            )
    has_torch = importlib.util.find_spec("torch")
    names = [name for name in SIDES if has_torch or name != "torch.compile"]
    with tempfile.TemporaryDirectory() as notes:
        folder = os.path.abspath(folder or os.path.join(notes, "files"))
        prepare_files(folder)
        sides = {}
        with progress_bar("starting", len(names)) as advance:
            for name in names:  # One after the other, for the time that each takes.
                sides[name] = alone(serve, name, folder, batch, notes)
                sides[name]()
                advance()
        # Thread pools spin a while after their turn.
        times = take_turns(sides, rounds, lambda: time.sleep(0.02))
        pairs = [(a, b) for a, peers in PAIRS.items() for b in peers if b in times]
        fastest = sorted(times, key=lambda name: statistics.median(times[name]))
        ours = next(name for name in fastest if name in PAIRS)
        pairs.append((ours, next(name for name in fastest if name not in PAIRS)))
        about = {"batch": batch, "threads": THREADS}
        rows = [{"ours": a, **about, **row_of(a, b, times, notes)} for a, b in pairs]
        write_results("serving", rows)


if __name__ == "__main__":
    run(
        main,
        rounds=(30, "Turns of each side."),
        batch=(1, "Images at a time."),
        folder=(None, "Keeps what is prepared, or has it already."),
    )
