import keras
import numpy as np
import pytest

from keras_resnet.studies.lib import surgery
from keras_resnet.zoo import ResNet

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)


def make_network(kind="res", depth=14, seed=0):
    keras.utils.set_random_seed(seed)
    return ResNet(f"cifar_{kind}net{depth}", input_shape=(8, 8, 1))


def predict(parts):
    return surgery.predict_probabilities(parts, IMAGES)


def zero_block(network, block):
    layer = network.get_layer(f"{block}_2_bn")
    layer.gamma.assign(np.zeros(layer.gamma.shape))
    layer.beta.assign(np.zeros(layer.beta.shape))


@pytest.mark.parametrize("kind", ["res", "plain"])
def test_parts_compute_the_same_as_the_network(kind, monkeypatch):
    monkeypatch.setattr(surgery, "BATCH_SIZE", 5)
    network = make_network(kind)
    parts = surgery.cut_into_parts(network)
    assert list(parts)[:3] == ["stem", "conv2_block1", "conv2_block2"]
    assert surgery.find_removable_blocks(parts) == [
        "conv2_block1", "conv2_block2", "conv3_block2", "conv4_block2"
    ]  # fmt: skip
    np.testing.assert_array_equal(predict(parts), predict({"": network}))


def test_removing_a_block_of_zeros_changes_plain_networks_only():
    for kind in ("res", "plain"):
        network = make_network(kind)
        zero_block(network, "conv3_block2")
        parts = surgery.cut_into_parts(network)
        outputs = predict(surgery.remove_blocks(parts, ["conv3_block2"]))
        assert np.array_equal(outputs, predict(parts)) == (kind == "res")


def test_swapping_blocks_with_equal_weights_has_no_effect():
    network = make_network()
    block, other_block = "conv2_block1", "conv2_block2"
    parts = surgery.cut_into_parts(network)
    swapped_outputs = predict(surgery.swap_blocks(parts, block, other_block))
    assert np.abs(swapped_outputs - predict(parts)).max() > 0
    for layer in network.layers:
        if layer.name.startswith(block) and layer.weights:
            other_layer = network.get_layer(layer.name.replace(block, other_block))
            other_layer.set_weights(layer.get_weights())
    parts = surgery.cut_into_parts(network)
    np.testing.assert_array_equal(
        predict(surgery.swap_blocks(parts, block, other_block)), predict(parts)
    )


def test_error_rate_is_in_percent():
    outputs = np.eye(4)[[0, 1, 2, 3]]
    assert surgery.error_rate(outputs, np.array([0, 1, 2, 0])) == 25


def test_smallest_weights_of_all_layers_are_pruned():
    image = keras.Input((4, 4, 1))
    hidden = keras.layers.Conv2D(1, 2, use_bias=False)(image)
    network = keras.Model(image, keras.layers.Conv2D(1, 2, use_bias=False)(hidden))
    network.set_weights(
        [
            np.reshape([0.1, -0.2, 3, 4], (2, 2, 1, 1)),
            np.reshape([-0.3, 5, 6, -0.7], (2, 2, 1, 1)),
        ]
    )
    for fraction, count in ((0, 8), (0.25, 6), (0.5, 4), (1, 0)):
        kernels = surgery.get_kernels(surgery.prune(network, fraction))
        assert sum(map(np.count_nonzero, kernels)) == count
    first_kernel, second_kernel = surgery.get_kernels(surgery.prune(network, 0.5))
    np.testing.assert_array_equal(first_kernel.ravel(), [0, 0, 3, 4])
    np.testing.assert_array_equal(second_kernel.ravel(), [0, 5, 6, 0])
    assert surgery.get_kernels(network)[0].all()  # `prune` changes a copy only.


def test_rank_fraction_of_known_matrices_is_exact():
    rank_one_kernel = np.outer(np.arange(1, 10), np.arange(1, 5)).reshape(3, 3, 1, 4)
    assert surgery.rank_fraction(rank_one_kernel) == 1 / 4
    assert surgery.rank_fraction(np.eye(9)[:, :4].reshape(3, 3, 1, 4)) == 1
    # The squared singular values are 81, 9, 9 and 1. The first two sum to 90 of 100.
    matrix = np.vstack([np.diag([9.0, 3, 3, 1]), np.zeros((5, 4))])
    assert surgery.rank_fraction(matrix.reshape(3, 3, 1, 4)) == 2 / 4


def test_a_deepened_network_is_unchanged_if_residual_and_constant_if_plain():
    for kind in ("res", "plain"):
        shallow_network = make_network(kind, 8)
        deep_network = surgery.deepen(shallow_network, f"cifar_{kind}net20")
        outputs = predict({"": deep_network})
        if kind == "res":
            np.testing.assert_array_equal(outputs, predict({"": shallow_network}))
        else:
            constant_outputs = np.repeat(outputs[:1], len(outputs), 0)
            np.testing.assert_array_equal(outputs, constant_outputs)


def test_each_lesion_is_measured():
    network, labels = make_network(), np.arange(12) % 10
    rows = surgery.measure_lesions(network, IMAGES, labels, [50], 0)
    series = {}
    for row in rows:
        series.setdefault(row["what"], {})[row["at"]] = row["percent"]
    parts = surgery.cut_into_parts(network)
    blocks = [name for name in parts if "_block" in name]

    def test(parts):
        return surgery.error_rate(predict(parts), labels)

    # Blocks 3 and 5 change the shape. Only blocks 1 and 2 have the same input shape.
    assert series["intact"] == {0: test(parts)}
    assert series["removed"] == {
        number: test(surgery.remove_blocks(parts, [blocks[number - 1]]))
        for number in (1, 2, 4, 6)
    }
    assert series["swapped"] == {1: test(surgery.swap_blocks(parts, *blocks[:2]))}
    assert list(series["first"]) == [1, 2, 3, 4]
    assert series["first"][1] == min(series["removed"].values())
    all_removable = [blocks[number - 1] for number in (1, 2, 4, 6)]
    assert series["first"][4] == test(surgery.remove_blocks(parts, all_removable))
    assert series["pruned"] == {50: test({"": surgery.prune(network, 0.5)})}
    assert list(series["rank"]) == list(series["untrained"]) == list(range(1, 14))
