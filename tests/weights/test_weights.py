"""Files of all formats are loaded completely or refused with a one-line message.

Expected values come from keras.applications, from PyTorch's documentation and from
arrays that the tests write under explicit names.
"""

import os
import pathlib
import pickle
import sys

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from state_dicts import make_arrays, make_images

import keras_resnet
from keras_resnet.support.errors import InputError
from keras_resnet.weights import assign, formats, opening, saving

TORCH = "torch is not installed: pip install 'keras-resnet-zoo[torch]'"

# Normalisation of torchvision, for pixels from 0 to 1. CIFAR repositories use it too.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NAME = "cifar_resnet8"
HEAD = {"predictions/kernel", "predictions/bias"}


def unexpected_warnings(capsys):
    """Returns standard error without the usual warning about `.weights.h5` files."""
    lines = capsys.readouterr().err.splitlines()
    return "".join(line for line in lines if "normalisation of pixels" not in line)


def bn(layer, channels):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{layer}.{leaf}": (channels,) for leaf in leaves}


def cifar_state(blocks=1, classes=10):
    """Makes a state dict of a ResNet with 6n+2 layers, with CIFAR repositories' names."""
    shapes = {"conv1.weight": (16, 3, 3, 3), **bn("bn1", 16)}
    inputs = 16
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(blocks):
            for i in (1, 2):
                prefix = f"layer{stage}.{block}"
                shapes[f"{prefix}.conv{i}.weight"] = (width, inputs, 3, 3)
                shapes |= bn(f"{prefix}.bn{i}", width)
                inputs = width
    shapes |= {"linear.weight": (classes, 64), "linear.bias": (classes,)}
    return make_arrays(shapes)


def bottleneck_state():
    """Makes a state dict with torchvision's names for the network of `bottleneck`."""
    shapes = {"conv1.weight": (16, 3, 7, 7), **bn("bn1", 16)}
    for layer, inputs, width in (("layer1.0", 16, 16), ("layer2.0", 64, 32)):
        outputs = 4 * width
        shapes |= {
            f"{layer}.conv1.weight": (width, inputs, 1, 1),
            f"{layer}.conv2.weight": (width, width, 3, 3),
            f"{layer}.conv3.weight": (outputs, width, 1, 1),
            f"{layer}.downsample.0.weight": (outputs, inputs, 1, 1),
            **bn(f"{layer}.bn1", width),
            **bn(f"{layer}.bn2", width),
            **bn(f"{layer}.bn3", outputs),
            **bn(f"{layer}.downsample.1", outputs),
        }
    return make_arrays(shapes | {"fc.weight": (5, 128), "fc.bias": (5,)})


def small(**options):
    return keras_resnet.ResNet(NAME, **options)


def bottleneck(**options):
    options = {"input_shape": (32, 32, 3), "classes": 5, **options}
    return keras_resnet.ResNet("resnet50", blocks=(1, 1), width=16, **options)


def to_keras_names(state):
    """Converts the state dict of `cifar_state` to names and axes of this package."""
    leaves = {
        "bn": ("weight=gamma bias=beta running_mean=moving_mean "
               "running_var=moving_variance"),
        "conv": "weight=kernel",
        "linear": "weight=kernel bias=bias",
    }  # fmt: skip
    arrays = {}
    for key, array in state.items():
        *block, layer, leaf = key.split(".")
        layer_type = layer.rstrip("12")
        name = f"conv1_{layer_type}"
        if layer_type == "linear":
            name = "predictions"
        elif block:
            stage, number = int(block[0][-1]) + 1, int(block[1]) + 1
            name = f"conv{stage}_block{number}_{layer[-1]}_{layer_type}"
        variable = dict(pair.split("=") for pair in leaves[layer_type].split())[leaf]
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        arrays[f"{name}/{variable}"] = array.transpose(axes)
    return arrays


