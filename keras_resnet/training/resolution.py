"""From what a user asks of a run to what it is: a `RunSpec` and its images."""

import dataclasses
import os
from typing import Any

from keras_resnet.data import (
    Dataset,
    Preprocessing,
    check_batch_size,
    check_dataset,
    hold_out,
    load_dataset,
    resolve_dataset_name,
)
from keras_resnet.spec import (
    OF_THE_WEIGHTS,
    Execution,
    Recipe,
    RunOptions,
    RunSpec,
    Variant,
    changed_fields,
    default_recipe,
    find_recipe,
    find_variant,
    may_be_mirrored,
)
from keras_resnet.support import InputError, choose
from keras_resnet.training.optimizers import learning_rate
from keras_resnet.weights import ENDINGS


def resolve_execution(options: RunOptions) -> Execution:
    """Returns how the steps of a run are executed.

    Raises:
        InputError: A field cannot have such a value.
    """
    changes = {
        field: value
        for field, value in options.changes.items()
        if field in _EXECUTION_FIELDS and value is not None
    }
    return changed_fields(Execution(), changes)


_EXECUTION_FIELDS = {field.name for field in dataclasses.fields(Execution)}


def resolve_run(
    options: RunOptions, execution: Execution, replicas: int
) -> tuple[RunSpec, Dataset, Preprocessing]:
    """Loads the images of a run and resolves everything that depends on them.

    Args:
        options: What the user asks for.
        execution: See `resolve_execution`.
        replicas: Number of replicas that share each batch.

    Returns:
        The run; its images, of which `test` is the validation split; and the
        preprocessing to the network's input.

    Raises:
        InputError: An option cannot be used, or two contradict each other.
    """
    variant, freeze = find_variant(options.model), options.freeze
    if isinstance(options.dataset, Dataset):
        images = check_dataset(options.dataset)
    else:
        images = load_dataset(options.dataset, options.data_dir)
    weights = _weights_path(options.weights)
    frozen = parse_stages(freeze, len(variant.blocks)) if freeze else ()
    preprocessing = _choose_preprocessing(variant, images, options.image_size)
    by_data = default_recipe(images.name, photographs=preprocessing.crop < 1)
    recipe_name = options.recipe or ("finetune" if weights else by_data)
    recipe = _resolve_recipe(recipe_name, options, variant, images)
    if recipe.validation:
        images = hold_out(images, recipe.validation)
    if recipe.test_crop and not images.shape:
        preprocessing = dataclasses.replace(preprocessing, crop=recipe.test_crop)
    spec = RunSpec(
        model=options.model.lower(),
        shortcut=variant.shortcut if options.shortcut is None else options.shortcut,
        stride_on=options.stride_on
        or (OF_THE_WEIGHTS if weights else variant.stride_on),
        weights=weights,
        freeze=frozen,
        dataset=resolve_dataset_name(images.name),
        images=(len(images.train), len(images.test)),
        input_shape=preprocessing.shape,
        recipe_name=recipe_name,
        recipe=recipe,
        execution=execution,
        seed=options.seed,
        strategy=options.strategy,
        replicas=replicas,
    )
    _check(spec)
    return spec, images, preprocessing


def _weights_path(weights: str | os.PathLike[str] | None) -> str | None:
    """Returns the whole path of a file, or the name of published weights as it is."""
    if weights is None:
        return None
    weights = os.path.expanduser(os.fspath(weights))
    return os.path.abspath(weights) if weights.endswith(ENDINGS) else weights


def _choose_preprocessing(
    variant: Variant, images: Dataset, image_size: int | None
) -> Preprocessing:
    """Chooses the network's input for a data set."""
    height, width, channels = images.shape or (variant.size, variant.size, 3)
    if image_size:
        height = width = image_size
    is_photographs = variant.stem != "cifar" and not images.shape
    return Preprocessing(height, width, channels, 0.875 if is_photographs else 1.0)


def _resolve_recipe(
    name: str, options: RunOptions, variant: Variant, images: Dataset
) -> Recipe:
    """Returns a recipe with the user's changes, and those that the images need."""
    changes: dict[str, Any] = {
        field: value
        for field, value in options.changes.items()
        if field not in _EXECUTION_FIELDS
    }
    if changes.get("flip") is None and not may_be_mirrored(images.name):
        changes["flip"] = False
    if changes.get("careful_start") is None and variant.depth < 110:
        changes["careful_start"] = False  # The paper uses it for deep networks.
    test_crop = changes.get("test_crop")
    if images.shape and test_crop:
        raise InputError(
            "test_crop is for photographs; these images are all of one size. "
            f"Received: test_crop={test_crop} with {images.name}"
        )
    if images.shape or (options.weights and not test_crop):
        changes["test_crop"] = 0.0
    return find_recipe(name, **changes)


def _check(spec: RunSpec) -> None:
    """Refuses a run whose parts do not go together."""
    recipe, stride = spec.recipe, find_variant(spec.model).stride
    check_batch_size(recipe.batch_size, recipe.shares(spec.replicas))
    if min(recipe.sizes, default=stride) < stride:
        raise InputError(
            f"sizes must be at least {stride} pixels, from which {spec.model} makes "
            f"one. Received: sizes={recipe.sizes}"
        )
    if not spec.steps_per_epoch:
        raise InputError(
            f"{spec.replicas} replicas cannot share {spec.images[0]} training image(s)"
        )
    learning_rate(recipe, spec.total_steps)


def parse_stages(text: str, count: int) -> tuple[str, ...]:
    """Reads names of stages, such as `"conv1..conv3"` or `"conv1,conv2"`, in order.

    Args:
        text: Names and ranges.
        count: Number of the network's stages after the stem.

    Raises:
        InputError: The network has no such stage.
    """
    known = [f"conv{number}" for number in range(1, count + 2)]
    named = set()
    for part in text.replace(" ", "").split(","):
        ends = part.split("..")
        for end in ends:
            choose("stage", end, known)
        first, last = known.index(ends[0]), known.index(ends[-1])
        if len(ends) > 2 or first > last:
            raise InputError(
                "Stages are named as conv1, conv1,conv2 or conv1..conv3. "
                f"Received: freeze={text!r}"
            )
        named.update(known[first : last + 1])
    return tuple(stage for stage in known if stage in named)
