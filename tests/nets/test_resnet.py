"""Networks agree with the paper, keras.applications and independent calculations."""

import inspect
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import run_python

import keras_resnet
from keras_resnet.nets.blocks import Block, shortcut
from keras_resnet.nets.graph import flat_layers
from keras_resnet.spec.variants import VARIANTS
from keras_resnet.support.errors import InputError

DEEPEST = ("resnet1202", "plainnet1202")
VARIATIONS = list(VARIANTS)[list(VARIANTS).index("resnet50v2") :]
SHALLOW = [name for name in VARIANTS if name not in (*DEEPEST, *VARIATIONS)]
SLOW = ("resnet101", "resnet152")


def count_parameters(block, blocks, width, stem, shortcut, classes, channels=3):
    """Counts trainable parameters as described in the paper."""

    def conv_bn(size, inputs, outputs):
        return size * size * inputs * outputs + 2 * outputs

    total, inputs = conv_bn(7 if stem == "imagenet" else 3, channels, width), width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        outputs = inner * (4 if block == "bottleneck" else 1)
        for number in range(count):
            if block == "basic":
                total += conv_bn(3, inputs, inner) + conv_bn(3, inner, inner)
            else:
                total += conv_bn(1, inputs, inner) + conv_bn(3, inner, inner)
                total += conv_bn(1, inner, outputs)
            changes_shape = inputs != outputs or (number == 0 and stage > 0)
            if shortcut == "C" or (shortcut == "B" and changes_shape):
                total += conv_bn(1, inputs, outputs)
            inputs = outputs
    return total + inputs * classes + classes


def count(weights):
    return sum(math.prod(w.shape) for w in weights)


def networks_with_shortcuts():
    for name in SHALLOW:
        shortcuts = ("none",) if name.startswith("plain") else ("A", "B", "C")
        for option in shortcuts:
            slow = name in SLOW and option != VARIANTS[name].shortcut
            yield pytest.param(name, option, marks=[pytest.mark.full] if slow else [])


@pytest.mark.parametrize(("name", "option"), list(networks_with_shortcuts()))
def test_layers_parameters_and_projections(name, option):
    row = VARIANTS[name]
    model = keras_resnet.ResNet(name, shortcut=option)
    layers = {layer.name: layer for layer in model.layers}

    # The depth counts the convolutions of the main path and the dense layer.
    convolutions = [
        n for n in layers if n.endswith("_conv") and not n.endswith("_0_conv")
    ]
    assert len(convolutions) + 1 == row.depth

    # Option A has no projections and option C has one in each block. Option B has them
    # where the shape changes (Table 1: conv3_1, conv4_1, conv5_1, and conv2_1 in
    # networks of bottleneck blocks).
    for stage, blocks in enumerate(row.blocks):
        for block in range(1, blocks + 1):
            changes_shape = block == 1 and (stage > 0 or row.block == "bottleneck")
            projects = option == "C" or (option == "B" and changes_shape)
            prefix = f"conv{stage + 2}_block{block}"
            assert (f"{prefix}_0_conv" in layers) == projects, prefix
            assert (f"{prefix}_add" in layers) == (option != "none")
            assert f"{prefix}_out" in layers

    expected = count_parameters(
        row.block, row.blocks, row.width, row.stem, option, row.classes
    )
    assert count(model.trainable_weights) == expected
    if option == row.shortcut:
        assert expected == row.parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Counts of torchvision and timm, then exact values of the paper's Table 6.
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
def test_published_parameter_counts(name, parameters):
    row = VARIANTS[name]
    assert row.parameters == parameters
    assert parameters == count_parameters(
        row.block, row.blocks, row.width, row.stem, row.shortcut, row.classes
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # From the summaries of Keras, then counted in models of timm and torchvision.
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
def test_parameter_counts_of_the_variations(name, parameters):
    assert VARIANTS[name].parameters == parameters
    # tests/weights/test_dialects.py builds the other networks.
    if "50" in name or "18" in name:
        assert count(keras_resnet.ResNet(name).trainable_weights) == parameters


def test_all_variations_are_counted():
    marks = test_parameter_counts_of_the_variations.pytestmark
    assert [name for name, _ in marks[0].args[1]] == VARIATIONS


def test_parameter_counts_with_other_shortcuts():
    # Counts of other implementations of ResNet-50 with shortcuts A and C.
    row = VARIANTS["resnet50"]
    arguments = (row.block, row.blocks, row.width, row.stem)
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
    assert count(model.trainable_weights) == 25_557_032


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet14"])
@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
def test_odd_sizes_and_channels(name, shortcut, stride_on):
    model = keras_resnet.ResNet(
        name,
        include_top=False,
        input_shape=(37, 43, 5),
        shortcut=shortcut,
        stride_on=stride_on,
    )
    halvings = 5 if name != "cifar_resnet14" else 2
    size = [37, 43]
    for _ in range(halvings):
        size = [(n + 1) // 2 for n in size]
    channels = {"resnet18": 512, "resnet50": 2048, "cifar_resnet14": 64}[name]
    images = np.random.default_rng(0).normal(size=(2, 37, 43, 5))
    assert model(images).shape == (2, *size, channels)


def test_any_size_with_the_top():
    model = keras_resnet.ResNet20(input_shape=(None, None, 3), classes=7)
    for size in (32, 45):
        probabilities = np.asarray(model(np.zeros((2, size, size, 3))))
        assert probabilities.shape == (2, 7)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "reduce"), [("avg", np.mean), ("max", np.max), (None, None)]
)
def test_pooling(pooling, reduce):
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
        # Output sizes of Table 1.
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
        # Output sizes of the table in section 4.2.
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
def test_endpoints(name, shapes):
    outputs = keras_resnet.endpoints(keras_resnet.ResNet(name))
    assert {stage: output.shape[1:] for stage, output in outputs.items()} == shapes


