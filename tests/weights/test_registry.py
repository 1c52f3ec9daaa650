"""Registry rows are complete and agree with what the publishers state."""

import os
import re
import urllib.parse

import pytest
from keras.src.applications import resnet as keras_applications

import keras_resnet
from keras_resnet.spec.variants import VARIANTS
from keras_resnet.support.errors import InputError
from keras_resnet.weights import download, registry

# Rows with a URL. The other files are in this package.
DOWNLOADED_ROWS = [row for row in registry.REGISTRY if "://" in row.address]
ROW_PARAMETERS = [
    pytest.param(row, id=f"{row.model}-{row.name}") for row in DOWNLOADED_ROWS
]


@pytest.mark.parametrize("row", ROW_PARAMETERS)
def test_row_is_valid(row):
    assert row.model in VARIANTS
    assert urllib.parse.urlsplit(row.address).scheme == "https"
    num_digits = {"md5": 32, "sha256": 8}[row.algorithm]
    assert re.fullmatch(rf"[0-9a-f]{{{num_digits}}}", row.digest)
    # The URL contains the SHA-256 hash, which torch.hub verifies, too.
    if row.algorithm == "sha256":
        assert re.search(r"-([a-f0-9]*)\.", row.address)[1] == row.digest
    assert 50 < row.top1 < row.top5 < 100
    assert row.licence
    assert registry.class_names(row.data)
    has_basic_blocks = VARIANTS[row.model].block == "basic"
    assert row.stride_on in ([None] if has_basic_blocks else ["1x1", "3x3"])


def test_rows_are_unique():
    for make_key in (
        lambda row: (row.model, row.name),
        lambda row: row.address,
        lambda row: row.path,  # Two files must not share a path in the cache.
    ):
        keys = [make_key(row) for row in registry.REGISTRY]
        assert len(set(keys)) == len(keys)
    assert not {row.name for row in registry.REGISTRY} & {registry.DEFAULT_WEIGHTS}


def test_keras_rows_are_those_of_the_installed_keras():
    rows = {row.model: row for row in registry.REGISTRY if row.name == "keras"}
    assert rows.keys() == {
        name for name in keras_applications.WEIGHTS_HASHES if "next" not in name
    }
    for name, row in rows.items():
        hash_with_top, _ = keras_applications.WEIGHTS_HASHES[name]
        assert row.digest == hash_with_top
        file_name = f"{name}_weights_tf_dim_ordering_tf_kernels.h5"
        assert row.address == f"{keras_applications.BASE_WEIGHTS_PATH}{file_name}"


def test_imagenet_selects_the_first_row():
    for model in {row.model for row in DOWNLOADED_ROWS}:
        rows = [row for row in registry.REGISTRY if row.model == model]
        assert registry.find_published_weights(model, "imagenet") is rows[0]
        assert registry.list_weights(model) == rows
        assert registry.find_published_weights(model, rows[-1].name) is rows[-1]
    assert registry.find_published_weights("resnet50", "imagenet").name == "keras"
    assert (
        registry.find_published_weights("resnet18", "imagenet").name == "torchvision_v1"
    )
    assert keras_resnet.list_weights() == list(registry.REGISTRY)


def test_resnet50_has_weights_of_three_publishers():
    names = [row.name for row in keras_resnet.list_weights("resnet50")]
    torchvision_names, timm_names = (
        ["torchvision_v1", "torchvision_v2"],
        ["a1", "a2", "a3"],
    )
    assert names == [
        "keras",
        *torchvision_names,
        *(f"timm_{name}" for name in timm_names),
    ]


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="Did you mean 'torchvision_v2'") as error:
        registry.find_published_weights("resnet50", "torchvison_v2")
    assert "imagenet, keras, torchvision_v1, " in str(error.value)
    with pytest.raises(InputError, match="Did you mean 'resnext101_64x4d'"):
        registry.find_published_weights("resnext101_4x4d", "imagenet")
    for model in ("plainnet34", "resnet32"):
        with pytest.raises(InputError) as error:
            registry.find_published_weights(model, "imagenet")
        assert f"no published weights of {model}, only of resnet50" in str(error.value)
        assert registry.list_weights(model) == []


def test_imagenet_has_1000_different_classes():
    names, ids = registry.class_names("imagenet"), registry.class_ids("imagenet")
    assert len(names) == len(set(names)) == len(ids) == 1000
    assert list(ids) == sorted(set(ids))
    assert all(re.fullmatch(r"n\d{8}", class_id) for class_id in ids)
    # The first, second and last class of ImageNet have these ids and names.
    assert (ids[0], ids[1], ids[-1]) == ("n01440764", "n01443537", "n15075141")
    assert (names[0], names[1], names[-1]) == ("tench", "goldfish", "toilet tissue")
    assert registry.class_names("cifar10")[3:6] == ("cat", "deer", "dog")
    assert registry.class_names("digits") is registry.class_ids("digits") is None


def test_shipped_weights_of_fashion_mnist_are_valid():
    """This package contains weights for grey 28x28 images with the registered hash."""
    model = keras_resnet.ResNet20(weights="fashion_mnist")
    assert model.input_shape == (None, 28, 28, 1)
    assert model.origin.source == "resnet20/fashion_mnist"
    assert keras_resnet.preprocessing_for(model).shape == (28, 28, 1)
    row = keras_resnet.list_weights("resnet20")[0]
    assert os.path.dirname(row.path).startswith(os.path.dirname(registry.__file__))
    assert download.has_digest(row.path, row.algorithm, row.digest)
    with pytest.raises(InputError, match="Accepted: fashion_mnist"):
        keras_resnet.ResNet20(weights="imagenet")
