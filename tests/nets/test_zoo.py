"""Constructors of networks, and networks that are built from a checkpoint."""

import inspect

import keras
import numpy as np
import pytest

import keras_resnet
from keras_resnet.support.errors import InputError
from keras_resnet.weights import Checkpoint, Origin, PixelFormat
from keras_resnet.weights.checkpoint import Tensor, get_variables
from keras_resnet.zoo import build_from_checkpoint


def test_input_tensor_is_the_input_of_the_model():
    image = keras.Input((32, 32, 1), name="camera")
    model = keras_resnet.ResNet(
        "cifar_resnet8", input_tensor=keras.layers.Rescaling(1 / 255)(image)
    )
    assert model.input.name == "camera"
    assert model(np.zeros((1, 32, 32, 1))).shape == (1, 10)


def test_signature_is_that_of_keras_applications():
    keras_parameters = inspect.signature(keras.applications.ResNet50).parameters
    parameters = inspect.signature(keras_resnet.ResNet50).parameters
    assert list(parameters)[: len(keras_parameters)] == list(keras_parameters)
    assert parameters["weights"].default is None
    # `None` means the number of classes in the weights, or 1000 without weights.
    assert parameters["classes"].default is None
    assert [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY] == [
        "shortcut",
        "stride_on",
        "output_stride",
        "stem",
        "preact",
        "avg_down",
        "se",
        "groups",
        "group_width",
        "zero_gamma",
        "stochastic_depth",
    ]
    for name in keras_resnet.__all__:
        assert inspect.getdoc(getattr(keras_resnet, name)), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shortcut": "D"}, "Accepted: A, B, C, none. Received: shortcut='D'"),
        ({"stride_on": "1"}, "Accepted: 1x1, 3x3"),
        ({"pooling": "mean"}, "Received: pooling='mean'"),
        ({"classes": 0}, "Received: classes=0"),
        ({"classes": "ten"}, "Received: classes='ten'"),
        ({"input_shape": (224, 224)}, "Received: input_shape=(224, 224)"),
        ({"input_shape": (31, 64, 3)}, "sides of 32 to 32768 pixels"),
        ({"input_shape": (64, 64, None)}, "Received: input_shape=(64, 64, None)"),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "Received: ndarray"),
        ({"weights": "imagenett"}, "Did you mean 'imagenet'?"),
        ({"weights": 7}, "Received: 7"),
        ({"weights": "missing.keras"}, "does not exist"),
        ({"weights": "https://example.org/net.pth"}, "keras_resnet.convert"),
        ({"output_stride": 4}, "Received: output_stride=4"),
        ({"output_stride": 64}, "Received: output_stride=64"),
        ({"preact": "yes"}, "Received: preact='yes'"),
        ({"groups": 0}, "Received: groups=0"),
        ({"stem": "seven"}, "Accepted: imagenet, deep, cifar"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(InputError) as error:
        keras_resnet.ResNet50(**arguments)
    assert message in str(error.value)


def test_shortcuts_in_a_plain_network_are_refused():
    with pytest.raises(InputError, match="ResNet of the same depth"):
        keras_resnet.PlainNet34(shortcut="A")


def make_checkpoint(name, **origin):
    """Makes a checkpoint without metadata, except for the fields in `origin`."""
    variables = get_variables(keras_resnet.ResNet(name))
    tensors = {
        key: Tensor.from_array(key, variable.numpy())
        for key, variable in variables.items()
    }
    return Checkpoint.from_tensors(Origin("net", **origin), tensors)


def test_the_argument_or_the_checkpoint_determines_the_image_size():
    pixels = PixelFormat((1.0, 2.0, 3.0), (1.0, 1.0, 1.0), size=48)
    checkpoint = make_checkpoint("cifar_resnet8", pixels=pixels)
    for image_size, size in ((None, 48), (40, 40)):
        model = build_from_checkpoint(checkpoint, image_size=image_size)
        assert model.input_shape == (None, size, size, 3)
        assert model.origin.model == "cifar_resnet8"
    model = build_from_checkpoint(make_checkpoint("cifar_resnet8"))
    assert model.input_shape == (None, 32, 32, 3)


def test_a_name_distinguishes_plain_networks_from_shortcut_a():
    checkpoint = make_checkpoint("cifar_plainnet8")
    for name, has_shortcuts in ((None, True), ("cifar_plainnet8", False)):
        layers = build_from_checkpoint(checkpoint, name).layers
        assert any(isinstance(la, keras.layers.Add) for la in layers) == has_shortcuts


@pytest.mark.parametrize(
    ("name", "arxiv_id"),
    [
        ("ResNet50", "1512.03385"),
        ("ResNet50V2", "1603.05027"),
        ("ResNet50D", "1812.01187"),
        ("SEResNet50", "1709.01507"),
        ("ResNeXt50_32x4d", "1611.05431"),
        ("Wide_ResNet50_2", "1605.07146"),
    ],
)
def test_the_documentation_cites_the_paper_of_the_network(name, arxiv_id):
    constructor = getattr(keras_resnet, name)
    assert f"https://arxiv.org/abs/{arxiv_id}" in constructor.__doc__
