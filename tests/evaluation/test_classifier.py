"""What belongs to weights: preprocessing, names of classes, facts."""

import dataclasses
import json
import os
import shutil

import keras
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from state_dicts import fill

import keras_resnet
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.evaluation.classifier import Classifier, load_classifier, load_images
from keras_resnet.predict import predict
from keras_resnet.spec import Provenance
from keras_resnet.support.errors import InputError
from keras_resnet.weights import saving
from keras_resnet.weights.origin import PIXELS
from keras_resnet.weights.registry import class_names


def torch_file(path, name, told=None, **options):
    """A file with torch's names; without `told` as torch itself would write it."""
    saving.save_state_dict(keras_resnet.ResNet(name, **options), path)
    shapes = {key: array.shape for key, array in load_file(path).items()}
    save_file(fill(shapes), path, told and {"keras_resnet": json.dumps(told)})
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of a net for ImageNet and of one for CIFAR-10."""
    folder = tmp_path_factory.mktemp("files")
    return {
        name: torch_file(str(folder / f"{name}.safetensors"), name)
        for name in ("resnet18", "cifar_resnet8")
    }


@pytest.mark.parametrize(
    ("name", "input_shape", "expected"),
    [
        # As torchvision's transforms: 224 of 256 pixels, bilinear.
        ("resnet18", None, Preprocessing(224, 224, 3, 0.875, "bilinear")),
        ("resnet18", (None, None, 3), Preprocessing(224, 224, 3, 0.875, "bilinear")),
        ("resnet18", (64, 96, 3), Preprocessing(64, 96, 3, 0.875, "bilinear")),
        ("cifar_resnet8", None, Preprocessing(32, 32, 3)),
        ("cifar_resnet8", (None, None, 3), Preprocessing(32, 32, 3)),
    ],
)
def test_preprocessing_of_torchs_weights(name, input_shape, expected, files):
    model = keras_resnet.ResNet(name, weights=files[name], input_shape=input_shape)
    assert keras_resnet.preprocessing_for(model) == expected
    # torchvision's ToTensor and Normalize, of a grey pixel.
    grey = model.get_layer("normalization")(np.full((1, 1, 1, 3), 51.0))
    expected = (0.2 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(np.ravel(grey), expected, rtol=1e-5)


def test_preprocessing_is_what_the_file_says(files, tmp_path):
    told = PIXELS["torch"]._replace(crop=0.95, interpolation="bicubic")
    path = str(tmp_path / "net.safetensors")
    save_file(
        load_file(files["cifar_resnet8"]),
        path,
        {"keras_resnet": json.dumps({"pixels": told})},
    )
    model = keras_resnet.ResNet("cifar_resnet8", weights=path)
    expected = Preprocessing(32, 32, 3, 0.95, "bicubic")
    assert keras_resnet.preprocessing_for(model) == expected


def test_no_weights_no_preprocessing():
    model = keras_resnet.ResNet("cifar_resnet8")
    with pytest.raises(InputError, match="needs a network built with weights"):
        keras_resnet.preprocessing_for(model)


def test_preprocessing_of_a_trained_model(trained):
    model = keras.models.load_model(trained / "final.keras")
    assert keras_resnet.preprocessing_for(model) == Preprocessing(8, 8, 1)


def test_load_run(trained):
    run = load_classifier(str(trained))
    assert run.classes == tuple("0123456789")
    assert run.preprocessing.shape == (8, 8, 1)
    assert run.model.output_shape == (None, 10)
    best = load_classifier(str(trained / "best.keras"))
    assert best.folder == run.folder == str(trained)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*run\.json"):
        load_classifier(str(tmp_path))


def test_a_run_that_has_not_ended(trained, tmp_path):
    (tmp_path / "run.json").write_bytes((trained / "run.json").read_bytes())
    with pytest.raises(InputError, match="has not ended"):
        load_classifier(str(tmp_path))


@pytest.fixture(scope="module")
def imagenet():
    """A classifier of ImageNet's 1,000 classes; what it says is not asked here."""
    classes = class_names("imagenet")
    return Classifier(
        "net", None, classes, Preprocessing(224, 224, 3), Provenance("net")
    )


def write_pictures(folder, names):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / name / f"{i}.png")
    return f"folder:{folder}"


@pytest.mark.parametrize(
    "names",
    [
        # The second, 282nd and last of ILSVRC 2012's synsets, and the goldfish's.
        ("n01443537", "n02123045", "n15075141"),
        ("goldfish", "tabby", "toilet tissue"),
    ],
)
def test_some_of_imagenets_classes(names, imagenet, tmp_path):
    dataset = write_pictures(tmp_path, names)
    images = load_images(imagenet, dataset, only_test=True)
    assert images.classes == imagenet.classes
    right = {"n01443537": 1, "n02123045": 281, "n15075141": 999}
    right |= {"goldfish": 1, "tabby": 281, "toilet tissue": 999}
    for path, label in zip(images.test.images, images.test.labels, strict=True):
        assert label == right[path.split("/")[-2]]
    assert len(images.test) == 15
    parts = load_images(imagenet, dataset)
    assert sorted({*parts.train.labels}) == [1, 281, 999]
    assert sorted(parts.test.labels) == [1, 281, 999]


