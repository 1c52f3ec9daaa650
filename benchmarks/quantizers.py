"""Accuracy of int8 files by TFLite, with and without repair, and `litert-quantizer`.

python -m benchmarks.quantizers --weights=FOLDER --crops=SHARED/data/imagenet

Each quantiser converts the same networks with folded batch normalisation to an int8
`.tflite` file, with the same calibration images. All files are compared with the Keras
network on the same test images. `litert-quantizer` (formerly `ai-edge-quantizer`) is
measured with moving averages of the ranges, its default, and with their minimum and
maximum, as in TFLite. It is skipped if it is not installed. `FOLDER` contains the
output of `../shared/tools/expand_weights.py`; without it, only ResNet-20 is measured.

`difference` is the sum of the absolute differences of the probabilities, averaged over
images. With 200 images it is more precise than the numbers of correct images.
"""

import dataclasses
import glob
import os
import tempfile

import numpy as np

from benchmarks.side_by_side import run, write_results

CALIBRATION_IMAGES = 200


def load_cases(weights, crops, data_dir):
    """Yields (classifier, calibration images, test images, test labels)."""
    from keras_resnet.evaluation import load_classifier, load_images

    if weights:
        test = np.load(os.path.join(crops, "imagenet_crops200.npz"))
        files = sorted(glob.glob(os.path.join(crops, "jpeg100", "*.JPEG")))
        for name in ("resnet18", "resnet50"):
            classifier = load_classifier(os.path.join(weights, f"{name}.safetensors"))
            images = np.stack([classifier.preprocessing.load(file) for file in files])
            yield classifier, images, test["x"], test["y"]
    classifier = load_classifier("resnet20", weights="fashion_mnist")
    dataset = load_images(classifier, "fashion_mnist", data_dir)
    order = np.random.default_rng(0).permutation(len(dataset.train))
    images = dataset.train.images[np.sort(order[:CALIBRATION_IMAGES])]
    yield classifier, images, dataset.test.images, dataset.test.labels


def litert_quantizer(content, images, by_extremes):
    """Returns the int8 content of a float32 `.tflite` file with float32 pixel input."""
    from litert_quantizer import Quantizer, calibrator, recipe, recipe_manager
    from litert_quantizer.utils import qsv_utils

    data = {"serving_default": [{"image": np.float32(i[None])} for i in images]}
    updates = (qsv_utils.moving_average_update, qsv_utils.min_max_update)
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    ranges = calibrator.Calibrator(content, qsv_update_func=updates[by_extremes])
    ranges.calibrate(data, manager)
    quantizer = Quantizer(content, recipe.static_wi8_ai8())
    return bytes(quantizer.quantize(ranges.get_model_qsvs()).quantized_model)


def quantize(classifier, calibration, folder):
    """Yields (name of the quantiser, content of its int8 file)."""
    from export.formats import TFLITE_FORMATS, convert_to_tflite, write_static_model
    from export.quantization import repair_network
    from keras_resnet.nets import fold

    def convert(network, file_format="float_io"):
        static = os.path.join(folder, "static")
        write_static_model(network, static, "float32")
        return convert_to_tflite(static, TFLITE_FORMATS[file_format], calibration)

    folded = dataclasses.replace(classifier, model=fold(classifier.model))
    yield "TFLite", convert(folded)
    content = convert(folded, "float32")
    try:
        for by_extremes in (False, True):
            name = "litert-quantizer, " + ("extremes" if by_extremes else "averages")
            yield name, litert_quantizer(content, calibration, by_extremes)
    except ImportError as error:
        print(f"litert-quantizer is skipped, because it cannot be imported: {error}")
    yield "TFLite, repaired", convert(repair_network(folded, calibration))


def main(weights, crops, data_dir):
    """Measures all quantisers and writes `results/quantizers.csv`."""
    from export.device import compare, softmax
    from export.device.runtimes import open_tflite
    from export.formats import compute_reference_logits

    rows = []
    for classifier, calibration, images, labels in load_cases(weights, crops, data_dir):
        logits = compute_reference_logits(classifier.model, images)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in quantize(classifier, calibration, folder):
                path = os.path.join(folder, "int8.tflite")
                with open(path, "wb") as file:
                    file.write(content)
                classify = open_tflite(path)
                outputs = np.concatenate([classify(image[None]) for image in images])
                comparison = compare(outputs, logits, labels)
                difference = np.abs(outputs - softmax(logits)).sum(axis=1).mean()
                row = {
                    "network": classifier.name,
                    "quantizer": name,
                    "images": comparison.images,
                    "keras_right": comparison.keras_right,
                    "right": comparison.right,
                    "loss_low": round(comparison.loss_interval[0], 2),
                    "loss_high": round(comparison.loss_interval[1], 2),
                    "agreement": round(comparison.agreement, 4),
                    "difference": round(float(difference), 4),
                    "bytes": len(content),
                }
                print(row, flush=True)
                rows.append(row)
    write_results("quantizers", rows)


if __name__ == "__main__":
    run(
        main,
        weights=(None, "Folder of expanded ImageNet weights."),
        crops=(None, "Folder of ImageNet test and calibration images."),
        data_dir=(None, "Folder of the prepared TFDS datasets."),
    )
