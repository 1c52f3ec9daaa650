"""Tests that recipes match their papers, and tests of changes to recipes."""

import dataclasses
import inspect
import math
import re
import types

import hypothesis
import pytest
from hypothesis import strategies

from keras_resnet.spec.execution import FREE_ON_RESUME, Execution
from keras_resnet.spec.fields import replace_fields
from keras_resnet.spec.options import RunOptions
from keras_resnet.spec.recipes import (
    RECIPES,
    Recipe,
    choose_recipe,
    find_recipe,
    parse_changes,
)
from keras_resnet.support.errors import InputError
from keras_resnet.training import resolution
from keras_resnet.training.batch_source import BatchSource


def assert_fields(recipe, **fields):
    values = {field: getattr(recipe, field) for field in fields}
    assert values == fields


def test_paper_cifar_matches_the_paper():
    """Section 4.2 trains for 64k iterations with batches of 128 images. It lowers the
    learning rate after 32k and 48k iterations and holds out 5k of the 50k images.
    """
    recipe = find_recipe("paper_cifar")
    assert (recipe.batch_size, recipe.learning_rate) == (128, 0.1)
    assert (recipe.momentum, recipe.weight_decay) == (0.9, 1e-4)
    assert recipe.pad * 32 == 4
    assert recipe.flip
    assert recipe.iterations == 64_000
    assert [fraction * 64_000 for fraction in recipe.drops] == [32_000, 48_000]
    assert recipe.schedule == "steps" and not recipe.warmup
    assert recipe.validation * 50_000 == 5_000
    assert recipe.epochs == -(-64_000 // -(-45_000 // 128))
    assert recipe.decay_all
    assert recipe.optimizer == "sgd" and recipe.loss == "cross_entropy"
    assert recipe.careful_start
    assert not (recipe.mixes_images or recipe.ema or recipe.label_smoothing)


@pytest.mark.parametrize(
    ("model", "careful_start"), [("resnet56", False), ("resnet110", True)]
)
def test_only_deep_networks_start_carefully(model, careful_start):
    """Section 4.2 warms up only the 110-layer network: "we use 0.01 to warm up"."""
    options = RunOptions.from_keywords(model, recipe="paper_cifar")
    spec, _, _ = resolution.resolve_run(options, Execution(), num_replicas=1)
    assert spec.recipe.careful_start == careful_start
    # The last batch of an epoch would have only 13 images.
    assert (spec.total_steps, spec.steps_per_epoch) == (64_000, (1437 - 144) // 128)


def test_paper_imagenet_matches_the_paper():
    """The values are from section 3.4 of the paper, on training with ImageNet."""
    assert_fields(
        find_recipe("paper_imagenet"),
        batch_size=256,
        learning_rate=0.1,
        iterations=600_000,
        schedule="plateau",
        momentum=0.9,
        weight_decay=1e-4,
        decay_all=True,
        crop="shorter_side",
        colour=0.1,
        flip=True,
        policy="none",
        warmup=0,
        careful_start=False,
        label_smoothing=0,
    )


# Fields that the recipes of "ResNet strikes back" share (arXiv:2110.00476, Table 2).
RSB_FIELDS = {
    "batch_size": 2048,
    "optimizer": "lamb",
    "schedule": "cosine",
    "loss": "bce",
    "cutmix": 1.0,
    "flip": True,
    "test_crop": 0.95,
    "crop": "inception",
    "policy": "rand_augment_increasing",
    "erase": 0.0,
    "ema": 0.0,
    "decay_all": False,
    "clip_norm": 1.0,
}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (
            "rsb_a1",
            {
                "epochs": 600,
                "learning_rate": 5e-3,
                "weight_decay": 0.01,
                "warmup": 5 / 600,
                "label_smoothing": 0.1,
                "stochastic_depth": 0.05,
                "repeats": 3,
                "magnitude": 7,
                "mixup": 0.2,
                "sizes": (),
            },
        ),
        (
            "rsb_a2",
            {
                "epochs": 300,
                "learning_rate": 5e-3,
                "weight_decay": 0.02,
                "warmup": 5 / 300,
                "label_smoothing": 0.0,
                "stochastic_depth": 0.05,
                "repeats": 3,
                "magnitude": 7,
                "mixup": 0.1,
                "sizes": (),
            },
        ),
        (
            "rsb_a3",
            {
                "epochs": 100,
                "learning_rate": 8e-3,
                "weight_decay": 0.02,
                "warmup": 5 / 100,
                "label_smoothing": 0.0,
                "stochastic_depth": 0.0,
                "repeats": 1,
                "magnitude": 6,
                "mixup": 0.1,
                "sizes": (160,),
            },
        ),
    ],
)
def test_rsb_recipes_match_their_paper(name, fields):
    recipe = dataclasses.asdict(find_recipe(name))
    for field, value in {**RSB_FIELDS, **fields}.items():
        assert recipe[field] == value, field


