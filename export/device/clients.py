"""Code examples in MODEL_CARD.md for the libraries and programs that run artifacts."""
# ruff: noqa: E501 (The examples are meant to be copied.)

import dataclasses

from .manifest import Manifest


@dataclasses.dataclass(frozen=True)
class Client:
    """A library or program that runs artifacts, with a code example."""

    name: str  # Title of the example.
    artifacts: tuple[str, ...]  # Names of supported artifacts, the preferred one first.
    code: str  # Example with the placeholders FILE and CLASSES.
    note: str = ""  # Text below the example.
    channels: tuple[int, ...] = (1, 3)  # Supported numbers of image channels.
    language: str = "python"  # Language of the Markdown code block.

    def format_code(self, path: str, num_classes: int) -> str:
        """Returns `code` with FILE replaced by a path and CLASSES by a number."""
        return self.code.replace("FILE", path).replace("CLASSES", str(num_classes))


_TFLITE_NAMES = ("int8", "float32", "float16", "dynamic")

CLIENTS = {
    "litert": Client(
        "LiteRT",
        _TFLITE_NAMES,
        """\
from ai_edge_litert.interpreter import Interpreter
classify = Interpreter("FILE", num_threads=2).get_signature_runner("serving_default")
probabilities = classify(image=pixels)["probabilities"]
names = open("labels.txt", encoding="utf-8").read().split("\\n")
print([(names[p.argmax()], p.max()) for p in probabilities])
""",
    ),
    "compiled_model": Client(
        "LiteRT CompiledModel, one image per call",
        _TFLITE_NAMES,
        """\
from ai_edge_litert.compiled_model import CompiledModel
model = CompiledModel.from_file("FILE")
(image,), (output,) = model.create_input_buffers(0), model.create_output_buffers(0)
image.write(pixels[:1])
model.run_by_index(0, [image], [output])
probabilities = output.read(CLASSES, "float32")[None]
""",
    ),
    "mediapipe": Client(
        "MediaPipe Tasks, images of any size",
        _TFLITE_NAMES,
        """\
import mediapipe as mp, numpy as np, PIL.Image
with mp.tasks.vision.ImageClassifier.create_from_model_path("FILE") as classifier:
    pixels = np.array(PIL.Image.open("image.jpg").convert("RGB"))
    result = classifier.classify(mp.Image(image_format=mp.ImageFormat.SRGB, data=pixels))
print([(c.category_name, c.score) for c in result.classifications[0].categories[:5]])
""",
        "MediaPipe stretches the image to the network's input size. Crop a square first to reach the accuracy above. Greyscale files must be converted to RGB, as in the code.",
        channels=(3,),
    ),
    "tensorflow": Client(
        "TensorFlow without Keras, image files of any size",
        ("saved_model",),
        """\
import tensorflow as tf
classify = tf.saved_model.load("FILE").signatures["image_bytes"]
result = classify(image_bytes=tf.constant([open("image.jpg", "rb").read()]))
print(result["classes"].numpy(), result["scores"].numpy())
""",
        "If one of several files is damaged, the whole call fails with InvalidArgumentError.",
    ),
    "serving": Client(
        "TensorFlow Serving, by REST, started with `MODEL_NAME=net` and with the folder `saved_model` mounted as `/models/net`",
        ("saved_model",),
        """\
echo '{"signature_name": "image_bytes", "instances": [{"b64": "'$(base64 < image.jpg | tr -d '\\n')'"}]}' |
  curl --data @- http://localhost:8501/v1/models/net:predict
""",
        language="sh",
    ),
    "onnx": Client(
        "ONNX Runtime",
        ("onnx",),
        """\
import onnxruntime
session = onnxruntime.InferenceSession("FILE", providers=["CPUExecutionProvider"])
probabilities = session.run(["probabilities"], {"image": pixels})[0]
""",
    ),
    "openvino": Client(
        "OpenVINO",
        ("openvino_int8", "openvino"),
        """\
import openvino
network = openvino.Core().read_model("FILE/model.xml")
network.reshape(pixels.shape)  # The default batch size is 1.
model = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
probabilities = model({"image": pixels})["probabilities"]
""",
        "Without the hint, CPUs that support bfloat16 compute in bfloat16. This is faster, but the logits differ from those in float32 by about 1 %.",
    ),
    "browser": Client(
        "Browsers, also on phones, with LiteRT.js (then open http://localhost:8000)",
        ("web",),
        "python -m http.server --directory FILE\n",
        "Browsers allow the camera only for https and localhost.",
        language="sh",
    ),
}


def describe_use(manifest: Manifest) -> str:
    """Returns Markdown with the examples of all clients that support the bundle."""
    artifacts, parts = manifest["artifacts"], []
    for client in CLIENTS.values():
        paths = [artifacts[n]["path"] for n in client.artifacts if n in artifacts]
        if not paths:
            continue
        if manifest["preprocessing"]["channels"] not in client.channels:
            parts.append(f"{client.name.split(',')[0]} supports only RGB networks.\n")
            continue
        code = client.format_code(paths[0], len(manifest["classes"]))
        suffix = f" (also for {', '.join(f'`{path}`' for path in paths[1:])})"
        title = client.name + (suffix if paths[1:] else "")
        note = f"\n{client.note}\n" if client.note else ""
        parts.append(f"{title}:\n\n```{client.language}\n{code}```\n{note}")
    return "\n".join(parts)
