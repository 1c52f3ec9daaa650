"""Libraries that run artifacts ("runtimes"), behind one interface.

This module itself needs only NumPy. Each runtime is imported when it is first used.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet.support import InputError, filter_cpp_logs

from .manifest import Signature

if TYPE_CHECKING:
    import onnxruntime
    import openvino

# Function that classifies uint8 images, (n, height, width, channels), as one batch and
# returns their class probabilities, float32, (n, classes).
ClassifyFunction = Callable[[np.ndarray], np.ndarray]


class MissingRuntime(InputError):
    """The runtime of an artifact is not installed."""


@contextlib.contextmanager
def require_extra(extra: str | None = None) -> Iterator[None]:
    """Raises `MissingRuntime` if a module imported in the context is not installed.

    The message has a pip command that installs `extra`, or the module if it is `None`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = f"keras-resnet-zoo[{extra}]" if extra else str(error.name)
        raise MissingRuntime(
            f"{error.name} is not installed: pip install '{package}'"
        ) from error


@contextlib.contextmanager
def disable_telemetry() -> Iterator[None]:
    """Prevents OpenVINO and NNCF, if imported inside the context, from reporting usage.

    Both packages report usage only if they can import `openvino_telemetry`.
    """
    name = "openvino_telemetry"
    was_imported = name in sys.modules
    sys.modules.setdefault(name, None)  # type: ignore[arg-type] # None blocks imports.
    try:
        yield
    finally:
        if not was_imported:
            del sys.modules[name]


def open_tflite(path: str, threads: int | None = None) -> ClassifyFunction:
    """Loads a `.tflite` file into LiteRT.

    The returned function converts uint8 pixels to the dtype of the file's input. By
    default, LiteRT uses a thread for each CPU.
    """
    with require_extra():
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(path, num_threads=threads or os.cpu_count())
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner("serving_default")
    input_details = runner.get_input_details()["image"]
    output_details = runner.get_output_details()["probabilities"]

    def classify(images: np.ndarray) -> np.ndarray:
        # No resize call is needed. The runner adapts the graph to the number of images.
        output = runner(image=encode_pixels(images, input_details))["probabilities"]
        return decode_values(output, output_details)

    return classify


