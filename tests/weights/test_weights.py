"""A weights file is loaded completely, or refused without a change of the model.

The tests compare loaded weights with the arrays that they wrote to the files, and
outputs of networks with outputs of keras.applications.
"""

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from keras.src.applications import resnet as keras_resnets
from safetensors.numpy import load_file, save_file
from state_dicts import make_arrays, make_images

import keras_resnet
from keras_resnet.support.errors import InputError
from keras_resnet.weights import assign, formats, opening, saving

TORCH_MISSING = "torch is not installed: pip install 'keras-resnet-zoo[torch]'"

# Mean and standard deviation of pixels from 0 to 1 in torchvision and in CIFAR
# repositories.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RESNET8, NUM_CLASSES = "cifar_resnet8", 7
HEAD_NAMES = {"predictions/kernel", "predictions/bias"}


def read_unexpected_warnings(capsys):
    """Returns standard error without the usual warning for `.weights.h5` files."""
    lines = capsys.readouterr().err.splitlines()
    return "".join(line for line in lines if "how pixels are normalised" not in line)


def make_bn_shapes(layer, channels):
    """Maps the state dict keys of a PyTorch batch normalisation to array shapes."""
    variable_names = ("weight", "bias", "running_mean", "running_var")
    return {f"{layer}.{variable_name}": (channels,) for variable_name in variable_names}


def make_cifar_state(blocks_per_stage=1, num_classes=10):
    """Makes a state dict of a CIFAR ResNet with 6 * `blocks_per_stage` + 2 layers.

    The keys are those of CIFAR repositories. The arrays are pseudo-random.
    """
    shapes = {"conv1.weight": (16, 3, 3, 3), **make_bn_shapes("bn1", 16)}
    in_channels = 16
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(blocks_per_stage):
            for i in (1, 2):
                prefix = f"layer{stage}.{block}"
                shapes[f"{prefix}.conv{i}.weight"] = (width, in_channels, 3, 3)
                shapes |= make_bn_shapes(f"{prefix}.bn{i}", width)
                in_channels = width
    shapes |= {"linear.weight": (num_classes, 64), "linear.bias": (num_classes,)}
    return make_arrays(shapes)


STATE = make_cifar_state(num_classes=NUM_CLASSES)


def make_bottleneck_state():
    """Makes a state dict for `build_bottleneck` with the keys of torchvision."""
    shapes = {"conv1.weight": (16, 3, 7, 7), **make_bn_shapes("bn1", 16)}
    for layer, in_channels, width in (("layer1.0", 16, 16), ("layer2.0", 64, 32)):
        out_channels = 4 * width
        shapes |= {
            f"{layer}.conv1.weight": (width, in_channels, 1, 1),
            f"{layer}.conv2.weight": (width, width, 3, 3),
            f"{layer}.conv3.weight": (out_channels, width, 1, 1),
            f"{layer}.downsample.0.weight": (out_channels, in_channels, 1, 1),
            **make_bn_shapes(f"{layer}.bn1", width),
            **make_bn_shapes(f"{layer}.bn2", width),
            **make_bn_shapes(f"{layer}.bn3", out_channels),
            **make_bn_shapes(f"{layer}.downsample.1", out_channels),
        }
    return make_arrays(shapes | {"fc.weight": (5, 128), "fc.bias": (5,)})


def build_resnet8(**options):
    return keras_resnet.ResNet(RESNET8, **options)


def build_bottleneck(**options):
    options = {"input_shape": (32, 32, 3), "classes": 5, **options}
    return keras_resnet.ResNet("resnet50", blocks=(1, 1), width=16, **options)


def to_keras_names(state):
    """Converts a `make_cifar_state` dict to names and axis order of keras_resnet."""
    keras_names_by_type = {
        "bn": ("weight=gamma bias=beta running_mean=moving_mean "
               "running_var=moving_variance"),
        "conv": "weight=kernel",
        "linear": "weight=kernel bias=bias",
    }  # fmt: skip
    arrays = {}
    for key, array in state.items():
        *block_parts, layer, torch_variable = key.split(".")
        layer_type = layer.rstrip("12")
        name = f"conv1_{layer_type}"
        if layer_type == "linear":
            name = "predictions"
        elif block_parts:
            stage, block_number = int(block_parts[0][-1]) + 1, int(block_parts[1]) + 1
            name = f"conv{stage}_block{block_number}_{layer[-1]}_{layer_type}"
        keras_variable = dict(
            pair.split("=") for pair in keras_names_by_type[layer_type].split()
        )[torch_variable]
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        arrays[f"{name}/{keras_variable}"] = array.transpose(axes)
    return arrays


