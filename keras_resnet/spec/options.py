"""Options that a user gives to several commands."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.support import option


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which network a command uses."""

    model: str = option(
        "runs/resnet20-digits",
        "Run folder, .keras file, or a network, such as resnet50.",
    )
    weights: str | None = option(
        None, "A network's: imagenet, torchvision_v2 or a file."
    )
    image_size: int | None = option(None, "A network's input, pixels; its own.", 1)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What is asked of a training run.

    Attributes:
        changes: Fields of `Recipe` and `Execution` and their values. `None` keeps
            the recipe's value.
    """

    model: str = option("resnet20", "Network, such as resnet56, resnet50, plainnet34.")
    # A notebook may also pass a `keras_resnet.data.Dataset`.
    dataset: Any = option(
        "digits", "digits, folder:PATH, tfrecord:PATH or a TFDS name."
    )
    data_dir: str | None = option(
        None, "Folder of prepared TFDS sets; TFDS's own if not given."
    )
    model_dir: str | None = option(None, "Run folder; runs/MODEL-DATASET if not given.")
    strategy: str = option(
        "mirrored", "one_device, mirrored (all GPUs, or the CPU), multi_worker or tpu."
    )
    virtual_devices: int = option(0, "Split the CPU in that many, for trying out.", 0)
    recipe: str | None = option(
        None, "paper_cifar, modern_cifar, rsb_a3, ...; chosen by data set."
    )
    image_size: int | None = option(
        None, "Input height and width, pixels; the data set's.", 1
    )
    shortcut: str | None = option(None, "A, B, C or none; the paper's for the network.")
    stride_on: str | None = option(None, "1x1 (the paper) or 3x3 (v1.5); the weights'.")
    weights: str | None = option(
        None, "To start from: imagenet, torchvision_v2 or a file."
    )
    freeze: str | None = option(None, "Stages to keep, such as conv1..conv4.")
    seed: int = option(0, "Of weights, order and augmentation.", 0)
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls, model: str = "resnet20", dataset: Any = "digits", **changes: Any
    ) -> "RunOptions":
        """Makes options from keyword arguments.

        Args:
            model: Name of the network.
            dataset: Name of the data set, or a `keras_resnet.data.Dataset`.
            **changes: Other fields of this class; and fields of `Recipe` and
                `Execution`.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"changes"}
        own = {name: changes.pop(name) for name in names & changes.keys()}
        return cls(model, dataset, **own, changes=changes)
