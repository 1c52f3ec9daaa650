"""Networks agree with the paper, keras.applications and independent counts."""

import json
import math
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import run_python
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_resnet
from keras_resnet.nets import (
    build_network,
    draw_kernel,
    graph,
    resnet,
    skip_random_kernels,
)
from keras_resnet.nets.blocks import Block, add_shortcut
from keras_resnet.nets.graph import list_layers
from keras_resnet.spec.variants import VARIANTS, Variant
from keras_resnet.support.errors import InputError


def list_stem(variant, channels):
    """Lists kernel size, inputs, outputs, stride and groups of the first convolutions."""
    width, half = variant.width, variant.width // 2
    return {
        "imagenet": [(7, channels, width, 2, 1)],
        "cifar": [(3, channels, width, 1, 1)],
        "deep": [
            (3, channels, half, 2, 1),
            (3, half, half, 1, 1),
            (3, half, width, 1, 1),
        ],
    }[variant.stem]


def list_branch(variant, inputs, width, stride):
    """Lists the same values for the residual branch of a block."""
    if variant.block == "basic":
        return [(3, inputs, width, stride, 1), (3, width, width, 1, 1)]
    inner_width = width * variant.group_width // 64 * variant.groups
    strides = (stride, 1) if variant.stride_on == "1x1" else (1, stride)
    return [
        (1, inputs, inner_width, strides[0], 1),
        (3, inner_width, inner_width, strides[1], variant.groups),
        (1, inner_width, 4 * width, 1, 1),
    ]


def count_network(variant, sides=None, channels=3, output_stride=None):
    """Counts parameters and multiply-adds of a network without its dense layer.

    Returns both counts, and a dict from stages to the shapes of their feature maps.
    """
    parameters = multiply_adds = 0
    preact, shapes = variant.preact, {}

    def add(convs, sides):
        """Counts convolutions with batch norm, and returns the output's sides."""
        nonlocal parameters, multiply_adds
        for index, (size, inputs, outputs, stride, groups) in enumerate(convs, 1):
            sides = [math.ceil(side / stride) for side in sides]
            num_weights = size**2 * inputs // groups * outputs
            # "v2": no batch norm follows the last convolution, which has a bias.
            has_bias = preact and index == len(convs)
            parameters += num_weights + outputs * (1 if has_bias else 2)
            multiply_adds += math.prod(sides) * num_weights
        return sides

    sides = add(list_stem(variant, channels), sides or [variant.size] * 2)
    shapes["conv1"] = (*sides, variant.width)
    total_stride = 1
    if variant.stem != "cifar":  # Max pooling.
        sides, total_stride = [math.ceil(side / 2) for side in sides], 4
    inputs, last_stage = variant.width, len(variant.blocks) - 1
    for stage, num_blocks in enumerate(variant.blocks):
        for block in range(num_blocks):
            if preact:  # The last block of a stage subsamples, otherwise the first one.
                is_strided = stage < last_stage and block == num_blocks - 1
                parameters += 2 * inputs  # Batch norm before the branch.
            else:
                is_strided = stage > 0 and block == 0
            is_strided &= 2 * total_stride <= (output_stride or variant.stride)
            stride = 2 if is_strided else 1
            branch = list_branch(variant, inputs, variant.width * 2**stage, stride)
            *_, (_, _, outputs, _, _) = branch
            changes_shape = inputs != outputs or (is_strided and not preact)
            if variant.shortcut == "C" or (variant.shortcut == "B" and changes_shape):
                add([(1, inputs, outputs, stride, 1)], sides)
            sides, total_stride = add(branch, sides), total_stride * stride
            if variant.se:
                hidden = max(8, 8 * math.floor(outputs / 128 + 0.5))
                parameters += 2 * outputs * hidden + outputs + hidden
                multiply_adds += 2 * outputs * hidden
            inputs = outputs
        shapes[f"conv{stage + 2}"] = (*sides, outputs)
    if preact:
        parameters += 2 * outputs
    return parameters, multiply_adds, shapes


def count_parameters(variant):
    """Counts the parameters of a network with its head."""
    parameters, _, shapes = count_network(variant)
    *_, (*_, features) = shapes.values()
    return parameters + (features + 1) * variant.classes


