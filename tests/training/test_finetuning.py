"""Fine-tuning: frozen stages, learning rates per stage, new heads, preprocessing."""

import dataclasses
import json
import os

import keras
import numpy as np
import pytest
from conftest import assert_one_line, run_program
from PIL import Image
from safetensors.numpy import load_file, save_file
from state_dicts import make_arrays

import keras_resnet
from keras_resnet.data import TrainingBatches, splits
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.distribution import strategies
from keras_resnet.evaluation.classifier import load_classifier
from keras_resnet.nets.graph import pair_layers_with_stages
from keras_resnet.predict import predict
from keras_resnet.spec import RunOptions, recipes
from keras_resnet.support.errors import InputError
from keras_resnet.training import preparation, resolution
from keras_resnet.training.run import train
from keras_resnet.training.step import Step
from keras_resnet.weights import formats, saving
from keras_resnet.weights.origin import PixelFormat

PIXEL_FORMAT = PixelFormat(
    (120.0, 110.5, 100.25), (3600.0, 2500.0, 1600.0), 0.8, "bicubic"
)
CLASS_COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 50, 40)}


@pytest.fixture(scope="module")
def weights_path(tmp_path_factory):
    """Path of a file with weights for 10 classes and the preprocessing of images."""
    path = str(tmp_path_factory.mktemp("published") / "net.safetensors")
    network = keras_resnet.ResNet("cifar_resnet8")
    saving.save_state_dict(network, path)
    shapes = {key: array.shape for key, array in load_file(path).items()}
    metadata = json.dumps({"model": "cifar_resnet8", "pixels": PIXEL_FORMAT})
    save_file(make_arrays(shapes), path, {"keras_resnet": metadata})
    return path


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Image folder with three classes of different colours and 15 images per class."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, colour in CLASS_COLOURS.items():
        (folder / name).mkdir()
        for i in range(15):
            pixels = random.normal(colour, 25, (20 + i % 2, 24, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def run_options(weights_path, image_folder):
    """Keyword arguments of `train` for the run of the fixture `finetuned_run`."""
    return {
        "model": "cifar_resnet8",
        "dataset": f"folder:{image_folder}",
        "image_size": 16,
        "weights": weights_path,
        "freeze": "conv1..conv3",
        "stage_rate": 0.5,
        "epochs": 2,
        "batch_size": 12,
        "strategy": "one_device",
        "verbose": 0,
    }


@pytest.fixture(scope="module")
def finetuned_run(run_options, tmp_path_factory):
    """Run folder of a fine-tuned network, after two epochs of three steps."""
    folder = str(tmp_path_factory.mktemp("finetuned") / "run")
    assert len(train(**run_options, model_dir=folder)) == 2
    return folder


def read_arrays(model):
    return {variable.path: np.asarray(variable) for variable in model.variables}


def test_frozen_stages_do_not_change(finetuned_run, weights_path):
    """Weights and moving statistics of frozen stages stay. All other arrays change."""
    arrays = read_arrays(formats.load_model(f"{finetuned_run}/final.keras"))
    original_arrays = read_arrays(
        keras_resnet.ResNet("cifar_resnet8", weights=weights_path)
    )
    assert arrays.keys() == original_arrays.keys()
    trained_paths = {
        path for path in arrays if path.startswith(("conv4", "predictions"))
    }
    assert len(trained_paths) == 2 * 5 + 2
    for path, array in arrays.items():
        if path not in trained_paths:
            np.testing.assert_array_equal(array, original_arrays[path])
        elif array.shape == original_arrays[path].shape:
            assert (array != original_arrays[path]).any()


def test_a_different_number_of_classes_gets_a_new_head(finetuned_run):
    model = formats.load_model(f"{finetuned_run}/final.keras")
    assert model.output_shape == (None, 3)
    assert model.get_layer("predictions").kernel.shape == (64, 3)


def test_preprocessing_comes_from_the_weights(finetuned_run):
    classifier = load_classifier(finetuned_run)
    assert classifier.preprocessing == Preprocessing(16, 16, 3, 0.8, "bicubic")
    normalised_pixel = classifier.model.get_layer("normalization")(
        np.full((1, 1, 1, 3), 130)
    )
    np.testing.assert_allclose(
        np.ravel(normalised_pixel), [1 / 6, 0.39, 29.75 / 40], 1e-6
    )
    assert classifier.provenance.run.freeze == ("conv1", "conv2", "conv3")
    assert classifier.provenance.run.recipe_name == "finetune"


def test_a_finetuned_run_predicts_its_classes(finetuned_run, image_folder):
    path = str(image_folder / "red" / "00.png")
    assert {name for name, _ in predict([path], finetuned_run)[path]} == set(
        CLASS_COLOURS
    )


class Interrupt(keras.callbacks.Callback):
    """Interrupts a run after `stop_at` batches. Default: never."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.batches = 0
        # Checkpoints save callback attributes, but no functions. A resumed run
        # therefore uses its own `stop_at`, not the value of the interrupted run.
        self.stop_at = lambda: stop_at

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.stop_at():
            raise KeyboardInterrupt


def test_a_resumed_run_equals_an_undisturbed_one(
    finetuned_run, run_options, tmp_path, capsys
):
    arguments = {
        **run_options,
        "model_dir": str(tmp_path / "resumed"),
        "checkpoint_every": 2,
    }
    with pytest.raises(KeyboardInterrupt):
        train(**arguments, callbacks=[Interrupt(5)])
    train(**{**arguments, "verbose": 2}, callbacks=[Interrupt()])
    assert "Resuming after step 4 of 6" in capsys.readouterr().out
    undisturbed_arrays, resumed_arrays = (
        read_arrays(formats.load_model(f"{folder}/final.keras"))
        for folder in (finetuned_run, arguments["model_dir"])
    )
    for path, array in undisturbed_arrays.items():
        np.testing.assert_array_equal(resumed_arrays[path], array)


def make_noise_split(count):
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (count, 16, 16, 3), np.uint8)
    return splits.Split(images, random.integers(0, 3, count).astype(np.int32))


def take_step(network, split, stage_rate=1.0):
    """Trains for one SGD step.

    Returns:
        The summed loss, the number of correct predictions, and the number of images.
    """
    recipe = recipes.find_recipe("finetune", epochs=1000, batch_size=len(split))
    recipe = dataclasses.replace(
        recipe,
        schedule="steps",
        warmup=0,
        pad=0,
        flip=False,
        weight_decay=0.01,
        stage_rate=stage_rate,
    )
    strategy = strategies.make_strategy("one_device")
    step = Step(network, strategy, recipe, 1000)
    preprocessing = Preprocessing(16, 16, 3)
    batches = TrainingBatches(
        split=split, preprocessing=preprocessing, recipe=recipe, replicas=1, seed=0
    ).dataset(0, 1)
    step(iter(batches))
    return step.sums.numpy()[:3]


def test_frozen_stages_normalise_as_in_inference(weights_path):
    """If only the head is trained, the training loss equals the inference loss."""
    keras.utils.set_random_seed(0)
    with strategies.make_strategy("one_device").scope():
        network = keras_resnet.ResNet(
            "cifar_resnet8", weights=weights_path, classes=3, input_shape=(16, 16, 3)
        )
    for layer, stage in pair_layers_with_stages(network):
        layer.trainable = stage > 4
    split, arrays_before = make_noise_split(12), read_arrays(network)
    probabilities = network.predict(split.images, verbose=0).astype(np.float64)
    expected = -np.log(probabilities[np.arange(12), split.labels]).sum()
    assert take_step(network, split)[0] == pytest.approx(expected, rel=1e-5)
    assert [variable.path for variable in network.trainable_variables] == [
        "predictions/kernel",
        "predictions/bias",
    ]
    for path, array in read_arrays(network).items():
        if not path.startswith("predictions"):
            np.testing.assert_array_equal(array, arrays_before[path])


@pytest.fixture
def use_float64():
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def test_the_stage_rate_scales_updates_of_earlier_stages(use_float64, weights_path):
    """A stage rate of 0.5 multiplies the update k stages before the head by 0.5**k."""
    with strategies.make_strategy("one_device").scope():
        network = keras_resnet.ResNet(
            "cifar_resnet8", weights=weights_path, input_shape=(16, 16, 3)
        )
    initial_weights, split, changes = network.get_weights(), make_noise_split(12), []
    for stage_rate in (1.0, 0.5):
        network.set_weights(initial_weights)
        take_step(network, split, stage_rate)
        initial_arrays = dict(
            zip([v.path for v in network.variables], initial_weights, strict=True)
        )
        changes.append(
            {k: v - initial_arrays[k] for k, v in read_arrays(network).items()}
        )
    for variable in network.trainable_variables:
        change, scaled_change = (arrays[variable.path] for arrays in changes)
        distances_to_head = {
            "conv1": 4,
            "conv2": 3,
            "conv3": 2,
            "conv4": 1,
            "predictions": 0,
        }
        k = distances_to_head[variable.path.split("/")[0].split("_")[0]]
        assert np.abs(change).max() > 1e-6
        np.testing.assert_allclose(
            scaled_change, change * 0.5**k, rtol=1e-4, atol=1e-14
        )


def prepare(folder, **arguments):
    arguments = {"strategy": "one_device", "model_dir": f"{folder}/run", **arguments}
    options = RunOptions.from_keywords("cifar_resnet8", **arguments)
    return preparation.prepare_run(options, is_quiet=True)


def test_digits_are_flipped_only_on_request(tmp_path):
    """Flipping would change the meaning of a digit."""
    arguments = {"dataset": "digits", "recipe": "finetune"}
    assert prepare(tmp_path, **arguments).spec.recipe.flip is False
    assert prepare(tmp_path, **arguments, flip=True).spec.recipe.flip is True
    assert (
        prepare(tmp_path, **{**arguments, "recipe": "modern_cifar"}).spec.recipe.flip
        is False
    )


def test_photographs_are_flipped(run_options, tmp_path):
    assert prepare(tmp_path, dataset=run_options["dataset"]).spec.recipe.flip is True


def test_the_test_crop_needs_photographs(run_options, tmp_path):
    """The recipe `rsb_a3` has a test crop of 0.95, which only photographs get."""
    with pytest.raises(InputError, match=r"one size\. Received: test_crop=0.9"):
        prepare(tmp_path, dataset="digits", test_crop=0.9)
    recipe_options = {"recipe": "rsb_a3", "batch_size": 4}
    run = prepare(tmp_path, dataset="digits", **recipe_options)
    assert run.spec.recipe.test_crop == 0 and run.preprocessing.crop == 1
    run = prepare(tmp_path, dataset=run_options["dataset"], **recipe_options)
    assert run.spec.recipe.test_crop == 0.95 and run.preprocessing.crop == 0.95
    run = prepare(tmp_path, dataset=run_options["dataset"], test_crop=0.9)
    assert run.spec.recipe.test_crop == 0.9 and run.preprocessing.crop == 0.9
    assert os.listdir(tmp_path) == []


def test_a_test_crop_replaces_the_crop_of_the_weights(
    run_options, weights_path, tmp_path
):
    arguments = {
        "dataset": run_options["dataset"],
        "weights": weights_path,
        "image_size": 16,
    }
    run = prepare(tmp_path, **arguments)
    assert (
        run.spec.recipe.test_crop == 0 and run.preprocessing.crop == PIXEL_FORMAT.crop
    )
    run = prepare(tmp_path, **arguments, test_crop=0.9)
    assert run.spec.recipe.test_crop == 0.9 and run.preprocessing.crop == 0.9


@pytest.mark.parametrize(
    ("text", "stage_numbers"),
    [
        ("conv1", [1]),
        ("conv1,conv2", [1, 2]),
        ("conv2, conv1", [1, 2]),
        ("conv1..conv3", [1, 2, 3]),
        ("conv1 .. conv3", [1, 2, 3]),
        ("conv3..conv3", [3]),
        ("conv1,conv3..conv5", [1, 3, 4, 5]),
        ("conv1..conv3,conv2..conv4", [1, 2, 3, 4]),
    ],
)
def test_stages_can_be_lists_and_ranges(text, stage_numbers):
    stages = resolution.parse_stages(text, 4)
    assert stages == tuple(f"conv{i}" for i in stage_numbers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "conv6",
            "Accepted: conv1, conv2, conv3, conv4, conv5. Received: stage='conv6'",
        ),
        ("cnov2", "Did you mean 'conv2'?"),
        ("conv1..conf3", "Did you mean 'conv"),
        ("conv1..", "Received: stage=''"),
        ("conv1,,conv2", "Received: stage=''"),
        ("conv3..conv1", "Received: freeze='conv3..conv1'"),
        ("conv1..conv2..conv3", "Received: freeze='conv1..conv2..conv3'"),
        ("predictions", "Accepted: conv1"),
    ],
)
def test_wrong_stages_are_refused(text, message):
    with pytest.raises(InputError) as error:
        resolution.parse_stages(text, 4)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digits"}, "3 channel(s). Received: 1 channel(s)"),
        ({"freeze": "conv1..conv5"}, "Accepted: conv1, conv2, conv3, conv4. Received"),
        ({"stage_rate": 0.0}, "stage_rate=0.0"),
        ({"stage_rate": 1.5}, "stage_rate=1.5"),
        ({"model": "cifar_resnet14"}, "do not fit cifar_resnet14"),
        ({"model": "resnet18"}, "do not fit resnet18"),
        ({"shortcut": "B"}, "issing: conv3_block1_0_"),
        ({"weights": "nowhere.keras"}, "does not exist"),
        ({"weights": "imagenet"}, "There are no published weights of cifar_resnet8"),
    ],
)
def test_wrong_arguments_are_refused(
    changes, message, run_options, tmp_path, monkeypatch
):
    """The error message has one line, and no run folder is created."""
    monkeypatch.chdir(tmp_path)
    arguments = {**run_options, **changes, "model_dir": "run"}
    if changes.get("model") == "resnet18":
        arguments["image_size"] = 32
    with pytest.raises(InputError) as error:
        train(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_run_cannot_resume_with_other_frozen_stages(finetuned_run, run_options):
    arguments = {**run_options, "freeze": "conv1", "model_dir": finetuned_run}
    with pytest.raises(InputError, match=r"freeze \(began with \['conv1', 'conv2'"):
        train(**arguments)


def test_the_command_refuses_unknown_stages(run_options, tmp_path):
    """The command fails before it creates a run folder."""
    result = run_program(
        "keras_resnet.train",
        *(f"--{name}={run_options[name]}" for name in ("model", "dataset", "weights")),
        "--freeze=conv1..conv9",
        cwd=tmp_path,
    )
    assert_one_line(result, "Accepted: conv1, conv2, conv3, conv4", "stage='conv9'")
    assert os.listdir(tmp_path) == []


def test_the_command_refuses_a_stage_rate_above_1(tmp_path):
    result = run_program("keras_resnet.train", "--set", "stage_rate=1.5", cwd=tmp_path)
    assert_one_line(result, "at most 1. Received: stage_rate=1.5")
    assert os.listdir(tmp_path) == []
