"""Names what is on images: the five likeliest classes of each.

python -m keras_resnet.predict --model=resnet50 photo.jpg holiday/
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from keras_resnet.spec import ModelOptions
from keras_resnet.support import define_flags, option, read_flags, run_command

if TYPE_CHECKING:
    import numpy as np

    from keras_resnet.data import Preprocessing

_BATCH = 16

# The likeliest classes of an image with their probabilities, or why it has none.
Answer = list[tuple[str, float]] | str


@dataclasses.dataclass(frozen=True)
class PredictionOptions(ModelOptions):
    """Which network names the classes, and how they are printed."""

    top: int = option(5, "Number of classes to name for each image.", 1)
    json: bool = option(False, "Print JSON.")


def predict(
    paths: Sequence[str],
    model: str = ModelOptions.model,
    weights: str | None = None,
    image_size: int | None = None,
    top: int = 5,
    on_image: Callable[[], object] = lambda: None,
) -> dict[str, Answer]:
    """Classifies image files.

    Args:
        paths: Image files (JPEG, PNG, WebP, BMP or GIF), and folders, of which every
            file with such a name is taken.
        model: Run folder, `.keras` file, or name of a network.
        weights: With the name of a network; see `keras_resnet.ResNet50`.
        image_size: With the name of a network; input height and width in pixels.
        top: Number of classes for each image.
        on_image: Function that is called after each image.

    Returns:
        A dict from each file's path to a list of (class name, probability), likeliest
        first; or to the reason, a string, why it could not be read.

    Raises:
        InputError: No image was named, or the model cannot be used.
    """
    import numpy as np

    from keras_resnet.data import find_images
    from keras_resnet.evaluation import load_classifier

    files = find_images(paths)
    classifier = load_classifier(model, weights, image_size)
    answers: dict[str, Answer] = dict.fromkeys(files, "")
    for start in range(0, len(files), _BATCH):
        images = {}
        for path in files[start : start + _BATCH]:
            image = _read(path, classifier.preprocessing)
            if isinstance(image, str):
                answers[path] = image
            else:
                images[path] = image
            on_image()
        if images:
            batch = np.stack(list(images.values()))
            batch_probabilities = np.asarray(classifier.model(batch, training=False))
            for path, probabilities in zip(images, batch_probabilities, strict=True):
                best = np.argsort(-probabilities, kind="stable")[:top]
                answers[path] = [
                    (classifier.classes[i], float(probabilities[i])) for i in best
                ]
    return answers


def _read(path: str, preprocessing: "Preprocessing") -> "np.ndarray | str":
    """Returns an image as the network takes it, or why it cannot be read."""
    from keras_resnet.data import IMAGE_FILES, IMAGE_FORMATS

    try:
        return preprocessing.load(path)
    except IsADirectoryError:
        return f"a folder without images ({' '.join(IMAGE_FILES)})"
    except OSError as error:
        return error.strerror or str(error)
    except ValueError:
        return f"damaged, or no {IMAGE_FORMATS} image"


def main(argv: list[str]) -> int:
    """Reads the flags and prints the classes; status 1 if a file was unreadable."""
    from keras_resnet.data import find_images
    from keras_resnet.support import progress_bar

    options = read_flags(PredictionOptions)
    with progress_bar("reading", len(find_images(argv)), shown_from=20) as advance:
        model, size = options.model, options.image_size
        answers = predict(argv, model, options.weights, size, options.top, advance)
    if options.json:
        print(json.dumps([_as_record(*item) for item in answers.items()], indent=2))
    status = 0
    for path, answer in answers.items():
        if isinstance(answer, str):
            print(f"error: {path}: {answer}", file=sys.stderr)
            status = 1
        elif not options.json:
            print(path)
            for name, probability in answer:
                print(f"  {probability:7.2%}  {name}")
    return status


def _as_record(path: str, answer: Answer) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"image": path, "error": answer}
    classes = [{"class": name, "probability": share} for name, share in answer]
    return {"image": path, "classes": classes}


if __name__ == "__main__":
    define_flags(PredictionOptions)
    run_command(main, positional=True)