def assert_counts(model, variant, sides=None, channels=3, output_stride=None):
    """Asserts that counts and shapes of a built model equal those of `count_network`."""
    parameters, multiply_adds, shapes = count_network(
        variant, sides, channels, output_stride
    )
    endpoints = keras_resnet.endpoints(model)
    assert {stage: output.shape[1:] for stage, output in endpoints.items()} == shapes
    *_, (*_, features) = shapes.values()
    profile, (_, classes) = keras_resnet.profile(model), model.output_shape
    assert profile.parameters == parameters + (features + 1) * classes
    assert profile.parameters == sum(
        math.prod(w.shape) for w in model.trainable_weights
    )
    assert profile.multiply_adds == multiply_adds + features * classes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Counts of ImageNet networks are from torchvision and timm, those of "v2" from
        # keras.applications. The counts of CIFAR networks, which Table 6 of the paper
        # rounds, follow from its text. Plain networks have no projections.
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("plainnet18", 11_689_512 - 173_824),
        ("plainnet34", 21_797_672 - 173_824),
        *(
            (f"{kind}net{depth}", parameters)
            for kind in ("res", "plain")
            for depth, parameters in (
                (20, 269_722),
                (32, 464_154),
                (44, 658_586),
                (56, 853_018),
                (110, 1_727_962),
                (1202, 19_421_274),
            )
        ),
        ("resnet50v2", 25_568_360),
        ("resnet101v2", 44_577_896),
        ("resnet152v2", 60_236_904),
        ("resnet18d", 11_708_744),
        ("resnet34d", 21_816_904),
        ("resnet50d", 25_576_264),
        ("resnet101d", 44_568_392),
        ("resnet152d", 60_212_040),
        ("seresnet18", 11_779_624),
        ("seresnet34", 21_960_416),
        ("seresnet50", 28_088_024),
        ("seresnet101", 49_326_872),
        ("seresnet152", 66_821_848),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272),
        ("wide_resnet50_2", 68_883_240),
        ("wide_resnet101_2", 126_886_696),
    ],
)
def test_variants_have_the_published_numbers_of_parameters(name, parameters):
    assert VARIANTS[name].parameters == parameters == count_parameters(VARIANTS[name])


def test_all_variants_are_counted():
    marks = test_variants_have_the_published_numbers_of_parameters.pytestmark
    assert [name for name, _ in marks[0].args[1]] == list(VARIANTS)


def test_counts_of_other_shortcuts_equal_those_of_other_implementations():
    assert count_parameters(VARIANTS["resnet50"].replace(shortcut="A")) == 22_780_456
    assert count_parameters(VARIANTS["resnet50"].replace(shortcut="C")) == 40_128_552


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("resnet18", 1.8),
        ("resnet34", 3.6),
        ("resnet50", 3.8),
        ("resnet101", 7.6),
        ("resnet152", 11.3),
    ],
)
def test_multiply_adds_are_within_two_percent_of_table_1(name, billions):
    _, multiply_adds, _ = count_network(VARIANTS[name])
    assert abs(multiply_adds / (billions * 1e9) - 1) < 0.02


def test_multiply_adds_of_torchvision_equal_the_published_count():
    # `torchvision.models.ResNet50_Weights` documents 4.089 billion multiply-adds.
    _, multiply_adds, _ = count_network(VARIANTS["resnet50"].replace(stride_on="3x3"))
    assert round((multiply_adds + 2048 * 1000) / 1e9, 3) == 4.089
    with skip_random_kernels():
        profile = keras_resnet.profile(keras_resnet.ResNet50(stride_on="3x3"))
    assert round(profile.multiply_adds / 1e9, 3) == 4.089
    # The same page documents the number of parameters.
    assert profile.parameters == 25_557_032


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        # Sides and channels from Table 1, and from the table in section 4.2.
        ("resnet34", [(112, 64), (56, 64), (28, 128), (14, 256), (7, 512)]),
        ("resnet50", [(112, 64), (56, 256), (28, 512), (14, 1024), (7, 2048)]),
        ("resnet56", [(32, 16), (32, 16), (16, 32), (8, 64)]),
    ],
)
def test_stages_have_the_sizes_of_the_paper(name, sizes):
    *_, shapes = count_network(VARIANTS[name])
    assert list(shapes.values()) == [(side, side, width) for side, width in sizes]


