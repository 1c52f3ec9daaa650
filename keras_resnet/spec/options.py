"""Options that several commands share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.support import option


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Options that select a network."""

    model: str = option(
        "runs/resnet20-digits", "Run folder, .keras file, or network such as resnet50."
    )
    weights: str | None = option(None, "Weights: imagenet, torchvision_v2 or a file.")
    image_size: int | None = option(
        None, "Input height and width in pixels. Default: the network's own.", 1
    )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of a training run.

    Attributes:
        changes: New values of fields of `Recipe` and `Execution`. `None` keeps the
            recipe's value.
    """

    model: str = option("resnet20", "Network, such as resnet56, resnet50, plainnet34.")
    # Python code may also pass a `keras_resnet.data.Dataset`.
    dataset: Any = option(
        "digits", "Dataset: digits, folder:PATH, tfrecord:PATH or a TFDS name."
    )
    data_dir: str | None = option(
        None, "Folder of prepared TFDS datasets. Default: TFDS's own."
    )
    model_dir: str | None = option(None, "Run folder. Default: runs/MODEL-DATASET.")
    strategy: str = option(
        "mirrored", "one_device, mirrored (all GPUs, or the CPU), multi_worker or tpu."
    )
    virtual_devices: int = option(0, "Number of virtual CPU devices, for tests.", 0)
    recipe: str | None = option(None, "Recipe, such as rsb_a3. Default: by dataset.")
    image_size: int | None = option(
        None, "Input height and width in pixels. Default: by dataset.", 1
    )
    shortcut: str | None = option(None, "A, B, C or none. Default: as in the paper.")
    stride_on: str | None = option(
        None, "Strided convolution: 1x1 (paper) or 3x3. Default: by weights."
    )
    weights: str | None = option(
        None, "Initial weights: imagenet, torchvision_v2 or a file."
    )
    freeze: str | None = option(None, "Stages not to train, such as conv1..conv4.")
    seed: int = option(0, "Random seed of weights, order and augmentation.", 0)
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_keywords(
        cls, model: str = "resnet20", dataset: Any = "digits", **changes: Any
    ) -> "RunOptions":
        """Returns options from keyword arguments.

        Args:
            model: Name of the network.
            dataset: Name of the dataset, or a `keras_resnet.data.Dataset`.
            **changes: Other fields of this class, and fields of `Recipe` and
                `Execution`.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"changes"}
        options = {name: changes.pop(name) for name in names & changes.keys()}
        return cls(model, dataset, **options, changes=changes)
