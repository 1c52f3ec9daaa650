"""Networks with weights of torchvision, timm or CIFAR repositories match PyTorch.

`make_torch_logits.py` computes the logits of PyTorch and stores them in
`fixtures/torch_logits.json`. The tests fill a state dict with the same arrays.
"""

import hashlib
import json
import pathlib

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from state_dicts import hash_shapes, make_arrays, make_images

import keras_resnet
from keras_resnet.weights import saving

FIXTURE = json.loads(
    (pathlib.Path(__file__).parents[1] / "fixtures/torch_logits.json").read_text(
        "utf-8"
    )
)


def build(entry, **options):
    """Builds the network that corresponds to an entry of the fixture."""
    name, *rest = entry["model"].split()
    if entry["source"] == "cifar":
        options["shortcut"] = entry["options"]["shortcut"]
    if "output_stride" in rest:
        options["output_stride"] = int(rest[-1])
    if entry["source"] == "timm" and name in ("resnet50", "resnet101", "resnet152"):
        options["stride_on"] = "3x3"
    if entry["source"] == "torchvision":
        options["stride_on"] = "3x3"
    return keras_resnet.ResNet(
        name, classes=8, classifier_activation=None, **{"input_shape": None, **options}
    )


def torch_shapes(model, tmp_path):
    """Returns the keys and shapes of the state dict that `save_state_dict` writes."""
    path = str(tmp_path / "shapes.safetensors")
    saving.save_state_dict(model, path)
    return {key: array.shape for key, array in load_file(path).items()}


def test_generator_of_images_is_that_of_the_fixture():
    """The random numbers of NumPy have not changed since the fixture was made."""
    digest = hashlib.sha256(make_images(2, 64).tobytes()).hexdigest()
    assert digest.startswith("564135d33f60")


# Networks of the default tier, one of each kind. The basic ResNets of timm are left
# out, because they equal those of torchvision.
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


def entries():
    for entry in FIXTURE["nets"]:
        name = f"{entry['source']} {entry['model']}"
        marks = [] if name in QUICK else [pytest.mark.full]
        yield pytest.param(entry, id=name, marks=marks)


@pytest.mark.parametrize("entry", list(entries()))
def test_logits_equal_those_of_pytorch(entry, tmp_path):
    size = FIXTURE["input"]["sizes"][entry["source"]]
    shape = {"input_shape": (size, size, 3)}
    random_model = build(entry, **shape)
    shapes = torch_shapes(random_model, tmp_path)
    assert hash_shapes(shapes) == entry["digest"]
    path = str(tmp_path / "net.safetensors")
    save_file(make_arrays(shapes), path)  # PyTorch would not write a note either.
    model = build(entry, **shape, weights=path)
    images = make_images(FIXTURE["input"]["number"], size)
    logits = keras.ops.convert_to_numpy(model(images.astype("float32"), training=False))
    expected = np.array(entry["logits"])
    largest = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, atol=2e-5 * largest, rtol=0)
