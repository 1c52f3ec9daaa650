import re

import pytest

import keras_resnet
from keras_resnet.spec.variants import VARIANTS, find_variant
from keras_resnet.support.errors import InputError


def test_the_table_begins_with_the_networks_of_the_paper():
    imagenet_models = [f"resnet{n}" for n in (18, 34, 50, 101, 152)] + [
        "plainnet18",
        "plainnet34",
    ]
    cifar_models = [
        f"{k}net{n}" for k in ("res", "plain") for n in (20, 32, 44, 56, 110, 1202)
    ]
    paper_models = keras_resnet.list_models()[: len(imagenet_models + cifar_models)]
    assert sorted(paper_models) == sorted(imagenet_models + cifar_models)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_depth_matches_the_name(name):
    assert find_variant(name).depth == int(re.search(r"ne[tx]t?(\d+)", name)[1])


@pytest.mark.parametrize("name", ["ResNet50", "RESNET50", "resnet50"])
def test_names_ignore_the_case(name):
    assert find_variant(name) is VARIANTS["resnet50"]


def test_cifar_networks_of_any_depth_are_found():
    assert find_variant("cifar_resnet50").blocks == (8, 8, 8)
    assert find_variant("cifar_resnet50").shortcut == "A"
    assert find_variant("cifar_plainnet14").shortcut == "none"
    assert find_variant("cifar_resnet20").blocks == VARIANTS["resnet20"].blocks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero_gamma": True}, "zero_gamma=True, shortcut='none'"),
        ({"stochastic_depth": 0.2}, "stochastic_depth=0.2"),
    ],
)
def test_plain_networks_refuse_options_of_residual_branches(changes, words):
    with pytest.raises(InputError, match="require a network with shortcuts") as error:
        keras_resnet.ResNet("cifar_plainnet8", **changes)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnett50", "Did you mean 'resnet50'?"),
        ("vgg16", "Accepted: resnet18, resnet34"),
        ("cifar_resnet21", "such as 20 or 26"),
        ("cifar_resnet2", "such as 8 or 14"),
        ("cifar_resnet0", "such as 8 or 14"),
    ],
)
def test_an_unknown_name_is_an_error_with_a_hint(name, words):
    with pytest.raises(InputError, match="Received: model=") as error:
        find_variant(name)
    assert words in str(error.value)
