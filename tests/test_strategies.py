import pytest
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.strategies import make_strategy


def test_replicas():
    assert make_strategy("one_device").num_replicas_in_sync == 1
    assert make_strategy("mirrored").num_replicas_in_sync == 2  # See conftest.
    assert make_strategy("mirrored", virtual_devices=2).num_replicas_in_sync == 2
    assert isinstance(make_strategy("mirrored"), tf.distribute.MirroredStrategy)


@pytest.mark.parametrize("name", ["tpu", "mirored", ""])
def test_unknown_strategy(name):
    with pytest.raises(InputError, match="Accepted: one_device, mirrored"):
        make_strategy(name)


def test_the_cpu_cannot_be_split_again():
    tf.constant(0) + 1
    with pytest.raises(InputError, match="Received: virtual_devices=3"):
        make_strategy("mirrored", virtual_devices=3)