def read_arrays(model):
    return {
        f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
        for layer in model.layers
        for variable in layer.weights
        if layer.name != "normalization"
    }


def assert_same_arrays(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def build_from_state(state):
    """Builds a network and sets its weights to the arrays of a state dict.

    The function does not use `keras_resnet.weights`, which the tests check.
    """
    arrays = to_keras_names(state)
    classes = len(state["linear.bias"])
    model = build_resnet8(classes=classes)
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"{layer.name}/{variable.name}"])
    return model


def write_state(state, path):
    """Writes arrays in the format of the suffix of `path`, and returns `path`."""
    path = str(path)
    if path.endswith(".safetensors"):
        save_file(state, path)
    elif path.endswith(".npz"):
        np.savez(path, **state)
    elif path.endswith(".keras"):
        build_from_state(state).save(path)
    elif path.endswith(".weights.h5"):
        build_from_state(state).save_weights(path)
    else:
        pytest.importorskip("torch", reason=TORCH_MISSING).save(to_torch(state), path)
    return path


def to_torch(state):
    import torch

    return {key: torch.from_numpy(array) for key, array in state.items()}


def make_normaliser(model):
    """Returns a function that applies the normalisation layer of `model` to images."""
    normaliser = keras.Model(model.input, model.get_layer("normalization").output)
    return lambda images: np.asarray(normaliser(images.astype("float32")))


# The following tests compare networks with those of keras.applications.


def write_keras_h5(model, path, head_name="predictions"):
    """Writes a .h5 file with the layout that keras.applications uses."""
    with h5py.File(path, "w") as file:
        names = [
            head_name if la.name == "predictions" else la.name for la in model.layers
        ]
        file.attrs["layer_names"] = [name.encode() for name in names]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.2.4-tf"
        for name, layer in zip(names, model.layers, strict=True):
            group = file.create_group(name)
            keys = [f"{name}/{v.name}:0" for v in layer.weights]
            group.attrs["weight_names"] = [key.encode() for key in keys]
            for key, variable in zip(keys, layer.weights, strict=True):
                group[key] = keras.ops.convert_to_numpy(variable)


class KerasNetwork:
    """A keras.applications network with random weights, saved in three .h5 files.

    The network is a whole one or, if `blocks` is not `None`, has stages of `blocks`
    blocks, which functions of keras.applications build.
    """

    def __init__(self, name, blocks, folder):
        self.name, self.blocks = name, blocks
        rng = np.random.default_rng(len(name))
        self.model = model = self._build()
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                ranges = (0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 1.5)
                shape = layer.gamma.shape
                layer.set_weights([rng.uniform(*r, shape) for r in ranges])
            elif layer.weights:
                kernel, *biases = layer.get_weights()
                biases = [rng.normal(0, 0.3, b.shape) for b in biases]
                layer.set_weights([kernel, *biases])
        self.published_file = str(folder / "published.h5")
        self.saved_model_file = str(folder / "saved_model.h5")
        self.headless_file = str(folder / "notop.h5")
        write_keras_h5(model, self.published_file, head_name="probs")
        model.save(self.saved_model_file)
        features = model.get_layer("avg_pool").output
        self.feature_model = keras.Model(model.input, features)
        write_keras_h5(self.feature_model, self.headless_file)

    def _build(self):
        options = {"input_shape": (64, 64, 3), "classifier_activation": None}
        options["weights"] = None
        if self.blocks is None:
            return getattr(keras.applications, self.name)(**options)
        is_v2 = self.name.endswith("V2")
        add_stack = getattr(
            keras_resnets, f"stack_residual_blocks_v{2 if is_v2 else 1}"
        )

        def add_stacks(x):
            last_stage = len(self.blocks) + 1
            for stage, num_blocks in enumerate(self.blocks, 2):
                is_strided = stage != (last_stage if is_v2 else 2)
                x = add_stack(
                    x, 2 ** (stage + 4), num_blocks, 1 + is_strided, f"conv{stage}"
                )
            return x

        return keras_resnets.ResNet(add_stacks, is_v2, True, **options)

    def build_counterpart(self, **options):
        """Builds the corresponding network of this package."""
        options = {"input_shape": (64, 64, 3), "classifier_activation": None, **options}
        if self.blocks:
            options["blocks"] = self.blocks
        return keras_resnet.ResNet(self.name, **options)

    def preprocess(self, images):
        """Normalises images with the function of keras.applications."""
        module = keras.applications.resnet
        if self.name.endswith("V2"):
            module = keras.applications.resnet_v2
        return module.preprocess_input(images.astype("float32"))

    def assert_same_outputs(self, model, keras_model):
        images = make_images(2, 64)
        images[1] //= 4  # Random images of equal brightness would have similar outputs.
        expected = np.asarray(keras_model(self.preprocess(images), training=False))
        outputs = np.asarray(model(images.astype("float32"), training=False))
        assert outputs.shape == expected.shape
        assert np.ptp(expected, axis=0).max() > 0.005 * np.abs(expected).max()
        assert np.abs(outputs - expected).max() <= 1e-4 * np.abs(expected).max()


