"""TFLite's own quantiser beside `litert-quantizer`, and with our repair.

python -m benchmarks.quantizers --weights=FOLDER --crops=SHARED/data/imagenet

Each makes an int8 `.tflite` file of the same folded networks from the same
calibration images; all are judged on the same images, in pairs with the Keras
model. `litert-quantizer` (the new name of `ai-edge-quantizer`) is shown as it comes,
with moving averages of the ranges, and with their minimum and maximum, as TFLite's
has; without it, its rows are left out. FOLDER is what
`../shared/tools/expand_weights.py` wrote; without it ResNet-18 and ResNet-50 are
left out. `difference` is the mean sum of the absolute differences of an image's
probabilities, which tells more of 200 images than the counts do.
"""

import dataclasses
import glob
import os
import tempfile

import numpy as np

from benchmarks.side_by_side import run, write_results

CALIBRATION_IMAGES = 200


def networks(weights, crops, data_dir):
    """Yields (classifier, calibration images, images to judge on, labels)."""
    from keras_resnet.evaluation import load_classifier, load_images

    if weights:
        held_out = np.load(os.path.join(crops, "imagenet_crops200.npz"))
        files = sorted(glob.glob(os.path.join(crops, "jpeg100", "*.JPEG")))
        for name in ("resnet18", "resnet50"):
            classifier = load_classifier(os.path.join(weights, f"{name}.safetensors"))
            seen = np.stack([classifier.preprocessing.load(file) for file in files])
            yield classifier, seen, held_out["x"], held_out["y"]
    classifier = load_classifier("resnet20", weights="fashion_mnist")
    source = load_images(classifier, "fashion_mnist", data_dir)
    chosen = np.random.default_rng(0).permutation(len(source.train))
    seen = source.train.images[np.sort(chosen[:CALIBRATION_IMAGES])]
    yield classifier, seen, source.test.images, source.test.labels


def litert_quantizer(content, images, by_extremes):
    """Quantises a float32 file whose input is float32 pixels; returns its content."""
    from litert_quantizer import Quantizer, calibrator, recipe, recipe_manager
    from litert_quantizer.utils import qsv_utils

    data = {"serving_default": [{"image": np.float32(i[None])} for i in images]}
    updates = (qsv_utils.moving_average_update, qsv_utils.min_max_update)
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    measured = calibrator.Calibrator(content, qsv_update_func=updates[by_extremes])
    measured.calibrate(data, manager)
    quantizer = Quantizer(content, recipe.static_wi8_ai8())
    return bytes(quantizer.quantize(measured.get_model_qsvs()).quantized_model)


def candidates(classifier, calibration, folder):
    """Yields (name of the quantiser, content of the file that it makes)."""
    from export.formats import TFLITE_FORMATS, convert_to_tflite, write_static
    from export.quantization import repair_network
    from keras_resnet.nets import fold

    def by_tflite(network, file_format="float_io"):
        static = os.path.join(folder, "static")
        write_static(network, static, "float32")
        return convert_to_tflite(static, TFLITE_FORMATS[file_format], calibration)

    folded = dataclasses.replace(classifier, model=fold(classifier.model))
    yield "TFLite", by_tflite(folded)
    content = by_tflite(folded, "float32")
    try:
        for by_extremes in (False, True):
            name = "litert-quantizer, " + ("extremes" if by_extremes else "averages")
            yield name, litert_quantizer(content, calibration, by_extremes)
    except ImportError as error:
        print(f"No rows for litert-quantizer, which cannot be imported: {error}")
    yield "TFLite, repaired", by_tflite(repair_network(folded, calibration))


def main(weights, crops, data_dir):
    """Measures all and writes `results/quantizers.csv`."""
    from export.device import compare, softmax
    from export.device.runtimes import open_tflite
    from export.formats import reference_logits

    rows = []
    for classifier, calibration, images, labels in networks(weights, crops, data_dir):
        logits = reference_logits(classifier.model, images)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in candidates(classifier, calibration, folder):
                path = os.path.join(folder, "int8.tflite")
                with open(path, "wb") as file:
                    file.write(content)
                classify = open_tflite(path)
                answers = np.concatenate([classify(image[None]) for image in images])
                judged = compare(answers, logits, labels)
                difference = np.abs(answers - softmax(logits)).sum(axis=1).mean()
                row = {
                    "network": classifier.name,
                    "quantizer": name,
                    "images": judged.images,
                    "keras_right": judged.keras_right,
                    "right": judged.right,
                    "loss_low": round(judged.loss_interval[0], 2),
                    "loss_high": round(judged.loss_interval[1], 2),
                    "agreement": round(judged.agreement, 4),
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
        crops=(None, "Folder of the crops and calibration images."),
        data_dir=(None, "Where TFDS keeps its sets."),
    )
