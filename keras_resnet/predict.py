"""Classifies image files and prints the most probable classes of each image.

python -m keras_resnet.predict --model=resnet50 photo.jpg holiday/
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from keras_resnet import support
from keras_resnet.spec import ModelOptions
from keras_resnet.support import InputError, add_flags, option, read_flags, run_command

_BATCH_SIZE = 16

# Pairs (class name, probability), the most probable first, or an error message.
Prediction = list[tuple[str, float]] | str


@dataclasses.dataclass(frozen=True)
class PredictionOptions(ModelOptions):
    """Options of the command `predict`."""

    top: int = option(5, "Number of classes to print for each image.", 1)
    json: bool = option(False, "Print JSON instead of text.")


def predict(
    paths: Sequence[str],
    model: str = ModelOptions.model,
    weights: str | None = None,
    image_size: int | None = None,
    top: int = 5,
    on_image: Callable[[], object] = lambda: None,
) -> dict[str, Prediction]:
    """Classifies image files.

    Args:
        paths: Image files (JPEG, PNG, WebP, BMP or GIF) and folders. Every image file
            in or below a folder is classified.
        model: Run folder, weights file, or name of a variant, such as `"resnet50"`.
        weights: Weights of a variant; see `keras_resnet.ResNet50`. Default: `"imagenet"`.
        image_size: Input height and width in pixels, not for a run folder. Default: the
            size at which the accuracy of the weights was measured.
        top: Number of classes to return for each image.
        on_image: Function that is called after each image.

    Returns:
        A dict from the path of each file to a list of (class name, probability) pairs,
        the most probable class first, or to an error message if the file is unreadable.

    Raises:
        InputError: If `paths` is empty or the model cannot be loaded.
    """
    import numpy as np

    from keras_resnet.data import IMAGE_FILES, find_images
    from keras_resnet.evaluation import load_classifier

    files = find_images(paths)
    classifier = load_classifier(model, weights, image_size)
    predictions: dict[str, Prediction] = dict.fromkeys(files, "")
    for start in range(0, len(files), _BATCH_SIZE):
        images = {}
        for path in files[start : start + _BATCH_SIZE]:
            try:
                if os.path.isdir(path):
                    suffixes = " ".join(IMAGE_FILES)
                    raise InputError(f"The folder contains no images ({suffixes})")
                images[path] = classifier.preprocessing.load(path)
            except OSError as error:
                predictions[path] = error.strerror or str(error)
            except InputError as error:
                predictions[path] = str(error).partition(". Received: ")[0]
            on_image()
        if images:
            batch = np.stack(list(images.values()))
            batch_probabilities = np.asarray(classifier.model(batch, training=False))
            for path, probabilities in zip(images, batch_probabilities, strict=True):
                ranking = np.argsort(-probabilities, kind="stable")[:top]
                predictions[path] = [
                    (classifier.classes[i], float(probabilities[i])) for i in ranking
                ]
    return predictions


def main(argv: list[str]) -> int:
    """Prints the most probable classes. Returns 1 if a file is unreadable, else 0."""
    from keras_resnet.data import find_images

    options = read_flags(PredictionOptions)
    num_files = len(find_images(argv))
    with support.progress_bar("reading", num_files, min_steps=20) as advance:
        model, size = options.model, options.image_size
        predictions = predict(argv, model, options.weights, size, options.top, advance)
    if options.json:
        print(json.dumps([_to_record(*item) for item in predictions.items()], indent=2))
    status = 0
    for path, prediction in predictions.items():
        if isinstance(prediction, str):
            print(support.to_printable(f"error: {path}: {prediction}"), file=sys.stderr)
            status = 1
        elif not options.json:
            print(support.to_printable(path))
            for name, probability in prediction:
                print(f"  {probability:7.2%}  {support.to_printable(name)}")
    return status


def _to_record(path: str, prediction: Prediction) -> dict[str, Any]:
    if isinstance(prediction, str):
        return {"image": path, "error": prediction}
    classes = [{"class": name, "probability": p} for name, p in prediction]
    return {"image": path, "classes": classes}


if __name__ == "__main__":
    add_flags(PredictionOptions)
    run_command(main, accepts_positional=True)
