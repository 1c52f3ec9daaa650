"""Conversion of the user's options into a `RunSpec`, and loading of the dataset."""

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
    STRIDE_FROM_WEIGHTS,
    Execution,
    Recipe,
    RunOptions,
    RunSpec,
    Variant,
    allows_flips,
    choose_recipe,
    find_recipe,
    find_variant,
    replace_fields,
)
from keras_resnet.support import InputError, check_choice
from keras_resnet.training.optimizers import make_learning_rate
from keras_resnet.weights import SUFFIXES


def resolve_execution(options: RunOptions) -> Execution:
    """Returns the default execution settings with the user's changes.

    Raises:
        InputError: If a setting has an invalid value.
    """
    changes = {
        field: value
        for field, value in options.changes.items()
        if field in _EXECUTION_FIELDS and value is not None
    }
    return replace_fields(Execution(), changes)


_EXECUTION_FIELDS = {field.name for field in dataclasses.fields(Execution)}


def resolve_run(
    options: RunOptions, execution_settings: Execution, num_replicas: int
) -> tuple[RunSpec, Dataset, Preprocessing]:
    """Loads the dataset and resolves the options of a run that depend on the dataset.

    Returns:
        The settings of the run; the dataset, whose `test` is the validation split; and
        the conversion of the images to the network's input.

    Raises:
        InputError: If an option is invalid, or if options contradict each other.
    """
    variant, freeze = find_variant(options.model), options.freeze
    if isinstance(options.dataset, Dataset):
        images = check_dataset(options.dataset)
    else:
        images = load_dataset(options.dataset, options.data_dir)
    weights = _resolve_weights(options.weights)
    frozen_stages = parse_stages(freeze, len(variant.blocks)) if freeze else ()
    preprocessing = _choose_preprocessing(variant, images, options.image_size)
    dataset_recipe = choose_recipe(images.name, has_photographs=preprocessing.crop < 1)
    recipe_name = options.recipe or ("finetune" if weights else dataset_recipe)
    recipe = _resolve_recipe(recipe_name, options, variant, images)
    if recipe.validation:
        images = hold_out(images, recipe.validation)
    if recipe.test_crop and not images.shape:
        preprocessing = dataclasses.replace(preprocessing, crop=recipe.test_crop)
    spec = RunSpec(
        model=options.model.lower(),
        shortcut=variant.shortcut if options.shortcut is None else options.shortcut,
        stride_on=options.stride_on
        or (STRIDE_FROM_WEIGHTS if weights else variant.stride_on),
        weights=weights,
        freeze=frozen_stages,
        dataset=resolve_dataset_name(images.name),
        images=(len(images.train), len(images.test)),
        input_shape=preprocessing.shape,
        recipe_name=recipe_name,
        recipe=recipe,
        execution=execution_settings,
        seed=options.seed,
        strategy=options.strategy,
        replicas=num_replicas,
    )
    _check_spec(spec)
    return spec, images, preprocessing


def _resolve_weights(weights: str | os.PathLike[str] | None) -> str | None:
    """Returns the absolute path of a weights file. Names of weights are unchanged."""
    if weights is None:
        return None
    weights = os.path.expanduser(os.fspath(weights))
    return os.path.abspath(weights) if weights.endswith(SUFFIXES) else weights


def _choose_preprocessing(
    variant: Variant, images: Dataset, image_size: int | None
) -> Preprocessing:
    """Chooses the network's input shape and the size of the evaluation crop."""
    height, width, channels = images.shape or (variant.size, variant.size, 3)
    if image_size:
        height = width = image_size
    has_photographs = variant.stem != "cifar" and not images.shape
    return Preprocessing(height, width, channels, 0.875 if has_photographs else 1.0)


def _resolve_recipe(
    name: str, options: RunOptions, variant: Variant, images: Dataset
) -> Recipe:
    """Returns a recipe with the user's changes and defaults that suit the dataset."""
    changes: dict[str, Any] = {
        field: value
        for field, value in options.changes.items()
        if field not in _EXECUTION_FIELDS
    }
    if changes.get("flip") is None and not allows_flips(images.name):
        changes["flip"] = False
    if changes.get("careful_start") is None and variant.depth < 110:
        # In the paper, only ResNet-110 needs a careful start.
        changes["careful_start"] = False
    if changes.get("test_crop") is None and (images.shape or options.weights):
        changes["test_crop"] = 0.0
    recipe = find_recipe(name, **changes)
    if images.shape and recipe.test_crop:
        raise InputError(
            "test_crop requires photographs, not images that are all of one size. "
            f"Received: test_crop={recipe.test_crop:g} with {images.name}"
        )
    return recipe


def _check_spec(spec: RunSpec) -> None:
    """Raises an `InputError` if settings of the run contradict each other."""
    recipe, stride = spec.recipe, find_variant(spec.model).stride
    check_batch_size(recipe.batch_size, recipe.compute_min_batch_size(spec.replicas))
    if min(recipe.sizes, default=stride) < stride:
        raise InputError(
            f"sizes must be at least {stride} pixels, the stride of {spec.model}. "
            f"Received: sizes={recipe.sizes}"
        )
    min_batch_size = recipe.compute_min_batch_size(spec.replicas)
    last_batch_size = spec.images[0] - (spec.steps_per_epoch - 1) * recipe.batch_size
    if not spec.steps_per_epoch or last_batch_size < min_batch_size:
        raise InputError(
            f"A batch must have at least {min_batch_size} images. Choose a batch size of at "
            f"least twice that. Received: {spec.dataset} with {spec.images[0]} training "
            f"image(s), batch_size={recipe.batch_size}"
        )
    make_learning_rate(recipe, spec.total_steps)


def parse_stages(text: str, num_block_stages: int) -> tuple[str, ...]:
    """Parses names of stages, such as `"conv1..conv3"` or `"conv1,conv2"`.

    The network has the stem `conv1` and `num_block_stages` further stages, `conv2` etc.

    Raises:
        InputError: If the text is malformed or names a stage that does not exist.
    """
    all_stages = [f"conv{number}" for number in range(1, num_block_stages + 2)]
    stages = set()
    for part in text.replace(" ", "").split(","):
        ends = part.split("..")
        for end in ends:
            check_choice("stage", end, all_stages)
        first_index, last_index = all_stages.index(ends[0]), all_stages.index(ends[-1])
        if len(ends) > 2 or first_index > last_index:
            raise InputError(
                "Stages must be written as conv1, conv1,conv2 or conv1..conv3. "
                f"Received: freeze={text!r}"
            )
        stages.update(all_stages[first_index : last_index + 1])
    return tuple(stage for stage in all_stages if stage in stages)
