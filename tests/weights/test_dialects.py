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
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from state_dicts import hash_shapes, make_arrays, make_images

import keras_resnet
from keras_resnet.nets import skip_random_kernels
from keras_resnet.weights import saving
from keras_resnet.weights.checkpoint import Tensor
from keras_resnet.weights.dialects import Dialect, convert_keras_applications
from keras_resnet.weights.recognition import describe_variant

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
    with safe_open(path, framework="numpy") as file:
        return {k: tuple(file.get_slice(k).get_shape()) for k in list(file.keys())}


def test_numpy_draws_the_images_of_the_fixture():
    """`make_images` still draws the images that `make_torch_logits.py` used."""
    digest = hashlib.sha256(make_images(2, 64).tobytes()).hexdigest()
    assert digest.startswith("564135d33f60")


# Networks without a marker contain every kind of block, stem and shortcut once. Those with
# the marker `slow` complete the architectures.
FAST_NETWORKS = (
    "torchvision resnet50 output_stride 8",
    "torchvision resnext50_32x4d",
    "timm resnet18d",
    "timm seresnet18",
    "cifar resnet20 A",
    "cifar resnet20 B",
)
SLOW_NETWORKS = (
    "torchvision resnet18",
    "torchvision resnet34",
    "torchvision resnet50",
    "torchvision wide_resnet50_2",
    "timm resnet50d",
    "timm seresnet50",
    "cifar resnet56 A",
)


def list_entries():
    for entry in TORCH_LOGITS["nets"]:
        name = f"{entry['source']} {entry['model']}"
        marks = [pytest.mark.slow if name in SLOW_NETWORKS else pytest.mark.full]
        marks = [] if name in FAST_NETWORKS else marks
        yield pytest.param(entry, id=name, marks=marks)


@pytest.mark.parametrize("entry", list(list_entries()))
def test_logits_equal_those_of_pytorch(entry, tmp_path):
    size = TORCH_LOGITS["input"]["sizes"][entry["source"]]
    input_options = {"input_shape": (size, size, 3)}
    with skip_random_kernels():
        shapes = read_torch_shapes(build_network(entry, **input_options), tmp_path)
    assert hash_shapes(shapes) == entry["digest"]
    path = str(tmp_path / "net.safetensors")
    save_file(make_arrays(shapes), path)  # Without metadata, as files of PyTorch.
    model = build_network(entry, **input_options, weights=path)
    images = make_images(TORCH_LOGITS["input"]["number"], size)
    logits = keras.ops.convert_to_numpy(model(images.astype("float32"), training=False))
    expected = np.array(entry["logits"])
    max_logit = np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, atol=2e-5 * max_logit, rtol=0)


BN_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")
BLOCK_VARIABLES = [
    *(f"{i}_conv/kernel" for i in range(4)),
    *(f"{i}_bn/{variable}" for i in range(4) for variable in BN_VARIABLES),
    *(f"se_{i}_conv/{variable}" for i in (1, 2) for variable in ("kernel", "bias")),
]
names = st.one_of(
    st.sampled_from(["conv1_conv/kernel", "predictions/kernel", "predictions/bias"]),
    st.sampled_from([f"conv1_bn/{variable}" for variable in BN_VARIABLES]),
    st.builds(
        "conv{}_block{}_{}".format,
        st.integers(2, 5),
        st.integers(1, 200),
        st.sampled_from(BLOCK_VARIABLES),
    ),
)


@given(st.tuples(*[st.booleans()] * 4), st.lists(names, min_size=2, unique=True))
def test_names_and_keys_are_inverse(arguments, names):
    """Two weights of any network never have the same key."""
    dialect = Dialect.make(*arguments)
    keys = [dialect.to_torch_key(name) for name in names]
    assert [dialect.to_keras_name(key) for key in keys] == names
    assert len(set(keys)) == len(keys)


