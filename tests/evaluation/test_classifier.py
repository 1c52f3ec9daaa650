"""Loading of classifiers and of the datasets to evaluate them on."""

import dataclasses
import json
import os
import shutil

import keras
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from state_dicts import make_arrays

import keras_resnet
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.data.splits import Dataset, Split
from keras_resnet.evaluation.classifier import Classifier, load_classifier, load_images
from keras_resnet.predict import predict
from keras_resnet.spec import Provenance
from keras_resnet.support.errors import InputError
from keras_resnet.weights import registry, saving
from keras_resnet.weights.origin import PIXEL_FORMATS


def write_torch_file(path, name, metadata=None, **options):
    """Writes a weights file with PyTorch's keys and returns the path of the file.

    `metadata` is stored as JSON, like the metadata that keras_resnet stores.
    """
    saving.save_state_dict(keras_resnet.ResNet(name, **options), path)
    shapes = {key: array.shape for key, array in load_file(path).items()}
    save_file(
        make_arrays(shapes), path, metadata and {"keras_resnet": json.dumps(metadata)}
    )
    return path


@pytest.fixture(scope="module")
def torch_files(tmp_path_factory):
    """Paths of two weights files with PyTorch's keys, by variant name."""
    folder = tmp_path_factory.mktemp("files")
    return {
        name: write_torch_file(str(folder / f"{name}.safetensors"), name)
        for name in ("resnet18", "cifar_resnet8")
    }


