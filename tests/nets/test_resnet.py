"""Networks agree with the paper, keras.applications and independent counts."""

import inspect
import json
import math
import operator

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import run_python

import keras_resnet
from keras_resnet.nets.blocks import Block, add_shortcut
from keras_resnet.nets.graph import list_layers
from keras_resnet.spec.variants import VARIANTS
from keras_resnet.support.errors import InputError

DEEPEST_NETWORKS = ("resnet1202", "plainnet1202")
LATER_VARIANTS = list(VARIANTS)[list(VARIANTS).index("resnet50v2") :]
PAPER_NETWORKS = [
    name for name in VARIANTS if name not in (*DEEPEST_NETWORKS, *LATER_VARIANTS)
]
SLOW_NETWORKS = ("resnet101", "resnet152")


# Function that returns the first four arguments of `count_parameters` for a variant.
get_plan = operator.attrgetter("block", "blocks", "width", "stem")


def count_parameters(block, blocks, width, stem, shortcut, classes, channels=3):
    """Counts the parameters of a network of the paper without building the network."""

    def count_conv_bn(size, in_channels, out_channels):
        return size * size * in_channels * out_channels + 2 * out_channels

    total = count_conv_bn(7 if stem == "imagenet" else 3, channels, width)
    in_channels = width
    for stage, num_blocks in enumerate(blocks):
        inner_width = width * 2**stage
        out_channels = inner_width * (4 if block == "bottleneck" else 1)
        for block_index in range(num_blocks):
            if block == "basic":
                total += count_conv_bn(3, in_channels, inner_width) + count_conv_bn(
                    3, inner_width, inner_width
                )
            else:
                total += count_conv_bn(1, in_channels, inner_width) + count_conv_bn(
                    3, inner_width, inner_width
                )
                total += count_conv_bn(1, inner_width, out_channels)
            changes_shape = in_channels != out_channels or (
                block_index == 0 and stage > 0
            )
            if shortcut == "C" or (shortcut == "B" and changes_shape):
                total += count_conv_bn(1, in_channels, out_channels)
            in_channels = out_channels
    return total + in_channels * classes + classes


def count_values(weights):
    """Returns the total number of values in a list of weight arrays."""
    return sum(math.prod(w.shape) for w in weights)


def list_networks_and_shortcuts():
    for name in PAPER_NETWORKS:
        shortcuts = ("none",) if name.startswith("plain") else ("A", "B", "C")
        for shortcut in shortcuts:
            is_slow = name in SLOW_NETWORKS and shortcut != VARIANTS[name].shortcut
            yield pytest.param(
                name, shortcut, marks=[pytest.mark.full] if is_slow else []
            )


@pytest.mark.parametrize(("name", "shortcut"), list(list_networks_and_shortcuts()))
def test_layers_and_parameters_are_those_of_the_paper(name, shortcut):
    variant = VARIANTS[name]
    model = keras_resnet.ResNet(name, shortcut=shortcut)
    layers = {layer.name: layer for layer in model.layers}

    # The depth is the number of convolutions outside shortcuts, plus the dense layer.
    convolutions = [
        n for n in layers if n.endswith("_conv") and not n.endswith("_0_conv")
    ]
    assert len(convolutions) + 1 == variant.depth

    # A projection is a 1x1 convolution on a shortcut. Option A has no projections, and
    # option C has a projection in each block. Option B has a projection in each block
    # that changes the shape: in Table 1, conv3_1, conv4_1 and conv5_1, and in networks
    # with bottleneck blocks also conv2_1.
    for stage, num_blocks in enumerate(variant.blocks):
        for block in range(1, num_blocks + 1):
            changes_shape = block == 1 and (stage > 0 or variant.block == "bottleneck")
            has_projection = shortcut == "C" or (shortcut == "B" and changes_shape)
            prefix = f"conv{stage + 2}_block{block}"
            assert (f"{prefix}_0_conv" in layers) == has_projection, prefix
            assert (f"{prefix}_add" in layers) == (shortcut != "none")
            assert f"{prefix}_out" in layers

    expected = count_parameters(*get_plan(variant), shortcut, variant.classes)
    assert count_values(model.trainable_weights) == expected
    if shortcut == variant.shortcut:
        assert expected == variant.parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Counts of ImageNet networks are from torchvision and timm. Counts of CIFAR
        # networks are exact, whereas Table 6 of the paper rounds them.
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("resnet1202", 19_421_274),
    ],
)
def test_parameters_equal_published_counts(name, parameters):
    variant = VARIANTS[name]
    assert variant.parameters == parameters
    assert parameters == count_parameters(
        variant.block,
        variant.blocks,
        variant.width,
        variant.stem,
        variant.shortcut,
        variant.classes,
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # The first three counts are from `summary()` of keras.applications. The other
        # counts are from models of timm and torchvision.
        ("resnet50v2", 25_568_360),
        ("resnet101v2", 44_577_896),
        ("resnet152v2", 60_236_904),
        ("resnet18d", 11_708_744),
        ("resnet34d", 21_816_904),
        ("resnet50d", 25_576_264),
        ("resnet101d", 44_568_392),
        ("resnet152d", 60_212_040),
        ("seresnet18", 11_779_624),
        ("seresnet34", 21_960_416),
        ("seresnet50", 28_088_024),
        ("seresnet101", 49_326_872),
        ("seresnet152", 66_821_848),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272),
        ("wide_resnet50_2", 68_883_240),
        ("wide_resnet101_2", 126_886_696),
    ],
)
def test_parameters_of_later_variants_equal_published_counts(name, parameters):
    assert VARIANTS[name].parameters == parameters
    # tests/weights/test_dialects.py builds the other networks.
    if "50" in name or "18" in name:
        assert count_values(keras_resnet.ResNet(name).trainable_weights) == parameters


