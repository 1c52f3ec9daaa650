"""Evaluates a network on test images and writes a report.

python -m keras_resnet.evaluate --model=runs/resnet20-digits

python -m keras_resnet.evaluate --model=resnet50 --weights=torchvision_v2
--dataset=folder:imagenet/val --views=10crop
"""

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from keras_resnet import support
from keras_resnet.spec import ModelOptions
from keras_resnet.support import InputError, check_choice, option, takes_options

if TYPE_CHECKING:
    from keras_resnet.data import Dataset
    from keras_resnet.evaluation import Classifier


@dataclasses.dataclass(frozen=True)
class EvaluationOptions(ModelOptions):
    """Options of the function and the command `evaluate`."""

    dataset: str | None = option(
        None, "Dataset, as in train. Default: the training dataset of the network."
    )
    data_dir: str | None = option(None, "Folder of TFDS datasets. Default: TFDS's own.")
    split: str | None = option(None, "Dataset split: test (default), train or all.")
    views: str = option("single", "Views per image: single, 10crop or multiscale.")
    batch_size: int = option(256, "Number of images per step over all replicas.", 1)
    strategy: str = option("mirrored", "Distribution strategy: one_device or mirrored.")
    virtual_devices: int = option(0, "Number of virtual CPU devices; 0: none.", 0)
    recalibrate_bn: bool = option(False, "Recompute BN statistics on training images.")
    output: str | None = option(None, "Report folder. Default: RUN_FOLDER/evaluation.")
    predictions: str | None = option(None, "CSV file to write, one row per image.")


@takes_options(
    EvaluationOptions,
    first_names=("model", "weights", "dataset", "data_dir", "split", "views"),
)
def evaluate(options: EvaluationOptions) -> dict[str, Any]:
    """Evaluates a network and writes a report.

    The report consists of `evaluation.json`, `per_class.csv` and `confusion.png`. The
    default split is the test split. If the dataset is a folder without a test split and
    not the training dataset, all images are evaluated. Every image counts exactly once.
    With `recalibrate_bn`, the recalibrated network is saved as `recalibrated.keras` in
    the run folder, or in `output` if there is no run folder.

    Args:
        {options}

    Returns:
        A dict with `"loss"`, `"accuracy"` and `"top5_accuracy"` (both from 0 to 1),
        `"images"` (number of images) and `"output"` (folder of the report).

    Raises:
        InputError: If an argument is invalid.
        OSError: If the output cannot be written.
    """
    from keras_resnet import evaluation
    from keras_resnet.data import check_batch_size
    from keras_resnet.distribution import make_strategy
    from keras_resnet.evaluation import format_predictions, load_classifier

    check_choice("views", options.views, evaluation.VIEWS)
    if options.split is not None:
        check_choice("split", options.split, ("test", "train", "all"))
    check_choice("strategy", options.strategy, ("one_device", "mirrored"))
    strategy = make_strategy(options.strategy, options.virtual_devices)
    check_batch_size(options.batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        classifier = load_classifier(options.model, options.weights, options.image_size)
    model, preprocessing = classifier.model, classifier.preprocessing
    dataset = _load_dataset(options, classifier)
    split = dataset.train if options.split in ("train", "all") else dataset.test
    if options.split == "all":
        split += dataset.test
    evaluator = evaluation.Evaluator(
        model, split, preprocessing, options.batch_size, strategy, options.views
    )
    output = _make_folders(options, classifier)
    if options.recalibrate_bn:
        _recalibrate(options, classifier, dataset, strategy, output)
    with support.progress_bar("evaluating", evaluator.steps) as advance:
        predictions = evaluator.predict(advance)
    has_splits = dataset.own_split or len(dataset.train)
    evaluation.write_report(
        output,
        classifier,
        predictions,
        dataset=dataset.name,
        split=options.split or "test" if has_splits else "whole",
        views=options.views,
        recalibrated=options.recalibrate_bn,
    )
    if options.predictions:
        csv_text = format_predictions(predictions, split.names(), classifier.classes)
        support.write_file(options.predictions, csv_text)
    return predictions.summarise() | {"output": output}


def _load_dataset(options: EvaluationOptions, classifier: "Classifier") -> "Dataset":
    """Loads the dataset, without the training split if only test images are needed.

    If the network was trained on the dataset, both splits are loaded: if only the test
    split of an undivided folder is loaded, it also contains the training images.
    """
    from keras_resnet.data import resolve_dataset_name
    from keras_resnet.evaluation import load_images

    run, name = classifier.provenance.run, options.dataset
    only_test = options.split in (None, "test") and not options.recalibrate_bn
    if run and (not name or resolve_dataset_name(name) == run.dataset):
        only_test = False
    return load_images(classifier, name, options.data_dir, only_test)


def _make_folders(options: EvaluationOptions, classifier: "Classifier") -> str:
    """Creates the output folders and returns the folder of the report."""
    output = options.output
    if output is None and classifier.folder:
        output = os.path.join(classifier.folder, "evaluation")
    elif output is None:
        output = os.path.join("evaluation", classifier.name)
    for folder in (os.path.dirname(options.predictions or "") or ".", output):
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
    dataset: "Dataset",
    strategy: Any,
    output: str,
) -> None:
    """Recalibrates batch normalisation in place and saves the network."""
    from keras_resnet.evaluation import recalibrate
    from keras_resnet.weights import save_model

    if not len(dataset.train):
        raise InputError(f"{dataset.name} has no images for --recalibrate_bn to use")
    model, preprocessing = classifier.model, classifier.preprocessing
    split, batch_size = dataset.train, options.batch_size
    num_images = recalibrate(model, split, preprocessing, batch_size, strategy)
    print(f"Recalibrated batch normalisation on {num_images:,} training images")
    save_model(model, os.path.join(classifier.folder or output, "recalibrated.keras"))


def main(argv: list[str]) -> None:
    """Reads the flags, evaluates the network and prints the results."""
    del argv
    options = support.read_flags(EvaluationOptions)
    results = evaluate(options)
    num_correct = round(results["accuracy"] * results["images"])
    split_prefix = "" if options.split in ("all", "train") else "test "
    print(
        f"{num_correct:,} of {results['images']:,} {split_prefix}images correct: top-1 "
        f"{results['accuracy']:.2%}, top-5 {results['top5_accuracy']:.2%}, "
        f"loss {results['loss']:.4f}"
    )
    output = support.to_printable(results["output"])
    print(f"report with results per class: {output}", file=sys.stderr)


if __name__ == "__main__":
    support.add_flags(EvaluationOptions)
    support.run_command(main)