def test_torchvision_v2_matches_the_command_of_torchvision():
    """torchvision documents these flags. Flags in parentheses have their default values.

    --batch-size 128 on 8 GPUs --lr 0.5 --lr-scheduler cosineannealinglr
    --lr-warmup-epochs 5 --lr-warmup-method linear (--lr-warmup-decay 0.01)
    --auto-augment ta_wide --epochs 600 --random-erase 0.1 --weight-decay 0.00002
    --norm-weight-decay 0.0 --label-smoothing 0.1 --mixup-alpha 0.2 --cutmix-alpha 1.0
    --train-crop-size 176 --model-ema (--model-ema-steps 32 --model-ema-decay 0.99998)
    --val-resize-size 232 --ra-sampler --ra-reps 4
    """
    assert_fields(
        find_recipe("torchvision_v2"),
        batch_size=8 * 128,
        learning_rate=0.5,
        schedule="cosine",
        warmup=5 / 600,
        warmup_from=0.01,
        policy="trivial_augment",
        epochs=600,
        erase=0.1,
        weight_decay=2e-5,
        decay_all=False,
        momentum=0.9,
        optimizer="sgd",
        loss="cross_entropy",
        label_smoothing=0.1,
        mixup=0.2,
        cutmix=1.0,
        repeats=4,
        clip_norm=0.0,
        crop="inception",
    )
    recipe = find_recipe("torchvision_v2")
    assert recipe.sizes == (176,)
    assert round(224 / recipe.test_crop) == 232
    # torchvision updates the average only every `ema_steps` (32) steps, with alpha =
    # (1 - decay) * batch * ema_steps / epochs. `recipe.ema` is the decay of one step.
    alpha = (1 - 0.99998) * 1024 * 32 / 600
    assert recipe.ema**32 == pytest.approx(1 - alpha, rel=1e-5)


def test_every_recipe_passes_validation():
    for name, recipe in RECIPES.items():
        fields = {
            field.name: getattr(recipe, field.name)
            for field in dataclasses.fields(recipe)
        }
        assert replace_fields(recipe, fields) == recipe, name
        text_by_field = {field: str(value) for field, value in fields.items()}
        assert replace_fields(recipe, text_by_field) == recipe, name
        assert recipe.warmup == 0 or recipe.schedule != "plateau", name
    assert replace_fields(Execution(), dataclasses.asdict(Execution())) == Execution()


def test_recipe_and_execution_share_no_field_names():
    names = [
        field.name
        for class_ in (Recipe, Execution)
        for field in dataclasses.fields(class_)
    ]
    assert len(set(names)) == len(names)
    assert set(FREE_ON_RESUME) <= {
        field.name for field in dataclasses.fields(Execution)
    }


def test_find_recipe_changes_a_field_and_ignores_none():
    recipe = find_recipe("digits", epochs=3, batch_size=None)
    assert recipe.epochs == 3
    assert recipe.batch_size == find_recipe("digits").batch_size


