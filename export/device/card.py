"""What a bundle says of itself: its table, MODEL_CARD.md and manifest.json."""

import dataclasses
import json
import os

from keras_resnet.support import write_file

from .labels import label_lines
from .manifest import describe_files

_CARD = """# {name}

{kind}, {classes} classes, {made}.

| | |
| --- | --- |
| input | `image`, uint8 ({height}, {width}, {channels}), raw pixels from 0 to 255; normalisation is inside |
| images of other sizes | {interpolation} with antialiasing to cover {cover_height}x{cover_width} pixels, then the central {height}x{width} |
| output | `probabilities`, float32 ({classes}); the classes are in `labels.txt`, in order |
| data | {dataset} |
{history}
| licence | {licence} |
| accuracy | Keras model: {right} of {images} held-out images right, {accuracy:.2%} |

| artifact | size | right | same class as Keras | accuracy lost, 95 % interval | latency |
| --- | --- | --- | --- | --- | --- |
{rows}

Accuracy and agreement are over the same {images} held-out images. The latency is the
median of 30 calls with one image and all CPUs in one process, on {machine}.
{notes}
{latency}
## Limits

It knows only the classes above and names one of them for any image. It has been
checked on held-out images of {checked}, and on no others.{calibration}

{by_class}

## Use

In the folder of this file, with `pixels` a uint8 array (n, {height}, {width}, {channels}).
`keras-resnet-verify .` (from a checkout `python -m export.verify`) checks every file and
artifact again.

{use}
"""


_RECIPE = """\
| recipe | {recipe}: {epochs} epochs of {optimizer}, batch {batch_size}, learning rate {learning_rate}, weight decay {weight_decay} |
| random seed | {seed} |"""


@dataclasses.dataclass(frozen=True)
class Client:
    """How a program opens an artifact.

    Attributes:
        name: of the client.
        artifacts: that it runs, the first of which is shown.
        code: five lines or so, with FILE for the artifact and CLASSES for the
            number of classes.
        note: what to know of it.
        channels: of the networks that it takes; any if not given.
        language: of the code.
    """

    name: str
    artifacts: tuple[str, ...]
    code: str
    note: str = ""
    channels: tuple[int, ...] = (1, 3)
    language: str = "python"

    def lines(self, path, classes):
        """The code for an artifact at a path and a number of classes."""
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


def use(manifest):
    """The part of the card that shows how each client opens the bundle."""
    parts = []
    for client in CLIENTS.values():
        there = [name for name in client.artifacts if name in manifest["artifacts"]]
        if not there:
            continue
        if manifest["preprocessing"]["channels"] not in client.channels:
            parts.append(f"{client.name.split(',')[0]} takes networks for RGB only.\n")
            continue
        paths = [manifest["artifacts"][name]["path"] for name in there]
        code = client.lines(paths[0], len(manifest["classes"]))
        others = f" (or {', '.join(f'`{path}`' for path in paths[1:])})"
        title = client.name + (others if paths[1:] else "")
        note = f"\n{client.note}\n" if client.note else ""
        parts.append(f"{title}:\n\n```{client.language}\n{code}```\n{note}")
    return "\n".join(parts)


# How many classes a card lists; of more, those that are named worst.
_LISTED = 20


def write_description(folder, manifest):
    """Writes MODEL_CARD.md and manifest.json, which has the sha256 of all else.

    Args:
        folder: of the bundle, all of whose other files are there.
        manifest: the bundle's; its `files` are entered here.
    """
    write_file(os.path.join(folder, "MODEL_CARD.md"), model_card(manifest))
    others = ("labels.txt", "check.npz", "MODEL_CARD.md", *EXTRA)
    there = [name for name in others if os.path.exists(os.path.join(folder, name))]
    manifest["files"] = describe_files(folder, there)
    write_file(
        os.path.join(folder, "manifest.json"),
        json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    )


# What may lie in a bundle, beside its artifacts.
EXTRA = ("latency.png", "quantization.csv", "quantization.png")


DESCRIPTION = ("labels.txt", "check.npz", "MODEL_CARD.md", "manifest.json", *EXTRA)


def model_card(manifest):
    """Returns the card of a bundle.

    Args:
        manifest: the bundle's.
    """
    settings, preprocessing = manifest["settings"], manifest["preprocessing"]
    evaluation, artifacts = manifest["evaluation"], manifest["artifacts"]
    if "recipe" in settings:
        made = f"trained on {settings['dataset']} by keras_resnet"
        history = _RECIPE.format(**settings)
        licence = "whoever trained it decides; keras_resnet itself is Apache-2.0"
        licence = settings.get("licence", licence)
    else:
        made = f"with weights of {settings.get('publisher', settings['weights'])}"
        known = [key for key in ("weights", "published_top1") if key in settings]
        history = "\n".join(f"| {key} | {settings[key]} |" for key in known)
        licence = settings.get("licence", "not known")
    return _CARD.format(
        **preprocessing,
        name=manifest["name"],
        kind="Plain net" if settings.get("shortcut") == "none" else "Residual net",
        made=made,
        dataset=settings.get("dataset", "of its publisher"),
        history=history,
        licence=licence,
        classes=len(manifest["classes"]),
        cover_height=round(preprocessing["height"] / preprocessing["crop"]),
        cover_width=round(preprocessing["width"] / preprocessing["crop"]),
        right=evaluation["keras_right"],
        images=evaluation["images"],
        accuracy=evaluation["keras_right"] / evaluation["images"],
        rows="\n".join(map(_row, artifacts.values())),
        notes="".join(
            f"\n`{row['path']}`: {row['note']}.\n"
            for row in artifacts.values()
            if row["note"]
        ),
        machine=manifest["machine"],
        latency=_latency(manifest),
        checked=evaluation["dataset"],
        calibration=_calibration(manifest["calibration"]),
        by_class=_by_class(evaluation, manifest["classes"]),
        use=use(manifest),
    )


