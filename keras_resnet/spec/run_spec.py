"""Resolved settings of a training run, and provenance of a network.

`run.json` stores the settings, and the manifest of a bundle stores the provenance, as a
flat dict. Only `to_settings` and `from_settings` convert to and from this dict.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.spec.execution import Execution
from keras_resnet.spec.fields import replace_fields, select_known_fields
from keras_resnet.spec.recipes import Recipe
from keras_resnet.spec.variants import Variant, find_variant
from keras_resnet.support import Count, PixelCount, check_type

# Format number that this version writes into `run.json`. Version 0.1.0 wrote none, which
# counts as 1. Runs of format 1 drew other random numbers and counted steps differently.
RUN_FORMAT = 2

# Value of `RunSpec.stride_on` if the initial weights determine where the stride is.
STRIDE_FROM_WEIGHTS = "of the weights"


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """Settings of a training run with all defaults resolved, as `run.json` stores them.

    Attributes:
        model: Name of the variant, in lower case.
        shortcut: The paper's shortcut option; `"none"` for a plain network.
        stride_on: Convolution with stride: `"1x1"`, `"3x3"` or `STRIDE_FROM_WEIGHTS`.
        weights: Name or path of the initial weights; `None` for random weights.
        freeze: Names of the stages that are not trained.
        dataset: Name of the dataset. The path of a folder is absolute.
        images: Numbers of training images and of validation images.
        input_shape: (height, width, channels) of the network's input.
        recipe_name: Key of `RECIPES`.
        recipe: Recipe with this name, after the user's changes.
        execution: Execution settings, such as the precision.
        seed: Random seed for weights, shuffling and augmentation.
        strategy: Name of the distribution strategy.
        replicas: Number of replicas, over which each batch is distributed.
        format: Format number of the `run.json` with which the run began.
    """

    model: str
    shortcut: str
    stride_on: str
    weights: str | None
    freeze: tuple[str, ...]
    dataset: str
    images: tuple[Count, Count]
    input_shape: tuple[PixelCount, PixelCount, PixelCount]
    recipe_name: str
    recipe: Recipe
    execution: Execution
    seed: int
    strategy: str
    replicas: Count
    format: Count = RUN_FORMAT

    def to_settings(self) -> dict[str, Any]:
        """Returns the settings as a flat dict of JSON values, as in `run.json`."""
        settings = {
            "model": self.model,
            "shortcut": self.shortcut,
            "stride_on": self.stride_on,
            "weights": self.weights,
            "freeze": self.freeze or None,
            "dataset": self.dataset,
            "images": self.images,
            "input_shape": self.input_shape,
            "recipe": self.recipe_name,
            **dataclasses.asdict(self.recipe),
            **dataclasses.asdict(self.execution),
            "seed": self.seed,
            "strategy": self.strategy,
            "replicas": self.replicas,
        }
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in settings.items()
        }

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Any], run_format: int = RUN_FORMAT
    ) -> "RunSpec":
        """Returns the settings of a run that were stored as a flat dict.

        The dict may come from another version. Missing fields take their defaults, and
        unknown fields are ignored.

        Raises:
            KeyError, TypeError: If a setting that every version writes is missing.
        """
        values = select_known_fields(cls, settings) | {
            "weights": settings.get("weights"),
            "freeze": tuple(settings.get("freeze") or ()),
            "recipe_name": settings["recipe"],
            "recipe": Recipe(**select_known_fields(Recipe, settings)),
            "execution": Execution(**select_known_fields(Execution, settings)),
            "format": run_format,
        }
        return cls(**values)

    def check(self) -> None:
        """Raises `InputError` if a value has an unexpected type or is not accepted."""
        check_type(self, RunSpec, "settings")
        for part in (self.recipe, self.execution):
            replace_fields(part, vars(part))
        _ = self.variant

    @property
    def variant(self) -> Variant:
        """Architecture of the network, including changes to the named variant.

        Raises:
            InputError: If the named variant does not support one of the changes.
        """
        is_stride_set = self.stride_on != STRIDE_FROM_WEIGHTS
        return find_variant(self.model).replace(
            shortcut=self.shortcut,
            stride_on=self.stride_on if is_stride_set else None,
            zero_gamma=self.recipe.zero_gamma or None,
            stochastic_depth=self.recipe.stochastic_depth or None,
        )

    def list_replica_effects(self, replicas: int) -> list[str]:
        """Returns what makes another number of replicas change more than rounding."""
        recipe, other_spec = self.recipe, dataclasses.replace(self, replicas=replicas)
        effects = {
            "sync_bn": not self.execution.sync_bn,
            "accumulate": recipe.accumulate > 1,
            "stochastic_depth": recipe.stochastic_depth > 0,
            "the steps per epoch": self.steps_per_epoch != other_spec.steps_per_epoch,
        }
        return [name for name in effects if effects[name] and replicas != self.replicas]

    @property
    def steps_per_epoch(self) -> int:
        """Number of training steps per epoch."""
        return count_steps(self.images[0], self.recipe, self.replicas, self.format)

    @property
    def total_steps(self) -> int:
        """Number of training steps of the whole run."""
        return self.recipe.iterations or self.recipe.epochs * self.steps_per_epoch


def count_steps(
    num_images: int, recipe: Recipe, replicas: int, run_format: int = RUN_FORMAT
) -> int:
    """Returns the number of training steps per epoch, the same for all `replicas`.

    The last batch of an epoch may be smaller than the others. It is dropped if it has
    less than half of the images of the others. The dropped images differ between
    epochs. An epoch with fewer images than `recipe.batch_size` has one step.

    Args:
        replicas: Number of replicas. In runs of format 1, the last batch is dropped
            only if it has less than one image for each micro-batch of each replica.
        run_format: See `RunSpec.format`.
    """
    min_batch_size = recipe.compute_min_batch_size(replicas)
    num_full_batches, remainder = divmod(num_images, recipe.batch_size)
    if num_full_batches and run_format > 1:
        min_batch_size = -(-recipe.batch_size // 2)
    return num_full_batches + (remainder >= min_batch_size)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Origin of a network: a run of this package, published weights, or both.

    Attributes:
        model: Name of the variant, or path of the network's file.
        weights: Name or path of the published or initial weights; `None` if random.
        run: Settings of the run that trained the network; `None` for published weights.
        publisher: Publisher of the weights.
        licence: Licence of the weights, as published.
        published_top1: Published top-1 accuracy in percent.
    """

    model: str
    weights: str | None = None
    run: RunSpec | None = None
    publisher: str | None = None
    licence: str | None = None
    published_top1: float | None = None

    def to_settings(self) -> dict[str, Any]:
        """Returns the provenance as a flat dict, as stored in a bundle's manifest."""
        settings = self.run.to_settings() if self.run else {}
        settings |= {"model": self.model, "weights": self.weights}
        for name in ("publisher", "licence", "published_top1"):
            if (value := getattr(self, name)) is not None:
                settings[name] = value
        return settings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Provenance":
        """Returns the provenance that `to_settings` stored in a bundle's manifest.

        Raises:
            KeyError, TypeError: See `RunSpec.from_settings`.
        """
        run = RunSpec.from_settings(settings) if "recipe" in settings else None
        return cls(**select_known_fields(cls, settings) | {"run": run})