def list_keras_networks():
    for name in ("ResNet50", "ResNet50V2"):
        yield pytest.param((name, (2, 2)), id=f"two stages of {name}")
    for depth in (50, 101, 152):
        mark = pytest.mark.slow if depth == 50 else pytest.mark.full
        for name in (f"ResNet{depth}", f"ResNet{depth}V2"):
            yield pytest.param((name, None), id=name, marks=mark)


@pytest.fixture(scope="module", params=list_keras_networks())
def keras_network(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras")
    yield KerasNetwork(*request.param, folder)
    for file in folder.iterdir():  # Free hundreds of megabytes of disk space.
        file.unlink()


@pytest.mark.parametrize("file_attribute", ["published_file", "saved_model_file"])
def test_logits_equal_those_of_keras_applications(keras_network, file_attribute):
    path = getattr(keras_network, file_attribute)
    model = keras_network.build_counterpart(weights=path)
    keras_network.assert_same_outputs(model, keras_network.model)


@pytest.mark.parametrize("file_attribute", ["published_file", "headless_file"])
def test_features_equal_those_of_keras_applications(
    keras_network, file_attribute, capsys
):
    options = {"include_top": False, "pooling": "avg"}
    model = keras_network.build_counterpart(
        weights=getattr(keras_network, file_attribute), **options
    )
    keras_network.assert_same_outputs(model, keras_network.feature_model)
    drops_head = "head of 1000 classes is not used" in capsys.readouterr().err
    assert drops_head == (file_attribute == "published_file")


def test_pixels_and_stride_are_those_of_keras_applications(keras_network):
    checkpoint = opening.open_checkpoint(keras_network.headless_file)
    model = keras_network.build_counterpart(weights=checkpoint, include_top=False)
    images = make_images(2, 64)
    expected = keras_network.preprocess(images)
    if not keras_network.name.endswith("V2"):
        expected = expected[..., ::-1]  # `preprocess` converts RGB to BGR.
    normalised_images = make_normaliser(model)(images)
    np.testing.assert_allclose(normalised_images, expected, rtol=1e-5, atol=1e-4)
    stride_on = "3x3" if keras_network.name.endswith("V2") else "1x1"
    wrong_stride_on = {"1x1": "3x3", "3x3": "1x1"}[stride_on]
    assert model.origin.stride_on == stride_on
    with pytest.raises(InputError, match=f"Received: stride_on='{wrong_stride_on}'"):
        keras_network.build_counterpart(
            weights=checkpoint, include_top=False, stride_on=wrong_stride_on
        )


def test_weights_without_a_head_are_refused_for_a_network_with_one(keras_network):
    with pytest.raises(InputError, match="build with include_top=False"):
        keras_network.build_counterpart(weights=keras_network.headless_file)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "ResNet50V2"])
