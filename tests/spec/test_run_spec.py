"""Tests of run settings, read from a file that version 0.1.0 wrote."""

import json
import pathlib

import pytest

import keras_resnet
from keras_resnet.spec import Provenance, RunSpec, steps_per_epoch

RECORD = (
    pathlib.Path(keras_resnet.__file__).parent
    / "weights/trained/resnet20_fashion_mnist/run.json"
)


@pytest.fixture
def settings():
    return json.loads(RECORD.read_text("utf-8"))["settings"]


def test_settings_of_an_older_version_survive_a_round_trip(settings):
    spec = RunSpec.from_settings(settings)
    assert spec.to_settings() == settings
    assert list(spec.to_settings()) == list(settings)
    assert (spec.model, spec.recipe_name) == ("resnet20", "modern_cifar")
    assert spec.recipe.drops == (0.5, 0.75)
    assert spec.execution.precision == "mixed_bfloat16"
    # 60,000 images in batches of 128: 468 full steps and one of 96 images. 30 epochs.
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


def test_the_variant_of_a_run(settings):
    variant = RunSpec.from_settings({**settings, "shortcut": "B"}).variant
    assert (variant.shortcut, variant.zero_gamma) == ("B", True)


@pytest.mark.parametrize(
    ("images", "num_parts", "steps"),
    [(10, 2, 2), (11, 1, 3), (11, 2, 2), (12, 2, 3), (4, 1, 1), (1, 2, 0)],
)
def test_steps_per_epoch(images, num_parts, steps):
    assert steps_per_epoch(images, 5, num_parts) == steps


def test_provenance(settings):
    provenance = Provenance("resnet20", None, RunSpec.from_settings(settings))
    assert provenance.to_settings() == settings
    assert Provenance.from_settings(settings) == provenance
    published = {
        "model": "resnet50",
        "weights": "resnet50/torchvision_v2",
        "publisher": "torchvision",
        "licence": "BSD-3-Clause",
        "published_top1": 80.858,
    }
    assert Provenance.from_settings(published).to_settings() == published
    assert Provenance.from_settings(published).run is None
