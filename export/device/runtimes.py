"""Each artifact in the runtime that its users have, and in nothing else.

This module needs NumPy alone. A runtime is imported when it is first used.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet.support import InputError, without_notes

from .manifest import Signature

if TYPE_CHECKING:
    import onnxruntime
    import openvino

# From uint8 images (n, height, width, channels), which are run as one batch, to their
# probabilities, float32 (n, classes).
Classify = Callable[[np.ndarray], np.ndarray]


class MissingRuntime(InputError):
    """What would run an artifact is not installed."""


@contextlib.contextmanager
def needs(extra: str | None = None) -> Iterator[None]:
    """Raises `MissingRuntime` if a module that is imported within is not installed.

    The message names the extra of the distribution; without one, the module.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        wanted = f"keras-resnet-zoo[{extra}]" if extra else str(error.name)
        raise MissingRuntime(
            f"{error.name} is not installed: pip install '{wanted}'"
        ) from error


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Keeps OpenVINO and NNCF, imported within, from reporting their use to their makers.

    Without the module `openvino_telemetry` they do not.
    """
    name = "openvino_telemetry"
    known = name in sys.modules
    sys.modules.setdefault(name, None)  # type: ignore[arg-type] # None blocks imports.
    try:
        yield
    finally:
        if not known:
            del sys.modules[name]


def open_tflite(path: str, threads: int | None = None) -> Classify:
    """Loads a `.tflite` file into LiteRT, with one thread for each CPU if none are named.

    A file for integer-only or float clients gets the same pixels in its own type.
    """
    with needs():
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(path, num_threads=threads or os.cpu_count())
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner("serving_default")
    entry = runner.get_input_details()["image"]
    answer = runner.get_output_details()["probabilities"]

    def classify(images: np.ndarray) -> np.ndarray:
        # The runner resizes the graph if the number of images has changed.
        probabilities = runner(image=encode(images, entry))["probabilities"]
        return decode(probabilities, answer)

    return classify


def encode(images: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Returns uint8 pixels in the type and scale of a tensor of LiteRT."""
    dtype = details["dtype"]
    if dtype == np.uint8:
        return images
    if np.issubdtype(dtype, np.floating):
        return images.astype(dtype)
    scale, zero_point = details["quantization"]
    limits = np.iinfo(dtype)
    levels = np.round(images / np.float32(scale)) + zero_point
    return np.clip(levels, limits.min, limits.max).astype(dtype)