def encode_pixels(images: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Converts uint8 pixels to the dtype and scale of a LiteRT tensor."""
    dtype = details["dtype"]
    if dtype == np.uint8:
        return images
    if np.issubdtype(dtype, np.floating):
        return images.astype(dtype)
    scale, zero_point = details["quantization"]
    limits = np.iinfo(dtype)
    quantised = np.round(images / np.float32(scale)) + zero_point
    return np.clip(quantised, limits.min, limits.max).astype(dtype)


def decode_values(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Converts the content of a LiteRT tensor of any dtype and scale to float32."""
    if np.issubdtype(details["dtype"], np.floating):
        return values
    scale, zero_point = details["quantization"]
    return (np.float32(values) - zero_point) * np.float32(scale)


def open_saved_model(path: str, threads: int | None = None) -> ClassifyFunction:
    """Loads the folder of a SavedModel into TensorFlow; see `open_tflite`.

    `threads` applies to the whole process. It has an effect only before TensorFlow
    runs its first operation.
    """
    with require_extra("cpu"):
        import tensorflow as tf
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    return lambda images: serve(image=tf.constant(images))["probabilities"].numpy()


def open_onnx(path: str, threads: int | None = None) -> ClassifyFunction:
    """Loads an ONNX file into ONNX Runtime for the CPU; see `open_tflite`."""
    session = _make_onnx_session(path, threads)
    return lambda images: session.run(["probabilities"], {"image": images})[0]


def _make_onnx_session(
    path: str, threads: int | None = None
) -> "onnxruntime.InferenceSession":
    with require_extra("onnx"):
        import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count()
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_openvino(path: str, threads: int | None = None) -> ClassifyFunction:
    """Loads a folder with `model.xml` into OpenVINO for the CPU; see `open_tflite`."""
    core = _get_openvino_core()
    options = {
        "INFERENCE_NUM_THREADS": threads or os.cpu_count(),
        "PERFORMANCE_HINT": "LATENCY",
        # The default, bfloat16 on CPUs that support it, changes logits by 1 %.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.read_model(os.path.join(path, "model.xml"))
    models: dict[int, openvino.CompiledModel] = {}  # Compiled models by batch size.

    def classify(images: np.ndarray) -> np.ndarray:
        if len(images) not in models:
            model.reshape(list(images.shape))
            models[len(images)] = core.compile_model(model, "CPU", options)
        # Copy the output, because the next call overwrites its memory.
        return models[len(images)]({"image": images})["probabilities"].copy()

    return classify


@functools.cache
def _get_openvino_core() -> "openvino.Core":
    """Returns the only OpenVINO core of this process.

    Every `Core` installs an alternate signal stack. Destroying two cores in creation
    order leaves a dangling signal stack, and the next Ctrl-C segfaults.
    """
    with require_extra("openvino"), disable_telemetry():
        import openvino
    return openvino.Core()


def describe_tflite(path: str) -> dict[str, Signature]:
    """Returns the signatures of a `.tflite` file by name."""
    with require_extra():
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(path)

    def describe(item: tuple[str, dict[str, Any]]) -> tuple[str, list[Any]]:
        name, tensor = item
        scale, zero_point = tensor["quantization"]
        quantised = [float(scale), int(zero_point)] if scale else []
        dtype = np.dtype(tensor["dtype"]).name
        return name, [dtype, tensor["shape"].tolist(), *quantised]

    signatures: dict[str, Signature] = {}
    for name in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(name)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        signatures[name] = _make_signature(inputs.items(), outputs.items(), describe)
    return signatures


def describe_saved_model(path: str) -> dict[str, Signature]:
    """Returns the signatures of a SavedModel by name."""
    import tensorflow as tf

    def describe(item: tuple[str, tf.TensorSpec]) -> tuple[str, list[Any]]:
        name, spec = item
        return name, [spec.dtype.name, [-1 if n is None else n for n in spec.shape]]

    signatures: dict[str, Signature] = {}
    for name, function in tf.saved_model.load(path).signatures.items():
        _, inputs = function.structured_input_signature
        outputs = function.structured_outputs
        signatures[name] = _make_signature(inputs.items(), outputs.items(), describe)
    return signatures


def describe_onnx(path: str) -> dict[str, Signature]:
    """Returns the inputs and outputs of an ONNX file as one signature."""
    session = _make_onnx_session(path)

    def describe(value: "onnxruntime.NodeArg") -> tuple[str, list[Any]]:
        dtype = value.type.removeprefix("tensor(").removesuffix(")")
        shape = [n if isinstance(n, int) else -1 for n in value.shape]
        return value.name, [dtype.replace("float", "float32"), shape]

    signature = _make_signature(session.get_inputs(), session.get_outputs(), describe)
    return {"serving_default": signature}


def describe_openvino(path: str) -> dict[str, Signature]:
    """Returns the inputs and outputs of an OpenVINO folder as one signature."""
    model = _get_openvino_core().read_model(os.path.join(path, "model.xml"))

    def describe(port: "openvino.Output") -> tuple[str, list[Any]]:
        sizes = [-1 if n.is_dynamic else n.get_length() for n in port.partial_shape]
        return port.any_name, [port.element_type.to_dtype().name, sizes]

    return {"serving_default": _make_signature(model.inputs, model.outputs, describe)}


def _make_signature(
    inputs: Iterable[Any], outputs: Iterable[Any], describe: Callable[[Any], Any]
) -> Signature:
    tensors = {"inputs": inputs, "outputs": outputs}
    return {kind: dict(map(describe, values)) for kind, values in tensors.items()}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A library that runs artifacts."""

    # Function that loads an artifact, given its path and the number of threads.
    load: Callable[[str, int | None], ClassifyFunction]
    # Function that returns the signatures of the artifact at a path, by name.
    describe: Callable[[str], dict[str, Signature]]
    batch_size: int = 64  # Number of images in a call of an artifact.

    def open(self, path: str, threads: int | None = None) -> ClassifyFunction:
        """Loads an artifact and hides the runtime's log; see `open_tflite`."""
        with filter_cpp_logs():
            return self.load(path, threads)

    def predict(self, classify: ClassifyFunction, images: np.ndarray) -> np.ndarray:
        """Runs `classify`, a function that `open` returned, on any number of images."""
        size = self.batch_size
        starts = range(0, len(images), size)
        return np.concatenate([classify(images[i : i + size]) for i in starts])


# Runtimes by their names in a manifest.
RUNTIMES = {
    "LiteRT": Runtime(open_tflite, describe_tflite, batch_size=1),
    "TensorFlow": Runtime(open_saved_model, describe_saved_model),
    "ONNX Runtime": Runtime(open_onnx, describe_onnx),
    "OpenVINO": Runtime(open_openvino, describe_openvino),
}