def _row(row):
    size = f"| `{row['path']}` | {row['bytes'] / 1e6:.2f} MB "
    if row["runtime"] is None:
        return size + "| see its `.tflite` files | | | |"
    low, high = row["loss_interval"]
    return size + (
        f"| {row['right']} of {row['images']} | {row['agreement']:.2%} "
        f"| {low:+.2f} to {high:+.2f} points | {row['latency_ms']:.2f} ms |"
    )


def _calibration(calibration):
    if calibration is None:
        return ""
    return (
        f" int8 was calibrated on {len(calibration['images'])} images of "
        f"{calibration['dataset']}, none of them among these."
    )


def _by_class(evaluation, classes):
    """The Keras model's accuracy by class, as a table; of many, the worst."""
    counts = zip(
        evaluation["right_by_class"], evaluation["images_by_class"], strict=True
    )
    rows = [
        (name, *pair) for name, pair in zip(label_lines(classes), counts, strict=True)
    ]
    seen = [row for row in rows if row[2]]
    said = "Keras model, class by class:"
    if len(seen) > _LISTED:
        seen = sorted(seen, key=lambda row: row[1] / row[2])[:_LISTED]
        said = f"The {_LISTED} classes that it names worst; manifest.json has them all:"
    lines = [
        f"| {_cell(name)} | {right} of {images} | {right / images:.1%} |"
        for name, right, images in seen
    ]
    return "\n".join([said, "", "| class | right | |", "| --- | --- | --- |", *lines])


def _cell(text):
    return "".join(f"\\{c}" if c in "\\|`*_<[" else c for c in text)


def closing_table(manifest):
    """The closing table: each artifact beside the Keras model, as text."""
    evaluation = manifest["evaluation"]
    count = evaluation["images"]

    def row(name, size, right, agreement, difference, milliseconds):
        return (
            f"{name:<24}{size:>10}{right:>7} of {count:<6}{right / count:>8.2%}"
            f"{agreement:>11}{difference:>13}{milliseconds:>11.2f}"
        )

    keras = evaluation["keras_right"], "", "", evaluation["keras_latency_ms"]
    lines = [
        f"{'artifact':<24}{'size':>10}{'right':>7}{'':<10}{'top-1':>8}"
        f"{'agreement':>11}{'difference':>13}{'latency ms':>11}",
        row("Keras", "", *keras),
    ]
    for entry in manifest["artifacts"].values():
        size = f"{entry['bytes'] / 1e6:.2f} MB"
        if entry["runtime"] is None:
            lines.append(f"{entry['path']:<24}{size:>10}")
            continue
        agreement, difference = (
            f"{entry['agreement']:.2%}",
            f"{entry['difference']:.1e}",
        )
        found = entry["right"], agreement, difference, entry["latency_ms"]
        lines.append(row(entry["path"], size, *found))
    return "\n".join(lines)


_COLUMNS = ("median_ms", "p95_ms", "images_per_s", "peak_mib", "start_ms")


def latency_table(manifest):
    """The rows of `latency.measure`, as text."""
    lines = [
        f"{'artifact':<16}{'threads':>8}{'batch':>6}{'median ms':>11}{'p95 ms':>10}"
        f"{'images/s':>10}{'peak MiB':>10}{'start ms':>10}{'size MB':>9}"
    ]
    for row in manifest["latency"]["rows"]:
        size = manifest["artifacts"][row["artifact"]]["bytes"] / 1e6
        lines.append(
            f"{row['artifact']:<16}{row['threads']:>8}{row['batch']:>6}"
            f"{row['median_ms']:>11.2f}{row['p95_ms']:>10.2f}{row['images_per_s']:>10.1f}"
            f"{row['peak_mib']:>10.0f}{row['start_ms']:>10.0f}{size:>9.2f}"
        )
    return "\n".join(lines)


def _latency(manifest):
    """The card's part on latency, where `python -m export.latency` has measured it."""
    if not manifest.get("latency"):
        return "\n`keras-resnet-latency .` measures more, on your own machine.\n"
    return (
        f"\nBy `keras-resnet-latency`, each in a process of its own, in turn, on "
        f"{manifest['latency']['machine']}:\n\n```\n{latency_table(manifest)}\n```\n\n"
        "![Latency against accuracy](latency.png)\n"
    )