def decode(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Returns float32 values of a tensor of LiteRT, whatever its type and scale."""
    if np.issubdtype(details["dtype"], np.floating):
        return values
    scale, zero_point = details["quantization"]
    return (np.float32(values) - zero_point) * np.float32(scale)


def open_saved_model(path: str, threads: int | None = None) -> Classify:
    """Loads the folder of a SavedModel into TensorFlow; see `open_tflite`.

    The number of threads is that of the whole process. It must be set before
    TensorFlow runs anything.
    """
    with needs("cpu"):
        import tensorflow as tf
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    return lambda images: serve(image=tf.constant(images))["probabilities"].numpy()


def open_onnx(path: str, threads: int | None = None) -> Classify:
    """Loads an ONNX file into ONNX Runtime, on the CPU; see `open_tflite`."""
    session = _onnx_session(path, threads)
    return lambda images: session.run(["probabilities"], {"image": images})[0]


def _onnx_session(
    path: str, threads: int | None = None
) -> "onnxruntime.InferenceSession":
    with needs("onnx"):
        import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count()
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_openvino(path: str, threads: int | None = None) -> Classify:
    """Loads a folder with `model.xml` into OpenVINO, on the CPU; see `open_tflite`."""
    core = _openvino_core()
    options = {
        "INFERENCE_NUM_THREADS": threads or os.cpu_count(),
        "PERFORMANCE_HINT": "LATENCY",
        # A CPU that has bfloat16 would compute in it, and logits would differ by 1 %.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.read_model(os.path.join(path, "model.xml"))
    compiled: dict[int, openvino.CompiledModel] = {}  # By number of images.

    def classify(images: np.ndarray) -> np.ndarray:
        if len(images) not in compiled:
            model.reshape(list(images.shape))
            compiled[len(images)] = core.compile_model(model, "CPU", options)
        # A copy, because the next call writes into the same memory.
        return compiled[len(images)]({"image": images})["probabilities"].copy()

    return classify


@functools.cache
def _openvino_core() -> "openvino.Core":
    """Returns OpenVINO's core, one for the life of the process.

    Every `Core` installs an alternate signal stack. Destroying two of them in
    creation order leaves a dangling one, and the next Ctrl-C segfaults.
    """
    with needs("openvino"), without_telemetry():
        import openvino
    return openvino.Core()


def describe_tflite(path: str) -> dict[str, Signature]:
    """Returns the signatures of a `.tflite` file, by name."""
    with needs():
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(path)

    def describe(named: tuple[str, dict[str, Any]]) -> tuple[str, list[Any]]:
        name, tensor = named
        scale, zero_point = tensor["quantization"]
        quantised = [float(scale), int(zero_point)] if scale else []
        dtype = np.dtype(tensor["dtype"]).name
        return name, [dtype, tensor["shape"].tolist(), *quantised]

    signatures: dict[str, Signature] = {}
    for name in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(name)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        signatures[name] = _signature(inputs.items(), outputs.items(), describe)
    return signatures


def describe_saved_model(path: str) -> dict[str, Signature]:
    """Returns the signatures of a SavedModel, by name."""
    import tensorflow as tf

    def describe(named: tuple[str, tf.TensorSpec]) -> tuple[str, list[Any]]:
        name, spec = named
        return name, [spec.dtype.name, [-1 if n is None else n for n in spec.shape]]

    signatures: dict[str, Signature] = {}
    for name, function in tf.saved_model.load(path).signatures.items():
        _, inputs = function.structured_input_signature
        outputs = function.structured_outputs
        signatures[name] = _signature(inputs.items(), outputs.items(), describe)
    return signatures


def describe_onnx(path: str) -> dict[str, Signature]:
    """Returns the inputs and outputs of an ONNX file."""
    session = _onnx_session(path)

    def describe(value: "onnxruntime.NodeArg") -> tuple[str, list[Any]]:
        dtype = value.type.removeprefix("tensor(").removesuffix(")")
        shape = [n if isinstance(n, int) else -1 for n in value.shape]
        return value.name, [dtype.replace("float", "float32"), shape]

    signature = _signature(session.get_inputs(), session.get_outputs(), describe)
    return {"serving_default": signature}


def describe_openvino(path: str) -> dict[str, Signature]:
    """Returns the inputs and outputs of a folder with `model.xml`."""
    model = _openvino_core().read_model(os.path.join(path, "model.xml"))

    def describe(port: "openvino.Output") -> tuple[str, list[Any]]:
        sizes = [-1 if n.is_dynamic else n.get_length() for n in port.partial_shape]
        return port.any_name, [port.element_type.to_dtype().name, sizes]

    return {"serving_default": _signature(model.inputs, model.outputs, describe)}


def _signature(
    inputs: Iterable[Any], outputs: Iterable[Any], describe: Callable[[Any], Any]
) -> Signature:
    tensors = {"inputs": inputs, "outputs": outputs}
    return {kind: dict(map(describe, values)) for kind, values in tensors.items()}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What runs an artifact."""

    load: Callable[[str, int | None], Classify]
    describe: Callable[[str], dict[str, Signature]]  # By name of the signature.
    batch: int = 64  # Images at a time when an artifact is judged.

    def open(self, path: str, threads: int | None = None) -> Classify:
        """Loads an artifact, without its runtime's notes; see `open_tflite`."""
        with without_notes():
            return self.load(path, threads)

    def predict(self, classify: Classify, images: np.ndarray) -> np.ndarray:
        """Returns what `classify`, which `open` returned, answers to any images."""
        parts = range(0, len(images), self.batch)
        return np.concatenate([classify(images[i : i + self.batch]) for i in parts])


# By the name that a manifest calls it.
RUNTIMES = {
    "LiteRT": Runtime(open_tflite, describe_tflite, batch=1),  # As it is written.
    "TensorFlow": Runtime(open_saved_model, describe_saved_model),
    "ONNX Runtime": Runtime(open_onnx, describe_onnx),
    "OpenVINO": Runtime(open_openvino, describe_openvino),
}
