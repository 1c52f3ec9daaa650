"""Fine-tuning: frozen stages, learning rates per stage, new heads, preprocessing."""

import json
import os
import pathlib
import re
import warnings
import zipfile

import keras
import numpy as np
import pytest
from children import assert_same_results, copy_run
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
from keras_resnet.spec import Execution, RunOptions, recipes
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
    """Image folder with three classes of different colours and 20 images per class."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, colour in CLASS_COLOURS.items():
        (folder / name).mkdir()
        for i in range(20):
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
        "epochs": 2,
        "batch_size": 16,
        "strategy": "mirrored",
    }


# A checkpoint of this run contains optimizer moments, a loss scale and averaged weights.
# The batches are mixed.
CHANGES = {
    "stage_rate": 0.5, "optimizer": "lamb", "learning_rate": 0.01, "clip_norm": 1.0,
    "ema": 0.9, "precision": "mixed_float16", "mixup": 0.2, "cutmix": 1.0,
    "stochastic_depth": 0.3, "checkpoint_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def snapshot_path(tmp_path_factory):
    """Path of a copy of the run folder, made while `finetuned_run` is trained.

    The copy has the files that the run would leave if it were killed after step 4 of 6.
    """
    return tmp_path_factory.mktemp("snapshot") / "run"


@pytest.fixture(scope="module")
def finetuned_run(run_options, snapshot_path, tmp_path_factory):
    """Run folder of a fine-tuned network, after two epochs of three steps."""
    folder = str(tmp_path_factory.mktemp("finetuned") / "run")
    with copy_run(4, folder, snapshot_path):
        rows = train(**run_options, **CHANGES, model_dir=folder, verbose=0)
    assert len(rows) == 2
    return folder


def read_arrays(model):
    return {variable.path: np.asarray(variable) for variable in model.variables}


def test_frozen_stages_do_not_change(finetuned_run, weights_path):
    """Weights and moving statistics of frozen stages stay. All other arrays change."""
    arrays = read_arrays(formats.load_model(f"{finetuned_run}/final.keras"))
    original_arrays = read_arrays(
        keras_resnet.ResNet("cifar_resnet8", weights=weights_path)
    )
    assert arrays.keys() >= original_arrays.keys()
    trained_paths = {
        path for path in original_arrays if path.startswith(("conv4", "predictions"))
    }
    assert len(trained_paths) == 2 * 5 + 2
    for path in original_arrays:
        array = arrays[path]
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


def test_a_resumed_run_equals_an_undisturbed_one(
    finetuned_run, run_options, snapshot_path, capsys
):
    """The weights and metrics are equal bit for bit."""
    train(**run_options, **CHANGES, model_dir=snapshot_path, verbose=2)
    assert "Resuming after step 4 of 6" in capsys.readouterr().out
    assert_same_results(snapshot_path, pathlib.Path(finetuned_run))


def test_saved_networks_need_only_keras(finetuned_run):
    """The files contain Keras's float32 layers, whatever the options of the run."""
    for name in ("final", "best"):
        path = f"{finetuned_run}/{name}.keras"
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json").decode()
        modules = re.findall(r'"module": ("[^"]*"|null)', config)
        assert len(modules) > 50
        assert all(re.match(r'null|"keras[".]', module) for module in modules)
        assert "Custom>" not in config  # Prefix of registered classes.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = keras.models.load_model(path)
        assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
        assert {variable.dtype for variable in model.weights} == {"float32"}


def make_noise_split(count):
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (count, 16, 16, 3), np.uint8)
    return splits.Split(images, random.integers(0, 3, count).astype(np.int32))