def test_h5_file_of_this_package_is_refused(name, tmp_path):
    """A reader of `.h5` files would assume the pixel format of keras.applications."""
    path = str(tmp_path / "net.h5")
    options = {"blocks": (1, 1), "width": 16, "classes": 5}
    image = keras.Input((32, 32, 3))
    normalisation = keras.layers.Normalization(
        mean=(9,) * 3, variance=(4,) * 3, name="normalization"
    )
    keras_resnet.ResNet(name, input_tensor=normalisation(image), **options).save(path)
    with pytest.raises(InputError):
        keras_resnet.ResNet(name, weights=path, input_shape=(32, 32, 3), **options)


def test_keras_file_with_another_epsilon_is_refused(tmp_path):
    """The epsilon of keras.applications is 1.001e-5."""
    model = build_resnet8()
    model.get_layer("conv1_bn").epsilon = 1.001e-5
    model.save(tmp_path / "net.keras")
    with pytest.raises(InputError, match=r"epsilon other than 1e-5"):
        formats.read_checkpoint(tmp_path / "net.keras")


# The following tests load files of all formats.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Maps each suffix to the path of a file with the weights `STATE`."""
    folder, model = tmp_path_factory.mktemp("files"), build_from_state(STATE)
    model.save(folder / "net.keras")
    model.save_weights(folder / "net.weights.h5")
    for suffix in ("safetensors", "npz"):
        write_state(STATE, folder / f"net.{suffix}")
    return {path.name.partition(".")[2]: path for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", ["keras", "weights.h5", "safetensors", "npz"])
def test_all_formats_load_the_same_weights(suffix, files, capsys):
    """The network has as many classes as the file, unless `classes` is passed."""
    model = build_resnet8(weights=files[suffix])
    assert_same_arrays(read_arrays(model), to_keras_names(STATE))
    assert model.origin.source == str(files[suffix])
    # PyTorch files get the pixel format of torchvision, and Keras files have none.
    has_pixels = suffix in ("safetensors", "npz")
    assert ("normalization" in [la.name for la in model.layers]) == has_pixels
    assert (model.origin.pixels is not None) == has_pixels
    for variable in model.trainable_variables:
        variable.assign(variable + 1)
    assign.assign_weights(model, formats.read_checkpoint(str(files[suffix])))
    assert_same_arrays(read_arrays(model), to_keras_names(STATE))
    assert read_unexpected_warnings(capsys) == ""


def test_save_state_dict_writes_the_names_of_cifar_repositories(tmp_path):
    state = make_cifar_state()
    path = str(tmp_path / "net.safetensors")
    saving.save_state_dict(build_from_state(state), path)
    arrays = load_file(path)
    counter_keys = {key for key in arrays if key.endswith("num_batches_tracked")}
    assert len(counter_keys) == 7
    assert all(arrays[key].shape == () for key in counter_keys)  # As in PyTorch.
    assert all(arrays[key].dtype == "int64" for key in counter_keys)
    assert_same_arrays(
        {k: v for k, v in arrays.items() if k not in counter_keys}, state
    )
    assert_same_arrays(read_arrays(build_resnet8(weights=path)), to_keras_names(state))


@pytest.mark.parametrize(
    ("suffix", "wrapper", "prefix"),
    [("pth", None, ""), ("th", "state_dict", "module."), ("pth", "model", "module.")],
)
def test_pytorch_file_is_loaded(suffix, wrapper, prefix, tmp_path):
    torch = pytest.importorskip("torch", reason=TORCH_MISSING)
    state = make_cifar_state()
    content = {f"{prefix}{key}": value for key, value in to_torch(state).items()}
    content[f"{prefix}bn1.num_batches_tracked"] = torch.tensor(7)
    if wrapper:
        content = {"epoch": 200, "best_prec1": 91.7, wrapper: content}
    path = str(tmp_path / f"net.{suffix}")
    torch.save(content, path)
    model = build_resnet8(weights=path)
    assert_same_arrays(read_arrays(model), to_keras_names(state))


def test_pytorch_parameters_with_gradients_are_loaded(tmp_path):
    """The reader detaches parameters, as PyTorch requires for converting to NumPy."""
    torch = pytest.importorskip("torch", reason=TORCH_MISSING)
    state = make_cifar_state()
    path = str(tmp_path / "net.pth")
    torch.save({k: torch.nn.Parameter(v) for k, v in to_torch(state).items()}, path)
    assert_same_arrays(read_arrays(build_resnet8(weights=path)), to_keras_names(state))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_half_precision_is_loaded_exactly(dtype, suffix, tmp_path):
    """Float32 can represent all float16 and bfloat16 values."""
    half_state = {k: v.astype(np.dtype(dtype)) for k, v in make_cifar_state().items()}
    state = {k: v.astype("float32") for k, v in half_state.items()}
    path = str(tmp_path / f"net.{suffix}")
    if suffix == "safetensors":
        save_file(half_state, path)
    else:
        torch = pytest.importorskip("torch", reason=TORCH_MISSING)
        dtype = getattr(torch, dtype)
        torch.save({k: v.to(dtype) for k, v in to_torch(state).items()}, path)
    assert_same_arrays(read_arrays(build_resnet8(weights=path)), to_keras_names(state))


def test_safetensors_file_is_reopened_to_free_memory(tmp_path, monkeypatch):
    """The library keeps what it reads in memory until the file is closed."""
    keys = [f"layer{i}.{j}.conv1.weight" for i in (1, 2) for j in (0, 1)]
    arrays = {key: np.full((1024, 1024, 2, 2), i, "f4") for i, key in enumerate(keys)}
    save_file(arrays, tmp_path / "net.safetensors")
    checkpoint = formats.read_checkpoint(tmp_path / "net.safetensors")
    opened_paths, original_open = [], formats.safetensors.safe_open

    def open_file(path, **options):
        opened_paths.append(path)
        return original_open(path, **options)

    monkeypatch.setattr(formats.safetensors, "safe_open", open_file)
    values = [tensor.read().max() for tensor in checkpoint.tensors.values()]
    assert sorted(values) == [0, 1, 2, 3]
    assert (
        len(opened_paths) == 1
    )  # After 48 MiB, more than the 32 MiB that are allowed.


def test_module_prefix_is_removed_without_torch(tmp_path):
    state = make_cifar_state()
    path = str(tmp_path / "net.npz")
    np.savez(path, **{f"module.{key}": array for key, array in state.items()})
    assert_same_arrays(read_arrays(build_resnet8(weights=path)), to_keras_names(state))


# The following tests load weights for networks with different heads.


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("keras", {"include_top": False, "pooling": "avg"}),
        ("weights.h5", {"classes": 10}),
        ("weights.h5", {"include_top": False}),
        ("safetensors", {"classes": 10}),
        ("safetensors", {"include_top": False}),
    ],
)
def test_head_that_does_not_fit_is_not_used(suffix, options, files, capsys):
    path = files[suffix]
    arrays = read_arrays(build_resnet8(weights=path, **options))
    assert f"{path}: the head of 7 classes is not used" in capsys.readouterr().err
    if "classes" in options:
        assert arrays["predictions/kernel"].shape == (64, 10)
        assert arrays["predictions/kernel"].std() > 0
    else:
        assert not HEAD_NAMES & arrays.keys()
    expected = {k: v for k, v in to_keras_names(STATE).items() if k not in HEAD_NAMES}
    assert_same_arrays(
        {k: v for k, v in arrays.items() if k not in HEAD_NAMES}, expected
    )


