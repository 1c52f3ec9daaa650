"""Accuracy of int8 files by TFLite (with and without repair) and `litert-quantizer`.

python -m benchmarks.quantizers --weights=FOLDER --crops=SHARED/data/imagenet

Each quantiser converts the same networks, with folded batch normalisation, to int8
`.tflite` files with the same calibration images. All files are compared with the Keras
network on the same test images. `litert-quantizer` (formerly `ai-edge-quantizer`) is
optional. It runs with moving averages of the activation ranges, its default, and with
the extremes of the ranges, as in TFLite. `FOLDER` contains the output of
`../shared/tools/expand_weights.py`; without this folder, only ResNet-20 is measured.

`difference` is the mean L1 distance between the class probabilities of the file and of
the Keras network. With 200 images, it is less noisy than the accuracy.
"""

import dataclasses
import glob
import os
import tempfile

import numpy as np

from benchmarks.side_by_side import run, write_results

NUM_CALIBRATION_IMAGES = 200


def load_cases(weights, crops, data_dir):
    """Yields (classifier, calibration images, test images, test labels)."""
    from keras_resnet.evaluation import load_classifier, load_images

    if weights:
        crops_npz = np.load(os.path.join(crops, "imagenet_crops200.npz"))
        files = sorted(glob.glob(os.path.join(crops, "jpeg100", "*.JPEG")))
        for name in ("resnet18", "resnet50"):
            classifier = load_classifier(os.path.join(weights, f"{name}.safetensors"))
            calibration = np.stack([classifier.preprocessing.load(f) for f in files])
            yield classifier, calibration, crops_npz["x"], crops_npz["y"]
    classifier = load_classifier("resnet20", weights="fashion_mnist")
    dataset = load_images(classifier, "fashion_mnist", data_dir)
    permutation = np.random.default_rng(0).permutation(len(dataset.train))
    calibration = dataset.train.images[np.sort(permutation[:NUM_CALIBRATION_IMAGES])]
    yield classifier, calibration, dataset.test.images, dataset.test.labels


def quantize_with_litert(content, images, is_min_max):
    """Quantises a float32 `.tflite` file, with extremes as ranges if `is_min_max`."""
    from litert_quantizer import Quantizer, calibrator, recipe, recipe_manager
    from litert_quantizer.utils import qsv_utils

    samples = {"serving_default": [{"image": np.float32(i[None])} for i in images]}
    update = qsv_utils.min_max_update if is_min_max else qsv_utils.moving_average_update
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    range_calibrator = calibrator.Calibrator(content, qsv_update_func=update)
    range_calibrator.calibrate(samples, manager)
    quantizer = Quantizer(content, recipe.static_wi8_ai8())
    return bytes(quantizer.quantize(range_calibrator.get_model_qsvs()).quantized_model)


def quantize(classifier, calibration, folder):
    """Yields (name of the quantiser, content of its int8 file)."""
    from export.formats import TFLITE_FORMATS, convert_to_tflite, write_static_model
    from export.quantization import repair_network
    from keras_resnet.nets import fold

    def convert(network, file_format="float_io"):
        static_dir = os.path.join(folder, "static")
        write_static_model(network, static_dir, "float32")
        return convert_to_tflite(static_dir, TFLITE_FORMATS[file_format], calibration)

    folded_network = dataclasses.replace(classifier, model=fold(classifier.model))
    yield "TFLite", convert(folded_network)
    content = convert(folded_network, "float32")
    try:
        for is_min_max in (False, True):
            name = "litert-quantizer, " + ("extremes" if is_min_max else "averages")
            yield name, quantize_with_litert(content, calibration, is_min_max)
    except ImportError as error:
        print(f"litert-quantizer is skipped, because it cannot be imported: {error}")
    yield "TFLite, repaired", convert(repair_network(folded_network, calibration))


def main(weights, crops, data_dir):
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
        crops=(None, "Folder with test and calibration images of ImageNet."),
        data_dir=(None, "Folder of the prepared TFDS datasets."),
    )