def test_all_later_variants_are_counted():
    marks = test_parameters_of_later_variants_equal_published_counts.pytestmark
    assert [name for name, _ in marks[0].args[1]] == LATER_VARIANTS


def test_count_parameters_is_correct_for_other_shortcuts():
    # The expected counts are from other implementations of ResNet-50.
    variant = VARIANTS["resnet50"]
    arguments = (variant.block, variant.blocks, variant.width, variant.stem)
    assert count_parameters(*arguments, "A", 1000) == 22_780_456
    assert count_parameters(*arguments, "C", 1000) == 40_128_552


@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
def test_stride_on_selects_the_strided_convolution(stride_on):
    model = keras_resnet.ResNet50(stride_on=stride_on)
    for stage in (3, 4, 5):
        strides = [
            model.get_layer(f"conv{stage}_block1_{i}_conv").strides[0]
            for i in (1, 2, 3, 0)
        ]
        assert strides == ([2, 1, 1, 2] if stride_on == "1x1" else [1, 2, 1, 2])
    assert count_values(model.trainable_weights) == 25_557_032


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet14"])
@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
def test_odd_sizes_are_halved_and_rounded_up(name, shortcut, stride_on):
    model = keras_resnet.ResNet(
        name,
        include_top=False,
        input_shape=(37, 43, 5),
        shortcut=shortcut,
        stride_on=stride_on,
    )
    num_halvings = 5 if name != "cifar_resnet14" else 2
    size = [37, 43]
    for _ in range(num_halvings):
        size = [(n + 1) // 2 for n in size]
    channels = {"resnet18": 512, "resnet50": 2048, "cifar_resnet14": 64}[name]
    images = np.random.default_rng(0).normal(size=(2, 37, 43, 5))
    assert model(images).shape == (2, *size, channels)


def test_network_with_a_head_accepts_any_size():
    model = keras_resnet.ResNet20(input_shape=(None, None, 3), classes=7)
    for size in (32, 45):
        probabilities = np.asarray(model(np.zeros((2, size, size, 3))))
        assert probabilities.shape == (2, 7)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "reduce"), [("avg", np.mean), ("max", np.max), (None, None)]
)
def test_pooling_reduces_the_last_feature_map(pooling, reduce):
    keras.utils.set_random_seed(1)
    model = keras_resnet.ResNet20(include_top=False, pooling=pooling)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    features = np.asarray(
        keras.Model(model.input, keras_resnet.endpoints(model)["conv4"])(images)
    )
    expected = features if reduce is None else reduce(features, axis=(1, 2))
    np.testing.assert_allclose(np.asarray(model(images)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        # Output sizes from Table 1 of the paper.
        (
            "resnet34",
            {
                "conv1": (112, 112, 64),
                "conv2": (56, 56, 64),
                "conv3": (28, 28, 128),
                "conv4": (14, 14, 256),
                "conv5": (7, 7, 512),
            },
        ),
        (
            "resnet50",
            {
                "conv1": (112, 112, 64),
                "conv2": (56, 56, 256),
                "conv3": (28, 28, 512),
                "conv4": (14, 14, 1024),
                "conv5": (7, 7, 2048),
            },
        ),
        # Output sizes from the table in section 4.2 of the paper.
        (
            "resnet56",
            {
                "conv1": (32, 32, 16),
                "conv2": (32, 32, 16),
                "conv3": (16, 16, 32),
                "conv4": (8, 8, 64),
            },
        ),
    ],
)
def test_endpoints_have_the_shapes_of_the_paper(name, shapes):
    outputs = keras_resnet.endpoints(keras_resnet.ResNet(name))
    assert {stage: output.shape[1:] for stage, output in outputs.items()} == shapes