# The following tests load files that are refused. The model must keep its weights.


@pytest.fixture(scope="module")
def networks():
    """Maps variant names to networks. No test may change their weights."""
    return {name: keras_resnet.ResNet(name) for name in (RESNET8, "cifar_resnet14")}


def assert_refused(model, path, *parts):
    """Checks that a file is refused with a one-line message that contains `parts`."""
    original_arrays = read_arrays(model)
    with pytest.raises(InputError) as error:
        assign.assign_weights(model, formats.read_checkpoint(str(path)))
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert_same_arrays(read_arrays(model), original_arrays)


STATE_DICT_SUFFIXES = ["safetensors", "npz", "pth"]
SUFFIXES = ["keras", "weights.h5", "h5", "safetensors", "npz", "pth"]


@pytest.mark.parametrize(
    ("change_state", "parts"),
    [
        (
            lambda state: state.pop("layer1.0.bn1.weight"),
            ["Missing: conv2_block1_1_bn/gamma"],
        ),
        (
            lambda state: state.update(
                make_arrays({"layer2.1.conv1.weight": (32, 32, 3, 3)})
            ),
            ["Unexpected: layer2.1.conv1.weight"],
        ),
        (
            lambda state: state.update(make_arrays({"auxiliary.weight": (10, 32)})),
            ["auxiliary.weight"],
        ),
        (
            lambda state: state.update(
                make_arrays({"layer2.0.conv1.weight": (32, 16, 1, 1)})
            ),
            ["conv3_block1_1_conv/kernel", "(1, 1, 16, 32)", "(3, 3, 16, 32)"],
        ),
        (
            lambda state: state.update(make_arrays({"linear.bias": (9,)})),
            ["predictions/bias", "(9,)", "(10,)"],
        ),
        (
            lambda state: [state.pop(f"linear.{leaf}") for leaf in ("weight", "bias")],
            ["Missing: predictions/bias", "build with include_top=False"],
        ),
        (lambda state: state.clear(), ["layer1.0.conv1.weight"]),
    ],
    ids=["missing", "unexpected", "unknown", "shape", "bias", "headless", "nothing"],
)
def test_arrays_that_do_not_fit_are_refused(change_state, parts, networks, tmp_path):
    state = make_cifar_state()
    change_state(state)
    path = write_state(state, tmp_path / "net.safetensors")
    assert_refused(networks[RESNET8], path, "net.", *parts)


