"""Trains a ResNet into a run folder; the same command again resumes.

python -m keras_resnet.train --dataset=cifar10 --set label_smoothing=0.1
"""

import os
import sys

from absl import flags


def main(argv):
    """Reads the flags and trains."""
    del argv
    from keras_resnet.spec import parse_changes
    from keras_resnet.support import InputError

    arguments = {name: flags.FLAGS[name].value for name in _FLAGS}
    changes = parse_changes(flags.FLAGS["set"].value)
    for name in ("epochs", "batch_size", "learning_rate", "precision"):
        value = flags.FLAGS[name].value
        if value is not None and name in changes:
            raise InputError(f"Both --{name} and --set {name} are given; give one")
        changes.setdefault(name, value)
    workers = flags.FLAGS["local_workers"].value
    if workers and "KERAS_RESNET_LOCAL_WORKER" not in os.environ:
        return _start_workers(workers, arguments)
    if flags.FLAGS["verbosity"].present:
        arguments["verbose"] = 0 if flags.FLAGS["verbosity"].value < 0 else 2
    if flags.FLAGS["find_lr"].value:
        from keras_resnet.training import find_learning_rate

        arguments.pop("verbose", None)
        find_learning_rate(**arguments, **changes)
        return 0
    from keras_resnet.training import train

    train(**arguments, **changes)
    return 0


def _start_workers(count, arguments):
    """Starts this very command as several processes, for trying out."""
    from keras_resnet.distribution import run_local_workers
    from keras_resnet.support import InputError

    if arguments["strategy"] != "multi_worker":
        raise InputError(
            "local_workers goes with --strategy=multi_worker. "
            f"Received: --strategy={arguments['strategy']}"
        )
    if not arguments["model_dir"]:
        raise InputError("local_workers needs --model_dir, which they share")
    return run_local_workers(
        count,
        [sys.executable, *sys.orig_argv[1:]],
        f"{os.path.normpath(arguments['model_dir'])}-workers",
    )


_FLAGS = (
    "model",
    "dataset",
    "data_dir",
    "model_dir",
    "strategy",
    "virtual_devices",
    "recipe",
    "image_size",
    "shortcut",
    "stride_on",
    "weights",
    "freeze",
    "seed",
)


if __name__ == "__main__":
    from keras_resnet.support import run_command

    flags.DEFINE_string(
        "model", "resnet20", "Network, such as resnet56, resnet50, plainnet34."
    )
    flags.DEFINE_string(
        "dataset", "digits", "digits, folder:PATH, tfrecord:PATH or a TFDS name."
    )
    flags.DEFINE_string(
        "data_dir", None, "Folder of prepared TFDS sets; TFDS's own if not given."
    )
    flags.DEFINE_string(
        "model_dir", None, "Run folder; runs/MODEL-DATASET if not given."
    )
    flags.DEFINE_string(
        "strategy",
        "mirrored",
        "one_device, mirrored (all GPUs, or the CPU), multi_worker or tpu.",
    )
    flags.DEFINE_integer(
        "virtual_devices", 0, "Split the CPU in that many, for trying out.", 0
    )
    flags.DEFINE_integer(
        "local_workers", 0, "Start that many workers here, for trying out.", 0
    )
    flags.DEFINE_string(
        "recipe", None, "paper_cifar, modern_cifar, rsb_a3, ...; chosen by data set."
    )
    flags.DEFINE_integer(
        "epochs", None, "Passes over the training images; the recipe's.", 1
    )
    flags.DEFINE_integer(
        "batch_size", None, "Images a step, all replicas together; the recipe's.", 1
    )
    flags.DEFINE_float("learning_rate", None, "The highest; the recipe's.", 0.0)
    flags.DEFINE_multi_string(
        "set", [], "FIELD=VALUE: any other field of keras_resnet/recipes.py."
    )
    flags.DEFINE_boolean("find_lr", False, "Try ever higher learning rates instead.")
    flags.DEFINE_string("precision", None, "float32, mixed_float16 or mixed_bfloat16.")
    flags.DEFINE_integer(
        "image_size", None, "Input height and width, pixels; the data set's.", 1
    )
    flags.DEFINE_string(
        "shortcut", None, "A, B, C or none; the paper's for the network."
    )
    flags.DEFINE_string(
        "stride_on", None, "1x1 (the paper) or 3x3 (v1.5); the weights'."
    )
    flags.DEFINE_string(
        "weights", None, "To start from: imagenet, torchvision_v2 or a file."
    )
    flags.DEFINE_string("freeze", None, "Stages to keep, such as conv1..conv4.")
    flags.DEFINE_integer("seed", 0, "Of weights, order and augmentation.", 0)
    run_command(main)