@pytest.mark.parametrize(
    ("name", "input_shape", "expected"),
    [
        # torchvision resizes images to 256 pixels and crops 224, a fraction of 0.875.
        ("resnet18", None, Preprocessing(224, 224, 3, 0.875, "bilinear")),
        ("resnet18", (None, None, 3), Preprocessing(224, 224, 3, 0.875, "bilinear")),
        ("resnet18", (64, 96, 3), Preprocessing(64, 96, 3, 0.875, "bilinear")),
        ("cifar_resnet8", None, Preprocessing(32, 32, 3)),
        ("cifar_resnet8", (None, None, 3), Preprocessing(32, 32, 3)),
    ],
)
def test_preprocessing_fits_torch_weights(name, input_shape, expected, torch_files):
    model = keras_resnet.ResNet(
        name, weights=torch_files[name], input_shape=input_shape
    )
    assert keras_resnet.preprocessing_for(model) == expected
    # torchvision's ToTensor divides 51 by 255. Normalize uses the mean and std below.
    normalised_grey = model.get_layer("normalization")(np.full((1, 1, 1, 3), 51.0))
    expected_grey = (0.2 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(np.ravel(normalised_grey), expected_grey, rtol=1e-5)


def test_preprocessing_is_read_from_the_metadata_of_the_file(torch_files, tmp_path):
    pixels = PIXEL_FORMATS["torch"]._replace(crop=0.95, interpolation="bicubic")
    path = str(tmp_path / "net.safetensors")
    save_file(
        load_file(torch_files["cifar_resnet8"]),
        path,
        {"keras_resnet": json.dumps({"pixels": pixels})},
    )
    model = keras_resnet.ResNet("cifar_resnet8", weights=path)
    expected = Preprocessing(32, 32, 3, 0.95, "bicubic")
    assert keras_resnet.preprocessing_for(model) == expected


def test_a_network_without_weights_has_no_preprocessing():
    model = keras_resnet.ResNet("cifar_resnet8")
    with pytest.raises(InputError, match=r"with weights.*model='cifar_resnet8'"):
        keras_resnet.preprocessing_for(model)


def test_a_trained_model_takes_images_of_its_input_size(trained_run):
    model = keras.models.load_model(trained_run / "final.keras")
    assert keras_resnet.preprocessing_for(model) == Preprocessing(8, 8, 1)


def test_a_run_is_loaded_with_classes_and_preprocessing(trained_run):
    final_classifier = load_classifier(str(trained_run))
    assert final_classifier.classes == tuple("0123456789")
    assert final_classifier.preprocessing.shape == (8, 8, 1)
    assert final_classifier.model.output_shape == (None, 10)
    best_classifier = load_classifier(str(trained_run / "best.keras"))
    assert best_classifier.folder == final_classifier.folder == str(trained_run)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*run\.json"):
        load_classifier(str(tmp_path))


def test_a_run_that_has_not_ended_is_refused(trained_run, tmp_path):
    (tmp_path / "run.json").write_bytes((trained_run / "run.json").read_bytes())
    with pytest.raises(InputError, match="has not ended"):
        load_classifier(str(tmp_path))


@pytest.fixture(scope="module")
def imagenet_classifier():
    """A classifier with ImageNet's 1,000 classes, without a network."""
    classes = registry.class_names("imagenet")
    return Classifier(
        "net", None, classes, Preprocessing(224, 224, 3), Provenance("net")
    )


def write_dataset(folder, names):
    """Writes five images for each class and returns the name of the dataset."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / name / f"{i}.png")
    return f"folder:{folder}"


@pytest.mark.parametrize(
    "names",
    [
        # WordNet ids and names of the classes 1, 281 and 999 of ILSVRC 2012.
        ("n01443537", "n02123045", "n15075141"),
        ("goldfish", "tabby", "toilet tissue"),
    ],
)
def test_labels_are_indices_of_imagenet_classes(names, imagenet_classifier, tmp_path):
    dataset_name = write_dataset(tmp_path, names)
    dataset = load_images(imagenet_classifier, dataset_name, only_test=True)
    assert dataset.classes == imagenet_classifier.classes
    expected_labels = {"n01443537": 1, "n02123045": 281, "n15075141": 999}
    expected_labels |= {"goldfish": 1, "tabby": 281, "toilet tissue": 999}
    for path, label in zip(dataset.test.images, dataset.test.labels, strict=True):
        assert label == expected_labels[path.split("/")[-2]]
    assert len(dataset.test) == 15
    full_dataset = load_images(imagenet_classifier, dataset_name)
    assert sorted({*full_dataset.train.labels}) == [1, 281, 999]
    assert sorted(full_dataset.test.labels) == [1, 281, 999]


@pytest.mark.parametrize(
    "names", [("goldfish", "unicorn"), ("n01443537", "goldfish"), ("n01443537", "n99")]
)
def test_classes_outside_imagenet_are_refused(names, imagenet_classifier, tmp_path):
    with pytest.raises(InputError, match="classes of the network") as error:
        load_images(imagenet_classifier, write_dataset(tmp_path, names))
    assert "and 980 more" in str(error.value)
    assert ", ".join(sorted(names)) in str(error.value)


def test_classes_are_matched_by_name(imagenet_classifier, tmp_path):
    """The classes of the folder may have another order than those of the model."""
    classifier = dataclasses.replace(
        imagenet_classifier, classes=("mouse", "dog", "cat")
    )
    dataset = load_images(classifier, write_dataset(tmp_path, ("cat", "mouse")))
    label_by_name = {
        path.split("/")[-2]: int(label)
        for path, label in zip(dataset.test.images, dataset.test.labels, strict=True)
    }
    assert label_by_name == {"cat": 2, "mouse": 0}


def test_unnamed_classes_are_matched_by_index(imagenet_classifier):
    """TFRecord files without class names have the classes "class 0", "class 1" etc."""
    split = Split(np.zeros((3, 8, 8, 3), np.uint8), np.array([2, 0, 1], np.int32))
    unnamed_classes = ("class 0", "class 1", "class 2")
    dataset = Dataset("unnamed", unnamed_classes, split, split, (8, 8, 3))
    classifier = dataclasses.replace(imagenet_classifier, classes=("cat", "dog", "owl"))
    matched_dataset = load_images(classifier, dataset)
    assert matched_dataset.classes == classifier.classes
    assert matched_dataset.test.labels.tolist() == [2, 0, 1]
    classifier = dataclasses.replace(classifier, classes=("cat", "dog"))
    with pytest.raises(InputError, match="classes of the network"):
        load_images(classifier, dataset)


def test_a_wrong_number_of_channels_is_refused(imagenet_classifier):
    classifier = dataclasses.replace(imagenet_classifier, classes=tuple("0123456789"))
    with pytest.raises(InputError, match=r"3 channel\(s\).*Received: digits with 1"):
        load_images(classifier, "digits")


def test_a_classifier_without_a_dataset_needs_one(imagenet_classifier):
    with pytest.raises(InputError, match=r" net .*Accepted: --dataset=folder:PATH"):
        load_images(imagenet_classifier)


def test_a_copied_file_predicts_like_its_run(trained_run, tmp_path):
    path = str(tmp_path / "digits.keras")
    shutil.copy(trained_run / "final.keras", path)
    classifier = load_classifier(path)
    assert classifier.folder is None
    assert classifier.name == "digits"
    assert classifier.preprocessing == Preprocessing(8, 8, 1)
    assert classifier.classes == tuple(map(str, range(10)))
    image = str(tmp_path / "image.png")
    Image.new("L", (8, 8), 200).save(image)
    predictions_of_file, predictions_of_run = (
        predict([image], model)[image] for model in (path, str(trained_run))
    )
    assert predictions_of_file == predictions_of_run


def test_features_are_refused_and_logits_get_a_softmax(torch_files, tmp_path):
    path, torch_file = str(tmp_path / "net.keras"), torch_files["cifar_resnet8"]
    options = {"include_top": False, "pooling": "avg"}
    saving.save_model(
        keras_resnet.ResNet("cifar_resnet8", weights=torch_file, **options), path
    )
    with pytest.raises(InputError, match=r"net\.keras"):
        load_classifier(path)
    logits_model = keras_resnet.ResNet(
        "cifar_resnet8", weights=torch_file, classifier_activation=None
    )
    saving.save_model(logits_model, path)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype("float32")
    exponentials = np.exp(np.float64(logits_model(image)))
    probabilities = np.float64(load_classifier(path).model(image))
    np.testing.assert_allclose(
        probabilities, exponentials / exponentials.sum(), rtol=1e-4
    )


def test_a_run_can_be_loaded_from_inside_its_folder(trained_run, monkeypatch):
    monkeypatch.chdir(trained_run)
    for path in ("best.keras", "."):
        classifier = load_classifier(path)
        assert classifier.classes == tuple("0123456789")
        assert os.path.isdir(classifier.folder)
        assert classifier.name == "run"


def test_a_folder_does_not_hide_the_variant_of_its_name(
    trained_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    os.mkdir("resnet20")
    classifier = load_classifier("resnet20", "fashion_mnist")
    assert classifier.provenance.weights == "resnet20/fashion_mnist"
    assert capsys.readouterr().err == ""
    shutil.copytree(trained_run, "resnet20", dirs_exist_ok=True)
    classifier = load_classifier("resnet20")
    assert classifier.folder == "resnet20"
    assert "resnet20 is a run folder" in capsys.readouterr().err
    with pytest.raises(InputError, match="a run has its own weights"):
        load_classifier("resnet20", "fashion_mnist")


def test_a_variant_is_built_with_a_weights_file(torch_files):
    classifier = load_classifier("resnet18", torch_files["resnet18"], image_size=64)
    assert classifier.name == "resnet18-resnet18"
    assert classifier.preprocessing == Preprocessing(64, 64, 3, 0.875)
    assert classifier.model.input_shape == (None, 64, 64, 3)
    # Classes 0, 1 and 999 of ILSVRC 2012.
    assert [classifier.classes[i] for i in (0, 1, 999)] == [
        "tench",
        "goldfish",
        "toilet tissue",
    ]
    assert len(set(classifier.classes)) == 1000


def test_class_names_are_read_from_the_metadata_of_the_file(torch_files, tmp_path):
    classes = [f"kind {i}" for i in range(10)]
    path = str(tmp_path / "net.safetensors")
    save_file(
        load_file(torch_files["cifar_resnet8"]),
        path,
        {
            "keras_resnet": json.dumps(
                {"classes": classes, "pixels": PIXEL_FORMATS["torch"]}
            )
        },
    )
    assert load_classifier("cifar_resnet8", path).classes == tuple(classes)


@pytest.mark.parametrize(
    ("num_classes", "fourth_class", "has_warning"),
    [(10, "cat", True), (7, "class 3", False)],
)
def test_missing_class_names_are_guessed(
    num_classes, fourth_class, has_warning, tmp_path, capsys
):
    """Only networks for ten classes and 32x32 RGB images get CIFAR-10's names."""
    path = str(tmp_path / "net.safetensors")
    path = write_torch_file(path, "cifar_resnet8", classes=num_classes)
    classifier = load_classifier(path)
    assert len(classifier.classes) == num_classes
    assert classifier.classes[3] == fourth_class
    message = "net.safetensors has no class names, so the names of CIFAR-10 are used"
    assert (message in capsys.readouterr().err) == has_warning


def test_shipped_weights_have_a_publisher_and_a_run():
    """The run is that of the file run.json next to the weights."""
    provenance = load_classifier("resnet20", "fashion_mnist").provenance
    assert (provenance.publisher, provenance.licence) == ("keras_resnet", "Apache-2.0")
    assert provenance.weights == "resnet20/fashion_mnist"
    path = os.path.join(os.path.dirname(registry.__file__), "trained")
    with open(f"{path}/resnet20_fashion_mnist/run.json", encoding="utf-8") as file:
        assert provenance.run.to_settings() == json.load(file)["settings"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnett50",), "Did you mean 'resnet50'?"),
        (("resnet50", "torchvsion_v1"), "Did you mean 'torchvision_v1'?"),
        (("resnet50", "nowhere.safetensors"), "does not exist"),
        (("plainnet18",), "There are no published weights of plainnet18"),
        (("runs/nowhere",), "there is no runs/nowhere/run.json"),
        (("runs/nowhere.keras",), "does not exist"),
    ],
)
def test_missing_models_and_weights_are_reported(arguments, message):
    with pytest.raises(InputError) as error:
        load_classifier(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file_name", ["", "final.keras"])
@pytest.mark.parametrize("argument", [{"weights": "imagenet"}, {"image_size": 32}])
def test_a_run_accepts_no_weights_or_image_size(file_name, argument, trained_run):
    with pytest.raises(InputError, match=r"weights and image_size .*variant"):
        load_classifier(str(trained_run / file_name), **argument)