@pytest.mark.parametrize(
    ("rate_rule", "learning_rate"), [("linear", 0.4), ("sqrt", 0.2), ("none", 0.1)]
)
def test_another_batch_size_rescales_the_learning_rate(rate_rule, learning_rate):
    assert RECIPES["digits"].batch_size == 64
    recipe = find_recipe("digits", batch_size=256, rate_rule=rate_rule)
    assert recipe.learning_rate == pytest.approx(learning_rate)
    recipe = find_recipe(
        "digits", batch_size=256, rate_rule=rate_rule, learning_rate=0.7
    )
    assert recipe.learning_rate == 0.7


def test_sgd_rescales_linearly_and_lamb_with_the_square_root():
    assert find_recipe("paper_cifar", batch_size=64).learning_rate == 0.05
    recipe = find_recipe("rsb_a2", batch_size=512)
    assert recipe.learning_rate == pytest.approx(2.5e-3)


def test_epochs_replace_iterations():
    recipe = find_recipe("paper_cifar", epochs=10)
    assert (recipe.epochs, recipe.iterations) == (10, 0)
    assert find_recipe("paper_cifar", epochs=10, iterations=0).iterations == 0
    assert find_recipe("digits", iterations=7).iterations == 7


def test_accumulation_and_mixing_multiply_the_batch_parts():
    assert find_recipe("digits").compute_min_batch_size(4) == 4
    assert find_recipe("digits", accumulate=3).compute_min_batch_size(2) == 6
    assert (
        find_recipe("digits", accumulate=3, cutmix=1.0).compute_min_batch_size(2) == 12
    )


def test_default_recipes_do_not_mirror_digits_and_letters():
    assert not find_recipe(choose_recipe("digits", has_photographs=False)).flip
    assert not find_recipe(choose_recipe("mnist:3.0.1", has_photographs=False)).flip
    assert not find_recipe(choose_recipe("emnist/letters", has_photographs=False)).flip
    assert find_recipe(choose_recipe("cifar10", has_photographs=False)).flip
    assert find_recipe(choose_recipe("folder:pets", has_photographs=True)).flip


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("label_smoothing=0.1", 0.1),
        ("epochs=3", 3),
        ("epochs = 3", 3),
        ("learning_rate=1", 1.0),
        ("learning_rate=1e-3", 1e-3),
        ("flip=False", False),
        ("flip=true", True),
        ("drops=0.5,0.75", (0.5, 0.75)),
        ("drops=(0.5, 0.75)", (0.5, 0.75)),
        ("drops=[0.25]", (0.25,)),
        ("drops=0.25", (0.25,)),
        ("drops=()", ()),
        ("sizes=128,160,192", (128, 160, 192)),
        ("sizes=176", (176,)),
        ("schedule=plateau", "plateau"),
    ],
)
def test_the_set_flag_converts_values_to_the_types_of_fields(pair, value):
    recipe = find_recipe("digits", **parse_changes([pair]))
    field_value = getattr(recipe, pair.partition("=")[0].strip())
    assert field_value == value and type(field_value) is type(value)


