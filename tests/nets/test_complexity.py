import pytest
from conftest import assert_one_line, run_program

import keras_resnet
from keras_resnet.complexity import compare_with_paper
from keras_resnet.nets import cost, skip_random_kernels
from keras_resnet.support.errors import InputError


def test_input_of_any_size_is_refused():
    with pytest.raises(InputError, match="fixed input size"):
        keras_resnet.profile(keras_resnet.ResNet20(input_shape=(None, None, 3)))


def test_profile_of_resnet20():
    profile = keras_resnet.profile(keras_resnet.ResNet20())
    layers = {layer.name: layer for layer in profile.layers}
    # Layer `conv4_block1_1_conv` has 8x8 output positions, 32 input channels, 64 output
    # channels and a 3x3 kernel.
    layer = layers["conv4_block1_1_conv"]
    assert layer.kind == "Conv2D"
    assert layer.output_shape == (8, 8, 64)
    assert layer.multiply_adds == 8 * 8 * 32 * 64 * 3 * 3
    assert layer.parameters == 32 * 64 * 3 * 3
    assert layers["conv4_block1_1_bn"][3:] == (2 * 64, 0)
    assert layers["predictions"][2:] == ((10,), 64 * 10 + 10, 64 * 10)
    assert profile.multiply_adds == sum(layer.multiply_adds for layer in profile.layers)


def test_costs_are_compared_with_the_paper(monkeypatch):
    monkeypatch.setattr(cost, "PAPER_TABLE_1", {"resnet18": 1.7})
    monkeypatch.setattr(cost, "PAPER_TABLE_6", {"resnet20": 0.27})
    with skip_random_kernels():
        first_table, second_table = compare_with_paper().split("\n\n")
    title, header, row_a, row_b = first_table.splitlines()
    assert title == "Table 1: multiply-adds, billions"
    assert header == "network   shortcut  layers  paper   ours  off by"
    # The shortcuts B of ResNet-18 need 3 * 28 * 28 * 64 * 128 multiply-adds.
    assert row_a.split()[:6] == ["resnet18", "A", "18", "1.7", "1.795", "+5.6%"]
    assert row_b.split()[:6] == ["resnet18", "B", "18", "1.7", "1.814", "+6.7%"]
    assert row_a.endswith("does not round to 1.7")
    *_, row = second_table.splitlines()
    assert row.split() == ["resnet20", "A", "20", "0.27", "0.270", "-0.1%"]


@pytest.mark.slow  # Builds all networks of the paper, including ResNet-1202.
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
    header, *rows, total = process.stdout.splitlines()
    assert header.split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    # 32x32 positions, 3 input channels, 16 output channels and a 3x3 kernel.
    assert rows[0].split() == ["conv1_conv", "Conv2D", "32x32x16", "432", "442,368"]
    assert total.split() == ["total", "269,722", "40,551,040"]


def test_command_refuses_an_unknown_network():
    assert_one_line(
        run_program("keras_resnet.complexity", "--model=resnet5"), "resnet50"
    )
