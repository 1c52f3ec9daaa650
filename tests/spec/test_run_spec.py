"""Tests of run settings, with a `run.json` that version 0.1.0 wrote."""

import dataclasses
import json
import pathlib

import hypothesis
import pytest
from hypothesis import strategies

import keras_resnet
from keras_resnet.spec import (
    Execution,
    Provenance,
    Recipe,
    RunSpec,
    count_steps,
    find_recipe,
)

RUN_JSON = (
    pathlib.Path(keras_resnet.__file__).parent
    / "weights/trained/resnet20_fashion_mnist/run.json"
)


@pytest.fixture
def settings():
    """Settings of a ResNet-20 that version 0.1.0 trained on Fashion-MNIST."""
    return json.loads(RUN_JSON.read_text("utf-8"))["settings"]


def test_settings_of_an_older_version_survive_a_round_trip(settings):
    spec = RunSpec.from_settings(settings)
    assert spec.to_settings() == settings
    assert list(spec.to_settings()) == list(settings)
    assert (spec.model, spec.recipe_name) == ("resnet20", "modern_cifar")
    assert spec.recipe.drops == (0.5, 0.75)
    # The run changed only the precision, so the other defaults are as in 0.1.0.
    assert spec.execution == Execution(precision="mixed_bfloat16")
    # 60,000 images are 468 batches of 128 images and one of 96. The run has 30 epochs.
    assert (spec.steps_per_epoch, spec.total_steps) == (469, 14_070)


def test_missing_fields_of_older_files_take_their_defaults(settings):
    del settings["repeats"], settings["tensorboard"]
    spec = RunSpec.from_settings({**settings, "of_a_newer_version": 1})
    assert (spec.recipe.repeats, spec.execution.tensorboard) == (1, False)
    assert "of_a_newer_version" not in spec.to_settings()


@pytest.mark.parametrize("name", ["model", "epochs", "seed", "images"])
def test_a_missing_required_setting_is_an_error(settings, name):
    del settings[name]
    with pytest.raises((KeyError, TypeError)):
        RunSpec.from_settings(settings)


def test_the_variant_of_a_run_includes_its_changes(settings):
    variant = RunSpec.from_settings({**settings, "shortcut": "B"}).variant
    assert (variant.shortcut, variant.zero_gamma) == ("B", True)


@pytest.mark.parametrize(
    ("num_images", "replicas", "num_steps", "old_num_steps"),
    [
        (10, 2, 2, 2), (11, 1, 2, 3), (11, 2, 2, 2), (12, 2, 2, 3), (13, 1, 3, 3),
        (13, 2, 3, 3), (4, 1, 1, 1), (1, 2, 0, 0),
    ],
)  # fmt: skip
def test_the_last_batch_of_an_epoch_is_dropped_below_half_the_batch_size(
    num_images, replicas, num_steps, old_num_steps
):
    """Runs of format 1 dropped it below one image for each replica."""
    recipe = find_recipe("digits", batch_size=5)
    assert count_steps(num_images, recipe, replicas) == num_steps
    assert count_steps(num_images, recipe, replicas, 1) == old_num_steps


def test_provenance_survives_a_round_trip(settings):
    provenance = Provenance("resnet20", None, RunSpec.from_settings(settings))
    assert provenance.to_settings() == settings
    assert Provenance.from_settings(settings) == provenance
    published_settings = {
        "model": "resnet50",
        "weights": "resnet50/torchvision_v2",
        "publisher": "torchvision",
        "licence": "BSD-3-Clause",
        "published_top1": 80.858,
    }
    assert (
        Provenance.from_settings(published_settings).to_settings() == published_settings
    )
    assert Provenance.from_settings(published_settings).run is None


def build_any(class_, **options):
    """Returns a strategy for instances of a dataclass with any values of its types."""
    fields = {field.name: ... for field in dataclasses.fields(class_)}
    return strategies.builds(class_, **{**fields, **options})


@hypothesis.settings(max_examples=10)
@hypothesis.given(
    build_any(RunSpec, recipe=build_any(Recipe), execution=build_any(Execution))
)
def test_all_settings_survive_json(spec):
    text = json.dumps(spec.to_settings())
    # The text is compared, because NaN is not equal to itself.
    assert repr(RunSpec.from_settings(json.loads(text), spec.format)) == repr(spec)
