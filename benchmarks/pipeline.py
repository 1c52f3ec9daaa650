"""Speed of reading images for evaluation and training, compared with PyTorch.

python -m benchmarks.pipeline --folder=imagenet/val --torch_python=/path/to/python

The Python of `--torch_python` needs torch, torchvision and Pillow (`pip install
torch==2.14.1 torchvision==0.29.1 pillow`). All implementations are measured in turn, in
processes with two workers (torch) or one thread per CPU (this package).

- "evaluation": JPEG files in order, in batches of 64. The shorter side is resized to
  256 pixels (bilinear, antialiased), then the central 224 pixels are cropped.
- "photographs": The same files in random order, with an inception crop of 224 pixels
  and a random flip. This package reads them from files and from TFRecords.
- "small images": Arrays of 32x32 pixels in batches of 128, padded, cropped and flipped.

This package outputs uint8, since its networks normalise the pixels. The torch
implementations use a `DataLoader`, Pillow and torchvision's transforms, and output
normalised floats or uint8. "decoding only" is TensorFlow's JPEG decoder alone, an upper
limit of the speed. For "photographs", the decoder decodes only the cropped region.

The time starts at the fifth batch, after the queue of batches has been filled. If the
machine has other load, CPU milliseconds are more reliable than images per second.
"""

import json
import os
import pathlib
import statistics
import sys
import tempfile

from benchmarks.side_by_side import run, run_scripts, summarise_ratios, write_results

_SCRIPT_START = """
import json, os, resource, sys, time
import numpy as np
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
config = json.load(sys.stdin)
files, count, size = config["files"], config["images"], config["batch"]


def cpu():
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
"""
_SCRIPT_END = """
def measure():
    began, iterator = cpu(), iter(batches())
    for _ in range(4):
        next(iterator)
    start = time.perf_counter()
    left = sum(len(batch) for batch in iterator)
    took = time.perf_counter() - start
    del iterator
    return left / took, 1000 * (cpu() - began) / count


print(json.dumps(measure()))
"""
_OUR_SCRIPT = """
from keras_resnet import data
from keras_resnet.data.record_index import read_records
from keras_resnet.spec import find_recipe

split = {split}
preprocessing = data.Preprocessing({shape}, 3, {crop})


def batches(count=count):
    return (images for images, _, _ in {batches})


list(batches(size))
"""
_EVALUATION_CODE = """data.evaluation_batches(
    split.take(slice(count)), data.central_crop(preprocessing), size, 1
)"""
_TRAINING_CODE = """data.TrainingBatches(
    split=split, preprocessing=preprocessing, replicas=1, seed=0,
    recipe=find_recipe("{recipe}", batch_size=size),
).dataset(0, -(-count // size))"""
_LABELS_CODE = "np.zeros(count, np.int32)"
_FILE_SPLIT_CODE = f"data.Split(np.array(files, object), {_LABELS_CODE}, True)"
_ARRAYS_CODE = "np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)"
_ARRAY_SPLIT_CODE = f"data.Split({_ARRAYS_CODE}, {_LABELS_CODE})"


def _make_our_script(split_code, recipe="photographs", shape="224, 224", crop="0.875"):
    code = _TRAINING_CODE.format(recipe=recipe) if recipe else _EVALUATION_CODE
    return _OUR_SCRIPT.format(split=split_code, shape=shape, crop=crop, batches=code)


_DECODING_SCRIPT = """
import tensorflow as tf
from keras_resnet.data.augmentation import draw_inception_box


def decode(path, i):
    file = tf.io.read_file(path)
    return tf.shape({decoded})


def batches():
    options = tf.data.Options()
    options.autotune.enabled = False
    shapes = tf.data.Dataset.from_tensor_slices((files, np.arange(count)))
    shapes = shapes.map(decode, num_parallel_calls=os.cpu_count())
    return shapes.batch(size).prefetch(2).with_options(options)
"""
_DECODE_ALL_CODE = "tf.io.decode_jpeg(file, 3)"
_DECODE_BOX_CODE = """tf.image.decode_and_crop_jpeg(
    file, draw_inception_box(tf.io.extract_jpeg_shape(file)[:2], (0, i)), 3,
    dct_method="INTEGER_FAST",
)"""
_TORCH_CODE = """
import torch
from PIL import Image
from torchvision import transforms as t

images = {images}
view = t.Compose([{view}, {tail}])


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return count

    def __getitem__(self, i):
        return view({image}), 0


def batches():
    loader = torch.utils.data.DataLoader(
        Images(), size, shuffle={shuffle}, num_workers=2
    )
    return (images for images, _ in loader)
"""