def test_frozen_stages_normalise_as_in_inference(weights_path):
    """If only the head is trained, the training loss equals the inference loss."""
    keras.utils.set_random_seed(0)
    strategy = strategies.make_strategy("one_device")
    with strategy.scope():
        network = keras_resnet.ResNet(
            "cifar_resnet8", weights=weights_path, classes=3, input_shape=(16, 16, 3)
        )
    for layer, stage in pair_layers_with_stages(network):
        layer.trainable = stage > 4
    split, arrays_before = make_noise_split(12), read_arrays(network)
    probabilities = network.predict(split.images, verbose=0).astype(np.float64)
    expected = -np.log(probabilities[np.arange(12), split.labels]).sum()
    recipe = recipes.find_recipe("finetune", batch_size=12, pad=0, flip=False)
    batches = TrainingBatches(
        split=split, preprocessing=Preprocessing(16, 16, 3), recipe=recipe, replicas=1,
        seed=0,
    )  # fmt: skip
    step = Step(network, strategy, recipe, 1, rate=0.01)
    step(iter(batches.dataset(0, 1)))
    assert step.sums.numpy()[0] == pytest.approx(expected, rel=1e-5)
    changed_paths = [
        path
        for path, array in read_arrays(network).items()
        if (array != arrays_before[path]).any()
    ]
    assert changed_paths == ["predictions/kernel", "predictions/bias"]


def resolve_recipe(dataset, model="cifar_resnet8", **arguments):
    """Returns the recipe and the crop of a run that `train` would start."""
    options = RunOptions.from_keywords(model, dataset, **arguments)
    spec, _, preprocessing = resolution.resolve_run(options, Execution(), 1)
    return spec.recipe, preprocessing.crop


def test_digits_are_flipped_only_on_request():
    """Flipping would change the meaning of a digit."""
    assert resolve_recipe("digits", recipe="finetune")[0].flip is False
    assert resolve_recipe("digits", recipe="finetune", flip=True)[0].flip is True
    assert resolve_recipe("digits", recipe="modern_cifar")[0].flip is False


def test_photographs_are_flipped(run_options):
    assert resolve_recipe(run_options["dataset"])[0].flip is True


def test_the_test_crop_needs_photographs(run_options):
    """The recipe `rsb_a3` has a test crop of 0.95, which only photographs get.

    The default for photographs is 0.875, or 1 for the networks of CIFAR-10.
    """
    with pytest.raises(InputError, match=r"one size\. Received: test_crop=0.9"):
        resolve_recipe("digits", test_crop=0.9)
    for dataset, changes, test_crop, crop in (
        ("digits", {"recipe": "rsb_a3", "batch_size": 4}, 0, 1),
        ("digits", {"test_crop": "0"}, 0, 1),  # Commands pass text.
        (run_options["dataset"], {"recipe": "rsb_a3", "batch_size": 4}, 0.95, 0.95),
        (run_options["dataset"], {"test_crop": 0.9}, 0.9, 0.9),
        (run_options["dataset"], {}, 0, 1),
        (run_options["dataset"], {"model": "resnet18"}, 0, 0.875),
    ):
        recipe, actual_crop = resolve_recipe(dataset, **changes)
        assert (recipe.test_crop, actual_crop) == (test_crop, crop)


def test_a_test_crop_replaces_the_crop_of_the_weights(run_options, tmp_path):
    names = ("dataset", "weights", "image_size")
    arguments = {name: run_options[name] for name in names}
    for test_crop, crop in ((None, PIXEL_FORMAT.crop), (0.9, 0.9)):
        options = RunOptions.from_keywords(
            "cifar_resnet8", **arguments, strategy="one_device", test_crop=test_crop,
            model_dir=tmp_path / "run",
        )  # fmt: skip
        run = preparation.prepare_run(options, is_quiet=True)
        assert run.spec.recipe.test_crop == (test_crop or 0)
        assert run.preprocessing.crop == crop
    assert os.listdir(tmp_path) == []


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
    arguments = {**run_options, **changes, "model_dir": "run", "verbose": 0}
    if changes.get("model") == "resnet18":
        arguments["image_size"] = 32
    with pytest.raises(InputError) as error:
        train(**arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_run_cannot_resume_with_other_frozen_stages(finetuned_run, run_options):
    arguments = {**run_options, **CHANGES, "freeze": "conv1"}
    with pytest.raises(InputError, match=r"freeze \(began with \['conv1', 'conv2'"):
        train(**arguments, model_dir=finetuned_run, verbose=0)


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