# Keys in the documentation and the published files of torchvision, timm and a
# repository for CIFAR (github.com/kuangliu/pytorch-cifar).
@pytest.mark.parametrize(
    ("arguments", "name", "key"),
    [
        ((0, 0, 0, 0), "conv1_conv/kernel", "conv1.weight"),
        ((0, 0, 0, 0), "conv1_bn/moving_mean", "bn1.running_mean"),
        ((0, 0, 0, 0), "conv3_block2_3_conv/kernel", "layer2.1.conv3.weight"),
        ((0, 0, 0, 0), "conv5_block1_0_conv/kernel", "layer4.0.downsample.0.weight"),
        ((0, 0, 0, 0), "conv2_block1_0_bn/beta", "layer1.0.downsample.1.bias"),
        ((0, 0, 0, 0), "predictions/bias", "fc.bias"),
        ((1, 1, 0, 0), "conv1_1_conv/kernel", "conv1.0.weight"),
        ((1, 1, 0, 0), "conv1_2_bn/gamma", "conv1.4.weight"),
        ((1, 1, 0, 0), "conv1_conv/kernel", "conv1.6.weight"),
        ((1, 1, 0, 0), "conv3_block1_0_conv/kernel", "layer2.0.downsample.1.weight"),
        ((0, 0, 0, 0), "conv2_block3_se_1_conv/bias", "layer1.2.se.fc1.bias"),
        ((0, 0, 1, 1), "predictions/kernel", "linear.weight"),
        ((0, 0, 1, 1), "conv3_block1_0_bn/gamma", "layer2.0.shortcut.1.weight"),
    ],
)
def test_keys_are_those_of_published_files(arguments, name, key):
    dialect = Dialect.make(*arguments)
    assert dialect.to_torch_key(name) == key
    assert dialect.to_keras_name(key) == name


@pytest.mark.parametrize(
    "key",
    [
        "conv1",
        "conv1.gamma",
        "layer1.0.conv4.weight",
        "layer1.0.fc.weight",
        "fc.weight.x",
    ]
    + ["layer1.conv1.weight", "layer123456.0.conv1.weight", "layer1.0.bn1.num_batches"],
)
def test_an_unknown_key_has_no_name(key):
    assert Dialect.make(False, False, False, False).to_keras_name(key) is None


@pytest.mark.parametrize(
    "name",
    ["conv1_conv", "conv1_conv/gamma", "conv2_block1_4_conv/kernel", "post_bn/gamma"]
    + ["conv2_block1_preact_bn/gamma", "conv1_1_conv/kernel", "conv2_block/kernel"],
)
def test_an_unknown_name_has_no_key(name):
    assert Dialect.make(False, False, False, False).to_torch_key(name) is None


@pytest.mark.parametrize("is_preact", [False, True])
def test_weights_of_keras_applications_are_converted_exactly(is_preact):
    """The bias moves into the mean, and the difference of the epsilons into the variance."""
    kernel = np.arange(3.0).reshape(1, 1, 3, 1)
    arrays = {
        "conv1_conv/kernel": kernel,
        "conv1_conv/bias": np.float32([1, 2]),
        "conv1_bn/moving_mean": np.float32([5, 5]),
        "conv1_bn/moving_variance": np.float32([0, 1e-5]),
        "predictions/bias": np.float32([7]),
    }
    if is_preact:
        arrays["conv2_block1_preact_bn/gamma"] = np.float32([1])
    convert_keras_applications(arrays)
    assert "conv1_conv/bias" not in arrays
    assert arrays["conv1_bn/moving_mean"].tolist() == [4, 3]
    assert arrays["predictions/bias"].tolist() == [7]
    sums = arrays["conv1_bn/moving_variance"].astype("float64") + 1e-5
    np.testing.assert_allclose(sums, [1.001e-5, 2.001e-5], rtol=1e-6)
    channels = [0, 1, 2] if is_preact else [2, 1, 0]
    assert arrays["conv1_conv/kernel"].ravel().tolist() == channels


@pytest.mark.parametrize(
    ("kernel_shape", "groups", "group_width"),
    [
        # ResNet-50, ResNeXt-50 32x4d and Wide ResNet-50-2 (layer1.0.conv2 of torchvision).
        ((3, 3, 64, 64), 1, 64),
        ((3, 3, 4, 128), 32, 4),
        ((3, 3, 128, 128), 1, 128),
    ],
)
def test_groups_follow_from_the_shape_of_a_kernel(kernel_shape, groups, group_width):
    shapes = {
        "conv1_conv/kernel": (7, 7, 3, 64),
        "conv2_block1_2_conv/kernel": kernel_shape,
        "conv2_block1_3_conv/kernel": (1, 1, kernel_shape[-1], 256),
        "conv3_block4_1_bn/gamma": (128,),
    }
    weights = {n: Tensor.from_array(n, np.zeros(s)) for n, s in shapes.items()}
    fields = describe_variant(weights)
    assert (fields["groups"], fields["group_width"]) == (groups, group_width)
    assert (fields["block"], fields["stem"], fields["width"]) == (
        "bottleneck", "imagenet", 64
    )  # fmt: skip
    assert fields["blocks"] == (1, 1)