def get_arrays(model):
    return {
        f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
        for layer in model.layers
        for variable in layer.weights
        if layer.name != "normalization"
    }


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def build_from_state(state):
    """Builds a `cifar_resnet8` with these arrays, without the readers of the package."""
    arrays = to_keras_names(state)
    classes = len(state["linear.bias"])
    model = small(classes=classes)
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"{layer.name}/{variable.name}"])
    return model


def write(state, path):
    """Writes a file in the format of its ending, and returns its path."""
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
        pytest.importorskip("torch", reason=TORCH).save(tensors(state), path)
    return path


def tensors(state):
    import torch

    return {key: torch.from_numpy(array) for key, array in state.items()}


def first_layer(model):
    """Returns a function that normalises images like the first layer of the network."""
    layer = keras.Model(model.input, model.get_layer("normalization").output)
    return lambda images: np.asarray(layer(images.astype("float32")))


# Comparison with networks of keras.applications.


def write_published(model, path, head="predictions"):
    """Writes weights like Keras 2 wrote the files at storage.googleapis.com."""
    with h5py.File(path, "w") as file:
        names = [head if la.name == "predictions" else la.name for la in model.layers]
        file.attrs["layer_names"] = [name.encode() for name in names]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.2.4-tf"
        for name, layer in zip(names, model.layers, strict=True):
            group = file.create_group(name)
            keys = [f"{name}/{v.name}:0" for v in layer.weights]
            group.attrs["weight_names"] = [key.encode() for key in keys]
            for key, variable in zip(keys, layer.weights, strict=True):
                group[key] = keras.ops.convert_to_numpy(variable)


class Peer:
    """A random network of keras.applications and files with its weights."""

    def __init__(self, name, folder):
        self.name = name
        random = np.random.default_rng(len(name))
        model = self.build(weights=None)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                ranges = (0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 1.5)
                shape = layer.gamma.shape
                layer.set_weights([random.uniform(*r, shape) for r in ranges])
            elif layer.weights:
                kernel, *bias = layer.get_weights()
                bias = [random.normal(0, 0.3, b.shape) for b in bias]
                layer.set_weights([kernel, *bias])
        self.published = str(folder / "published.h5")
        self.saved_model = str(folder / "saved_model.h5")
        self.headless = str(folder / "notop.h5")
        write_published(model, self.published, head="probs")
        model.save(self.saved_model)
        features = keras.Model(model.input, model.get_layer("avg_pool").output)
        write_published(features, self.headless)

    def build(self, **options):
        """Builds the network of keras.applications."""
        options = {"classifier_activation": None, **options}
        constructor = getattr(keras.applications, self.name)
        return constructor(input_shape=(64, 64, 3), **options)

    def rebuild(self, **options):
        """Builds the corresponding network of this package."""
        options = {"classifier_activation": None, **options}
        return getattr(keras_resnet, self.name)(input_shape=(64, 64, 3), **options)

    def preprocess(self, images):
        """Normalises images with the function of keras.applications."""
        version = keras.applications.resnet
        if self.name.endswith("V2"):
            version = keras.applications.resnet_v2
        return version.preprocess_input(images.astype("float32"))

    def assert_same_outputs(self, model, peer_model):
        images = make_images(2, 64)
        expected = np.asarray(peer_model(self.preprocess(images), training=False))
        outputs = np.asarray(model(images.astype("float32"), training=False))
        assert outputs.shape == expected.shape
        assert np.ptp(expected, axis=0).max() > 0.005 * np.abs(expected).max()
        assert np.abs(outputs - expected).max() <= 1e-4 * np.abs(expected).max()


def peer_names():
    for name in ("ResNet50", "ResNet50V2"):
        yield pytest.param(name)
    for name in ("ResNet101", "ResNet152", "ResNet101V2", "ResNet152V2"):
        yield pytest.param(name, marks=pytest.mark.full)


@pytest.fixture(scope="module", params=peer_names())
def peer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    yield Peer(request.param, folder)
    for file in folder.iterdir():  # The files have hundreds of megabytes.
        file.unlink()


@pytest.mark.parametrize("file", ["published", "saved_model"])
def test_logits_equal_those_of_keras_applications(peer, file):
    path = getattr(peer, file)
    model = peer.rebuild(weights=path)
    peer.assert_same_outputs(model, peer.build(weights=path))