@pytest.mark.parametrize(
    "names", [("goldfish", "unicorn"), ("n01443537", "goldfish"), ("n01443537", "n99")]
)
def test_a_class_that_is_none_of_imagenets(names, imagenet, tmp_path):
    with pytest.raises(InputError, match="The model knows the classes") as error:
        load_images(imagenet, write_pictures(tmp_path, names))
    assert "and 980 more" in str(error.value)
    assert ", ".join(sorted(names)) in str(error.value)


def test_names_in_another_order(imagenet, tmp_path):
    """Folders are sorted; the model's classes are not."""
    pets = dataclasses.replace(imagenet, classes=("mouse", "dog", "cat"))
    images = load_images(pets, write_pictures(tmp_path, ("cat", "mouse")))
    labels = {
        p.split("/")[-2]: int(k)
        for p, k in zip(images.test.images, images.test.labels, strict=True)
    }
    assert labels == {"cat": 2, "mouse": 0}


def test_other_channels(imagenet):
    digits = dataclasses.replace(imagenet, classes=tuple("0123456789"))
    with pytest.raises(InputError, match=r"takes images of 3 channel\(s\)"):
        load_images(digits, "digits")


def test_no_data_set_of_its_own(imagenet):
    with pytest.raises(InputError, match="has no data set of its own; name one"):
        load_images(imagenet)


def test_a_file_outside_of_a_run_folder(trained, tmp_path):
    """Its classes and its answers are the run's."""
    path = str(tmp_path / "digits.keras")
    shutil.copy(trained / "final.keras", path)
    classifier = load_classifier(path)
    assert classifier.folder is None
    assert classifier.name == "digits"
    assert classifier.preprocessing == Preprocessing(8, 8, 1)
    assert classifier.classes == tuple(map(str, range(10)))
    picture = str(tmp_path / "picture.png")
    Image.new("L", (8, 8), 200).save(picture)
    here, there = (predict([picture], m)[picture] for m in (path, str(trained)))
    assert here == there


def test_a_file_that_gives_no_probabilities(files, tmp_path):
    """Features cannot be classes; logits get their softmax."""
    path, file = str(tmp_path / "net.keras"), files["cifar_resnet8"]
    features = {"include_top": False, "pooling": "avg"}
    saving.save_model(
        keras_resnet.ResNet("cifar_resnet8", weights=file, **features), path
    )
    with pytest.raises(InputError, match=r"net\.keras"):
        load_classifier(path)
    logits = keras_resnet.ResNet(
        "cifar_resnet8", weights=file, classifier_activation=None
    )
    saving.save_model(logits, path)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype("float32")
    values = np.exp(np.float64(logits(image)))
    found = np.float64(load_classifier(path).model(image))
    np.testing.assert_allclose(found, values / values.sum(), rtol=1e-4)


def test_a_file_in_the_folder_where_one_is(trained, monkeypatch):
    """After `cd runs/NAME`."""
    monkeypatch.chdir(trained)
    for path in ("best.keras", "."):
        classifier = load_classifier(path)
        assert classifier.classes == tuple("0123456789")
        assert os.path.isdir(classifier.folder)
        assert classifier.name == "run"


def test_the_name_of_a_network_with_a_file(files):
    classifier = load_classifier("resnet18", files["resnet18"], image_size=64)
    assert classifier.name == "resnet18-resnet18"
    assert classifier.preprocessing == Preprocessing(64, 64, 3, 0.875)
    assert classifier.model.input_shape == (None, 64, 64, 3)
    # The first, second and last of ILSVRC 2012.
    assert [classifier.classes[i] for i in (0, 1, 999)] == [
        "tench",
        "goldfish",
        "toilet tissue",
    ]
    assert len(set(classifier.classes)) == 1000


def test_names_that_the_file_tells(files, tmp_path):
    names = [f"kind {i}" for i in range(10)]
    path = str(tmp_path / "net.safetensors")
    save_file(
        load_file(files["cifar_resnet8"]),
        path,
        {"keras_resnet": json.dumps({"classes": names, "pixels": PIXELS["torch"]})},
    )
    assert load_classifier("cifar_resnet8", path).classes == tuple(names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnett50",), "Did you mean 'resnet50'?"),
        (("resnet50", "torchvsion_v1"), "Did you mean 'torchvision_v1'?"),
        (("resnet50", "nowhere.safetensors"), "There is no such file"),
        (("plainnet18",), "There are no published weights of plainnet18"),
        (("runs/nowhere",), "there is no runs/nowhere/run.json"),
        (("runs/nowhere.keras",), "There is no such file"),
    ],
)
def test_what_is_not_there(arguments, words):
    with pytest.raises(InputError) as error:
        load_classifier(*arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "final.keras"])
@pytest.mark.parametrize("more", [{"weights": "imagenet"}, {"image_size": 32}])
def test_a_run_has_weights_and_a_size_of_its_own(name, more, trained):
    with pytest.raises(InputError, match="go with the name of a network"):
        load_classifier(str(trained / name), **more)
