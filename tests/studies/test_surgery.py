import keras
import numpy as np
import pytest

from keras_resnet.studies.lib import surgery
from keras_resnet.zoo import ResNet

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(surgery, "BATCH", 5)


def net(kind="res", depth=14, seed=0):
    keras.utils.set_random_seed(seed)
    return ResNet(f"cifar_{kind}net{depth}", input_shape=(8, 8, 1))


def said(parts):
    return surgery.probabilities(parts, IMAGES)


def silence(network, block):
    layer = network.get_layer(f"{block}_2_bn")
    layer.gamma.assign(np.zeros(layer.gamma.shape))
    layer.beta.assign(np.zeros(layer.beta.shape))


@pytest.mark.parametrize("kind", ["res", "plain"])
def test_parts_do_as_the_whole(kind):
    network = net(kind)
    parts = surgery.cut(network)
    assert list(parts)[:3] == ["stem", "conv2_block1", "conv2_block2"]
    assert surgery.blocks(parts) == [
        "conv2_block1", "conv2_block2", "conv3_block2", "conv4_block2"
    ]  # fmt: skip
    np.testing.assert_array_equal(said(parts), said({"": network}))


def test_a_block_of_zeros_is_missed_by_no_residual_net_but_cuts_a_plain_one():
    for kind in ("res", "plain"):
        network = net(kind)
        silence(network, "conv3_block2")
        parts = surgery.cut(network)
        left = said(surgery.without(parts, ["conv3_block2"]))
        assert np.array_equal(left, said(parts)) == (kind == "res")


def test_blocks_that_are_alike_can_be_swapped():
    network = net()
    first, second = "conv2_block1", "conv2_block2"
    before = said(surgery.cut(network))
    exchanged = said(surgery.swapped(surgery.cut(network), first, second))
    assert np.abs(exchanged - before).max() > 0
    for layer in network.layers:
        if layer.name.startswith(first) and layer.weights:
            other = network.get_layer(layer.name.replace(first, second))
            other.set_weights(layer.get_weights())
    parts = surgery.cut(network)
    np.testing.assert_array_equal(
        said(surgery.swapped(parts, first, second)), said(parts)
    )


def test_error_is_counted():
    answers = np.eye(4)[[0, 1, 2, 3]]
    assert surgery.error_rate(answers, np.array([0, 1, 2, 0])) == 25


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
    for share, left in ((0, 8), (0.25, 6), (0.5, 4), (1, 0)):
        found = surgery.kernels(surgery.pruned(network, share))
        assert sum(map(np.count_nonzero, found)) == left
    first, second = surgery.kernels(surgery.pruned(network, 0.5))
    np.testing.assert_array_equal(first.ravel(), [0, 0, 3, 4])
    np.testing.assert_array_equal(second.ravel(), [0, 5, 6, 0])
    assert surgery.kernels(network)[0].all()  # The network itself is as it was.


def test_rank_of_known_matrices():
    one = np.outer(np.arange(1, 10), np.arange(1, 5)).reshape(3, 3, 1, 4)
    assert surgery.rank_share(one) == 1 / 4
    assert surgery.rank_share(np.eye(9)[:, :4].reshape(3, 3, 1, 4)) == 1
    # Squares 81, 9, 9, 1: two directions hold exactly 90 %.
    known = np.vstack([np.diag([9.0, 3, 3, 1]), np.zeros((5, 4))])
    assert surgery.rank_share(known.reshape(3, 3, 1, 4)) == 2 / 4


def test_deepened_residual_net_does_the_same_and_a_plain_one_nothing():
    for kind in ("res", "plain"):
        shallow = net(kind, 8)
        deep = surgery.deepened(shallow, f"cifar_{kind}net20")
        found = said({"": deep})
        if kind == "res":
            np.testing.assert_array_equal(found, said({"": shallow}))
        else:
            np.testing.assert_array_equal(found, np.repeat(found[:1], len(found), 0))
