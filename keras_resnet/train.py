"""Trains a ResNet into a run folder; the same command again resumes.

python -m keras_resnet.train --strategy=mirrored
"""

from absl import flags


def main(argv):
    """Reads the flags and trains."""
    del argv
    from keras_resnet.training import train

    train(**{name: flags.FLAGS[name].value for name in _FLAGS})


_FLAGS = (
    "model",
    "dataset",
    "data_dir",
    "model_dir",
    "strategy",
    "virtual_devices",
    "recipe",
    "epochs",
    "batch_size",
    "learning_rate",
    "image_size",
    "shortcut",
    "stride_on",
    "weights",
    "freeze",
    "stage_rate",
    "seed",
    "checkpoint_every",
)

if __name__ == "__main__":
    from keras_resnet import programs

    flags.DEFINE_string(
        "model", "resnet20", "Network, such as resnet56, resnet50, plainnet34."
    )
    flags.DEFINE_string("dataset", "digits", "digits, folder:PATH or a TFDS name.")
    flags.DEFINE_string(
        "data_dir", None, "Folder of prepared TFDS sets; TFDS's own if not given."
    )
    flags.DEFINE_string(
        "model_dir", None, "Run folder; runs/MODEL-DATASET if not given."
    )
    flags.DEFINE_string(
        "strategy", "mirrored", "one_device or mirrored (all GPUs, or the CPU)."
    )
    flags.DEFINE_integer(
        "virtual_devices", 0, "Split the CPU in that many, for trying out.", 0
    )
    flags.DEFINE_string(
        "recipe", None, "digits, paper_cifar, photographs, finetune; by data set."
    )
    flags.DEFINE_integer(
        "epochs", None, "Passes over the training images; the recipe's.", 1
    )
    flags.DEFINE_integer(
        "batch_size", None, "Images a step, all replicas together; the recipe's.", 1
    )
    flags.DEFINE_float("learning_rate", None, "The highest; the recipe's.", 0.0)
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
    flags.DEFINE_float(
        "stage_rate", None, "Rate of a stage, as a share of what follows it.", 0.0, 1.0
    )
    flags.DEFINE_integer("seed", 0, "Of weights, order and augmentation.", 0)
    flags.DEFINE_integer(
        "checkpoint_every", 100, "Steps from one checkpoint to the next.", 1
    )
    programs.run(main)