@pytest.mark.parametrize("size", [64, 75])
@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50v2"])
def test_output_stride_keeps_features_at_the_original_positions(name, stride_on, size):
    """A network with an `output_stride` contains the features of the original network.

    If the feature maps with `output_stride` are two or four times as large, every
    second or fourth position has the features of the original network. This also holds
    at the border of the feature maps, where both networks pad with zeros.
    """
    keras.utils.set_random_seed(0)
    options = {
        "include_top": False,
        "input_shape": (size, size, 3),
        "stride_on": stride_on,
    }
    model = keras_resnet.ResNet(name, **options)
    # With random offsets, wrong padding changes the features.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            noise = np.random.default_rng(0).normal(0, 0.2, layer.beta.shape)
            layer.beta.assign(layer.beta + noise)
    images = np.random.default_rng(1).normal(size=(1, size, size, 3))
    expected = keras.Model(model.input, keras_resnet.endpoints(model))(images)
    for output_stride in (8, 16):
        dilated_model = keras_resnet.ResNet(
            name, output_stride=output_stride, **options
        )
        dilated_model.set_weights(model.get_weights())
        outputs = keras_resnet.endpoints(dilated_model)
        features = keras.Model(dilated_model.input, outputs)(images)
        assert features["conv5"].shape[1] == -(-size // output_stride)
        for stage, values in expected.items():
            log2_stride = int(stage[-1])
            log2_stride += name == "resnet50v2" and 1 < log2_stride < 5
            step = max(1, 2**log2_stride // output_stride)
            np.testing.assert_allclose(
                np.asarray(features[stage])[:, ::step, ::step],
                np.asarray(values),
                atol=1e-4 * np.abs(values).max(),
                err_msg=f"{stage} at {output_stride}",
            )


def test_endpoints_of_another_model_are_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(InputError, match=r"conv1_relu.*conv2_block1_out"):
        keras_resnet.endpoints(model)


@pytest.mark.parametrize("in_channels", [8, 16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 9])
def test_shortcut_a_subsamples_and_pads(in_channels, stride, size):
    """Shortcut A skips pixels and pads the channels with zeros on both sides."""
    images = (
        np.random.default_rng(0)
        .normal(size=(2, size, size, in_channels))
        .astype("float32")
    )
    image = keras.Input(images.shape[1:])
    block = Block("block", VARIANTS["resnet20"], 16, stride)
    model = keras.Model(image, add_shortcut(image, image, block, 16))
    expected = np.zeros((2, -(-size // stride), -(-size // stride), 16), "float32")
    first_channel = (16 - in_channels) // 2
    expected[..., first_channel : first_channel + in_channels] = images[
        :, ::stride, ::stride
    ]
    np.testing.assert_array_equal(np.asarray(model(images)), expected)
    assert not model.weights


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize(("name", "last_conv"), [("resnet18", 2), ("resnet50", 3)])
def test_zero_last_gamma_passes_the_shortcut_through(name, last_conv, shortcut):
    keras.utils.set_random_seed(0)
    model = keras_resnet.ResNet(
        name, include_top=False, input_shape=(64, 64, 3), shortcut=shortcut
    )
    for stage, num_blocks in enumerate(VARIANTS[name].blocks):
        for block in range(1, num_blocks + 1):
            layer = model.get_layer(f"conv{stage + 2}_block{block}_{last_conv}_bn")
            layer.gamma.assign(keras.ops.zeros_like(layer.gamma))
    # The model outputs the shortcut, the branch, their sum and the next block.
    add_layer = model.get_layer("conv4_block1_add")
    probe_model = keras.Model(
        model.input,
        [
            *add_layer.input,
            add_layer.output,
            model.get_layer("conv4_block2_out").output,
        ],
    )
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3))
    shortcut_output, branch_output, sum_output, next_output = map(
        np.asarray, probe_model(images, training=True)
    )
    assert np.abs(branch_output).max() == 0
    assert np.abs(shortcut_output).max() > 0
    np.testing.assert_array_equal(sum_output, shortcut_output)
    if shortcut != "C":  # The next block has an identity shortcut.
        np.testing.assert_array_equal(next_output, np.maximum(sum_output, 0))


@pytest.mark.parametrize(
    ("name", "shortcut", "stride_on"),
    [("resnet18", shortcut, "1x1") for shortcut in "ABC"]
    + [
        ("resnet50", shortcut, stride_on)
        for shortcut in "ABC"
        for stride_on in ("1x1", "3x3")
    ]
    + [("resnet20", shortcut, "1x1") for shortcut in "ABC"]
    + [("plainnet20", "none", "1x1"), ("plainnet18", "none", "1x1")],
)
def test_all_weights_have_gradients(name, shortcut, stride_on):
    keras.utils.set_random_seed(0)
    model = keras_resnet.ResNet(
        name, input_shape=(33, 33, 3), classes=5, shortcut=shortcut, stride_on=stride_on
    )
    images = np.random.default_rng(0).normal(size=(4, 33, 33, 3)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.math.log(model(images, training=True))[:, 0])
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(gradient).all(), variable.path
        assert np.abs(gradient).max() > 0, variable.path


_DEEP_NETWORK_CODE = """
import json, sys, time
import keras, numpy as np, tensorflow as tf
import keras_resnet
from keras_resnet.nets import list_layers
keras.utils.set_random_seed(0)
start = time.process_time()  # CPU time is independent of other processes.
model = keras_resnet.ResNet(sys.argv[1], shortcut=sys.argv[2] or None)
seconds = time.process_time() - start
# Not getrusage, because its maximum can include memory of the parent process.
status = open("/proc/self/status").read().splitlines()
memory = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
layers = [layer.name for layer in list_layers(model)]
parameters = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
endpoints = {k: v.shape[1:] for k, v in keras_resnet.endpoints(model).items()}
images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
model.save(sys.argv[3])
reloaded = keras.models.load_model(sys.argv[3])
assert all(map(np.array_equal, model.get_weights(), reloaded.get_weights()))
# With the initial moving statistics, sums over 600 blocks would overflow.
outputs = [np.asarray(m(images, training=True)) for m in (model, reloaded)]
assert np.isfinite(outputs[0]).all()
np.testing.assert_allclose(*outputs, rtol=1e-2, atol=1e-4)
model = reloaded
with tf.GradientTape() as tape:
    loss = -tf.reduce_mean(tf.math.log(model(images, training=True)[:, 0]))
variables = model.trainable_variables
gradients = tape.gradient(loss, [v.value for v in variables])
missing = [v.path for v, g in zip(variables, gradients) if g is None]
old_values = [np.asarray(v) for v in variables]
keras.optimizers.SGD(0.1).apply(gradients, variables)
changed = sum(not np.array_equal(o, np.asarray(v)) for o, v in zip(old_values, variables))
print(json.dumps(dict(seconds=seconds, kib=memory, layers=layers, missing=missing,
    parameters=parameters, endpoints=endpoints, changed=changed, variables=len(variables))))
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "shortcut"),
    [
        ("resnet1202", ""),
        ("resnet1202", "B"),
        ("resnet1202", "C"),
        ("plainnet1202", ""),
    ],
)
def test_1202_layers_build_save_load_and_train(name, shortcut, tmp_path):
    """Building needs less than 60 s of CPU time. The process needs less than 2 GiB."""
    process = run_python(
        "-c", _DEEP_NETWORK_CODE, name, shortcut, tmp_path / "deep.keras", timeout=600
    )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["seconds"] < 60
    assert report["kib"] * 1024 < 2 * 2**30
    expected = {
        f"conv{s}_block{b}_{i}_conv"
        for s in (2, 3, 4)
        for b in range(1, 201)
        for i in (1, 2)
    }
    assert expected < set(report["layers"])
    assert len(report["layers"]) == len(set(report["layers"]))
    variant = VARIANTS[name]
    shortcut = shortcut or variant.shortcut
    num_parameters = count_parameters(*get_plan(variant), shortcut, variant.classes)
    assert report["parameters"] == num_parameters
    assert report["endpoints"]["conv4"] == [8, 8, 64]
    assert report["missing"] == []
    assert report["changed"] > 0.99 * report["variables"]


def test_saved_model_loads_without_this_package(tmp_path):
    keras.utils.set_random_seed(0)
    for name, shortcut in (("resnet20", "A"), ("resnet18", "B"), ("resnet50", "A")):
        model = keras_resnet.ResNet(name, input_shape=(32, 32, 3), shortcut=shortcut)
        images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
        model.save(tmp_path / f"{name}.keras")
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.asarray(model(images)))
    code = """
import sys, keras, numpy as np
for name in ("resnet20", "resnet18", "resnet50"):
    data = np.load(f"{name}.npz")
    outputs = np.asarray(keras.models.load_model(f"{name}.keras")(data["x"]))
    np.testing.assert_allclose(outputs, data["y"], rtol=1e-4, atol=1e-6)
assert "keras_resnet" not in sys.modules
"""
    process = run_python("-c", code, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert process.returncode == 0, process.stderr


@pytest.mark.full
def test_networks_on_jax_have_the_same_outputs(tmp_path):
    pytest.importorskip("jax")
    keras.utils.set_random_seed(0)
    networks = [("resnet20", "A"), ("resnet18", "B"), ("cifar_resnet8", "C")]
    for name, shortcut in networks:
        model = keras_resnet.ResNet(name, input_shape=(35, 35, 3), shortcut=shortcut)
        images = np.random.default_rng(0).normal(size=(2, 35, 35, 3)).astype("float32")
        model.save_weights(tmp_path / f"{name}.weights.h5")
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.asarray(model(images)))
    code = f"""
import sys
sys.modules["tensorflow"] = None  # Building a network does not need TensorFlow.
import keras, numpy as np, keras_resnet
assert keras.backend.backend() == "jax"
for name, shortcut in {networks!r}:
    model = keras_resnet.ResNet(
        name, input_shape=(35, 35, 3), shortcut=shortcut, weights=f"{{name}}.weights.h5")
    data = np.load(f"{{name}}.npz")
    np.testing.assert_allclose(np.asarray(model(data["x"])), data["y"], rtol=1e-4, atol=1e-5)
    assert keras_resnet.profile(model).parameters
keras.config.set_image_data_format("channels_first")
for name, shortcut in {networks!r}:
    model = keras_resnet.ResNet(name, input_shape=(3, 35, 35), shortcut=shortcut)
    model.set_weights(keras_resnet.ResNet(
        name, input_shape=(3, 35, 35), shortcut=shortcut, weights=f"{{name}}.weights.h5"
    ).get_weights())
    data = np.load(f"{{name}}.npz")
    outputs = np.asarray(model(data["x"].transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(outputs, data["y"], rtol=1e-4, atol=1e-5)
"""
    process = run_python("-c", code, cwd=tmp_path, env={"KERAS_BACKEND": "jax"})
    assert process.returncode == 0, process.stderr


def test_input_tensor_is_the_input_of_the_model():
    image = keras.Input((32, 32, 1), name="camera")
    model = keras_resnet.ResNet20(input_tensor=keras.layers.Rescaling(1 / 255)(image))
    assert model.input.name == "camera"
    assert model(np.zeros((1, 32, 32, 1))).shape == (1, 10)


def test_layer_names_are_those_of_keras_applications():
    model = keras_resnet.ResNet50()
    assert model.input.name == "image"
    assert model.name == "resnet50"
    keras_layer_names = {
        layer.name for layer in keras.applications.ResNet50(weights=None).layers
    }
    names = {layer.name for layer in model.layers if layer.weights}
    assert names < keras_layer_names


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


def test_weights_of_a_file_are_loaded(tmp_path):
    path = tmp_path / "net.weights.h5"
    keras.utils.set_random_seed(0)
    source_model = keras_resnet.ResNet20()
    source_model.save_weights(path)
    model = keras_resnet.ResNet20(weights=str(path))
    for expected, loaded_array in zip(
        source_model.get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(loaded_array, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shortcut": "D"}, "Accepted: A, B, C, none. Received: shortcut='D'"),
        ({"stride_on": "1"}, "Accepted: 1x1, 3x3"),
        ({"pooling": "mean"}, "Received: pooling='mean'"),
        ({"classes": 0}, "Received: classes=0"),
        ({"classes": "ten"}, "Received: classes='ten'"),
        ({"input_shape": (224, 224)}, "Received: input_shape=(224, 224)"),
        ({"input_shape": (31, 64, 3)}, "at least 32 pixels"),
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


def test_list_layers_of_a_model_without_sub_models():
    model = keras_resnet.ResNet20()
    assert [layer.name for layer in list_layers(model)] == [
        la.name for la in model.layers
    ]
