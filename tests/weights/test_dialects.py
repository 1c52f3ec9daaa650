"""Weights of torchvision, timm and CIFAR repositories give PyTorch's logits.

`fixtures/torch_logits.json` holds what PyTorch gave; `make_torch_logits.py` says
how and makes it again. A state dict of the same keys is filled here.
"""

import hashlib
import json
import pathlib

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from state_dicts import digest, fill, pixels

import keras_resnet
from keras_resnet.weights import saving

FIXTURE = json.loads(
    (pathlib.Path(__file__).parents[1] / "fixtures/torch_logits.json").read_text(
        "utf-8"
    )
)


def build(net, **options):
    """Our network for a net of the fixture, and the shapes of its state dict."""
    name, *rest = net["model"].split()
    if net["source"] == "cifar":
        options["shortcut"] = net["options"]["shortcut"]
    if "output_stride" in rest:
        options["output_stride"] = int(rest[-1])
    if net["source"] == "timm" and name in ("resnet50", "resnet101", "resnet152"):
        options["stride_on"] = "3x3"
    if net["source"] == "torchvision":
        options["stride_on"] = "3x3"
    return keras_resnet.ResNet(
        name, classes=8, classifier_activation=None, **{"input_shape": None, **options}
    )


def torch_shapes(model, tmp_path):
    """Keys and shapes that our conversion to torch's names writes."""
    path = str(tmp_path / "shapes.safetensors")
    saving.save_state_dict(model, path)
    return {key: array.shape for key, array in load_file(path).items()}


def test_the_generator_is_the_one_of_the_fixture():
    """If NumPy's streams ever change, this says so first."""
    made = hashlib.sha256(pixels(2, 64).tobytes()).hexdigest()
    assert made.startswith("564135d33f60")


# In the default tier: one of each kind. timm's plain ResNets are torchvision's.
QUICK = (
    "torchvision resnet18",
    "torchvision resnet34",
    "torchvision resnet50",
    "torchvision resnet50 output_stride 8",
    "torchvision resnext50_32x4d",
    "torchvision wide_resnet50_2",
    "timm resnet18d",
    "timm resnet50d",
    "timm seresnet18",
    "timm seresnet50",
    "cifar resnet20 A",
    "cifar resnet20 B",
    "cifar resnet56 A",
)


def nets():
    for net in FIXTURE["nets"]:
        name = f"{net['source']} {net['model']}"
        marks = [] if name in QUICK else [pytest.mark.full]
        yield pytest.param(net, id=name, marks=marks)


@pytest.mark.parametrize("net", list(nets()))
def test_pytorch_gives_the_same_logits(net, tmp_path):
    size = FIXTURE["input"]["sizes"][net["source"]]
    shape = {"input_shape": (size, size, 3)}
    random = build(net, **shape)
    shapes = torch_shapes(random, tmp_path)
    assert digest(shapes) == net["digest"]
    path = str(tmp_path / "net.safetensors")
    save_file(fill(shapes), path)  # Without our notes: as torch would write it.
    model = build(net, **shape, weights=path)
    images = pixels(FIXTURE["input"]["number"], size)
    logits = keras.ops.convert_to_numpy(model(images.astype("float32"), training=False))
    expected = np.array(net["logits"])
    largest = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, atol=2e-5 * largest, rtol=0)
