"""How each client of a bundle opens it: lines of code for the card."""
# ruff: noqa: E501 (lines to copy)

import dataclasses

from .manifest import Manifest


@dataclasses.dataclass(frozen=True)
class Client:
    """How a program opens an artifact."""

    name: str
    artifacts: tuple[str, ...]  # The first one that a bundle has is shown.
    code: str  # FILE is the artifact's path, CLASSES the number of classes.
    note: str = ""
    channels: tuple[int, ...] = (1, 3)  # Of the networks that it takes.
    language: str = "python"

    def lines(self, path: str, classes: int) -> str:
        """Returns the code for an artifact at a path and a number of classes."""
        return self.code.replace("FILE", path).replace("CLASSES", str(classes))


_TFLITE = ("int8", "float32", "float16", "dynamic")

CLIENTS = {
    "litert": Client(
        "LiteRT",
        _TFLITE,
        """\
from ai_edge_litert.interpreter import Interpreter
classify = Interpreter("FILE", num_threads=2).get_signature_runner("serving_default")
probabilities = classify(image=pixels)["probabilities"]
names = open("labels.txt", encoding="utf-8").read().split("\\n")
print([(names[p.argmax()], p.max()) for p in probabilities])
""",
    ),
    "compiled_model": Client(
        "LiteRT's CompiledModel, one picture",
        _TFLITE,
        """\
from ai_edge_litert.compiled_model import CompiledModel
model = CompiledModel.from_file("FILE")
(image,), (answer,) = model.create_input_buffers(0), model.create_output_buffers(0)
image.write(pixels[:1])
model.run_by_index(0, [image], [answer])
probabilities = answer.read(CLASSES, "float32")[None]
""",
    ),
    "mediapipe": Client(
        "MediaPipe Tasks, a whole picture",
        _TFLITE,
        """\
import mediapipe as mp, numpy as np, PIL.Image
with mp.tasks.vision.ImageClassifier.create_from_model_path("FILE") as classifier:
    pixels = np.array(PIL.Image.open("image.jpg").convert("RGB"))
    answer = classifier.classify(mp.Image(image_format=mp.ImageFormat.SRGB, data=pixels))
print([(c.category_name, c.score) for c in answer.classifications[0].categories[:5]])
""",
        "It squashes a picture to the input's size: cut a square first for the accuracy "
        "above. A grey file must be made RGB, as here.",
        channels=(3,),
    ),
    "tensorflow": Client(
        "TensorFlow alone, files of any size",
        ("saved_model",),
        """\
import tensorflow as tf
served = tf.saved_model.load("FILE").signatures["image_bytes"]
answer = served(image_bytes=tf.constant([open("image.jpg", "rb").read()]))
print(answer["classes"].numpy(), answer["scores"].numpy())
""",
        "One damaged file among several fails the whole call with InvalidArgument.",
    ),
    "serving": Client(
        "TensorFlow Serving, by REST, with `MODEL_NAME=net` and this folder's "
        "`saved_model` as `/models/net`",
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
network.reshape(pixels.shape)  # without it, one picture
model = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
probabilities = model({"image": pixels})["probabilities"]
""",
        "Without the hint a CPU that has bfloat16 computes in that: faster, with logits that "
        "differ by about 1 %.",
    ),
    "browser": Client(
        "A browser, with LiteRT.js, on a phone too; then open http://localhost:8000",
        ("web",),
        "python -m http.server --directory FILE\n",
        "The camera needs https, or localhost.",
        language="sh",
    ),
}


def describe_use(manifest: Manifest) -> str:
    """Returns the part of the card that shows how each client opens the bundle."""
    artifacts, parts = manifest["artifacts"], []
    for client in CLIENTS.values():
        paths = [artifacts[n]["path"] for n in client.artifacts if n in artifacts]
        if not paths:
            continue
        if manifest["preprocessing"]["channels"] not in client.channels:
            parts.append(f"{client.name.split(',')[0]} takes networks for RGB only.\n")
            continue
        code = client.lines(paths[0], len(manifest["classes"]))
        others = f" (or {', '.join(f'`{path}`' for path in paths[1:])})"
        title = client.name + (others if paths[1:] else "")
        note = f"\n{client.note}\n" if client.note else ""
        parts.append(f"{title}:\n\n```{client.language}\n{code}```\n{note}")
    return "\n".join(parts)
