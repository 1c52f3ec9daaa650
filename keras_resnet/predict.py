"""Names what is on images: the five likeliest classes of each.

python -m keras_resnet.predict --model=runs/resnet20-digits IMAGE...
"""

import sys

from absl import flags


def predict(paths, model="runs/resnet20-digits", top=5):
    """Classifies image files.

    Args:
        paths: of JPEG, PNG, GIF or BMP files.
        model: a run folder, or a `.keras` file in one.
        top: number of classes for each image.

    Returns:
        A dict from each path to a list of (class name, probability), likeliest
        first; or to the reason, a string, why it could not be read.

    Raises:
        InputError: no image was named, or the model cannot be used.
    """
    import numpy as np
    import tensorflow as tf

    from keras_resnet.errors import InputError
    from keras_resnet.runs import load_run

    if not paths:
        raise InputError("Name at least one image: JPEG, PNG, GIF or BMP files")
    run = load_run(model)
    answers = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                image = run.preprocessing.view(run.preprocessing.decode(file.read()))
        except OSError as error:
            answers[path] = error.strerror
            continue
        except (tf.errors.OpError, ValueError):
            answers[path] = "damaged, or no JPEG, PNG, GIF or BMP image"
            continue
        probabilities = np.asarray(run.model(image[None], training=False))[0]
        best = np.argsort(-probabilities, kind="stable")[:top]
        answers[path] = [(run.classes[i], float(probabilities[i])) for i in best]
    return answers


def main(argv):
    """Reads the flags and prints the classes; status 1 if a file was unreadable."""
    answers = predict(argv, flags.FLAGS.model, flags.FLAGS.top)
    status = 0
    for path, answer in answers.items():
        if isinstance(answer, str):
            print(f"error: {path}: {answer}", file=sys.stderr)
            status = 1
        else:
            print(path)
            for name, probability in answer:
                print(f"  {probability:7.2%}  {name}")
    return status


if __name__ == "__main__":
    from keras_resnet import programs

    flags.DEFINE_string(
        "model", "runs/resnet20-digits", "Run folder, or a .keras file in one."
    )
    flags.DEFINE_integer("top", 5, "Number of classes to name for each image.", 1)
    programs.run(main, positional=True)
