"""Networks with weights of torchvision, timm or CIFAR repositories match PyTorch.

`make_torch_logits.py` fills networks of PyTorch with pseudo-random weights and stores
the logits in `fixtures/torch_logits.json`. The tests load the same weights into
networks of this package and compare the logits.
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

TORCH_LOGITS = json.loads(
    (pathlib.Path(__file__).parents[1] / "fixtures/torch_logits.json").read_text(
        "utf-8"
    )
)


def build_network(entry, **options):
    """Builds the network for an entry of `TORCH_LOGITS`."""
    name, *suffix_words = entry["model"].split()
    if entry["source"] == "cifar":
        options["shortcut"] = entry["options"]["shortcut"]
    if "output_stride" in suffix_words:
        options["output_stride"] = int(suffix_words[-1])
    if entry["source"] == "timm" and name in ("resnet50", "resnet101", "resnet152"):
        options["stride_on"] = "3x3"
    if entry["source"] == "torchvision":
        options["stride_on"] = "3x3"
    return keras_resnet.ResNet(
        name, classes=8, classifier_activation=None, **{"input_shape": None, **options}
    )


def read_torch_shapes(model, tmp_path):
    """Returns the shapes, by key, of the state dict that `save_state_dict` writes."""
    path = str(tmp_path / "shapes.safetensors")
    saving.save_state_dict(model, path)
    return {key: array.shape for key, array in load_file(path).items()}


def test_numpy_draws_the_images_of_the_fixture():
    """`make_images` still draws the images that `make_torch_logits.py` used."""
    digest = hashlib.sha256(make_images(2, 64).tobytes()).hexdigest()
    assert digest.startswith("564135d33f60")


# Networks that are tested without the marker `full`, one of each architecture. They
# do not include resnet18 to resnet152 of timm, because torchvision has the same ones.
FAST_NETWORKS = (
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


def list_entries():
    for entry in TORCH_LOGITS["nets"]:
        name = f"{entry['source']} {entry['model']}"
        marks = [] if name in FAST_NETWORKS else [pytest.mark.full]
        yield pytest.param(entry, id=name, marks=marks)


@pytest.mark.parametrize("entry", list(list_entries()))
def test_logits_equal_those_of_pytorch(entry, tmp_path):
    size = TORCH_LOGITS["input"]["sizes"][entry["source"]]
    input_options = {"input_shape": (size, size, 3)}
    random_model = build_network(entry, **input_options)
    shapes = read_torch_shapes(random_model, tmp_path)
    assert hash_shapes(shapes) == entry["digest"]
    path = str(tmp_path / "net.safetensors")
    save_file(make_arrays(shapes), path)  # Without metadata, as files of PyTorch.
    model = build_network(entry, **input_options, weights=path)
    images = make_images(TORCH_LOGITS["input"]["number"], size)
    logits = keras.ops.convert_to_numpy(model(images.astype("float32"), training=False))
    expected = np.array(entry["logits"])
    max_logit = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, atol=2e-5 * max_logit, rtol=0)