@pytest.mark.parametrize("file", ["published", "headless"])
def test_features_equal_those_of_keras_applications(peer, file, capsys):
    options = {"include_top": False, "pooling": "avg"}
    model = peer.rebuild(weights=getattr(peer, file), **options)
    peer.assert_same_outputs(model, peer.build(weights=peer.headless, **options))
    drops_head = "head of 1000 classes is not used" in capsys.readouterr().err
    assert drops_head == (file == "published")


def test_pixels_and_stride_are_those_of_keras_applications(peer):
    checkpoint = opening.open_checkpoint(peer.headless)
    model = peer.rebuild(weights=checkpoint, include_top=False)
    images = make_images(2, 64)
    expected = peer.preprocess(images)
    if not peer.name.endswith("V2"):
        expected = expected[..., ::-1]  # The preprocessed images are BGR.
    normalised = first_layer(model)(images)
    np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-4)
    stride_on = "3x3" if peer.name.endswith("V2") else "1x1"
    other = {"1x1": "3x3", "3x3": "1x1"}[stride_on]
    assert model.origin.stride_on == stride_on
    with pytest.raises(InputError, match=f"Received: stride_on='{other}'"):
        peer.rebuild(weights=checkpoint, include_top=False, stride_on=other)


def test_weights_without_a_head_are_refused_for_a_network_with_one(peer):
    with pytest.raises(InputError, match="build with include_top=False"):
        peer.rebuild(weights=peer.headless)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "ResNet50V2"])
def test_h5_file_of_this_package_is_refused(name, tmp_path):
    """A `.h5` file is read as one of keras.applications, with another pixel format."""
    path = str(tmp_path / "net.h5")
    row = {"blocks": (1, 1), "width": 16, "classes": 5}
    image = keras.Input((32, 32, 3))
    normalise = keras.layers.Normalization(
        mean=(9,) * 3, variance=(4,) * 3, name="normalization"
    )
    keras_resnet.ResNet(name, input_tensor=normalise(image), **row).save(path)
    with pytest.raises(InputError):
        keras_resnet.ResNet(name, weights=path, input_shape=(32, 32, 3), **row)


# Loading files of all formats.


@pytest.mark.parametrize("ending", ["keras", "weights.h5", "safetensors", "npz"])
@pytest.mark.parametrize("path_type", [str, pathlib.Path])
def test_all_formats_load_the_same_weights(ending, path_type, tmp_path, capsys):
    state = cifar_state()
    path = path_type(write(state, tmp_path / f"net.{ending}"))
    model = small(weights=path)
    assert_same(get_arrays(model), to_keras_names(state))
    assert model.origin.source == str(path)
    model = small()
    assign.assign_weights(model, formats.read_checkpoint(path))
    assert_same(get_arrays(model), to_keras_names(state))
    assert unexpected_warnings(capsys) == ""


def test_save_state_dict_writes_the_names_of_cifar_repositories(tmp_path):
    state = cifar_state()
    path = str(tmp_path / "net.safetensors")
    saving.save_state_dict(build_from_state(state), path)
    arrays = load_file(path)
    counters = {key for key in arrays if key.endswith("num_batches_tracked")}
    assert len(counters) == 7
    assert_same({k: v for k, v in arrays.items() if k not in counters}, state)
    assert_same(get_arrays(small(weights=path)), to_keras_names(state))