@pytest.mark.parametrize("size", [64, 75])
@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50v2"])
def test_output_stride_keeps_features_at_the_original_positions(name, stride_on, size):
    """Dilated networks keep the original features and add features in between.

    The feature maps of a dilated network may be two or four times as large. Every
    second or fourth position then has the features of the original network. This also
    holds at the border, where both networks pad with zeros.
    """
    keras.utils.set_random_seed(0)
    options = {
        "include_top": False,
        "input_shape": (size, size, 3),
        "stride_on": stride_on,
    }
    model = keras_resnet.ResNet(name, **options)
    # Random offsets make the features sensitive to wrong padding.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            noise = np.random.default_rng(0).normal(0, 0.2, layer.beta.shape)
            layer.beta.assign(layer.beta + noise)
    images = np.random.default_rng(1).normal(size=(1, size, size, 3))
    expected = keras.Model(model.input, keras_resnet.endpoints(model))(images)
    for output_stride in (8, 16):
        dilated = keras_resnet.ResNet(name, output_stride=output_stride, **options)
        dilated.set_weights(model.get_weights())
        features = keras.Model(dilated.input, keras_resnet.endpoints(dilated))(images)
        assert features["conv5"].shape[1] == -(-size // output_stride)
        for stage, values in expected.items():
            number = int(stage[-1]) + (name == "resnet50v2" and 1 < int(stage[-1]) < 5)
            step = max(1, 2**number // output_stride)
            np.testing.assert_allclose(
                np.asarray(features[stage])[:, ::step, ::step],
                np.asarray(values),
                atol=1e-4 * np.abs(values).max(),
                err_msg=f"{stage} at {output_stride}",
            )


def test_endpoints_of_another_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(InputError, match=r"conv1_relu.*conv2_block1_out"):
        keras_resnet.endpoints(model)


@pytest.mark.parametrize("inputs", [8, 16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 9])
def test_shortcut_a(inputs, stride, size):
    """Shortcut A subsamples and adds half of the zero channels on each side."""
    images = (
        np.random.default_rng(0).normal(size=(2, size, size, inputs)).astype("float32")
    )
    image = keras.Input(images.shape[1:])
    spec = Block("block", VARIANTS["resnet20"], 16, stride)
    model = keras.Model(image, shortcut(image, image, spec, 16))
    expected = np.zeros((2, -(-size // stride), -(-size // stride), 16), "float32")
    start = (16 - inputs) // 2
    expected[..., start : start + inputs] = images[:, ::stride, ::stride]
    np.testing.assert_array_equal(np.asarray(model(images)), expected)
    assert not model.weights


@pytest.mark.parametrize("option", ["A", "B", "C"])
@pytest.mark.parametrize(("name", "last"), [("resnet18", 2), ("resnet50", 3)])
def test_zero_last_gamma_passes_the_shortcut_through(name, last, option):
    keras.utils.set_random_seed(0)
    model = keras_resnet.ResNet(
        name, include_top=False, input_shape=(64, 64, 3), shortcut=option
    )
    for stage, blocks in enumerate(VARIANTS[name].blocks):
        for block in range(1, blocks + 1):
            layer = model.get_layer(f"conv{stage + 2}_block{block}_{last}_bn")
            layer.gamma.assign(keras.ops.zeros_like(layer.gamma))
    # Both inputs of the sum (shortcut and branch), and the outputs of two blocks.
    add = model.get_layer("conv4_block1_add")
    probe = keras.Model(
        model.input,
        [*add.input, add.output, model.get_layer("conv4_block2_out").output],
    )
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3))
    carried, branch, total, next_output = map(np.asarray, probe(images, training=True))
    assert np.abs(branch).max() == 0
    assert np.abs(carried).max() > 0
    np.testing.assert_array_equal(total, carried)
    if option != "C":  # The shortcut of the next block is the identity.
        np.testing.assert_array_equal(next_output, np.maximum(total, 0))


@pytest.mark.parametrize(
    ("name", "option", "stride_on"),
    [("resnet18", option, "1x1") for option in "ABC"]
    + [("resnet50", option, on) for option in "ABC" for on in ("1x1", "3x3")]
    + [("resnet20", option, "1x1") for option in "ABC"]
    + [("plainnet20", "none", "1x1"), ("plainnet18", "none", "1x1")],
)
def test_all_weights_have_gradients(name, option, stride_on):
    keras.utils.set_random_seed(0)
    model = keras_resnet.ResNet(
        name, input_shape=(33, 33, 3), classes=5, shortcut=option, stride_on=stride_on
    )
    images = np.random.default_rng(0).normal(size=(4, 33, 33, 3)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.math.log(model(images, training=True))[:, 0])
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(gradient).all(), variable.path
        assert np.abs(gradient).max() > 0, variable.path


_DEEP = """
import json, sys, time
import keras, numpy as np, tensorflow as tf
import keras_resnet
from keras_resnet.nets import flat_layers
keras.utils.set_random_seed(0)
start = time.process_time()  # CPU time, because other tests may run at the same time.
model = keras_resnet.ResNet(sys.argv[1], shortcut=sys.argv[2] or None)
seconds = time.process_time() - start
# The maximum of getrusage can be that of the parent process.
status = open("/proc/self/status").read().splitlines()
memory = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
layers = [layer.name for layer in flat_layers(model)]
parameters = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
endpoints = {k: v.shape[1:] for k, v in keras_resnet.endpoints(model).items()}
images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
model.save(sys.argv[3])
reloaded = keras.models.load_model(sys.argv[3])
assert all(map(np.array_equal, model.get_weights(), reloaded.get_weights()))
# In inference mode, untrained statistics make the sums of 600 blocks overflow.
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
    ("name", "option"),
    [
        ("resnet1202", ""),
        ("resnet1202", "B"),
        ("resnet1202", "C"),
        ("plainnet1202", ""),
    ],
)
def test_1202_layers(name, option, tmp_path):
    """The deepest network builds within a minute and 2 GiB, saves, loads and trains."""
    result = run_python("-c", _DEEP, name, option, tmp_path / "deep.keras", timeout=600)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
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
    row = VARIANTS[name]
    option = option or row.shortcut
    assert report["parameters"] == count_parameters(
        row.block, row.blocks, row.width, row.stem, option, row.classes
    )
    assert report["endpoints"]["conv4"] == [8, 8, 64]
    assert report["missing"] == []
    assert report["changed"] > 0.99 * report["variables"]


def test_saved_model_loads_without_this_package(tmp_path):
    keras.utils.set_random_seed(0)
    for name, option in (("resnet20", "A"), ("resnet18", "B"), ("resnet50", "A")):
        model = keras_resnet.ResNet(name, input_shape=(32, 32, 3), shortcut=option)
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
    result = run_python("-c", code, cwd=tmp_path, env={"PYTHONPATH": ""})
    assert result.returncode == 0, result.stderr


@pytest.mark.full
def test_networks_on_jax_have_the_same_outputs(tmp_path):
    pytest.importorskip("jax")
    keras.utils.set_random_seed(0)
    names = [("resnet20", "A"), ("resnet18", "B"), ("cifar_resnet8", "C")]
    for name, option in names:
        model = keras_resnet.ResNet(name, input_shape=(35, 35, 3), shortcut=option)
        images = np.random.default_rng(0).normal(size=(2, 35, 35, 3)).astype("float32")
        model.save_weights(tmp_path / f"{name}.weights.h5")
        np.savez(tmp_path / f"{name}.npz", x=images, y=np.asarray(model(images)))
    code = f"""
import sys
sys.modules["tensorflow"] = None  # Building a network does not need TensorFlow.
import keras, numpy as np, keras_resnet
assert keras.backend.backend() == "jax"
for name, option in {names!r}:
    model = keras_resnet.ResNet(
        name, input_shape=(35, 35, 3), shortcut=option, weights=f"{{name}}.weights.h5")
    data = np.load(f"{{name}}.npz")
    np.testing.assert_allclose(np.asarray(model(data["x"])), data["y"], rtol=1e-4, atol=1e-5)
    assert keras_resnet.profile(model).parameters
keras.config.set_image_data_format("channels_first")
for name, option in {names!r}:
    model = keras_resnet.ResNet(name, input_shape=(3, 35, 35), shortcut=option)
    model.set_weights(keras_resnet.ResNet(
        name, input_shape=(3, 35, 35), shortcut=option, weights=f"{{name}}.weights.h5"
    ).get_weights())
    data = np.load(f"{{name}}.npz")
    outputs = np.asarray(model(data["x"].transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(outputs, data["y"], rtol=1e-4, atol=1e-5)
"""
    result = run_python("-c", code, cwd=tmp_path, env={"KERAS_BACKEND": "jax"})
    assert result.returncode == 0, result.stderr


def test_input_tensor():
    image = keras.Input((32, 32, 1), name="camera")
    model = keras_resnet.ResNet20(input_tensor=keras.layers.Rescaling(1 / 255)(image))
    assert model.input.name == "camera"
    assert model(np.zeros((1, 32, 32, 1))).shape == (1, 10)


def test_layer_names_are_those_of_keras_applications():
    model = keras_resnet.ResNet50()
    assert model.input.name == "image"
    assert model.name == "resnet50"
    peers = {layer.name for layer in keras.applications.ResNet50(weights=None).layers}
    names = {layer.name for layer in model.layers if layer.weights}
    assert names < peers


def test_signature_is_that_of_keras_applications():
    peer_parameters = inspect.signature(keras.applications.ResNet50).parameters
    parameters = inspect.signature(keras_resnet.ResNet50).parameters
    assert list(parameters)[: len(peer_parameters)] == list(peer_parameters)
    assert parameters["weights"].default is None
    # `None` is the number of classes of the weights, or 1000 without weights.
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
    source = keras_resnet.ResNet20()
    source.save_weights(path)
    model = keras_resnet.ResNet20(weights=str(path))
    for expected, array in zip(source.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)


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
        ({"weights": "missing.keras"}, "There is no such file"),
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


def test_plain_network_has_no_shortcuts():
    with pytest.raises(InputError, match="ResNet of the same depth"):
        keras_resnet.PlainNet34(shortcut="A")


def test_flat_layers_of_a_flat_model():
    model = keras_resnet.ResNet20()
    assert [layer.name for layer in flat_layers(model)] == [
        la.name for la in model.layers
    ]
