"""Each artifact in the runtime that its users have, and in nothing else.

This module needs NumPy alone; a runtime is imported when it is asked for.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable

import numpy as np

from keras_resnet.support import InputError


class MissingRuntime(InputError):
    """What would run an artifact is not installed."""


@contextlib.contextmanager
def needs(extra=None):
    """Says which extra of the distribution brings what is imported within.

    Raises:
        MissingRuntime: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        wanted = f"keras-resnet-zoo[{extra}]" if extra else str(error.name)
        raise MissingRuntime(
            f"{error.name} is not installed: pip install '{wanted}'"
        ) from error


@contextlib.contextmanager
def quiet():
    """Keeps the notes that runtimes' C++ parts print off standard error."""
    sys.stderr.flush()
    own, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)
        os.close(nowhere)


@contextlib.contextmanager
def without_telemetry():
    """Keeps OpenVINO and NNCF, imported within, from reporting their use.

    Both report to their makers unless the user has objected; without this module
    they do not.
    """
    name = "openvino_telemetry"
    known = name in sys.modules
    sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if not known:
            del sys.modules[name]


def open_tflite(path, threads=None):
    """Loads a `.tflite` file into LiteRT.

    Args:
        path: of the file.
        threads: number of threads; `None` is one for each CPU.

    Returns:
        A function from uint8 images (n, height, width, channels), which it runs as
        one batch, to their probabilities, float32 (n, classes). A file for
        integer-only or float clients gets the same pixels in its own type.
    """
    with needs():
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(path, num_threads=threads or os.cpu_count())
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner("serving_default")
    entry = runner.get_input_details()["image"]
    answer = runner.get_output_details()["probabilities"]

    def classify(images):
        # The runner resizes the graph where the number of images is another one.
        probabilities = runner(image=encode(images, entry))["probabilities"]
        return decode(probabilities, answer)

    return classify


def encode(images, details):
    """Raw pixels, uint8, in the type and scale of a tensor of LiteRT."""
    dtype = details["dtype"]
    if dtype == np.uint8:
        return images
    if np.issubdtype(dtype, np.floating):
        return images.astype(dtype)
    scale, zero_point = details["quantization"]
    limits = np.iinfo(dtype)
    levels = np.round(images / np.float32(scale)) + zero_point
    return np.clip(levels, limits.min, limits.max).astype(dtype)


def decode(values, details):
    """float32 of a tensor of LiteRT, whatever its type and scale."""
    if np.issubdtype(details["dtype"], np.floating):
        return values
    scale, zero_point = details["quantization"]
    return (np.float32(values) - zero_point) * np.float32(scale)


def open_saved_model(path, threads=None):
    """Loads a SavedModel into TensorFlow.

    Args:
        path: of its folder.
        threads: as in `open_tflite`; for the whole process, before TensorFlow has
            run anything.

    Returns:
        A function as that of `open_tflite`.
    """
    with needs("cpu"):
        import tensorflow as tf
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    return lambda images: serve(image=tf.constant(images))["probabilities"].numpy()


def describe_tflite(path):
    """Returns the signatures of a `.tflite` file.

    Returns:
        A dict from each signature's name to its `inputs` and `outputs`, dicts from
        names to a type and a shape; of a quantised tensor also scale and zero point:
        the value is (level - zero point) * scale.
    """
    with needs():
        from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(path)

    def describe(details):
        found = {}
        for name, tensor in details.items():
            scale, zero_point = tensor["quantization"]
            quantised = [float(scale), int(zero_point)] if scale else []
            dtype = np.dtype(tensor["dtype"]).name
            found[name] = [dtype, tensor["shape"].tolist(), *quantised]
        return found

    return {
        name: {
            "inputs": describe(runner.get_input_details()),
            "outputs": describe(runner.get_output_details()),
        }
        for name in interpreter.get_signature_list()
        for runner in [interpreter.get_signature_runner(name)]
    }