def _make_torch_scripts(transform_code, images_code="files", shuffle=True):
    image_code = 'Image.open(images[i]).convert("RGB")'
    if images_code != "files":
        image_code = "Image.fromarray(images[i])"
    floats = "t.ToTensor(), t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))"
    fields = {"view": transform_code, "images": images_code}
    fields |= {"shuffle": shuffle, "image": image_code}
    return {
        "torch DataLoader": _TORCH_CODE.format(tail=floats, **fields),
        "torch DataLoader, uint8": _TORCH_CODE.format(tail="t.PILToTensor()", **fields),
    }


_FLIP_CODE = "{}, t.RandomHorizontalFlip()"
IMPLEMENTATIONS = {
    "evaluation": {
        "ours": _make_our_script(_FILE_SPLIT_CODE, recipe=None),
        **_make_torch_scripts("t.Resize(256), t.CenterCrop(224)", shuffle=False),
        "decoding only": _DECODING_SCRIPT.format(decoded=_DECODE_ALL_CODE),
    },
    "photographs": {
        "ours, files": _make_our_script(_FILE_SPLIT_CODE),
        "ours, TFRecords": _make_our_script('read_records([config["records"]])'),
        **_make_torch_scripts(_FLIP_CODE.format("t.RandomResizedCrop(224)")),
        "decoding only": _DECODING_SCRIPT.format(decoded=_DECODE_BOX_CODE),
    },
    "small images": {
        "ours, arrays": _make_our_script(
            _ARRAY_SPLIT_CODE, "modern_cifar", "32, 32", "1.0"
        ),
        **_make_torch_scripts(
            _FLIP_CODE.format("t.RandomCrop(32, padding=4)"), _ARRAYS_CODE
        ),
    },
}


def _find_files(folder, num_files):
    paths = pathlib.Path(folder).absolute().rglob("*")
    files = sorted(str(p) for p in paths if p.suffix.lower() in (".jpg", ".jpeg"))
    return (files * (num_files // len(files) + 1))[:num_files]


def _write_records(files, path):
    import tensorflow as tf

    label = tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))
    with tf.io.TFRecordWriter(path) as writer:
        for file in files:
            image = tf.train.BytesList(value=[pathlib.Path(file).read_bytes()])
            image = tf.train.Feature(bytes_list=image)
            features = {"image/encoded": image, "image/class/label": label}
            features = tf.train.Features(feature=features)
            writer.write(tf.train.Example(features=features).SerializeToString())


def _compare(kind, config, num_rounds, torch_python):
    """Runs `IMPLEMENTATIONS[kind]` in turn and returns a result row for each."""
    # This package caches the index of the TFRecords in KERAS_HOME.
    env = {**os.environ, "KERAS_HOME": os.path.dirname(config["records"])}
    scripts = {}
    for name, code in IMPLEMENTATIONS[kind].items():
        python = torch_python if name.startswith("torch") else sys.executable
        scripts[name] = python, _SCRIPT_START + code + _SCRIPT_END
    columns = run_scripts(scripts, num_rounds, input=json.dumps(config), env=env)
    our_rates = columns[next(iter(scripts))][0]
    return [
        {
            "images": kind,
            "side": implementation,
            "images_per_second": round(statistics.median_high(rates)),
            **summarise_ratios(our_rates, rates, "ours/side"),
            "cpu_ms": round(statistics.median_high(cpu_times), 3),
            "number": config["images"],
            "rounds": num_rounds,
        }
        for implementation, (rates, cpu_times) in columns.items()
    ]


def main(folder, torch_python, num_images, num_rounds):
    """Writes `results/jpeg.csv` (evaluation) and `results/pipeline.csv` (training)."""
    with tempfile.TemporaryDirectory() as temp_dir:
        config = {"files": _find_files(folder, num_images), "images": num_images}
        records = os.path.join(temp_dir, "train-00000-of-00001")
        config |= {"batch": 64, "records": records}
        _write_records(config["files"], records)
        small_config = config | {"images": 25 * num_images, "batch": 128}
        write_results("jpeg", _compare("evaluation", config, num_rounds, torch_python))
        rows = _compare("photographs", config, num_rounds, torch_python)
        rows += _compare("small images", small_config, num_rounds, torch_python)
        write_results("pipeline", rows)


if __name__ == "__main__":
    run(
        main,
        required=("folder",),
        folder=(None, "Folder of JPEG files."),
        torch_python=(sys.executable, "Python interpreter with torchvision."),
        images=(2000, "Number of images; files repeat if there are fewer."),
        rounds=(5, "Number of times that each implementation reads all images."),
    )