def test_the_set_flag_changes_execution_fields():
    changes = parse_changes(
        ["jit_compile=true", "steps_per_execution=5", "data_service=grpc://host:5000"]
    )
    execution = replace_fields(Execution(), changes)
    assert execution.jit_compile is True
    assert execution.steps_per_execution == 5
    assert execution.data_service == "grpc://host:5000"


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["label_smoothing"], "field=value. Received: --set label_smoothing"),
        (["labelsmoothing=0.1"], "Did you mean 'label_smoothing'? Accepted: epochs, "),
        (
            ["mixup=0.1", "mixup = 0.2"],
            "mixup is set twice. Received: mixup=0.1 and 0.2",
        ),
        (["=3"], "Received: field=''"),
    ],
)
def test_an_invalid_set_flag_is_an_error(pairs, words):
    with pytest.raises(InputError) as error:
        parse_changes(pairs)
    assert words in " ".join(str(error.value).split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0}, "above 0. Received: learning_rate=0"),
        (
            {"learning_rate": "fast"},
            "must be a number below 3.4e38. Received: learning_rate='fast'",
        ),
        ({"learning_rate": "nan"}, "learning_rate='nan'"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        (
            {"learning_rate": True},
            "must be a number below 3.4e38. Received: learning_rate=True",
        ),
        (
            {"epochs": "2.5"},
            "must be a whole number below 2**31. Received: epochs='2.5'",
        ),
        ({"epochs": 2.5}, "must be a whole number below 2**31. Received: epochs=2.5"),
        (
            {"epochs": "True"},
            "must be a whole number below 2**31. Received: epochs='True'",
        ),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"epochs": "-3"}, "epochs must be above 0. Received: epochs=-3"),
        ({"iterations": "-1"}, "must not be below 0. Received: iterations=-1"),
        ({"flip": "1"}, "must be True or False. Received: flip='1'"),
        ({"flip": 1}, "must be True or False. Received: flip=1"),
        ({"flip": "yes"}, "must be True or False. Received: flip='yes'"),
        ({"drops": "0.5,x"}, "must be numbers, such as 0.5,0.75. Received: drops="),
        ({"drops": "0.5,1.5"}, "must be at most 1. Received: drops=0.5,1.5"),
        ({"drops": "-0.5,0.5"}, "must not be below 0. Received: drops=-0.5,0.5"),
        ({"sizes": "128,160.5"}, "must be whole numbers"),
        ({"sizes": "128,,160"}, "must be whole numbers"),
        ({"sizes": "0"}, "sizes must be above 0"),
        ({"sizes": "40000"}, "sizes must be at most 32768. Received: sizes=40000"),
        ({"clip_norm": "1e300"}, "must be a number below 3.4e38"),
        ({"epochs": 2**31}, "must be a whole number below 2**31"),
        ({"label_smoothing": 1}, "must be below 1. Received: label_smoothing=1"),
        ({"momentum": 1.0}, "must be below 1. Received: momentum=1.0"),
        ({"ema": "1"}, "must be below 1. Received: ema=1"),
        ({"stochastic_depth": 1}, "must be below 1"),
        ({"validation": 1}, "must be below 1"),
        ({"stage_rate": 1.5}, "must be at most 1. Received: stage_rate=1.5"),
        ({"erase": 1.01}, "must be at most 1. Received: erase=1.01"),
        ({"mixup": -0.1}, "must not be below 0. Received: mixup=-0.1"),
        ({"clip_norm": "-1"}, "must not be below 0. Received: clip_norm=-1"),
        ({"accumulate": 0}, "must be above 0"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'? Accepted: cosine, steps, pl"),
        ({"optimizer": "adam"}, "Accepted: sgd, lamb. Received: optimizer='adam'"),
        ({"loss": "mse"}, "Accepted: cross_entropy, bce. Received: loss='mse'"),
        ({"labelsmoothing": 0.1}, "Unknown field. Did you mean 'label_smoothing'?"),
        ({"epochs": 3, "iterations": 9}, "Received: epochs=3, iterations=9"),
        (
            {"policy": "rand_augment_increasing", "magnitude": 15},
            "magnitude of rand_augment_increasing must be at most 10. Received: magnitude=15",
        ),
        ({"policy": "rand_augment", "magnitude": 31}, "must be at most 30"),
        ({"batch_size": 4, "repeats": 3}, "Received: batch_size=4, repeats=3"),
        ({"warmup": 1}, "must be below 1. Received: warmup=1"),
    ],
)
def test_an_invalid_recipe_field_is_an_error(changes, words):
    with pytest.raises(InputError) as error:
        find_recipe("digits", **changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every must be above 0"),
        ({"keep_checkpoints": "0"}, "keep_checkpoints must be above 0"),
        ({"precision": "float16"}, "Accepted: float32, mixed_float16, mixed_bfloat16"),
        ({"jit_compile": "2"}, "must be True or False"),
        ({"steps_per_execution": "1.5"}, "must be a whole number"),
    ],
)
def test_an_invalid_execution_field_is_an_error(changes, words):
    with pytest.raises(InputError) as error:
        replace_fields(Execution(), changes)
    assert words in str(error.value)


