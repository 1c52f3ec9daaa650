"""Training batches, beside torch's DataLoader.

python -m benchmarks.pipeline --folder=imagenet/train --torch_python=/path/to/python

The other Python needs torch, torchvision and Pillow (`pip install torch==2.14.1
torchvision==0.29.1 pillow`). Each side is a process of its own, with two workers or
as many threads as there are CPUs.

Photographs: the same JPEG files in batches of 64, in random order: an inception crop
of 224 pixels and a flip, ours from files and from TFRecords. Ours gives uint8, since
our nets normalise themselves; torch's is Pillow with torchvision's transforms, once
to normalised floats, as its nets take them, and once to uint8. "decoding only" is
TensorFlow's decoder within the crop, with nothing behind it: what no pipeline on it
can beat. Small images: arrays of 32 pixels in batches of 128, padded, cropped and
flipped.

Time is taken from the fourth batch on, when every side's queue has been full. On a
machine that does other things too, CPU milliseconds say more than images a second.
"""

import json
import os
import subprocess
import sys
import tempfile

from absl import flags

from benchmarks.side_by_side import ratios, write_results

_START = """
import itertools, json, os, resource, sys, time
import numpy as np
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
given = json.load(sys.stdin)
files, count, size = given["files"], given["images"], given["batch"]


def cpu():
    found = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in found)
"""
_END = """
def measure():
    began, found = cpu(), iter(batches())
    for _ in range(4):
        next(found)
    start = time.perf_counter()
    left = sum(len(batch) for batch in found)
    took = time.perf_counter() - start
    del found
    return left / took, 1000 * (cpu() - began) / count


print(json.dumps(measure()))
"""
_OURS = """
from keras_resnet import data, pipelines
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.recipes import find_recipe

{split}
recipe = find_recipe("{recipe}", batch_size=size)
preprocessing = Preprocessing({shape}, 3, {crop})


def batches(steps=-(-count // size)):
    found = pipelines.training_batches(split, preprocessing, recipe, 1, 0, 0, steps)
    return (images for images, _, _ in found)


list(batches(1))
"""
_FOLDER = """
split = data.Split(np.array(files, object), np.zeros(count, np.int32), True)
"""
_RECORDS = """
split = data._records([given["records"]])
"""
_ARRAYS = """
images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
"""
_SPLIT = _ARRAYS + "split = data.Split(images, np.zeros(count, np.int32))"
_PHOTOGRAPHS = {"recipe": "photographs", "shape": "224, 224", "crop": "0.875"}
_SMALL = {"recipe": "modern_cifar", "shape": "32, 32", "crop": "1.0"}
_DECODING = """
import tensorflow as tf
from keras_resnet import augmentation


def decode(path, i):
    file = tf.io.read_file(path)
    box = augmentation.inception_box(tf.io.extract_jpeg_shape(file)[:2], (0, i))
    return tf.shape(
        tf.image.decode_and_crop_jpeg(file, box, 3, dct_method="INTEGER_FAST")
    )


def batches():
    options = tf.data.Options()
    options.autotune.enabled = False
    shapes = tf.data.Dataset.from_tensor_slices((files, np.arange(count)))
    shapes = shapes.map(decode, num_parallel_calls=os.cpu_count())
    return shapes.batch(size).prefetch(2).with_options(options)
"""
_TORCH = """
import torch
from PIL import Image
from torchvision import transforms as t

{images}
view = t.Compose([{crop}, t.RandomHorizontalFlip(), {tail}])


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return count

    def __getitem__(self, i):
        return view({open}), 0


def batches():
    found = torch.utils.data.DataLoader(Images(), size, shuffle=True, num_workers=2)
    return (images for images, _ in found)
"""
_FLOAT = "t.ToTensor(), t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))"
_UINT8 = "t.PILToTensor()"
_THEIR_FILES = {
    "images": "",
    "crop": "t.RandomResizedCrop(224)",
    "open": 'Image.open(files[i]).convert("RGB")',
}
_THEIR_ARRAYS = {
    "images": _ARRAYS,
    "crop": "t.RandomCrop(32, padding=4)",
    "open": "Image.fromarray(images[i])",
}
SIDES = {
    "photographs": {
        "ours, files": _OURS.format(split=_FOLDER, **_PHOTOGRAPHS),
        "ours, TFRecords": _OURS.format(split=_RECORDS, **_PHOTOGRAPHS),
        "torch DataLoader": _TORCH.format(tail=_FLOAT, **_THEIR_FILES),
        "torch DataLoader, uint8": _TORCH.format(tail=_UINT8, **_THEIR_FILES),
        "decoding only": _DECODING,
    },
    "small images": {
        "ours, arrays": _OURS.format(split=_SPLIT, **_SMALL),
        "torch DataLoader": _TORCH.format(tail=_FLOAT, **_THEIR_ARRAYS),
        "torch DataLoader, uint8": _TORCH.format(tail=_UINT8, **_THEIR_ARRAYS),
    },
}


