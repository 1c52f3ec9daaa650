"""Training that starts from weights: what stays, what is slower, what is new."""

import dataclasses
import json
import os

import keras
import numpy as np
import pytest
from conftest import assert_one_line, run_program
from PIL import Image
from safetensors.numpy import load_file, save_file
from state_dicts import fill

import keras_resnet
from keras_resnet.data import TrainingBatches, splits
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.distribution import strategies
from keras_resnet.evaluation.classifier import load_classifier
from keras_resnet.nets.graph import stages
from keras_resnet.predict import predict
from keras_resnet.spec import RunOptions, recipes
from keras_resnet.support.errors import InputError
from keras_resnet.training import preparation, resolution
from keras_resnet.training.run import train
from keras_resnet.training.step import Step
from keras_resnet.weights import formats, saving
from keras_resnet.weights.origin import Pixels

PIXELS = Pixels((120.0, 110.5, 100.25), (3600.0, 2500.0, 1600.0), 0.8, "bicubic")
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 50, 40)}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Weights of a net for 10 classes, with a crop of their own."""
    path = str(tmp_path_factory.mktemp("published") / "net.safetensors")
    net = keras_resnet.ResNet("cifar_resnet8")
    saving.save_state_dict(net, path)
    shapes = {key: array.shape for key, array in load_file(path).items()}
    told = json.dumps({"model": "cifar_resnet8", "pixels": PIXELS})
    save_file(fill(shapes), path, {"keras_resnet": told})
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of 15 pictures of two sizes, told by their colour."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(15):
            noise = random.normal(colour, 25, (20 + i % 2, 24, 3)).clip(0, 255)
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def options(published, pictures):
    return {
        "model": "cifar_resnet8",
        "dataset": f"folder:{pictures}",
        "image_size": 16,
        "weights": published,
        "freeze": "conv1..conv3",
        "stage_rate": 0.5,
        "epochs": 2,
        "batch_size": 12,
        "strategy": "one_device",
        "verbose": 0,
    }


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    """The folder of a fine-tuned net: two epochs of three steps."""
    folder = str(tmp_path_factory.mktemp("finetuned") / "run")
    assert len(train(**options, model_dir=folder)) == 2
    return folder


def arrays_of(model):
    return {variable.path: np.asarray(variable) for variable in model.variables}


def test_frozen_stages_keep_every_bit(run, published):
    """Weights and moving statistics; all that follows learns."""
    found = arrays_of(formats.load_model(f"{run}/final.keras"))
    given = arrays_of(keras_resnet.ResNet("cifar_resnet8", weights=published))
    assert found.keys() == given.keys()
    learnt = {path for path in found if path.startswith(("conv4", "predictions"))}
    assert len(learnt) == 2 * 5 + 2
    for path, array in found.items():
        if path not in learnt:
            np.testing.assert_array_equal(array, given[path])
        elif array.shape == given[path].shape:
            assert (array != given[path]).any()


def test_other_classes_get_a_new_head(run):
    model = formats.load_model(f"{run}/final.keras")
    assert model.output_shape == (None, 3)
    assert model.get_layer("predictions").kernel.shape == (64, 3)


def test_pixels_are_those_of_the_weights(run):
    classifier = load_classifier(run)
    assert classifier.preprocessing == Preprocessing(16, 16, 3, 0.8, "bicubic")
    normalised = classifier.model.get_layer("normalization")(np.full((1, 1, 1, 3), 130))
    np.testing.assert_allclose(np.ravel(normalised), [1 / 6, 0.39, 29.75 / 40], 1e-6)
    assert classifier.provenance.run.freeze == ("conv1", "conv2", "conv3")
    assert classifier.provenance.run.recipe_name == "finetune"


def test_the_run_predicts(run, pictures):
    path = str(pictures / "red" / "00.png")
    assert {name for name, _ in predict([path], run)[path]} == set(COLOURS)


class Stop(keras.callbacks.Callback):
    """Interrupts a run."""

    def __init__(self, at=None):
        super().__init__()
        self.batches = 0
        self.at = lambda: at  # Not plain: stays out of the checkpoint.

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.at():
            raise KeyboardInterrupt


def test_an_interrupted_run_ends_as_an_undisturbed_one(run, options, tmp_path, capsys):
    cut = {**options, "model_dir": str(tmp_path / "cut"), "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        train(**cut, callbacks=[Stop(5)])
    train(**{**cut, "verbose": 2}, callbacks=[Stop()])
    assert "Resuming after step 4 of 6" in capsys.readouterr().out
    whole, resumed = (
        arrays_of(formats.load_model(f"{folder}/final.keras"))
        for folder in (run, cut["model_dir"])
    )
    for path, array in whole.items():
        np.testing.assert_array_equal(resumed[path], array)


def noise(count):
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (count, 16, 16, 3), np.uint8)
    return splits.Split(images, random.integers(0, 3, count).astype(np.int32))


def one_step(network, split, stage_rate=1.0):
    """Takes a step of SGD with decay; returns loss, right, images, summed."""
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


def test_a_frozen_net_normalises_as_in_inference(published):
    """With all but the head frozen, the loss of a step is that of `predict`."""
    keras.utils.set_random_seed(0)
    with strategies.make_strategy("one_device").scope():
        network = keras_resnet.ResNet(
            "cifar_resnet8", weights=published, classes=3, input_shape=(16, 16, 3)
        )
    for layer, number in stages(network):
        layer.trainable = number > 4
    split, before = noise(12), arrays_of(network)
    found = network.predict(split.images, verbose=0).astype(np.float64)
    expected = -np.log(found[np.arange(12), split.labels]).sum()
    assert one_step(network, split)[0] == pytest.approx(expected, rel=1e-5)
    assert [v.path for v in network.trainable_variables] == [
        "predictions/kernel",
        "predictions/bias",
    ]
    for path, array in arrays_of(network).items():
        if not path.startswith("predictions"):
            np.testing.assert_array_equal(array, before[path])


@pytest.fixture
def float64():
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def test_stage_rate(float64, published):
    """A step of a stage k below the head is half to the power of k as long."""
    with strategies.make_strategy("one_device").scope():
        network = keras_resnet.ResNet(
            "cifar_resnet8", weights=published, input_shape=(16, 16, 3)
        )
    before, split, steps = network.get_weights(), noise(12), []
    for rate in (1.0, 0.5):
        network.set_weights(before)
        one_step(network, split, rate)
        start = dict(zip([v.path for v in network.variables], before, strict=True))
        steps.append({k: v - start[k] for k, v in arrays_of(network).items()})
    for variable in network.trainable_variables:
        whole, slower = (step[variable.path] for step in steps)
        below = {"conv1": 4, "conv2": 3, "conv3": 2, "conv4": 1, "predictions": 0}
        k = below[variable.path.split("/")[0].split("_")[0]]
        assert np.abs(whole).max() > 1e-6
        np.testing.assert_allclose(slower, whole * 0.5**k, rtol=1e-4, atol=1e-14)


def prepared(folder, **arguments):
    arguments = {"strategy": "one_device", "model_dir": f"{folder}/run", **arguments}
    options = RunOptions.of("cifar_resnet8", **arguments)
    return preparation.prepare_run(options, is_quiet=True)


def test_digits_are_not_mirrored_unless_asked_for(tmp_path):
    """A 2 in a mirror is none; photographs keep their meaning."""
    tuned = {"dataset": "digits", "recipe": "finetune"}
    assert prepared(tmp_path, **tuned).spec.recipe.flip is False
    assert prepared(tmp_path, **tuned, flip=True).spec.recipe.flip is True
    assert (
        prepared(tmp_path, **{**tuned, "recipe": "modern_cifar"}).spec.recipe.flip
        is False
    )


def test_photographs_are_mirrored(options, tmp_path):
    assert prepared(tmp_path, dataset=options["dataset"]).spec.recipe.flip is True


def test_the_test_crop_is_of_photographs(options, tmp_path):
    """rsb_a3 judges by 0.95 of the shorter side."""
    with pytest.raises(
        InputError, match=r"are all of one size\. Received: test_crop=0.9"
    ):
        prepared(tmp_path, dataset="digits", test_crop=0.9)
    small = {"recipe": "rsb_a3", "batch_size": 4}
    run = prepared(tmp_path, dataset="digits", **small)
    assert run.spec.recipe.test_crop == 0 and run.preprocessing.crop == 1
    run = prepared(tmp_path, dataset=options["dataset"], **small)
    assert run.spec.recipe.test_crop == 0.95 and run.preprocessing.crop == 0.95
    run = prepared(tmp_path, dataset=options["dataset"], test_crop=0.9)
    assert run.spec.recipe.test_crop == 0.9 and run.preprocessing.crop == 0.9
    assert os.listdir(tmp_path) == []


def test_with_weights_a_test_crop_counts_where_it_is_named(
    options, published, tmp_path
):
    tuned = {"dataset": options["dataset"], "weights": published, "image_size": 16}
    run = prepared(tmp_path, **tuned)
    assert run.spec.recipe.test_crop == 0 and run.preprocessing.crop == PIXELS.crop
    run = prepared(tmp_path, **tuned, test_crop=0.9)
    assert run.spec.recipe.test_crop == 0.9 and run.preprocessing.crop == 0.9


@pytest.mark.parametrize(
    ("text", "stages"),
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
def test_names_of_stages(text, stages):
    found = resolution.parse_stages(text, 4)
    assert found == tuple(f"conv{i}" for i in stages)


@pytest.mark.parametrize(
    ("text", "words"),
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
def test_wrong_names_of_stages(text, words):
    with pytest.raises(InputError) as error:
        resolution.parse_stages(text, 4)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "digits"}, "images of 3 channel(s). Received: 1 channel(s)"),
        ({"freeze": "conv1..conv5"}, "Accepted: conv1, conv2, conv3, conv4. Received"),
        ({"stage_rate": 0.0}, "stage_rate=0.0"),
        ({"stage_rate": 1.5}, "stage_rate=1.5"),
        ({"model": "cifar_resnet14"}, "does not hold weights of cifar_resnet14"),
        ({"model": "resnet18"}, "does not hold weights of resnet18"),
        ({"shortcut": "B"}, "missing: conv3_block1_0_"),
        ({"weights": "nowhere.keras"}, "There is no such file"),
        ({"weights": "imagenet"}, "There are no published weights of cifar_resnet8"),
    ],
)
def test_wrong_arguments(changes, words, options, tmp_path, monkeypatch):
    """One line, and no run folder."""
    monkeypatch.chdir(tmp_path)
    arguments = {**options, **changes, "model_dir": "run"}
    if changes.get("model") == "resnet18":
        arguments["image_size"] = 32
    with pytest.raises(InputError) as error:
        train(**arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_other_stages_are_another_run(run, options):
    changed = {**options, "freeze": "conv1", "model_dir": run}
    with pytest.raises(InputError, match=r"freeze \(began with \['conv1', 'conv2'"):
        train(**changed)


def test_the_program(options, tmp_path):
    """It says what it cannot use before it makes a folder."""
    result = run_program(
        "keras_resnet.train",
        *(f"--{name}={options[name]}" for name in ("model", "dataset", "weights")),
        "--freeze=conv1..conv9",
        cwd=tmp_path,
    )
    assert_one_line(result, "Accepted: conv1, conv2, conv3, conv4", "stage='conv9'")
    assert os.listdir(tmp_path) == []


def test_the_program_with_a_stage_rate_out_of_range(tmp_path):
    result = run_program("keras_resnet.train", "--set", "stage_rate=1.5", cwd=tmp_path)
    assert_one_line(result, "stage_rate must be at most 1. Received: stage_rate=1.5")
    assert os.listdir(tmp_path) == []