def test_lamb_accepts_a_stage_rate():
    recipe = find_recipe("digits", optimizer="lamb", stage_rate=0.5)
    assert (recipe.optimizer, recipe.stage_rate) == ("lamb", 0.5)


def test_find_recipe_reports_an_unknown_name_and_an_invalid_value():
    with pytest.raises(InputError, match="Did you mean 'paper_cifar'"):
        find_recipe("paper_cifer")
    with pytest.raises(InputError, match="Received: learning_rate=0"):
        find_recipe("digits", learning_rate=0)


# Values that every field of a type accepts.
VALUES = {
    int: strategies.integers(1, 10**9),
    float: strategies.floats(1e-9, 0.999),
    bool: strategies.booleans(),
    tuple[int, ...]: strategies.lists(strategies.integers(1, 512)).map(tuple),
    tuple[float, ...]: strategies.lists(strategies.floats(0, 1)).map(tuple),
}
FIELDS = [f for class_ in (Recipe, Execution) for f in dataclasses.fields(class_)]
DOCS = f"{inspect.getdoc(Recipe)}\n{inspect.getdoc(Execution)}"
TEXTS = strategies.text("0123456789.,+-eEj[]{}: nat", max_size=10)
OTHER_TEXTS = strategies.sampled_from([
    "true", "False", "none", "linear", "cosine", "plateau", "lamb", "adam", "bce",
    "inception", "trivial_augment", "float32", "float16", "mixed_bfloat16",
    "0", "1", "2", "0.5", "1e3", "1.0", "0,.5,1", "[3,4.]", "(1,2,)", "[]", "()", "(1", "'1",
])  # fmt: skip

# Ranges of the fields. Other numbers must not be negative.
ABOVE_ZERO = {
    "epochs", "batch_size", "learning_rate", "patience", "stage_rate", "accumulate",
    "sizes", "repeats", "steps_per_execution", "checkpoint_every", "keep_checkpoints",
}  # fmt: skip
BELOW_ONE = {
    "warmup", "momentum", "label_smoothing", "ema", "stochastic_depth", "validation",
}  # fmt: skip
AT_MOST_ONE = {
    "drops", "warmup_from", "stage_rate", "test_crop", "pad", "area", "erase",
}  # fmt: skip

# Numbers in Python's syntax: whole numbers other than 0 do not begin with 0.
NUMBER = r"[+-]? *(?!0+[1-9]\d*(?![\d.e]))(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
NUMBERS = rf" *{NUMBER} *(, *{NUMBER} *)*(, *)?"
TUPLE = rf"{NUMBERS}|\[({NUMBERS}| *)\]|\(({NUMBERS}| *)\)"


def read_text(field, text):
    """Returns the value of a field that a text stands for; `None` if it is invalid."""
    if field.type is bool:
        return {"true": True, "false": False}.get(text.lower())
    if field.type is str:
        section = re.search(rf"^    {field.name}: .*(\n {{8}}.*)*", DOCS, re.M)[0]
        names = re.findall(r'`"(\w+)"`', section)
        return text if text in names or not names else None
    is_tuple = field.type not in (int, float)
    kind = field.type.__args__[0] if is_tuple else field.type
    if not re.fullmatch(TUPLE if is_tuple else NUMBER, text, re.IGNORECASE):
        return None
    numbers = [float(n) for n in re.findall(r"[^][(),]+", text.replace(" ", ""))]
    for number in numbers:
        is_accepted = (
            math.isfinite(number)
            and (kind is float or number.is_integer())
            and (number > 0 or (number == 0 and field.name not in ABOVE_ZERO))
            and (number < 1 or field.name not in BELOW_ONE)
            and (number <= 1 or field.name not in AT_MOST_ONE)
        )
        if not is_accepted:
            return None
    values = tuple(map(kind, numbers))
    return values if is_tuple else values[0]