@pytest.mark.parametrize("suffix", ["keras", "weights.h5", "safetensors", "npz"])
def test_weights_of_another_depth_are_refused(suffix, files, networks, tmp_path):
    """A wrong depth is an error, even if the number of classes is wrong, too."""
    assert_refused(networks["cifar_resnet14"], files[suffix], "cifar_resnet14")
    path = str(tmp_path / f"net.{suffix}")
    if suffix == "weights.h5":
        networks["cifar_resnet14"].save_weights(path)
    elif suffix == "keras":
        networks["cifar_resnet14"].save(path)
    else:
        write_state(make_cifar_state(2, 10), path)
    assert_refused(networks[RESNET8], path, RESNET8)


@pytest.mark.parametrize("suffix", ["keras", "weights.h5"])
def test_keras_file_without_a_head_is_refused(suffix, networks, tmp_path):
    path = str(tmp_path / f"net.{suffix}")
    model = build_resnet8(include_top=False)
    model.save(path) if suffix == "keras" else model.save_weights(path)
    assert_refused(networks[RESNET8], path, "net.")


def test_unexpected_layers_in_weights_h5_are_refused(tmp_path):
    """Without this check, Keras would load some layers of the file silently."""
    path = write_state(make_cifar_state(), tmp_path / "net.weights.h5")
    assert_refused(
        build_resnet8(blocks=(1, 1), include_top=False), path, "arrays are unexpected"
    )


@pytest.mark.parametrize(
    ("saved_variant", "built_variant"),
    [(RESNET8, "cifar_plainnet8"), ("cifar_plainnet8", RESNET8)],
)
def test_plain_and_residual_networks_do_not_share_weights(
    saved_variant, built_variant, tmp_path
):
    """The arrays of both networks have the same shapes, but the layers differ."""
    path = str(tmp_path / "net.keras")
    keras_resnet.ResNet(saved_variant).save(path)
    with pytest.raises(InputError, match="shortcut"):
        keras_resnet.ResNet(built_variant, weights=path)


@pytest.mark.parametrize("suffix", STATE_DICT_SUFFIXES)
def test_weights_of_vgg_are_refused(suffix, networks, tmp_path):
    shapes = {"features.0.weight": (64, 3, 3, 3), "features.0.bias": (64,)}
    shapes |= {"classifier.0.weight": (10, 64), "classifier.0.bias": (10,)}
    path = write_state(make_arrays(shapes), tmp_path / f"vgg.{suffix}")
    assert_refused(
        networks[RESNET8], path, "features.0.weight", "layer1.0.conv1.weight"
    )