@pytest.mark.parametrize(
    ("name", "shortcuts"),
    # Deeper networks repeat the same blocks more often.
    [
        *((name, "B") for name in ("resnet18", "resnet34", "resnet50")),
        ("resnet20", "ABC"),
        ("resnet56", "A"),
        ("plainnet34", ["none"]),
    ],
)
def test_networks_have_the_layers_and_costs_of_the_paper(name, shortcuts):
    for shortcut in shortcuts:
        variant = VARIANTS[name].replace(shortcut=shortcut)
        with skip_random_kernels():
            model = keras_resnet.ResNet(name, shortcut=shortcut)
        assert_counts(model, variant)
        names = {layer.name for layer in model.layers}

        # The depth is the number of convolutions outside shortcuts, plus the dense layer.
        kernels = [n for n in names if re.fullmatch(r".*(?<!_0)_conv|predictions", n)]
        assert len(kernels) == variant.depth == int(re.search(r"\d+$", name)[0])

        # A projection is a 1x1 convolution on a shortcut. Option A has no projections, and
        # option C has a projection in each block. Option B has a projection in each block
        # that changes the shape: in Table 1, conv3_1, conv4_1 and conv5_1, and in networks
        # with bottleneck blocks also conv2_1.
        for stage, num_blocks in enumerate(variant.blocks):
            for block in range(1, num_blocks + 1):
                changes_shape = block == 1 and (
                    stage > 0 or variant.block == "bottleneck"
                )
                has_projection = shortcut == "C" or (shortcut == "B" and changes_shape)
                prefix = f"conv{stage + 2}_block{block}"
                assert (f"{prefix}_0_conv" in names) == has_projection, prefix
                assert (f"{prefix}_add" in names) == (shortcut != "none")
                assert f"{prefix}_out" in names


@st.composite
def draw_variants(draw):
    """Draws architectures with at most three stages of one or two blocks."""
    block = draw(st.sampled_from(["basic", "bottleneck"]))
    is_basic = block == "basic"
    return Variant(
        block,
        tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))),
        stem=draw(st.sampled_from(["imagenet", "deep", "cifar"])),
        width=draw(st.sampled_from([16, 48])),
        shortcut=draw(st.sampled_from(["A", "B", "C", "none"])),
        stride_on=draw(st.sampled_from(["1x1", "3x3"])),
        preact=draw(st.booleans()),
        avg_down=draw(st.booleans()),
        se=draw(st.booleans()),
        groups=1 if is_basic else draw(st.integers(1, 3)),
        group_width=64 if is_basic else draw(st.sampled_from([4, 64, 128])),
    )


@settings(max_examples=20)
@given(draw_variants(), st.data())
def test_all_combinations_of_options_have_the_counted_costs(variant, data):
    sides = [data.draw(st.integers(variant.stride, 41)) for _ in range(2)]
    channels = data.draw(st.integers(1, 4))
    strides = [stride for stride in (8, 16) if stride <= variant.stride]
    output_stride = data.draw(st.sampled_from([None, *strides]))
    with skip_random_kernels():
        model = build_network(
            variant, "net", output_stride=output_stride, input_shape=(*sides, channels)
        )
    assert_counts(model, variant, sides, channels, output_stride)


@pytest.mark.parametrize(
    ("stride_on", "expected"), [("1x1", [2, 1, 1, 2]), ("3x3", [1, 2, 1, 2])]
)
def test_stride_on_selects_the_strided_convolution(stride_on, expected):
    options = {"stride_on": stride_on, "blocks": (1, 1, 1), "width": 16}
    model = keras_resnet.ResNet("resnet50", **options)
    for stage in (3, 4):
        names = [f"conv{stage}_block1_{i}_conv" for i in (1, 2, 3, 0)]
        assert [model.get_layer(name).strides[0] for name in names] == expected


