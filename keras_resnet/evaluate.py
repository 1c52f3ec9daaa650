"""Evaluates a network on held-out images, each counted exactly once.

python -m keras_resnet.evaluate --model=runs/resnet20-digits

python -m keras_resnet.evaluate --model=resnet50 --weights=torchvision_v2
--dataset=folder:imagenet/val --views=10crop
"""

import os
import sys

from absl import flags


def evaluate(
    model="runs/resnet20-digits",
    weights=None,
    dataset=None,
    data_dir=None,
    split=None,
    views="single",
    image_size=None,
    batch_size=256,
    strategy="mirrored",
    virtual_devices=0,
    recalibrate_bn=False,
    output=None,
    predictions=None,
):
    """Evaluates a network and writes what it found.

    Args:
        model: a run folder, a `.keras` file, or the name of a network.
        weights: with the name of a network; see `keras_resnet.ResNet50`.
        dataset: see `keras_resnet.data.load_dataset`; `None` is the one that the
            model was trained on.
        data_dir: where TFDS keeps its sets.
        split: `"test"`, `"train"` or `"all"`. `None` is the images held out, or
            all of a folder that has no part held out and was not trained on.
        views: see `keras_resnet.evaluation.Evaluator`.
        image_size: with the name of a network; height and width of its input in
            pixels.
        batch_size: images in a step, over all replicas; changes no result.
        strategy: `"one_device"` or `"mirrored"`.
        virtual_devices: splits the CPU in that many devices, for trying out.
        recalibrate_bn: whether to recompute the statistics of batch normalisation
            over training images first (see `keras_resnet.batch_norm`). The model is
            kept as `recalibrated.keras`, in the run folder or in `output`.
        output: folder for `evaluation.json`, `per_class.csv` and
            `confusion.png`; `None` is `evaluation` in the run folder, or
            `evaluation/NAME`.
        predictions: path of a CSV to write with a row for each image.

    Returns:
        A dict; see `keras_resnet.evaluation.Predictions.summary`.

    Raises:
        InputError: an argument cannot be used.
        OSError: the output cannot be written.
    """
    from keras_resnet.data import check_batch_size, resolve_dataset_name
    from keras_resnet.distribution import make_strategy
    from keras_resnet.evaluation import (
        VIEWS,
        Evaluator,
        load_classifier,
        load_images,
        predictions_csv,
        recalibrate,
        write_report,
    )
    from keras_resnet.support import InputError, choose, progress_bar, write_file
    from keras_resnet.weights import save_model

    choose("views", views, VIEWS)
    if split is not None:
        choose("split", split, ("test", "train", "all"))
    choose("strategy", strategy, ("one_device", "mirrored"))
    strategy = make_strategy(strategy, virtual_devices)
    check_batch_size(batch_size, strategy.num_replicas_in_sync)
    with strategy.scope():
        classifier = load_classifier(model, weights, image_size)
    if output is None:
        output = os.path.join("evaluation", classifier.name)
        if classifier.folder:
            output = os.path.join(classifier.folder, "evaluation")
    own = classifier.settings.get("dataset")
    foreign = own is None or (dataset and resolve_dataset_name(dataset) != own)
    only_test = bool(split in (None, "test") and foreign and not recalibrate_bn)
    images = load_images(classifier, dataset, data_dir, only_test)
    chosen = {
        "train": images.train,
        "all": images.train + images.test,
    }.get(split or "test", images.test)
    evaluator = Evaluator(
        classifier.model, chosen, classifier.preprocessing, batch_size, strategy, views
    )
    for folder in (output, os.path.dirname(predictions or "") or "."):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise InputError(
                "The report must go to a folder that can be written. "
                f"Received: {folder!r} ({error.strerror})"
            ) from None
    if recalibrate_bn:
        if not len(images.train):
            raise InputError(f"{images.name} has no training images to recalibrate on")
        used = recalibrate(
            classifier.model,
            images.train,
            classifier.preprocessing,
            batch_size,
            strategy,
        )
        print(f"Batch normalisation recalibrated on {used:,} training images")
        path = os.path.join(classifier.folder or output, "recalibrated.keras")
        save_model(classifier.model, path)
    with progress_bar("evaluating", evaluator.steps) as advance:
        found = evaluator.predict(advance)
    write_report(
        output,
        classifier,
        found,
        dataset=images.name,
        split=split or "test" if images.own_split or len(images.train) else "whole",
        views=views,
        recalibrated=recalibrate_bn,
    )
    if predictions:
        write_file(
            predictions, predictions_csv(found, chosen.names(), classifier.classes)
        )
    return found.summary() | {"output": output}


def main(argv):
    """Reads the flags, evaluates and prints one line."""
    del argv
    found = evaluate(**{name: flags.FLAGS[name].value for name in _FLAGS})
    right = round(found["accuracy"] * found["images"])
    kind = "" if flags.FLAGS.split in ("all", "train") else "held-out "
    print(
        f"{right:,} of {found['images']:,} {kind}images right: top-1 "
        f"{found['accuracy']:.2%}, top-5 {found['top5_accuracy']:.2%}, "
        f"loss {found['loss']:.4f}"
    )
    print(f"per class, and a confusion picture: {found['output']}", file=sys.stderr)


_FLAGS = (
    "model",
    "weights",
    "dataset",
    "data_dir",
    "split",
    "views",
    "image_size",
    "batch_size",
    "strategy",
    "virtual_devices",
    "recalibrate_bn",
    "output",
    "predictions",
)


if __name__ == "__main__":
    from keras_resnet.support import define_model_flags, run_command

    define_model_flags()
    flags.DEFINE_string(
        "dataset", None, "digits, folder:PATH or a TFDS name; the model's own."
    )
    flags.DEFINE_string(
        "data_dir", None, "Folder of prepared TFDS sets; TFDS's own if not given."
    )
    flags.DEFINE_string("split", None, "test, train or all; the images held out.")
    flags.DEFINE_string("views", "single", "single, 10crop or multiscale.")
    flags.DEFINE_integer("batch_size", 256, "Images a step, all replicas together.", 1)
    flags.DEFINE_string(
        "strategy", "mirrored", "one_device or mirrored (all GPUs, or the CPU)."
    )
    flags.DEFINE_integer(
        "virtual_devices", 0, "Split the CPU in that many, for trying out.", 0
    )
    flags.DEFINE_bool(
        "recalibrate_bn", False, "Recompute BN statistics on training images."
    )
    flags.DEFINE_string("output", None, "Folder for the report; in the run folder.")
    flags.DEFINE_string("predictions", None, "CSV to write, a row for each image.")
    run_command(main)