def test_other_keras_model_is_refused(networks, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.save(tmp_path / "net.keras")
    model.save_weights(tmp_path / "net.weights.h5")
    model.save(tmp_path / "net.h5")
    for suffix in ("keras", "weights.h5", "h5"):
        assert_refused(networks[RESNET8], tmp_path / f"net.{suffix}", f"net.{suffix}")


def test_arrays_that_are_not_floating_point_are_refused(networks, tmp_path):
    """All array types are checked before the first array is assigned."""
    state = make_cifar_state()
    kernel = state["linear.weight"]
    path = write_state(
        {**state, "linear.weight": np.full(kernel.shape, "a")}, tmp_path / "net.npz"
    )
    assert_refused(networks[RESNET8], path, "net.npz")
    state["linear.weight"] = kernel.astype(ml_dtypes.float8_e4m3fn)
    path = write_state(state, tmp_path / "net.safetensors")
    assert_refused(networks[RESNET8], path, "net.safetensors")


# The following tests check the stride and the pixel format of networks with weights.


def get_strides(model):
    """Returns the strides of the first two convolutions (1x1, 3x3) of conv3_block1."""
    layers = [model.get_layer(f"conv3_block1_{i}_conv") for i in (1, 2)]
    return tuple(layer.strides[0] for layer in layers)


def test_stride_of_pytorch_weights_is_on_the_3x3(tmp_path):
    path = str(tmp_path / "net.safetensors")
    save_file(make_bottleneck_state(), path)
    # Without weights, the 1x1 convolution is strided, as in the paper.
    assert get_strides(build_bottleneck()) == (2, 1)
    model = build_bottleneck(weights=path)
    assert get_strides(model) == (1, 2)
    assert model.origin.stride_on == "3x3"
    # PyTorch files do not contain `stride_on`, so the argument overrides the default.
    assert get_strides(build_bottleneck(weights=path, stride_on="1x1")) == (2, 1)


@pytest.mark.parametrize(
    ("suffix", "stride_on", "other_stride_on", "expected"),
    [("keras", "1x1", "3x3", (2, 1)), ("safetensors", "3x3", "1x1", (1, 2))],
)
def test_stride_stored_in_a_file_cannot_be_changed(
    suffix, stride_on, other_stride_on, expected, tmp_path
):
    path = str(tmp_path / f"net.{suffix}")
    saved_model = build_bottleneck(stride_on=stride_on)
    if suffix == "keras":
        saved_model.save(path)
    else:
        saving.save_state_dict(saved_model, path)
    model = build_bottleneck(weights=path)
    assert get_strides(model) == expected
    assert_same_arrays(read_arrays(model), read_arrays(saved_model))
    assert get_strides(build_bottleneck(weights=path, stride_on=stride_on)) == expected
    with pytest.raises(InputError) as error:
        build_bottleneck(weights=path, stride_on=other_stride_on)
    for part in (
        f"stride_on='{stride_on}'",
        f"Received: stride_on='{other_stride_on}'",
        path,
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pth"])
def test_pytorch_weights_get_the_pixel_format_of_torchvision(suffix, tmp_path):
    path = write_state(make_bottleneck_state(), tmp_path / f"net.{suffix}")
    images = make_images(2, 32)
    expected = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    normalised_images = make_normaliser(build_bottleneck(weights=path))(images)
    np.testing.assert_allclose(normalised_images, expected, rtol=1e-5, atol=1e-5)


def test_keras_file_keeps_its_pixel_format(tmp_path):
    path = str(tmp_path / "net.keras")
    mean, variance = (33.5, 100.25, 7.0), (4.0, 81.0, 6400.0)
    normalisation = keras.layers.Normalization(
        mean=mean, variance=variance, name="normalization"
    )
    image = keras.Input((32, 32, 3))
    saved_model = build_resnet8(input_tensor=normalisation(image))
    saved_model.save(path)
    model = build_resnet8(weights=path)
    images = make_images(2, 32)
    expected = (images - np.array(mean)) / np.sqrt(variance)
    normalised_images = make_normaliser(model)(images)
    np.testing.assert_allclose(normalised_images, expected, rtol=1e-5, atol=1e-5)
    assert_same_arrays(read_arrays(model), read_arrays(saved_model))
    with pytest.raises(InputError, match=r"3 channel.* Received: 1 "):
        build_resnet8(weights=path, input_shape=(32, 32, 1))
