"""What a run was resolved to, and where a network comes from, as typed values.

Both are written into files as one flat dict of settings (`run.json`, a bundle's
manifest). That dict exists only in `to_settings` and `from_settings`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.spec.execution import Execution
from keras_resnet.spec.fields import known_fields
from keras_resnet.spec.recipes import Recipe
from keras_resnet.spec.variants import Variant, find_variant

# Of a run's `stride_on`: the weights that it starts from decide.
OF_THE_WEIGHTS = "of the weights"


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """A training run with everything resolved: what `run.json` records.

    Attributes:
        model: Name of the variant, in lower case.
        shortcut: The paper's option; `"none"` is a plain network.
        stride_on: `"1x1"`, `"3x3"` or `OF_THE_WEIGHTS`.
        weights: Weights that the run starts from; `None` is random ones.
        freeze: Names of the stages that are not trained.
        dataset: Name of the data set, with the whole path of a folder.
        images: Numbers of training images and of validation images.
        input_shape: (height, width, channels) of the network's input.
        recipe_name: Key of `RECIPES`.
        recipe: The recipe, with the run's changes.
        execution: How steps are executed.
        seed: Random seed for weights, shuffling and augmentation.
        strategy: Name of the strategy.
        replicas: Number of replicas that share each batch.
    """

    model: str
    shortcut: str
    stride_on: str
    weights: str | None
    freeze: tuple[str, ...]
    dataset: str
    images: tuple[int, int]
    input_shape: tuple[int, int, int]
    recipe_name: str
    recipe: Recipe
    execution: Execution
    seed: int
    strategy: str
    replicas: int

    def to_settings(self) -> dict[str, Any]:
        """Returns the settings as `run.json` has them: flat, with plain values."""
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
    def from_settings(cls, settings: Mapping[str, Any]) -> "RunSpec":
        """Reads settings again, of this version or an older one.

        Fields that an older version did not have take their defaults. Fields that
        this version does not know are passed over.

        Raises:
            KeyError: A setting is missing that every version wrote.
            TypeError, ValueError: A setting has another form.
        """
        training, validation = settings["images"]
        height, width, channels = settings["input_shape"]
        return cls(
            model=settings["model"],
            shortcut=settings["shortcut"],
            stride_on=settings["stride_on"],
            weights=settings.get("weights"),
            freeze=tuple(settings.get("freeze") or ()),
            dataset=settings["dataset"],
            images=(training, validation),
            input_shape=(height, width, channels),
            recipe_name=settings["recipe"],
            recipe=Recipe(**known_fields(Recipe, settings)),
            execution=Execution(**known_fields(Execution, settings)),
            seed=settings["seed"],
            strategy=settings["strategy"],
            replicas=settings["replicas"],
        )

    @property
    def variant(self) -> Variant:
        """The architecture, with what the run changes of it.

        Raises:
            InputError: The variant cannot be changed so.
        """
        decided = self.stride_on != OF_THE_WEIGHTS
        return find_variant(self.model).changed(
            shortcut=self.shortcut,
            stride_on=self.stride_on if decided else None,
            zero_gamma=self.recipe.zero_gamma or None,
            stochastic_depth=self.recipe.stochastic_depth or None,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Number of training steps in one pass over the images."""
        shares = self.recipe.shares(self.replicas)
        return steps_per_epoch(self.images[0], self.recipe.batch_size, shares)

    @property
    def total_steps(self) -> int:
        """Number of training steps of the whole run."""
        return self.recipe.iterations or self.recipe.epochs * self.steps_per_epoch


def steps_per_epoch(images: int, batch_size: int, shares: int) -> int:
    """Returns the number of training steps in a pass over the images.

    The last batch may be smaller than the others. It is dropped if it would leave a
    share without an image: at most `shares - 1` images of each pass, different ones
    each time.

    Args:
        images: Number of training images.
        batch_size: Number of images in a step, over all replicas.
        shares: Number of parts that each batch is computed in; see `Recipe.shares`.
    """
    full, rest = divmod(images, batch_size)
    return full + (rest >= shares)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a network comes from: a run of this package, published weights, or both.

    Attributes:
        model: Name of the variant, or of the file.
        weights: Source of its weights; `None` if a run trained them from scratch.
        run: The run that trained it; `None` for others' weights.
        publisher: Who published the weights.
        licence: Licence of the weights, as published.
        published_top1: Accuracy in percent, as published.
    """

    model: str
    weights: str | None = None
    run: RunSpec | None = None
    publisher: str | None = None
    licence: str | None = None
    published_top1: float | None = None

    def to_settings(self) -> dict[str, Any]:
        """Returns this as the `settings` of a manifest have it."""
        settings = self.run.to_settings() if self.run else {}
        settings |= {"model": self.model, "weights": self.weights}
        for name in ("publisher", "licence", "published_top1"):
            if (value := getattr(self, name)) is not None:
                settings[name] = value
        return settings

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Provenance":
        """Reads the `settings` of a manifest again.

        Raises:
            KeyError, TypeError, ValueError: As `RunSpec.from_settings`.
        """
        return cls(
            model=settings["model"],
            weights=settings.get("weights"),
            run=RunSpec.from_settings(settings) if "recipe" in settings else None,
            publisher=settings.get("publisher"),
            licence=settings.get("licence"),
            published_top1=settings.get("published_top1"),
        )
