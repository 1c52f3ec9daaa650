"""Evaluates a network on held-out images, each counted exactly once.

python -m keras_resnet.evaluate --model=runs/resnet20-digits

python -m keras_resnet.evaluate --model=resnet50 --weights=torchvision_v2
--dataset=folder:imagenet/val --views=10crop
"""

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from keras_resnet.spec import ModelOptions
from keras_resnet.support import (
    InputError,
    choose,
    define_flags,
    option,
    progress_bar,
    read_flags,
    run_command,
    takes_options,
    write_file,
)

if TYPE_CHECKING:
    from keras_resnet.data import Dataset
    from keras_resnet.evaluation import Classifier


@dataclasses.dataclass(frozen=True)
class EvaluationOptions(ModelOptions):
    """What a network is evaluated on, and how."""

    dataset: str | None = option(
        None, "digits, folder:PATH or a TFDS name; the model's own."
    )
    data_dir: str | None = option(
        None, "Folder of prepared TFDS sets; TFDS's own if not given."
    )
    split: str | None = option(None, "test, train or all; the images held out.")
    views: str = option("single", "single, 10crop or multiscale.")
    batch_size: int = option(256, "Images a step, all replicas together.", 1)
    strategy: str = option("mirrored", "one_device or mirrored (all GPUs, or the CPU).")
    virtual_devices: int = option(0, "Split the CPU in that many, for trying out.", 0)
    recalibrate_bn: bool = option(False, "Recompute BN statistics on training images.")
    output: str | None = option(None, "Folder for the report; in the run folder.")
    predictions: str | None = option(None, "CSV to write, a row for each image.")


@takes_options(
    EvaluationOptions,
    order=("model", "weights", "dataset", "data_dir", "split", "views"),
)
def evaluate(options: EvaluationOptions) -> dict[str, Any]:
    """Evaluates a network and writes a report.

    The report is `evaluation.json`, `per_class.csv` and `confusion.png`. Without a
    `split`, the images are those held out, or a whole folder if it has no held-out
    part and the network was not trained on it. With `recalibrate_bn`, the model is
    kept as `recalibrated.keras`, in the run folder or in `output`.

    Args:
        {options}

    Returns:
        The values of `Predictions.summary` in `keras_resnet.evaluation.evaluator`, and
        the folder of the report as `"output"`.

    Raises:
        InputError: An argument cannot be used.
        OSError: The output cannot be written.
    """
    from keras_resnet.data import check_batch_size
    from keras_resnet.distribution import make_strategy
    from keras_resnet.evaluation import (
        VIEWS,
        Evaluator,
        load_classifier,
        predictions_csv,
        write_report,
    )

    choose("views", options.views, VIEWS)
    if options.split is not None:
        choose("split", options.split, ("test", "train", "all"))
    choose("strategy", options.strategy, ("one_device", "mirrored"))
    strategy = make_strategy(options.strategy, options.virtual_devices)
    check_batch_size(options.batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        classifier = load_classifier(options.model, options.weights, options.image_size)
    model, preprocessing = classifier.model, classifier.preprocessing
    images = _load_images(options, classifier)
    split = images.train if options.split in ("train", "all") else images.test
    if options.split == "all":
        split += images.test
    evaluator = Evaluator(
        model, split, preprocessing, options.batch_size, strategy, options.views
    )
    output = _make_folders(options, classifier)
    if options.recalibrate_bn:
        _recalibrate(options, classifier, images, strategy, output)
    with progress_bar("evaluating", evaluator.steps) as advance:
        predictions = evaluator.predict(advance)
    has_parts = images.own_split or len(images.train)
    write_report(
        output,
        classifier,
        predictions,
        dataset=images.name,
        split=options.split or "test" if has_parts else "whole",
        views=options.views,
        recalibrated=options.recalibrate_bn,
    )
    if options.predictions:
        table = predictions_csv(predictions, split.names(), classifier.classes)
        write_file(options.predictions, table)
    return predictions.summary() | {"output": output}


def _load_images(options: EvaluationOptions, classifier: "Classifier") -> "Dataset":
    """Loads the data set; only its held-out part where the rest is not needed."""
    from keras_resnet.data import resolve_dataset_name
    from keras_resnet.evaluation import load_images

    run, dataset = classifier.provenance.run, options.dataset
    only_test = options.split in (None, "test") and not options.recalibrate_bn
    if run and (not dataset or resolve_dataset_name(dataset) == run.dataset):
        only_test = False
    return load_images(classifier, dataset, options.data_dir, only_test)


def _make_folders(options: EvaluationOptions, classifier: "Classifier") -> str:
    """Makes the folders that are written to, and returns that of the report."""
    output = options.output
    if output is None and classifier.folder:
        output = os.path.join(classifier.folder, "evaluation")
    elif output is None:
        output = os.path.join("evaluation", classifier.name)
    for folder in (output, os.path.dirname(options.predictions or "") or "."):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise InputError(
                "The report must go to a folder that can be written. "
                f"Received: {folder!r} ({error.strerror})"
            ) from None
    return output


def _recalibrate(
    options: EvaluationOptions,
    classifier: "Classifier",
    images: "Dataset",
    strategy: Any,
    output: str,
) -> None:
    """Recalibrates batch normalisation in place, and saves the model."""
    from keras_resnet.evaluation import recalibrate
    from keras_resnet.weights import save_model

    if not len(images.train):
        raise InputError(f"{images.name} has no training images to recalibrate on")
    model, preprocessing = classifier.model, classifier.preprocessing
    used = recalibrate(model, images.train, preprocessing, options.batch_size, strategy)
    print(f"Batch normalisation recalibrated on {used:,} training images")
    save_model(model, os.path.join(classifier.folder or output, "recalibrated.keras"))


def main(argv: list[str]) -> None:
    """Reads the flags, evaluates and prints one line."""
    del argv
    options = read_flags(EvaluationOptions)
    result = evaluate(options)
    right = round(result["accuracy"] * result["images"])
    kind = "" if options.split in ("all", "train") else "held-out "
    print(
        f"{right:,} of {result['images']:,} {kind}images right: top-1 "
        f"{result['accuracy']:.2%}, top-5 {result['top5_accuracy']:.2%}, "
        f"loss {result['loss']:.4f}"
    )
    print(f"per class, and a confusion picture: {result['output']}", file=sys.stderr)


if __name__ == "__main__":
    define_flags(EvaluationOptions)
    run_command(main)