def test_network_with_a_head_accepts_any_size():
    model = keras_resnet.ResNet("cifar_resnet8", input_shape=(None, None, 3), classes=7)
    for size in (32, 45):
        probabilities = np.asarray(model(np.zeros((2, size, size, 3))))
        assert probabilities.shape == (2, 7)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "reduce"), [("avg", np.mean), ("max", np.max), (None, None)]
)
def test_pooling_reduces_the_last_feature_map(pooling, reduce):
    keras.utils.set_random_seed(1)
    model = keras_resnet.ResNet("cifar_resnet8", include_top=False, pooling=pooling)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    features = np.asarray(
        keras.Model(model.input, keras_resnet.endpoints(model)["conv4"])(images)
    )
    expected = features if reduce is None else reduce(features, axis=(1, 2))
    np.testing.assert_allclose(np.asarray(model(images)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "stride_on"),
    [
        ("resnet18", "1x1"),
        ("resnet50", "1x1"),
        ("resnet50", "3x3"),
        ("resnet50v2", "3x3"),
    ],
)
def test_output_stride_keeps_features_at_the_original_positions(name, stride_on):
    """A network with an `output_stride` contains the features of the original network.

    If the feature maps with `output_stride` are two or four times as large, every
    second or fourth position has the features of the original network. This also holds
    at the border of the feature maps, where both networks pad with zeros.
    """
    keras.utils.set_random_seed(0)
    options = {
        "include_top": False,
        "input_shape": (64, 75, 3),
        "stride_on": stride_on,
        "blocks": (1, 1, 2, 2),
        "width": 16,
    }
    model = keras_resnet.ResNet(name, **options)
    # With random offsets, wrong padding changes the features.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            noise = np.random.default_rng(0).normal(0, 0.2, layer.beta.shape)
            layer.beta.assign(layer.beta + noise)
    images = np.random.default_rng(1).normal(size=(1, 64, 75, 3))
    expected = keras.Model(model.input, keras_resnet.endpoints(model))(images)
    for output_stride in (8, 16) if stride_on == "1x1" else (8,):
        dilated_model = keras_resnet.ResNet(
            name, output_stride=output_stride, **options
        )
        dilated_model.set_weights(model.get_weights())
        outputs = keras_resnet.endpoints(dilated_model)
        features = keras.Model(dilated_model.input, outputs)(images)
        sides = [-(-side // output_stride) for side in (64, 75)]
        assert [*features["conv5"].shape[1:3]] == sides
        for stage, values in expected.items():
            log2_stride = int(stage[-1])
            log2_stride += name == "resnet50v2" and 1 < log2_stride < 5
            step = max(1, 2**log2_stride // output_stride)
            np.testing.assert_allclose(
                np.asarray(features[stage])[:, ::step, ::step],
                np.asarray(values),
                atol=1e-4 * np.abs(values).max(),
                err_msg=f"{stage} at {output_stride}",
            )


def test_endpoints_of_another_model_are_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(InputError, match=r"conv1_relu.*conv2_block1_out"):
        keras_resnet.endpoints(model)


@pytest.mark.parametrize("in_channels", [8, 16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 9])
def test_shortcut_a_subsamples_and_pads(in_channels, stride, size):
    """Shortcut A skips pixels and pads the channels with zeros on both sides."""
    images = (
        np.random.default_rng(0)
        .normal(size=(2, size, size, in_channels))
        .astype("float32")
    )
    image = keras.Input(images.shape[1:])
    block = Block("block", VARIANTS["resnet20"], 16, stride)
    model = keras.Model(image, add_shortcut(image, image, block, 16))
    expected = np.zeros((2, -(-size // stride), -(-size // stride), 16), "float32")
    first_channel = (16 - in_channels) // 2
    expected[..., first_channel : first_channel + in_channels] = images[
        :, ::stride, ::stride
    ]
    np.testing.assert_array_equal(np.asarray(model(images)), expected)
    assert not model.weights


def test_shortcut_a_pads_the_channels_if_they_come_first(monkeypatch):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    image = keras.Input((4, 8, 9))
    block = Block("block", VARIANTS["resnet20"], 7, 1)
    images = np.random.default_rng(0).normal(size=(2, 4, 8, 9)).astype("float32")
    output = keras.Model(image, add_shortcut(image, image, block, 7))(images)
    expected = np.pad(images, ((0, 0), (1, 2), (0, 0), (0, 0)))
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize(
    ("name", "last_conv", "shortcut"),
    [*(("resnet18", 2, shortcut) for shortcut in "ABC"), ("resnet50", 3, "B")],
)
def test_zero_last_gamma_passes_the_shortcut_through(name, last_conv, shortcut):
    keras.utils.set_random_seed(0)
    model = keras_resnet.ResNet(
        name,
        include_top=False,
        input_shape=(16, 16, 3),
        shortcut=shortcut,
        blocks=(1, 2),
        width=16,
    )
    for block in ("conv2_block1", "conv3_block1", "conv3_block2"):
        layer = model.get_layer(f"{block}_{last_conv}_bn")
        layer.gamma.assign(keras.ops.zeros_like(layer.gamma))
    # The model outputs the shortcut, the branch, their sum and the next block.
    add_layer = model.get_layer("conv3_block1_add")
    probe_model = keras.Model(
        model.input,
        [
            *add_layer.input,
            add_layer.output,
            model.get_layer("conv3_block2_out").output,
        ],
    )
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    shortcut_output, branch_output, sum_output, next_output = map(
        np.asarray, probe_model(images, training=True)
    )
    assert np.abs(branch_output).max() == 0
    assert np.abs(shortcut_output).max() > 0
    np.testing.assert_array_equal(sum_output, shortcut_output)
    if shortcut != "C":  # The next block has an identity shortcut.
        np.testing.assert_array_equal(next_output, np.maximum(sum_output, 0))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet20", {}),
        ("plainnet18", {}),
        ("resnet18", {"stem": "deep", "avg_down": True, "se": True}),
        (
            "resnet50",
            {"stride_on": "3x3", "groups": 2, "group_width": 32, "shortcut": "C"},
        ),
        ("resnet50", {"stride_on": "3x3", "preact": True}),
        ("resnet50", {"blocks": (1, 1, 1), "output_stride": 8, "avg_down": True}),
    ],
    ids=str,
)
def test_all_weights_have_gradients_and_the_config_is_complete(name, options):
    keras.utils.set_random_seed(0)
    options = {"blocks": (1, 2), "width": 16, "classes": 5, **options}
    model = keras_resnet.ResNet(name, input_shape=(33, 21, 3), **options)
    images = np.random.default_rng(0).normal(size=(4, 33, 21, 3)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.math.log(model(images, training=True))[:, 0])
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(gradient).all(), variable.path
        assert np.abs(gradient).max() > 0, variable.path

    clone = keras.models.model_from_json(model.to_json())
    clone.set_weights(model.get_weights())
    last_stages = [
        keras.Model(m.input, [*keras_resnet.endpoints(m).values()][-1])(images)
        for m in (model, clone)
    ]
    np.testing.assert_array_equal(*last_stages)
    *_, last_output = keras_resnet.endpoints(model).values()
    assert last_stages[0].shape[1:] == last_output.shape[1:]


def get_kernels(model):
    return [np.asarray(la.kernel) for la in list_layers(model) if hasattr(la, "kernel")]


def test_kernels_have_he_initialisation():
    """Section 3.4: the variance of a kernel is 2 / (number of inputs of an output).

    The limits are five standard deviations of each statistic of n normal numbers.
    """
    keras.utils.set_random_seed(0)
    options = {"blocks": (1, 1), "groups": 2, "name": "net"}
    model = keras_resnet.ResNet("resnet50", **options)
    previous = np.zeros(0)
    for kernel in get_kernels(model):
        numbers = kernel.ravel() / math.sqrt(2 / math.prod(kernel.shape[:-1]))
        limit = 5 / math.sqrt(numbers.size)
        assert abs(numbers.mean()) < limit
        assert abs((numbers**2).mean() - 1) < limit * math.sqrt(2)
        assert abs((numbers**4).mean() - 3) < limit * math.sqrt(96)
        # Of normal numbers, 4.55 % are beyond two standard deviations.
        is_far = np.abs(numbers) > 2
        assert abs(is_far.mean() - 0.0455) < limit * math.sqrt(0.0455 * 0.9545)
        # Neighbouring numbers, the halves of the kernel and the layers are independent.
        middle, count = numbers.size // 2, min(numbers.size, previous.size)
        for a, b in (
            (numbers[1:], numbers[:-1]),
            (numbers[:middle], numbers[-middle:]),
            (numbers[:count], previous[:count]),
        ):
            assert abs((a * b).sum()) <= 5 * math.sqrt(len(a))
        previous = numbers
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Defaults of PyTorch, whose `momentum=0.1` is the weight of the new batch.
            assert (layer.momentum, layer.epsilon) == (1 - 0.1, 1e-5)
    with skip_random_kernels():
        zero_model = keras_resnet.ResNet("resnet50", **options)
    assert not zero_model.get_layer("conv1_conv").kernel.numpy().any()
    assert zero_model.to_json() == model.to_json()
    names = set(
        re.findall(
            r'"kernel_initializer": {[^}]*"class_name": "(\w+)"', model.to_json()
        )
    )
    assert names == {"HeNormal"}


def test_the_global_seed_determines_the_kernels(tmp_path):
    def build(seed, **options):
        keras.utils.set_random_seed(seed)
        return keras_resnet.ResNet("cifar_resnet8", shortcut="C", **options)

    model = build(0)
    path, kernels = str(tmp_path / "net.keras"), get_kernels(model)
    for kernel, same, other in zip(
        kernels, get_kernels(build(0)), get_kernels(build(1)), strict=True
    ):
        np.testing.assert_array_equal(same, kernel)
        assert not (other == kernel).any()
    # An odd number of weights, and a network that begins with a layer of its user.
    assert len(np.unique(draw_kernel((3, 3, 5, 1)))) == 45
    first_layer = keras.layers.Conv2D(3, 1, kernel_initializer="ones")
    image = keras.Input((32, 32, 3))
    build(0, input_tensor=first_layer(image))
    assert (np.asarray(first_layer.kernel) == 1).all()
    model.save(path)
    state = np.random.get_state()[1:3]
    loaded_kernels = get_kernels(
        keras_resnet.ResNet("cifar_resnet8", weights=path, shortcut="C")
    )
    for kernel, loaded in zip(kernels, loaded_kernels, strict=True):
        np.testing.assert_array_equal(loaded, kernel)
    # Loading all weights draws no random numbers.
    for value, old_value in zip(np.random.get_state()[1:3], state, strict=True):
        np.testing.assert_array_equal(value, old_value)
    head = keras_resnet.ResNet("cifar_resnet8", weights=path, shortcut="C", classes=7)
    kernel = np.asarray(head.get_layer("predictions").kernel)
    assert kernel.std() == pytest.approx(math.sqrt(2 / 64), rel=0.2)


@pytest.mark.parametrize("policy", ["float64", "bfloat16", "mixed_float16"])
def test_kernels_have_the_type_of_the_variables(policy):
    old_policy = keras.config.dtype_policy()
    keras.utils.set_random_seed(0)
    expected = get_kernels(keras_resnet.ResNet("cifar_resnet8"))
    try:
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(0)
        model = keras_resnet.ResNet("cifar_resnet8")
    finally:
        keras.config.set_dtype_policy(old_policy)
    for kernel, expected_kernel in zip(get_kernels(model), expected, strict=True):
        assert kernel.dtype.name == keras.DTypePolicy(policy).variable_dtype
        np.testing.assert_allclose(
            kernel.astype(np.float32), expected_kernel, rtol=2**-8
        )


def test_stochastic_depth_increases_linearly_to_the_last_block():
    model = keras_resnet.ResNet("cifar_resnet14", stochastic_depth=0.5)
    layers = [la for la in model.layers if isinstance(la, keras.layers.Dropout)]
    assert [layer.name for layer in layers] == [
        f"conv{stage}_block{block}_drop"
        for stage, block in ((2, 2), (3, 1), (3, 2), (4, 1), (4, 2))
    ]
    assert [la.rate for la in layers] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert {la.noise_shape for la in layers} == {(None, 1, 1, 1)}  # Whole images.


def test_layers_belong_to_the_stage_in_their_name():
    model = keras_resnet.ResNet("cifar_resnet8", preact=True)
    stages = {
        layer.name: stage for layer, stage in graph.pair_layers_with_stages(model)
    }
    assert list(stages) == [layer.name for layer in model.layers]
    names = ("conv1_conv", "conv2_block1_preact_bn", "conv4_block1_add", "post_bn")
    assert [stages[name] for name in (*names, "predictions")] == [1, 2, 4, 4, 5]


def test_batch_norms_are_synchronized_only_inside_the_context():
    model = keras_resnet.ResNet("cifar_resnet8")
    norms = graph.list_batch_norms(model)
    assert len(norms) == 7
    with pytest.raises(KeyError), graph.synchronize_batch_norms(model):
        assert all(layer.synchronized for layer in norms)
        raise KeyError
    assert not any(layer.synchronized for layer in norms)


def test_sub_models_do_not_change_a_network(monkeypatch):
    """Networks with more than 60 blocks consist of sub-models of at most 60 blocks."""
    keras.utils.set_random_seed(0)
    variant = VARIANTS["resnet20"].replace(blocks=(3, 1, 2))
    model = build_network(variant, "net")
    monkeypatch.setattr(resnet, "_MAX_BLOCKS_PER_MODEL", 2)
    deep_model = build_network(variant, "net")
    sub_models = [la for la in deep_model.layers if isinstance(la, keras.Model)]
    assert [sub_model.name for sub_model in sub_models] == [
        "conv2_block1_to_2",
        "conv2_block3_to_3",
        "conv3_block1_to_1",
        "conv4_block1_to_2",
    ]
    names = [layer.name for layer in list_layers(deep_model)]
    assert sorted(n for n in names if not n.startswith("input_layer")) == sorted(
        layer.name for layer in model.layers
    )
    for layer in list_layers(deep_model):
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(deep_model(images), model(images), rtol=1e-5)
    shapes = [
        {name: x.shape for name, x in keras_resnet.endpoints(m).items()}
        for m in (deep_model, model)
    ]
    assert shapes[0] == shapes[1]
    assert (
        keras_resnet.profile(deep_model).multiply_adds
        == keras_resnet.profile(model).multiply_adds
    )


_DEEP_NETWORK_CODE = """
import json, sys, time
import keras, numpy as np, tensorflow as tf
import keras_resnet
from keras_resnet.nets import list_layers
keras.utils.set_random_seed(0)
start = time.process_time()  # CPU time is independent of other processes.
model = keras_resnet.ResNet(sys.argv[1], shortcut=sys.argv[2] or None)
seconds = time.process_time() - start
# Not getrusage, because its maximum can include memory of the parent process.
status = open("/proc/self/status").read().splitlines()
memory = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
layers = [layer.name for layer in list_layers(model)]
parameters = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
endpoints = {k: v.shape[1:] for k, v in keras_resnet.endpoints(model).items()}
images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
model.save(sys.argv[3])
reloaded = keras.models.load_model(sys.argv[3])
assert all(map(np.array_equal, model.get_weights(), reloaded.get_weights()))
# With the initial moving statistics, sums over 600 blocks would overflow.
outputs = [np.asarray(m(images, training=True)) for m in (model, reloaded)]
assert np.isfinite(outputs[0]).all()
np.testing.assert_allclose(*outputs, rtol=1e-2, atol=1e-4)
model = reloaded
with tf.GradientTape() as tape:
    loss = -tf.reduce_mean(tf.math.log(model(images, training=True)[:, 0]))
variables = model.trainable_variables
gradients = tape.gradient(loss, [v.value for v in variables])
missing = [v.path for v, g in zip(variables, gradients) if g is None]
old_values = [np.asarray(v) for v in variables]
keras.optimizers.SGD(0.1).apply(gradients, variables)
changed = sum(not np.array_equal(o, np.asarray(v)) for o, v in zip(old_values, variables))
print(json.dumps(dict(seconds=seconds, kib=memory, layers=layers, missing=missing,
    parameters=parameters, endpoints=endpoints, changed=changed, variables=len(variables))))
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "shortcut"),
    [
        ("resnet1202", ""),
        ("resnet1202", "B"),
        ("resnet1202", "C"),
        ("plainnet1202", ""),
    ],
)
def test_1202_layers_build_save_load_and_train(name, shortcut, tmp_path):
    """Building needs less than 60 s of CPU time. The process needs less than 2 GiB."""
    process = run_python(
        "-c", _DEEP_NETWORK_CODE, name, shortcut, tmp_path / "deep.keras", timeout=600
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["seconds"] < 60
    assert report["kib"] * 1024 < 2 * 2**30
    expected = {
        f"conv{s}_block{b}_{i}_conv"
        for s in (2, 3, 4)
        for b in range(1, 201)
        for i in (1, 2)
    }
    assert expected < set(report["layers"])
    assert len(report["layers"]) == len(set(report["layers"]))
    variant = VARIANTS[name].replace(shortcut=shortcut or None)
    assert report["parameters"] == count_parameters(variant)
    assert report["endpoints"]["conv4"] == [8, 8, 64]
    assert report["missing"] == []
    assert report["changed"] > 0.99 * report["variables"]


def test_saved_model_loads_without_this_package(tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    expected = {}
    for name, shortcut in (("resnet20", "A"), ("resnet50", "B")):
        model = keras_resnet.ResNet(
            name, input_shape=(32, 32, 3), shortcut=shortcut, blocks=(1, 1), width=16
        )
        model.save(tmp_path / f"{name}.keras")
        expected[f"{name}.keras"] = np.asarray(model(images))
    for module in list(sys.modules):
        if module.partition(".")[0] == "keras_resnet":
            monkeypatch.setitem(sys.modules, module, None)  # An import would fail.
    assert not keras.saving.get_custom_objects()
    for name, outputs in expected.items():
        loaded_model = keras.models.load_model(tmp_path / name)
        np.testing.assert_array_equal(loaded_model(images), outputs)


@pytest.mark.full
def test_networks_on_jax_have_the_same_outputs(tmp_path):
    pytest.importorskip("jax")
    keras.utils.set_random_seed(0)
    networks = [("resnet20", "A"), ("resnet18", "B"), ("cifar_resnet8", "C")]
    for name, shortcut in networks:
        model = keras_resnet.ResNet(name, input_shape=(35, 35, 3), shortcut=shortcut)
        images = np.random.default_rng(0).normal(size=(2, 35, 35, 3)).astype("float32")
        keras.utils.set_random_seed(1)
        other = keras_resnet.ResNet(name, input_shape=(35, 35, 3), shortcut=shortcut)
        np.savez(tmp_path / f"{name}-kernels.npz", *get_kernels(other))
        model.save_weights(tmp_path / f"{name}.weights.h5")
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.asarray(model(images)))
    code = f"""
import sys
sys.modules["tensorflow"] = None  # Building a network does not need TensorFlow.
import keras, numpy as np, keras_resnet
assert keras.backend.backend() == "jax"
for name, shortcut in {networks!r}:
    model = keras_resnet.ResNet(
        name, input_shape=(35, 35, 3), shortcut=shortcut, weights=f"{{name}}.weights.h5")
    data = np.load(f"{{name}}.npz")
    np.testing.assert_allclose(np.asarray(model(data["x"])), data["y"], rtol=1e-4, atol=1e-5)
    assert keras_resnet.profile(model).parameters
keras.config.set_image_data_format("channels_first")
for name, shortcut in {networks!r}:
    keras.utils.set_random_seed(1)
    model = keras_resnet.ResNet(name, input_shape=(3, 35, 35), shortcut=shortcut)
    kernels = [np.asarray(la.kernel) for la in model.layers if hasattr(la, "kernel")]
    expected = np.load(f"{{name}}-kernels.npz").values()
    assert all(map(np.array_equal, kernels, expected)) and len(kernels) == len(expected)
    model = keras_resnet.ResNet(name, input_shape=(3, 35, 35), shortcut=shortcut)
    model.set_weights(keras_resnet.ResNet(
        name, input_shape=(3, 35, 35), shortcut=shortcut, weights=f"{{name}}.weights.h5"
    ).get_weights())
    data = np.load(f"{{name}}.npz")
    outputs = np.asarray(model(data["x"].transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(outputs, data["y"], rtol=1e-4, atol=1e-5)
"""
    process = run_python("-c", code, cwd=tmp_path, env={"KERAS_BACKEND": "jax"})
    assert process.returncode == 0, process.stderr


def test_layer_names_are_those_of_keras_applications():
    with skip_random_kernels():
        model = keras_resnet.ResNet50()
    assert model.input.name == "image"
    assert model.name == "resnet50"
    keras_model = keras.applications.ResNet50(weights=None)
    keras_shapes = {
        layer.name: [w.shape for w in layer.weights] for layer in keras_model.layers
    }
    for layer in model.layers:
        if layer.weights:
            assert keras_shapes[layer.name][0] == layer.weights[0].shape