def describe_saved_model(path):
    """Returns the signatures of a SavedModel, as `describe_tflite`; -1 is any size."""
    import tensorflow as tf

    def describe(specs):
        return {
            name: [spec.dtype.name, [-1 if n is None else n for n in spec.shape]]
            for name, spec in specs.items()
        }

    return {
        name: {
            "inputs": describe(function.structured_input_signature[1]),
            "outputs": describe(function.structured_outputs),
        }
        for name, function in tf.saved_model.load(path).signatures.items()
    }


def open_onnx(path, threads=None):
    """Loads an ONNX file into ONNX Runtime, on the CPU.

    Args:
        path: of the file.
        threads: as in `open_tflite`.

    Returns:
        A function as that of `open_tflite`.
    """
    with needs("onnx"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count()
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["probabilities"], {"image": images})[0]


def describe_onnx(path):
    """Returns the inputs and outputs of an ONNX file, as `describe_saved_model`."""
    with needs("onnx"):
        import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def describe(values):
        return {
            value.name: [
                value.type.removeprefix("tensor(")
                .removesuffix(")")
                .replace("float", "float32"),
                [n if isinstance(n, int) else -1 for n in value.shape],
            ]
            for value in values
        }

    return {
        "serving_default": {
            "inputs": describe(session.get_inputs()),
            "outputs": describe(session.get_outputs()),
        }
    }


@functools.cache
def _openvino():
    """OpenVINO's core, one for the life of the process.

    Each brings a stack for the process's signal handlers, and of two that end in
    the order of their making the second leaves one behind that is no longer there:
    the next Ctrl-C would be a segmentation fault.
    """
    with needs("openvino"), without_telemetry():
        import openvino
    return openvino.Core()


def open_openvino(path, threads=None):
    """Loads a folder with `model.xml` into OpenVINO, on the CPU.

    Args:
        path: of the folder.
        threads: as in `open_tflite`.

    Returns:
        A function as that of `open_tflite`.
    """
    core = _openvino()
    options = {
        "INFERENCE_NUM_THREADS": threads or os.cpu_count(),
        "PERFORMANCE_HINT": "LATENCY",
        # Else a CPU that has bfloat16 computes in it, and logits differ by 1 %.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model, compiled = core.read_model(os.path.join(path, "model.xml")), {}

    def classify(images):
        if len(images) not in compiled:
            model.reshape(list(images.shape))
            compiled[len(images)] = core.compile_model(model, "CPU", options)
        # A copy: the next call writes into the same memory.
        return compiled[len(images)]({"image": images})["probabilities"].copy()

    return classify


def describe_openvino(path):
    """Returns the inputs and outputs of OpenVINO's, as `describe_saved_model`."""
    model = _openvino().read_model(os.path.join(path, "model.xml"))

    def describe(ports):
        return {
            port.any_name: [
                port.element_type.to_dtype().name,
                [-1 if n.is_dynamic else n.get_length() for n in port.partial_shape],
            ]
            for port in ports
        }

    return {
        "serving_default": {
            "inputs": describe(model.inputs),
            "outputs": describe(model.outputs),
        }
    }


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What runs an artifact.

    Attributes:
        load: function of (path, threads) as `open_tflite`.
        describe: function of the path as `describe_tflite`.
        batch: images at a time when it is judged: a `.tflite` file is run as it is,
            one image at a time.
    """

    load: Callable
    describe: Callable
    batch: int = 64

    def open(self, path, threads=None):
        """Loads an artifact, without its runtime's notes; see `open_tflite`."""
        with quiet():
            return self.load(path, threads)

    def predict(self, classify, images):
        """Probabilities, float32 (n, classes), by what `open` gave, in batches."""
        parts = range(0, len(images), self.batch)
        return np.concatenate([classify(images[i : i + self.batch]) for i in parts])


# By the name that a manifest calls it.
RUNTIMES = {
    "LiteRT": Runtime(open_tflite, describe_tflite, batch=1),
    "TensorFlow": Runtime(open_saved_model, describe_saved_model),
    "ONNX Runtime": Runtime(open_onnx, describe_onnx),
    "OpenVINO": Runtime(open_openvino, describe_openvino),
}
