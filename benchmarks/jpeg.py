"""Reading a folder of JPEGs for evaluation, beside torch's DataLoader.

python -m benchmarks.jpeg --folder=imagenet/val --torch_python=/path/to/python

Each side is a process of its own that reads the same files in batches of 64, with
two workers or as many threads as there are CPUs: shorter side to 256 pixels
(bilinear, antialiased), the central 224. Ours gives uint8, since our nets
normalise themselves; torch's is Pillow with torchvision's transforms, once to
normalised floats, as its nets take them, and once to uint8. "decoding only" is
TensorFlow's decoder with nothing behind it: what no pipeline on it can beat.
"""

import json
import os
import subprocess
import sys

from absl import flags

from benchmarks.side_by_side import ratios, write_results

_START = """
import json, os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
files = json.load(sys.stdin)
"""
_END = """
start = time.perf_counter()
count = sum(len(batch) for batch in batches())
print(json.dumps(count / (time.perf_counter() - start)))
"""
_OURS = """
import numpy as np
from keras_resnet import data, pipelines
from keras_resnet.preprocessing import Preprocessing

labels = np.zeros(len(files), np.int32)
split = data.Split(np.array(files, object), labels, True)
cut = pipelines.central(Preprocessing(224, 224, 3, 0.875))


def batches():
    return (images for images, _, _ in pipelines.evaluation_batches(split, cut, 64, 1))


next(iter(pipelines.evaluation_batches(split.take(slice(64)), cut, 64, 1)))
"""
_DECODING = """
import tensorflow as tf


def decode(path):
    return tf.shape(tf.io.decode_jpeg(tf.io.read_file(path), 3))


def batches():
    options = tf.data.Options()
    options.autotune.enabled = False
    shapes = tf.data.Dataset.from_tensor_slices(files)
    shapes = shapes.map(decode, num_parallel_calls=os.cpu_count())
    return shapes.batch(64).prefetch(2).with_options(options)
"""
_TORCH = """
import torch
from PIL import Image
from torchvision import transforms as t

tail = {tail}
view = t.Compose([t.Resize(256), t.CenterCrop(224), *tail])


class Files(torch.utils.data.Dataset):
    def __len__(self):
        return len(files)

    def __getitem__(self, i):
        return view(Image.open(files[i]).convert("RGB"))


def batches():
    return torch.utils.data.DataLoader(Files(), 64, num_workers=2)
"""
_FLOAT = "[t.ToTensor(), t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]"
SIDES = {
    "ours": _OURS,
    "torch DataLoader": _TORCH.format(tail=_FLOAT),
    "torch DataLoader, uint8": _TORCH.format(tail="[t.PILToTensor()]"),
    "decoding only": _DECODING,
}


def main(argv):
    """Measures all sides in turn and writes `results/jpeg.csv`."""
    del argv
    values = flags.FLAGS
    folder = os.path.abspath(values.folder)
    files = sorted(
        os.path.join(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith((".jpg", ".jpeg"))
    )
    files = (files * (values.images // len(files) + 1))[: values.images]
    rates = {name: [] for name in SIDES}
    for _ in range(values.rounds):
        for name, code in SIDES.items():
            python = values.torch_python if "torch" in name else sys.executable
            answer = subprocess.run(
                [python, "-c", _START + code + _END],
                input=json.dumps(files),
                capture_output=True,
                text=True,
                check=True,
            )
            rates[name].append(float(answer.stdout.splitlines()[-1]))
    rows = []
    for name, found in rates.items():
        middle, lowest, highest = ratios(rates["ours"], found)
        rows.append(
            {
                "side": name,
                "images_per_second": round(sorted(found)[len(found) // 2]),
                "ours/side": middle,
                "lowest": lowest,
                "highest": highest,
                "images": len(files),
                "rounds": len(found),
            }
        )
    write_results("jpeg", rows)


if __name__ == "__main__":
    from keras_resnet.support import program

    flags.DEFINE_string("folder", None, "Of JPEG files.", required=True)
    flags.DEFINE_string("torch_python", sys.executable, "Python with torchvision.")
    flags.DEFINE_integer("images", 2000, "To read; files are read again if fewer.", 1)
    flags.DEFINE_integer("rounds", 5, "Passes of each side.", 1)
    program.run_command(main)