def _find_files(folder, count):
    files = sorted(
        os.path.join(where, name)
        for where, _, names in os.walk(os.path.abspath(folder))
        for name in names
        if name.lower().endswith((".jpg", ".jpeg"))
    )
    return (files * (count // len(files) + 1))[:count]


def _write_records(files, path):
    import tensorflow as tf

    with tf.io.TFRecordWriter(path) as writer:
        for name in files:
            with open(name, "rb") as file:
                image = tf.train.BytesList(value=[file.read()])
            features = {
                "image/encoded": tf.train.Feature(bytes_list=image),
                "image/class/label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[1])
                ),
            }
            features = tf.train.Features(feature=features)
            writer.write(tf.train.Example(features=features).SerializeToString())


def _measure(code, given, python, home):
    answer = subprocess.run(
        [python, "-c", _START + code + _END],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "KERAS_HOME": home},  # For the index of the records.
    )
    return json.loads(answer.stdout.splitlines()[-1])


def main(argv):
    """Measures all sides in turn and writes `results/pipeline.csv`."""
    del argv
    values = flags.FLAGS
    files = _find_files(values.folder, values.images)
    rows = []
    with tempfile.TemporaryDirectory() as home:
        records = os.path.join(home, "train-00000-of-00001")
        _write_records(files, records)
        for kind, sides in SIDES.items():
            given = {"files": files, "records": records, "images": values.images}
            given["batch"] = 64
            if kind == "small images":
                given |= {"images": 25 * values.images, "batch": 128}
            rates = {side: [] for side in sides}
            cpu = {side: [] for side in sides}
            for _ in range(values.rounds):
                for side, code in sides.items():
                    torch = side.startswith("torch")
                    python = values.torch_python if torch else sys.executable
                    rate, used = _measure(code, given, python, home)
                    rates[side].append(rate)
                    cpu[side].append(used)
            for side, found in rates.items():
                middle, lowest, highest = ratios(rates[next(iter(sides))], found)
                rows.append(
                    {
                        "images": kind,
                        "side": side,
                        "images_per_second": round(sorted(found)[len(found) // 2]),
                        "ours/side": middle,
                        "lowest": lowest,
                        "highest": highest,
                        "cpu_ms": round(sorted(cpu[side])[len(found) // 2], 3),
                        "number": given["images"],
                        "rounds": len(found),
                    }
                )
    write_results("pipeline", rows)


if __name__ == "__main__":
    from keras_resnet.support import program

    flags.DEFINE_string("folder", None, "Of JPEG files.", required=True)
    flags.DEFINE_string("torch_python", sys.executable, "Python with torchvision.")
    flags.DEFINE_integer("images", 2000, "To read; files are read again if fewer.", 1)
    flags.DEFINE_integer("rounds", 5, "Passes of each side.", 1)
    program.run_command(main)
