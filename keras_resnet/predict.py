"""Names what is on images: the five likeliest classes of each.

python -m keras_resnet.predict --model=resnet50 photo.jpg holiday/
"""

import json
import sys

from absl import flags

_BATCH = 16


def predict(
    paths,
    model="runs/resnet20-digits",
    weights=None,
    image_size=None,
    top=5,
    on_image=lambda: None,
):
    """Classifies image files.

    Args:
        paths: of image files (JPEG, PNG, WebP, BMP or GIF), and of folders, in
            which every file with such a name is taken.
        model: a run folder, a `.keras` file, or the name of a network.
        weights: with the name of a network; see `keras_resnet.ResNet50`.
        image_size: with the name of a network; height and width of its input in
            pixels.
        top: number of classes for each image.
        on_image: called after each image.

    Returns:
        A dict from each file's path to a list of (class name, probability), likeliest
        first; or to the reason, a string, why it could not be read.

    Raises:
        InputError: no image was named, or the model cannot be used.
    """
    import numpy as np

    from keras_resnet.data import IMAGE_FILES, IMAGE_FORMATS, find_images
    from keras_resnet.evaluation import load_classifier

    files = find_images(paths)
    classifier = load_classifier(model, weights, image_size)
    answers = dict.fromkeys(files)
    for start in range(0, len(files), _BATCH):
        images = {}
        for path in files[start : start + _BATCH]:
            try:
                images[path] = classifier.preprocessing.load(path)
            except IsADirectoryError:
                answers[path] = f"a folder without images ({' '.join(IMAGE_FILES)})"
            except OSError as error:
                answers[path] = error.strerror
            except ValueError:
                answers[path] = f"damaged, or no {IMAGE_FORMATS} image"
            on_image()
        if images:
            batch = np.stack(list(images.values()))
            found = np.asarray(classifier.model(batch, training=False))
            for path, probabilities in zip(images, found, strict=True):
                best = np.argsort(-probabilities, kind="stable")[:top]
                answers[path] = [
                    (classifier.classes[i], float(probabilities[i])) for i in best
                ]
    return answers


def main(argv):
    """Reads the flags and prints the classes; status 1 if a file was unreadable."""
    from keras_resnet.data import find_images
    from keras_resnet.support import progress_bar

    given = {
        name: flags.FLAGS[name].value
        for name in ("model", "weights", "image_size", "top")
    }
    with progress_bar("reading", len(find_images(argv)), shown_from=20) as advance:
        answers = predict(argv, on_image=advance, **given)
    if flags.FLAGS.json:
        print(json.dumps([_as_record(*item) for item in answers.items()], indent=2))
    status = 0
    for path, answer in answers.items():
        if isinstance(answer, str):
            print(f"error: {path}: {answer}", file=sys.stderr)
            status = 1
        elif not flags.FLAGS.json:
            print(path)
            for name, probability in answer:
                print(f"  {probability:7.2%}  {name}")
    return status


def _as_record(path, answer):
    if isinstance(answer, str):
        return {"image": path, "error": answer}
    classes = [{"class": name, "probability": share} for name, share in answer]
    return {"image": path, "classes": classes}


if __name__ == "__main__":
    from keras_resnet.support import define_model_flags, run_command

    define_model_flags()
    flags.DEFINE_integer("top", 5, "Number of classes to name for each image.", 1)
    flags.DEFINE_bool("json", False, "Print JSON.")
    run_command(main, positional=True)
