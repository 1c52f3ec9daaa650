import math

import numpy as np
import pytest
from conftest import assert_one_line, run_program

import keras_resnet
from keras_resnet.spec.variants import VARIANTS
from keras_resnet.support.errors import InputError


def count_multiply_adds(block, blocks, width, stem, shortcut, classes, size):
    """Counts the multiply-adds of a network of the paper with `stride_on="1x1"`."""
    if stem == "imagenet":
        size = math.ceil(size / 2)
        total, size = size**2 * 7 * 7 * 3 * width, math.ceil(size / 2)
    else:
        total = size**2 * 3 * 3 * 3 * width
    in_channels = width
    for stage, num_blocks in enumerate(blocks):
        inner_width = width * 2**stage
        out_channels = inner_width * (4 if block == "bottleneck" else 1)
        size = math.ceil(size / 2) if stage else size
        for block_index in range(num_blocks):
            if block == "basic":
                cost_per_pixel = (
                    3 * 3 * in_channels * inner_width
                    + 3 * 3 * inner_width * inner_width
                )
            else:
                cost_per_pixel = (
                    in_channels * inner_width
                    + 3 * 3 * inner_width * inner_width
                    + inner_width * out_channels
                )
            changes_shape = in_channels != out_channels or (
                block_index == 0 and stage > 0
            )
            if shortcut == "C" or (shortcut == "B" and changes_shape):
                cost_per_pixel += in_channels * out_channels
            total += size**2 * cost_per_pixel
            in_channels = out_channels
    return total + in_channels * classes


@pytest.mark.parametrize(
    ("name", "shortcut", "size"),
    [
        ("resnet18", "B", 224),
        ("resnet34", "A", 224),
        ("resnet34", "B", 224),
        ("resnet34", "C", 225),
        ("resnet50", "A", 224),
        ("resnet50", "B", 224),
        ("resnet50", "C", 97),
        ("resnet101", "B", 224),
        ("resnet152", "B", 224),
        ("plainnet34", "none", 224),
        ("resnet20", "A", 32),
        ("resnet56", "B", 32),
        ("resnet110", "A", 32),
    ],
)
def test_profile_equals_an_independent_count(name, shortcut, size):
    variant = VARIANTS[name]
    model = keras_resnet.ResNet(name, shortcut=shortcut, input_shape=(size, size, 3))
    profile = keras_resnet.profile(model)
    assert profile.multiply_adds == count_multiply_adds(
        variant.block,
        variant.blocks,
        variant.width,
        variant.stem,
        shortcut,
        variant.classes,
        size,
    )
    assert profile.multiply_adds == sum(layer.multiply_adds for layer in profile.layers)
    num_trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert profile.parameters == num_trainable
    assert str(profile).count("\n") == len(profile.layers) + 1


@pytest.mark.parametrize(
    ("name", "printed_value"),
    [
        ("resnet18", 1.8e9),
        ("resnet34", 3.6e9),
        ("resnet50", 3.8e9),
        ("resnet101", 7.6e9),
        ("resnet152", 11.3e9),
    ],
)
def test_independent_count_is_within_two_percent_of_table_1(name, printed_value):
    variant = VARIANTS[name]
    arguments = (
        variant.block,
        variant.blocks,
        variant.width,
        variant.stem,
        variant.shortcut,
        1000,
        224,
    )
    assert abs(count_multiply_adds(*arguments) / printed_value - 1) < 0.02


def test_resnet50_of_torchvision_has_its_published_multiply_adds():
    # `torchvision.models.ResNet50_Weights` documents 4.089 billion multiply-adds.
    profile = keras_resnet.profile(keras_resnet.ResNet50(stride_on="3x3"))
    assert round(profile.multiply_adds / 1e9, 3) == 4.089


def test_input_of_any_size_is_refused():
    with pytest.raises(InputError, match="fixed input size"):
        keras_resnet.profile(keras_resnet.ResNet20(input_shape=(None, None, 3)))


def test_profile_of_a_3x3_convolution():
    # Layer `conv4_block1_1_conv` has 8x8 output positions, 32 input channels, 64 output
    # channels and a 3x3 kernel.
    layers = {
        la.name: la for la in keras_resnet.profile(keras_resnet.ResNet20()).layers
    }
    layer = layers["conv4_block1_1_conv"]
    assert layer.output_shape == (8, 8, 64)
    assert layer.multiply_adds == 8 * 8 * 32 * 64 * 3 * 3
    assert layer.parameters == 32 * 64 * 3 * 3


@pytest.mark.full  # Builds all networks of the paper, including ResNet-1202.
def test_command_prints_the_tables_of_the_paper():
    process = run_program("keras_resnet.complexity")
    assert process.returncode == 0, process.stderr
    lines_by_network = {
        tuple(line.split()[:2]): line for line in process.stdout.splitlines() if line
    }
    assert "3.664" in lines_by_network["resnet34", "B"]
    assert lines_by_network["resnet34", "B"].endswith("does not round to 3.6")
    assert "3.858" in lines_by_network["resnet50", "B"]
    assert lines_by_network["resnet50", "B"].endswith("does not round to 3.8")
    assert sum("does not round" in line for line in lines_by_network.values()) == 2
    for name, millions_of_parameters in (
        ("resnet20", "0.270"),
        ("resnet1202", "19.421"),
    ):
        assert millions_of_parameters in lines_by_network[name, "A"]


def test_command_prints_one_network():
    process = run_program("keras_resnet.complexity", "--model=resnet20")
    assert "conv1_conv" in process.stdout
    assert process.stdout.splitlines()[-1].split() == ["total", "269,722", "40,551,040"]


def test_command_refuses_an_unknown_network():
    assert_one_line(
        run_program("keras_resnet.complexity", "--model=resnet5"), "resnet50"
    )