@pytest.mark.parametrize("ending", ["pth", "th"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pytorch_file_is_loaded(ending, wrapper, prefix, tmp_path):
    torch = pytest.importorskip("torch", reason=TORCH)
    state = cifar_state()
    content = {f"{prefix}{key}": value for key, value in tensors(state).items()}
    content[f"{prefix}bn1.num_batches_tracked"] = torch.tensor(7)
    if wrapper:
        content = {"epoch": 200, "best_prec1": 91.7, wrapper: content}
    path = str(tmp_path / f"net.{ending}")
    torch.save(content, path)
    model = small(weights=path)
    assert_same(get_arrays(model), to_keras_names(state))


def test_pytorch_parameters_with_gradients_are_loaded(tmp_path):
    """Values of `dict(net.named_parameters())` require gradients."""
    torch = pytest.importorskip("torch", reason=TORCH)
    state = cifar_state()
    path = str(tmp_path / "net.pth")
    torch.save({k: torch.nn.Parameter(v) for k, v in tensors(state).items()}, path)
    assert_same(get_arrays(small(weights=path)), to_keras_names(state))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_half_precision(dtype, ending, tmp_path):
    """float32 represents all numbers of half precision exactly."""
    half = {k: v.astype(np.dtype(dtype)) for k, v in cifar_state().items()}
    state = {k: v.astype("float32") for k, v in half.items()}
    path = str(tmp_path / f"net.{ending}")
    if ending == "safetensors":
        save_file(half, path)
    else:
        torch = pytest.importorskip("torch", reason=TORCH)
        dtype = getattr(torch, dtype)
        torch.save({k: v.to(dtype) for k, v in tensors(state).items()}, path)
    assert_same(get_arrays(small(weights=path)), to_keras_names(state))


def test_module_prefix_without_torch(tmp_path):
    state = cifar_state()
    path = str(tmp_path / "net.npz")
    np.savez(path, **{f"module.{key}": array for key, array in state.items()})
    assert_same(get_arrays(small(weights=path)), to_keras_names(state))


# Loading of the head.


@pytest.mark.parametrize("ending", ["keras", "weights.h5", "safetensors"])
@pytest.mark.parametrize(
    "options",
    [{"classes": 7}, {"include_top": False}, {"include_top": False, "pooling": "avg"}],
    ids=["classes", "no top", "pooled"],
)
def test_head_that_does_not_fit_is_not_used(ending, options, tmp_path, capsys):
    state = cifar_state()
    path = write(state, tmp_path / f"net.{ending}")
    arrays = get_arrays(small(weights=path, **options))
    assert f"{path}: the head of 10 classes is not used" in capsys.readouterr().err
    if "classes" in options:
        assert arrays["predictions/kernel"].shape == (64, 7)
        assert arrays["predictions/kernel"].std() > 0
    else:
        assert not HEAD & arrays.keys()
    expected = {k: v for k, v in to_keras_names(state).items() if k not in HEAD}
    assert_same({k: v for k, v in arrays.items() if k not in HEAD}, expected)


@pytest.mark.parametrize("ending", ["keras", "weights.h5", "safetensors", "npz"])
def test_number_of_classes_is_that_of_the_file(ending, tmp_path, capsys):
    state = cifar_state(classes=7)
    path = write(state, tmp_path / f"net.{ending}")
    model = small(weights=path)
    assert_same(get_arrays(model), to_keras_names(state))
    assert unexpected_warnings(capsys) == ""


# Refused files, which do not change the model.


@pytest.fixture(scope="module")
def networks():
    """Networks by name. Their weights must not change."""
    return {name: keras_resnet.ResNet(name) for name in (NAME, "resnet20", "resnet32")}


def assert_refused(model, path, *parts):
    original_arrays = get_arrays(model)
    with pytest.raises(InputError) as error:
        assign.assign_weights(model, formats.read_checkpoint(str(path)))
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert_same(get_arrays(model), original_arrays)


ARRAYS = ["safetensors", "npz", "pth"]
FORMATS = ["keras", "weights.h5", "h5", "safetensors", "npz", "pth"]


@pytest.mark.parametrize("ending", ARRAYS)
@pytest.mark.parametrize(
    ("change", "parts"),
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
def test_arrays_that_do_not_fit(ending, change, parts, networks, tmp_path):
    state = cifar_state()
    change(state)
    path = write(state, tmp_path / f"net.{ending}")
    assert_refused(networks[NAME], path, "net.", *parts)


@pytest.mark.parametrize("ending", ["keras", "weights.h5", *ARRAYS])
@pytest.mark.parametrize("classes", [10, 7])
def test_weights_of_another_depth(ending, classes, networks, tmp_path):
    """The error does not depend on the head, which alone would cause a warning only."""
    for blocks, other in ((3, "resnet32"), (1, "resnet20")):
        state = cifar_state(blocks, classes)
        path = str(tmp_path / f"net{blocks}.{ending}")
        if ending in ("keras", "weights.h5"):
            model = keras_resnet.ResNet(
                f"cifar_resnet{6 * blocks + 2}", classes=classes
            )
            model.save(path) if ending == "keras" else model.save_weights(path)
        else:
            write(state, path)
        assert_refused(networks[other], path, other)


@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_keras_file_without_a_head(ending, networks, tmp_path):
    path = str(tmp_path / f"net.{ending}")
    model = small(include_top=False)
    model.save(path) if ending == "keras" else model.save_weights(path)
    assert_refused(networks[NAME], path, "net.")


def test_unexpected_layers_in_weights_h5(tmp_path):
    """Keras itself loads the first layers of a deeper network without an error."""
    path = write(cifar_state(), tmp_path / "net.weights.h5")
    assert_refused(small(blocks=(1, 1), include_top=False), path, "Unexpected: ")


@pytest.mark.parametrize(
    ("one", "other"), [(NAME, "cifar_plainnet8"), ("cifar_plainnet8", NAME)]
)
def test_plain_and_residual_networks_do_not_share_weights(one, other, tmp_path):
    """The arrays have the same shapes, but the layers of a `.keras` file differ."""
    path = str(tmp_path / "net.keras")
    keras_resnet.ResNet(one).save(path)
    with pytest.raises(InputError, match="shortcut"):
        keras_resnet.ResNet(other, weights=path)


@pytest.mark.parametrize("ending", ARRAYS)
def test_weights_of_vgg(ending, networks, tmp_path):
    shapes = {"features.0.weight": (64, 3, 3, 3), "features.0.bias": (64,)}
    shapes |= {"classifier.0.weight": (10, 64), "classifier.0.bias": (10,)}
    path = write(make_arrays(shapes), tmp_path / f"vgg.{ending}")
    assert_refused(networks[NAME], path, "features.0.weight", "layer1.0.conv1.weight")


def test_other_keras_model(networks, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.save(tmp_path / "net.keras")
    model.save_weights(tmp_path / "net.weights.h5")
    model.save(tmp_path / "net.h5")
    for ending in ("keras", "weights.h5", "h5"):
        assert_refused(networks[NAME], tmp_path / f"net.{ending}", f"net.{ending}")


def test_arrays_that_are_not_floating_point(networks, tmp_path):
    """A wrong type in the last array is found before any array is assigned."""
    state = cifar_state()
    kernel = state["linear.weight"]
    path = write(
        {**state, "linear.weight": np.full(kernel.shape, "a")}, tmp_path / "net.npz"
    )
    assert_refused(networks[NAME], path, "net.npz")
    state["linear.weight"] = kernel.astype(ml_dtypes.float8_e4m3fn)
    path = write(state, tmp_path / "net.safetensors")
    assert_refused(networks[NAME], path, "net.safetensors")


@pytest.fixture(scope="module")
def valid_files(tmp_path_factory):
    """Bytes of a valid file in each format. Without PyTorch, `.pth` is a plain pickle."""
    folder, state = tmp_path_factory.mktemp("good"), cifar_state()
    for ending in ("keras", "weights.h5", "safetensors", "npz"):
        write(state, folder / f"net.{ending}")
    write_published(build_from_state(state), folder / "net.h5")
    try:
        import torch
    except ModuleNotFoundError:
        (folder / "net.pth").write_bytes(pickle.dumps(state))
    else:
        torch.save(tensors(state), folder / "net.pth")
    return {ending: (folder / f"net.{ending}").read_bytes() for ending in FORMATS}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("fraction", [0, 0.001, 0.1, 0.5, 0.9, 1], ids=str)
def test_truncated_file(ending, fraction, valid_files, networks, tmp_path):
    path = tmp_path / f"net.{ending}"
    data = valid_files[ending]
    path.write_bytes(data[: min(int(fraction * len(data)), len(data) - 1)])
    assert_refused(networks[NAME], path, f"net.{ending}")


@pytest.mark.parametrize("ending", ["keras", "npz"])
def test_file_with_a_changed_byte(ending, valid_files, networks, tmp_path):
    """These formats contain checksums."""
    path = tmp_path / f"net.{ending}"
    data = bytearray(valid_files[ending])
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert_refused(networks[NAME], path, f"net.{ending}")


@pytest.mark.parametrize(
    ("content", "ending"),
    [(c, end) for c in [*FORMATS, "txt"] for end in FORMATS if c != end],
)
def test_wrong_ending(content, ending, valid_files, networks, tmp_path):
    path = tmp_path / f"net.{ending}"
    path.write_bytes(valid_files.get(content, b"A text without weights.\n" * 99))
    assert_refused(networks[NAME], path, f"net.{ending}")


@pytest.mark.parametrize("ending", FORMATS)
def test_folder_and_missing_file(ending, networks, tmp_path):
    path = tmp_path / f"net.{ending}"
    assert_refused(networks[NAME], path, "no such file", f"net.{ending}")
    path.mkdir()
    assert_refused(networks[NAME], path, "no such file", f"net.{ending}")


@pytest.mark.parametrize("name", ["net.onnx", "net.pt", "net", "folder/"])
def test_unknown_ending(name, networks, tmp_path):
    path = f"{tmp_path}/{name}"
    pathlib.Path(path).mkdir() if path.endswith("/") else pathlib.Path(path).touch()
    parts = (".weights.h5, .keras, .safetensors, .npz, .h5, .pth, .th", path)
    assert_refused(networks[NAME], path, *parts)
    with pytest.raises(InputError) as error:
        small(weights=path)
    assert all(part in str(error.value) for part in parts)


# Files with malicious code, which must not be executed.


class Exploit:
    """An object that makes the folder `marker` when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_exploit_works(tmp_path):
    pickle.loads(pickle.dumps(Exploit(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_pickled_objects_in_npz(networks, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "net.npz"
    state = cifar_state()
    np.savez(path, **state, extra=np.array([Exploit(marker)], dtype=object))
    assert_refused(networks[NAME], path, "net.npz")
    np.savez(
        path, **{**state, "linear.bias": np.array([Exploit(marker)], dtype=object)}
    )
    assert_refused(networks[NAME], path, "net.npz")
    path.write_bytes(pickle.dumps(Exploit(marker)))
    assert_refused(networks[NAME], path, "net.npz")
    assert not marker.exists()


def test_lambda_in_a_keras_file(networks, tmp_path):
    marker = str(tmp_path / "marker")
    path = tmp_path / "net.keras"
    layer = keras.layers.Lambda(
        lambda x, marker=marker: __import__("os").mkdir(marker) or x, output_shape=(4,)
    )
    keras.Sequential([keras.Input((4,)), layer]).save(path)
    os.path.isdir(marker) and os.rmdir(marker)
    assert_refused(networks[NAME], path, "net.keras")
    assert not os.path.exists(marker)


@pytest.mark.parametrize("wrapped", [False, True])
def test_pickle_without_torch(wrapped, networks, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    marker, path = tmp_path / "marker", tmp_path / "net.pth"
    exploit = Exploit(marker)
    path.write_bytes(pickle.dumps({"state_dict": exploit} if wrapped else exploit))
    assert_refused(networks[NAME], path, "keras-resnet-zoo[torch]", "net.pth")
    assert not marker.exists()


@pytest.mark.parametrize("writer", ["pickle", "torch", "torch with weights"])
def test_pickle_with_torch(writer, networks, tmp_path):
    torch = pytest.importorskip("torch", reason=TORCH)
    marker, path = tmp_path / "marker", tmp_path / "net.pth"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Exploit(marker)}))
    elif writer == "torch":
        torch.save(Exploit(marker), path)
    else:
        torch.save({**tensors(cifar_state()), "extra": Exploit(marker)}, path)
    assert_refused(networks[NAME], path, "net.pth", "refused", "None of its code")
    assert not marker.exists()


# Stride and pixel format of the weights.


def strides(model):
    """Returns the strides of the 1x1 and 3x3 convolutions of the first strided block."""
    layers = [model.get_layer(f"conv3_block1_{i}_conv") for i in (1, 2)]
    return tuple(layer.strides[0] for layer in layers)


def test_stride_of_pytorch_weights_is_on_the_3x3(tmp_path):
    path = str(tmp_path / "net.safetensors")
    save_file(bottleneck_state(), path)
    assert strides(bottleneck()) == (2, 1)  # As in the paper, without weights.
    model = bottleneck(weights=path)
    assert strides(model) == (1, 2)
    assert model.origin.stride_on == "3x3"
    # The names of the arrays only suggest the stride, so an argument overrides it.
    assert strides(bottleneck(weights=path, stride_on="1x1")) == (2, 1)


@pytest.mark.parametrize("ending", ["keras", "safetensors"])
@pytest.mark.parametrize(
    ("stride_on", "other", "expected"), [("1x1", "3x3", (2, 1)), ("3x3", "1x1", (1, 2))]
)
def test_stride_of_a_file_of_this_package(ending, stride_on, other, expected, tmp_path):
    path = str(tmp_path / f"net.{ending}")
    source = bottleneck(stride_on=stride_on)
    if ending == "keras":
        source.save(path)
    else:
        saving.save_state_dict(source, path)
    model = bottleneck(weights=path)
    assert strides(model) == expected
    assert_same(get_arrays(model), get_arrays(source))
    assert strides(bottleneck(weights=path, stride_on=stride_on)) == expected
    with pytest.raises(InputError) as error:
        bottleneck(weights=path, stride_on=other)
    for part in (f"stride_on='{stride_on}'", f"Received: stride_on='{other}'", path):
        assert part in str(error.value)


@pytest.mark.parametrize("ending", ["safetensors", "npz", "pth"])
@pytest.mark.parametrize("make_state", [cifar_state, bottleneck_state])
def test_pytorch_weights_get_the_pixel_format_of_torchvision(
    make_state, ending, tmp_path
):
    path = write(make_state(), tmp_path / f"net.{ending}")
    build = bottleneck if make_state is bottleneck_state else small
    model = build(weights=path)
    images = make_images(2, 32)
    expected = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    normalised = first_layer(model)(images)
    np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_keras_file_keeps_its_pixel_format(channels, tmp_path):
    path = str(tmp_path / "net.keras")
    mean, variance = (33.5, 100.25, 7.0)[:channels], (4.0, 81.0, 6400.0)[:channels]
    image = keras.Input((32, 32, channels))
    layer = keras.layers.Normalization(
        mean=mean, variance=variance, name="normalization"
    )
    source = small(input_tensor=layer(image))
    source.save(path)
    model = small(weights=path, input_shape=(32, 32, channels))
    images = make_images(2, 32)[..., :channels]
    expected = (images - np.array(mean)) / np.sqrt(variance)
    normalised = first_layer(model)(images)
    np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-5)
    assert_same(get_arrays(model), get_arrays(source))
    other = 4 - channels
    with pytest.raises(InputError, match=rf"{channels} channel.* Received: {other} "):
        small(weights=path, input_shape=(32, 32, other))


@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_file_without_a_pixel_format(ending, tmp_path):
    path = write(cifar_state(), tmp_path / f"net.{ending}")
    model = small(weights=path)
    assert "normalization" not in [layer.name for layer in model.layers]
    assert model.origin.pixels is None


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18, b"{}", "half"])
def test_damaged_model(trained_run, tmp_path, content):
    data = (trained_run / "final.keras").read_bytes()
    path = tmp_path / "final.keras"
    path.write_bytes(data[: len(data) // 2] if content == "half" else content)
    with pytest.raises(InputError, match=r"final\.keras"):
        formats.load_model(str(path))
