"""Tests of the table of variants, and of changes to variants."""

import dataclasses
import re

import pytest
from hypothesis import given, settings, strategies

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


@pytest.mark.parametrize(
    ("name", "size", "last_size", "num_classes"),
    [("resnet34", 224, 7, 1000), ("resnet50d", 224, 7, 1000), ("resnet56", 32, 8, 10)],
)
def test_feature_maps_have_the_sizes_of_the_paper(name, size, last_size, num_classes):
    """The sizes are those of Table 1 (ImageNet) and section 4.2 (CIFAR-10)."""
    variant = find_variant(name)
    assert (variant.size, variant.classes) == (size, num_classes)
    assert variant.size / variant.stride == last_size


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


# Values of the fields that constructors accept. `None` keeps the variant's value.
OPTIONS = {
    "shortcut": ("A", "B", "C", "none", None),
    "stride_on": ("1x1", "3x3", None),
    "stem": ("imagenet", "deep", "cifar", None),
    **dict.fromkeys(("preact", "avg_down", "se", "zero_gamma"), (True, False, None)),
    "groups": (1, 32, None),
    "group_width": (4, 64, None),
    "stochastic_depth": (0.0, 0.5, None),
}


@settings(max_examples=100)
@given(
    strategies.sampled_from([*VARIANTS, "cifar_resnet8", "cifar_plainnet8"]),
    strategies.fixed_dictionaries(
        {}, optional={k: strategies.sampled_from(v) for k, v in OPTIONS.items()}
    ),
)
def test_options_are_applied_unless_they_contradict_each_other(name, options):
    variant = find_variant(name)
    changes = {field: value for field, value in options.items() if value is not None}
    expected = dataclasses.replace(variant, **changes)
    is_plain, was_plain = expected.shortcut == "none", variant.shortcut == "none"
    is_contradictory = (
        (was_plain and not is_plain)
        or (expected.preact and expected.zero_gamma)
        or (is_plain and (expected.zero_gamma or expected.stochastic_depth > 0))
        or (expected.block == "basic" and expected.groups * expected.group_width != 64)
    )
    if is_contradictory:
        with pytest.raises(InputError):
            variant.replace(**options)
        return
    changed_variant = variant.replace(**options)
    if expected != variant:  # The parameters of another architecture are unknown.
        expected = dataclasses.replace(expected, parameters=None)
    assert changed_variant == expected
    assert changed_variant.replace(**options) == changed_variant


ANYTHING = strategies.one_of(
    strategies.integers(), strategies.floats(), strategies.text(max_size=4),
    strategies.lists(strategies.integers(), max_size=2), strategies.complex_numbers(),
)  # fmt: skip


@settings(max_examples=100)
@given(strategies.sampled_from(sorted(OPTIONS)), ANYTHING)
def test_any_other_value_of_an_option_is_refused(field, value):
    is_accepted = {
        "groups": isinstance(value, int) and value >= 1,
        "group_width": isinstance(value, int) and value >= 1,
        "stochastic_depth": isinstance(value, int | float) and 0 <= value < 1,
    }.get(field, value in OPTIONS[field])
    if is_accepted:
        variant = find_variant("resnet50").replace(**{field: value})
        assert getattr(variant, field) == value
    else:
        with pytest.raises(InputError, match=f"{field}=") as error:
            find_variant("resnet50").replace(**{field: value})
        assert "\n" not in str(error.value)


@settings(max_examples=100)
@given(strategies.sampled_from(["res", "plain"]), strategies.integers(0, 2000))
def test_a_cifar_network_has_6n_plus_2_layers(kind, depth):
    if depth >= 8 and depth % 6 == 2:
        assert find_variant(f"cifar_{kind}net{depth}").depth == depth
    else:
        with pytest.raises(InputError, match=r"must be 6n\+2"):
            find_variant(f"cifar_{kind}net{depth}")
