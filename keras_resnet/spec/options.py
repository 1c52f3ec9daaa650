"""Options that several commands share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.support import MAX_SIDE, option


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Options that select a network."""

    model: str = option(
        "runs/resnet20-digits", "Run folder, .keras file, or variant such as resnet50."
    )
    weights: str | None = option(None, "Weights: imagenet, torchvision_v2 or a file.")
    image_size: int | None = option(
        None,
        "Input height and width in pixels. Default: the network's own.",
        1,
        MAX_SIDE,
    )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of a training run.

    Attributes:
        changes: New values of fields of `Recipe` and `Execution`, by field name. `None`
            keeps the default value.
    """

    model: str = option("resnet20", "Variant, such as resnet50 or plainnet34.")
    # In Python, the dataset may also be a `keras_resnet.data.Dataset`.
    dataset: Any = option(
        "digits", "Dataset: digits, folder:PATH, tfrecord:PATH or a TFDS name."
    )
    data_dir: str | None = option(None, "Folder of TFDS datasets. Default: TFDS's own.")
    model_dir: str | None = option(None, "Run folder. Default: runs/MODEL-DATASET.")
    strategy: str = option(
        "mirrored", "Distribution strategy: one_device, mirrored, multi_worker or tpu."
    )
    virtual_devices: int = option(0, "Number of virtual CPU devices; 0: none.", 0)
    recipe: str | None = option(
        None, "Training recipe, such as rsb_a3. Default: depends on the dataset."
    )
    image_size: int | None = option(
        None,
        "Height and width in pixels. Default: depends on the dataset.",
        1,
        MAX_SIDE,
    )
    shortcut: str | None = option(
        None, "Shortcut: A, B, C or none (plain network). Default: the paper's."
    )
    stride_on: str | None = option(
        None, "Strided kernel: 1x1 (paper) or 3x3. Default: depends on weights."
    )
    weights: str | None = option(
        None, "Initial weights: imagenet, torchvision_v2 or a file."
    )
    freeze: str | None = option(None, "Stages to freeze, such as conv1..conv4.")
    seed: int = option(0, "Random seed for weights, shuffling and augmentation.", 0)
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_keywords(
        cls, model: str = "resnet20", dataset: Any = "digits", **changes: Any
    ) -> "RunOptions":
        """Returns the options that the arguments of a Python function contain.

        Args:
            dataset: Name of the dataset, or a `keras_resnet.data.Dataset`.
            **changes: Values of other fields of this class, and of fields of `Recipe`
                and `Execution`.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"changes"}
        options = {name: changes.pop(name) for name in names & changes.keys()}
        return cls(model, dataset, **options, changes=changes)