def replace_in(class_, changes):
    """Returns the `digits` recipe or the default `Execution` with some fields changed."""
    names = {field.name for field in dataclasses.fields(class_)}
    changes = {name: value for name, value in changes.items() if name in names}
    original = RECIPES["digits"] if class_ is Recipe else Execution()
    return vars(replace_fields(original, changes))


@hypothesis.given(
    strategies.fixed_dictionaries(
        {f.name: VALUES[f.type] for f in FIELDS if f.type is not str}
    )
)
def test_the_set_flag_reads_the_text_of_any_value(values):
    changes = parse_changes([f" {name} = {value}" for name, value in values.items()])
    new_values = replace_in(Recipe, changes) | replace_in(Execution, changes)
    for name, value in values.items():
        assert new_values[name] == value
        assert type(new_values[name]) is type(value)


@hypothesis.settings(max_examples=100)
@hypothesis.given(TEXTS | OTHER_TEXTS)
@hypothesis.example("{[]: 1}")
@hypothesis.example("9" * 400)
def test_the_set_flag_reads_or_refuses_any_text(text):
    for field in FIELDS:
        changes = parse_changes([f"{field.name}={text}"])
        class_ = Recipe if field.name in Recipe.__dataclass_fields__ else Execution
        expected = read_text(field, text.strip())
        if expected is None:
            with pytest.raises(InputError, match=field.name):
                replace_in(class_, changes)
        else:
            value = replace_in(class_, changes)[field.name]
            assert value == expected and type(value) is type(expected), field.name


@hypothesis.given(
    strategies.lists(
        strategies.tuples(strategies.integers(1, 5), strategies.integers(1, 5)),
        min_size=1,
        max_size=4,
    )
)
def test_stages_are_the_union_of_ranges(ranges):
    text = ", ".join(f"conv{i}" if i == j else f"conv{i}..conv{j}" for i, j in ranges)
    if any(first > last for first, last in ranges):
        with pytest.raises(InputError):
            resolution.parse_stages(text, 4)
        return
    numbers = {n for first, last in ranges for n in range(first, last + 1)}
    expected = tuple(f"conv{number}" for number in sorted(numbers))
    assert resolution.parse_stages(text, 4) == expected


STAGE_TOKENS = strategies.sampled_from(
    ("conv1", "conv3", "conv1..conv3", "conv6", ",", "..", " ")
)


@hypothesis.settings(max_examples=100)
@hypothesis.given(strategies.lists(STAGE_TOKENS, max_size=5).map("".join))
def test_a_text_of_stages_is_read_or_refused(text):
    text_without_spaces = text.replace(" ", "")
    item = r"conv[13](\.\.conv[13])?"
    is_valid = re.fullmatch(f"{item}(,{item})*", text_without_spaces)
    if is_valid and "conv3..conv1" not in text_without_spaces:
        sources = {"conv1": "conv1", "conv2": "conv1..conv3", "conv3": "conv3"}
        assert resolution.parse_stages(text, 4) == tuple(
            stage for stage, source in sources.items() if source in text_without_spaces
        )
    else:
        with pytest.raises(InputError):
            resolution.parse_stages(text, 4)


@hypothesis.given(
    strategies.lists(strategies.integers(8, 512), min_size=1, max_size=5),
    strategies.integers(5, 10**6),
)
def test_image_sizes_are_used_for_equal_parts_of_a_run(sizes, num_steps):
    recipe = find_recipe("digits", sizes=tuple(sizes))
    spec = types.SimpleNamespace(recipe=recipe)
    run = types.SimpleNamespace(spec=spec, total_steps=num_steps, images=None)
    source, start = BatchSource(run), 0
    for expected_size in sizes:
        size, end = source._find_size(start)
        assert size == expected_size == source._find_size(end - 1)[0]
        assert abs((end - start) - num_steps / len(sizes)) < 1
        start = end
    assert start == num_steps
