import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet import data, strategies
from keras_resnet.errors import InputError
from keras_resnet.evaluation import Evaluator
from keras_resnet.preprocessing import Preprocessing


@pytest.mark.parametrize("name", ["one_device", "mirrored"])
@pytest.mark.parametrize("batch_size", [14, 128, 360])
def test_equals_numpy_over_one_batch(name, batch_size):
    digits = data.load_dataset("digits")
    split = data.Split(digits.test.images[:333], digits.test.labels[:333])
    strategy = strategies.make_strategy(name)
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = keras_resnet.ResNet("cifar_resnet8", input_shape=(8, 8, 1))
    found = Evaluator(model, split, Preprocessing(8, 8, 1), batch_size, strategy)()

    probabilities = np.float64(model(split.images, training=False))
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = order == split.labels[:, None]
    # The loss from logits in float64; the untrained bias is 0.
    features = keras.Model(model.input, model.get_layer("avg_pool").output)(
        split.images
    )
    logits = np.float64(features) @ np.float64(
        model.get_layer("predictions").get_weights()[0]
    )
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(333), split.labels]
    assert found["images"] == 333
    assert found["accuracy"] == pytest.approx(hits[:, 0].mean(), abs=1e-12)
    assert found["top5_accuracy"] == pytest.approx(
        hits[:, :5].any(axis=1).mean(), abs=1e-12
    )
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_again_after_the_weights_changed():
    digits = data.load_dataset("digits")
    strategy = strategies.make_strategy("one_device")
    with strategy.scope():
        model = keras_resnet.ResNet("cifar_resnet8", input_shape=(8, 8, 1))
    evaluate = Evaluator(model, digits.test, Preprocessing(8, 8, 1), 64, strategy)
    before = evaluate()
    assert evaluate() == before
    head = model.get_layer("predictions")
    head.set_weights([np.zeros((64, 10)), np.eye(10)[3]])
    after = evaluate()
    assert after["accuracy"] == (digits.test.labels == 3).mean()
    # Softmax of one 1 and nine 0.
    other = np.log(np.e + 9)
    expected = other - (digits.test.labels == 3).mean()
    assert after["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_batch_that_the_replicas_do_not_divide():
    digits = data.load_dataset("digits")
    strategy = strategies.make_strategy("mirrored")
    with pytest.raises(InputError, match="Received: batch_size=15"):
        Evaluator(None, digits.test, Preprocessing(8, 8, 1), 15, strategy)
