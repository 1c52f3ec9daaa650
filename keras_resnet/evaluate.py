"""Evaluates a network on test images and writes a report.

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
    check_choice,
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
    """Options of an evaluation."""

    dataset: str | None = option(
        None, "digits, folder:PATH or a TFDS name. Default: the run's dataset."
    )
    data_dir: str | None = option(
        None, "Folder of prepared TFDS datasets. Default: TFDS's own."
    )
    split: str | None = option(None, "Split: test, train or all. Default: test.")
    views: str = option("single", "Views per image: single, 10crop or multiscale.")
    batch_size: int = option(256, "Images per step, over all replicas.", 1)
    strategy: str = option("mirrored", "one_device or mirrored (all GPUs, or the CPU).")
    virtual_devices: int = option(0, "Number of virtual CPU devices, for tests.", 0)
    recalibrate_bn: bool = option(False, "Recompute BN statistics on training images.")
    output: str | None = option(None, "Report folder. Default: in the run folder.")
    predictions: str | None = option(None, "CSV file to write, one row per image.")


@takes_options(
    EvaluationOptions,
    order=("model", "weights", "dataset", "data_dir", "split", "views"),
)
def evaluate(options: EvaluationOptions) -> dict[str, Any]:
    """Evaluates a network and writes a report.

    The report consists of `evaluation.json`, `per_class.csv` and `confusion.png`. The
    default split is the test split. If a folder has no test split and the network was
    not trained on it, all of its images are evaluated. Every image counts exactly once.
    With `recalibrate_bn`, the recalibrated model is saved as `recalibrated.keras` in
    the run folder, or in `output` if there is no run folder.

    Args:
        {options}

    Returns:
        The results (see `Predictions.summary` in `keras_resnet.evaluation.evaluator`),
        and the folder of the report as `"output"`.

    Raises:
        InputError: If an argument is invalid.
        OSError: If the output cannot be written.
    """
    from keras_resnet.data import check_batch_size
    from keras_resnet.distribution import make_strategy
    from keras_resnet.evaluation import (
        VIEWS,
        Evaluator,
        format_predictions,
        load_classifier,
        write_report,
    )

    check_choice("views", options.views, VIEWS)
    if options.split is not None:
        check_choice("split", options.split, ("test", "train", "all"))
    check_choice("strategy", options.strategy, ("one_device", "mirrored"))
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
    has_splits = images.own_split or len(images.train)
    write_report(
        output,
        classifier,
        predictions,
        dataset=images.name,
        split=options.split or "test" if has_splits else "whole",
        views=options.views,
        recalibrated=options.recalibrate_bn,
    )
    if options.predictions:
        table = format_predictions(predictions, split.names(), classifier.classes)
        write_file(options.predictions, table)
    return predictions.summary() | {"output": output}


def _load_images(options: EvaluationOptions, classifier: "Classifier") -> "Dataset":
    """Loads the dataset, without its training split if that is not needed."""
    from keras_resnet.data import resolve_dataset_name
    from keras_resnet.evaluation import load_images

    run, dataset = classifier.provenance.run, options.dataset
    only_test = options.split in (None, "test") and not options.recalibrate_bn
    if run and (not dataset or resolve_dataset_name(dataset) == run.dataset):
        only_test = False
    return load_images(classifier, dataset, options.data_dir, only_test)


def _make_folders(options: EvaluationOptions, classifier: "Classifier") -> str:
    """Creates the output folders and returns the folder of the report."""
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
                "The folders of the report and the predictions must be writable. "
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
    """Recalibrates batch normalisation in place and saves the model."""
    from keras_resnet.evaluation import recalibrate
    from keras_resnet.weights import save_model

    if not len(images.train):
        raise InputError(f"{images.name} has no training images to recalibrate on")
    model, preprocessing = classifier.model, classifier.preprocessing
    num = recalibrate(model, images.train, preprocessing, options.batch_size, strategy)
    print(f"Batch normalisation recalibrated on {num:,} training images")
    save_model(model, os.path.join(classifier.folder or output, "recalibrated.keras"))


def main(argv: list[str]) -> None:
    """Reads the flags, evaluates and prints the results."""
    del argv
    options = read_flags(EvaluationOptions)
    result = evaluate(options)
    correct = round(result["accuracy"] * result["images"])
    kind = "" if options.split in ("all", "train") else "test "
    print(
        f"{correct:,} of {result['images']:,} {kind}images correct: top-1 "
        f"{result['accuracy']:.2%}, top-5 {result['top5_accuracy']:.2%}, "
        f"loss {result['loss']:.4f}"
    )
    print(f"report with results per class: {result['output']}", file=sys.stderr)


if __name__ == "__main__":
    define_flags(EvaluationOptions)
    run_command(main)
