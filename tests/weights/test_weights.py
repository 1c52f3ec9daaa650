"""Weights of every kind of file: loaded whole, or refused with one line.

Expected values come from keras.applications, from PyTorch's published numbers and
from arrays that this file writes under names that it spells out itself.
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
from state_dicts import fill, pixels

import keras_resnet
from keras_resnet.support.errors import InputError
from keras_resnet.weights import assign, formats, opening, saving

TORCH = "torch is not installed: pip install 'keras-resnet-zoo[torch]'"

# What torchvision's documentation asks for, and what CIFAR repositories copied.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NAME = "cifar_resnet8"
HEAD = {"predictions/kernel", "predictions/bias"}


def said(capsys):
    """What was said on standard error, less what Keras's own files do not say."""
    lines = capsys.readouterr().err.splitlines()
    return "".join(line for line in lines if "does not say how pixels" not in line)


def bn(layer, channels):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{layer}.{leaf}": (channels,) for leaf in leaves}


def cifar_state(blocks=1, classes=10):
    """A state dict of a ResNet of 6n+2 layers, in CIFAR repositories' names."""
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
    return fill(shapes)


def bottleneck_state():
    """A state dict in torchvision's names of two bottlenecks, for `bottleneck`."""
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
    return fill(shapes | {"fc.weight": (5, 128), "fc.bias": (5,)})


def small(**options):
    return keras_resnet.ResNet(NAME, **options)


def bottleneck(**options):
    options = {"input_shape": (32, 32, 3), "classes": 5, **options}
    return keras_resnet.ResNet("resnet50", blocks=(1, 1), width=16, **options)


def in_keras(state):
    """The arrays of `cifar_state` under our names, with the axes of Keras."""
    leaves = {
        "bn": ("weight=gamma bias=beta running_mean=moving_mean "
               "running_var=moving_variance"),
        "conv": "weight=kernel",
        "linear": "weight=kernel bias=bias",
    }  # fmt: skip
    found = {}
    for key, array in state.items():
        *block, layer, leaf = key.split(".")
        kind = layer.rstrip("12")
        name = f"conv1_{kind}"
        if kind == "linear":
            name = "predictions"
        elif block:
            stage, number = int(block[0][-1]) + 1, int(block[1]) + 1
            name = f"conv{stage}_block{number}_{layer[-1]}_{kind}"
        variable = dict(pair.split("=") for pair in leaves[kind].split())[leaf]
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        found[f"{name}/{variable}"] = array.transpose(axes)
    return found


def arrays_of(model):
    return {
        f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
        for layer in model.layers
        for variable in layer.weights
        if layer.name != "normalization"
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def model_of(state):
    """A `cifar_resnet8` with these arrays, which no code of ours has read."""
    arrays = in_keras(state)
    classes = len(state["linear.bias"])
    model = small(classes=classes)
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"{layer.name}/{variable.name}"])
    return model


def write(state, path):
    """Writes a file of the kind that its ending says; returns its path."""
    path = str(path)
    if path.endswith(".safetensors"):
        save_file(state, path)
    elif path.endswith(".npz"):
        np.savez(path, **state)
    elif path.endswith(".keras"):
        model_of(state).save(path)
    elif path.endswith(".weights.h5"):
        model_of(state).save_weights(path)
    else:
        pytest.importorskip("torch", reason=TORCH).save(tensors(state), path)
    return path


def tensors(state):
    import torch

    return {key: torch.from_numpy(array) for key, array in state.items()}


def first_layer(model):
    """What the network makes of pixels before its first convolution."""
    layer = keras.Model(model.input, model.get_layer("normalization").output)
    return lambda images: np.asarray(layer(images.astype("float32")))


# keras.applications, run live.


def write_published(model, path, head="predictions"):
    """As Keras 2 wrote the files at storage.googleapis.com: weights only."""
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


class Source:
    """A random network of keras.applications and the files of its weights."""

    def __init__(self, name, folder):
        self.name = name
        random = np.random.default_rng(len(name))
        theirs = self.theirs(weights=None)
        for layer in theirs.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                ranges = (0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 1.5)
                shape = layer.gamma.shape
                layer.set_weights([random.uniform(*r, shape) for r in ranges])
            elif layer.weights:
                kernel, *bias = layer.get_weights()
                bias = [random.normal(0, 0.3, b.shape) for b in bias]
                layer.set_weights([kernel, *bias])
        self.published = str(folder / "published.h5")
        self.whole = str(folder / "whole.h5")
        self.headless = str(folder / "notop.h5")
        write_published(theirs, self.published, head="probs")
        theirs.save(self.whole)
        features = keras.Model(theirs.input, theirs.get_layer("avg_pool").output)
        write_published(features, self.headless)

    def theirs(self, **options):
        options = {"classifier_activation": None, **options}
        make = getattr(keras.applications, self.name)
        return make(input_shape=(64, 64, 3), **options)

    def ours(self, **options):
        options = {"classifier_activation": None, **options}
        return getattr(keras_resnet, self.name)(input_shape=(64, 64, 3), **options)

    def prepared(self, images):
        """Pixels as keras.applications asks its users to prepare them."""
        version = keras.applications.resnet
        if self.name.endswith("V2"):
            version = keras.applications.resnet_v2
        return version.preprocess_input(images.astype("float32"))

    def assert_same_answer(self, ours, theirs):
        images = pixels(2, 64)
        expected = np.asarray(theirs(self.prepared(images), training=False))
        found = np.asarray(ours(images.astype("float32"), training=False))
        assert found.shape == expected.shape
        assert np.ptp(expected, axis=0).max() > 0.005 * np.abs(expected).max()
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def sources():
    for name in ("ResNet50", "ResNet50V2"):
        yield pytest.param(name)
    for name in ("ResNet101", "ResNet152", "ResNet101V2", "ResNet152V2"):
        yield pytest.param(name, marks=pytest.mark.full)


@pytest.fixture(scope="module", params=sources())
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    yield Source(request.param, folder)
    for file in folder.iterdir():  # Hundreds of megabytes.
        file.unlink()


@pytest.mark.parametrize("file", ["published", "whole"])
def test_keras_applications_file_gives_their_logits(source, file):
    path = getattr(source, file)
    ours = source.ours(weights=path)
    source.assert_same_answer(ours, source.theirs(weights=path))


@pytest.mark.parametrize("file", ["published", "headless"])
def test_keras_applications_features(source, file, capsys):
    options = {"include_top": False, "pooling": "avg"}
    ours = source.ours(weights=getattr(source, file), **options)
    source.assert_same_answer(ours, source.theirs(weights=source.headless, **options))
    dropped = "head of 1000 classes is left out" in capsys.readouterr().err
    assert dropped == (file == "published")


def test_keras_applications_pixels_and_stride(source):
    checkpoint = opening.open_checkpoint(source.headless)
    ours = source.ours(weights=checkpoint, include_top=False)
    images = pixels(2, 64)
    expected = source.prepared(images)
    if not source.name.endswith("V2"):
        expected = expected[..., ::-1]  # Theirs are BGR from here on.
    found = first_layer(ours)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    stride_on = "3x3" if source.name.endswith("V2") else "1x1"
    other = {"1x1": "3x3", "3x3": "1x1"}[stride_on]
    assert ours.origin.stride_on == stride_on
    with pytest.raises(InputError, match=f"Received: stride_on='{other}'"):
        source.ours(weights=checkpoint, include_top=False, stride_on=other)


def test_keras_applications_without_a_head_for_a_net_with_one(source):
    with pytest.raises(InputError, match="build with include_top=False"):
        source.ours(weights=source.headless)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "ResNet50V2"])
def test_h5_file_of_our_own_net_is_none_of_keras_applications(name, tmp_path):
    """Its pixels are not theirs, nor is its order of colours."""
    path = str(tmp_path / "own.h5")
    row = {"blocks": (1, 1), "width": 16, "classes": 5}
    image = keras.Input((32, 32, 3))
    own = keras.layers.Normalization(
        mean=(9,) * 3, variance=(4,) * 3, name="normalization"
    )
    keras_resnet.ResNet(name, input_tensor=own(image), **row).save(path)
    with pytest.raises(InputError):
        keras_resnet.ResNet(name, weights=path, input_shape=(32, 32, 3), **row)


# Every kind of file gives the same weights.


@pytest.mark.parametrize("ending", ["keras", "weights.h5", "safetensors", "npz"])
@pytest.mark.parametrize("as_path", [str, pathlib.Path])
def test_every_kind_of_file_gives_the_same_weights(ending, as_path, tmp_path, capsys):
    state = cifar_state()
    path = as_path(write(state, tmp_path / f"net.{ending}"))
    model = small(weights=path)
    assert_same(arrays_of(model), in_keras(state))
    assert model.origin.source == str(path)
    model = small()
    assign.assign_weights(model, formats.read_file(path))
    assert_same(arrays_of(model), in_keras(state))
    assert said(capsys) == ""


def test_save_state_dict_writes_the_names_of_cifar_repositories(tmp_path):
    state = cifar_state()
    path = str(tmp_path / "net.safetensors")
    saving.save_state_dict(model_of(state), path)
    found = load_file(path)
    counters = {key for key in found if key.endswith("num_batches_tracked")}
    assert len(counters) == 7
    assert_same({k: v for k, v in found.items() if k not in counters}, state)
    assert_same(arrays_of(small(weights=path)), in_keras(state))


@pytest.mark.parametrize("ending", ["pth", "th"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_file_of_torch(ending, wrapper, prefix, tmp_path):
    torch = pytest.importorskip("torch", reason=TORCH)
    state = cifar_state()
    found = {f"{prefix}{key}": value for key, value in tensors(state).items()}
    found[f"{prefix}bn1.num_batches_tracked"] = torch.tensor(7)
    if wrapper:
        found = {"epoch": 200, "best_prec1": 91.7, wrapper: found}
    path = str(tmp_path / f"net.{ending}")
    torch.save(found, path)
    model = small(weights=path)
    assert_same(arrays_of(model), in_keras(state))


def test_parameters_of_torch(tmp_path):
    """`dict(net.named_parameters())` and buffers, which want gradients."""
    torch = pytest.importorskip("torch", reason=TORCH)
    state = cifar_state()
    path = str(tmp_path / "net.pth")
    torch.save({k: torch.nn.Parameter(v) for k, v in tensors(state).items()}, path)
    assert_same(arrays_of(small(weights=path)), in_keras(state))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_half_precision(kind, ending, tmp_path):
    """Every such number is one of float32 too."""
    half = {k: v.astype(np.dtype(kind)) for k, v in cifar_state().items()}
    state = {k: v.astype("float32") for k, v in half.items()}
    path = str(tmp_path / f"net.{ending}")
    if ending == "safetensors":
        save_file(half, path)
    else:
        torch = pytest.importorskip("torch", reason=TORCH)
        kind = getattr(torch, kind)
        torch.save({k: v.to(kind) for k, v in tensors(state).items()}, path)
    assert_same(arrays_of(small(weights=path)), in_keras(state))


def test_module_prefix_without_torch(tmp_path):
    state = cifar_state()
    path = str(tmp_path / "net.npz")
    np.savez(path, **{f"module.{key}": array for key, array in state.items()})
    assert_same(arrays_of(small(weights=path)), in_keras(state))


# The head.


@pytest.mark.parametrize("ending", ["keras", "weights.h5", "safetensors"])
@pytest.mark.parametrize(
    "options",
    [{"classes": 7}, {"include_top": False}, {"include_top": False, "pooling": "avg"}],
    ids=["classes", "no top", "pooled"],
)
def test_head_that_does_not_fit_is_left_out(ending, options, tmp_path, capsys):
    state = cifar_state()
    path = write(state, tmp_path / f"net.{ending}")
    found = arrays_of(small(weights=path, **options))
    assert f"{path}: its head of 10 classes is left out" in capsys.readouterr().err
    if "classes" in options:
        assert found["predictions/kernel"].shape == (64, 7)
        assert found["predictions/kernel"].std() > 0
    else:
        assert not HEAD & found.keys()
    expected = {k: v for k, v in in_keras(state).items() if k not in HEAD}
    assert_same({k: v for k, v in found.items() if k not in HEAD}, expected)


@pytest.mark.parametrize("ending", ["keras", "weights.h5", "safetensors", "npz"])
def test_number_of_classes_is_the_files(ending, tmp_path, capsys):
    state = cifar_state(classes=7)
    path = write(state, tmp_path / f"net.{ending}")
    model = small(weights=path)
    assert_same(arrays_of(model), in_keras(state))
    assert said(capsys) == ""


# Refused, and the model as it was.


@pytest.fixture(scope="module")
def nets():
    """A net to be refused weights, and one of another depth."""
    return {name: keras_resnet.ResNet(name) for name in (NAME, "resnet20", "resnet32")}


def assert_refused(model, path, *words):
    before = arrays_of(model)
    with pytest.raises(InputError) as error:
        assign.assign_weights(model, formats.read_file(str(path)))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert_same(arrays_of(model), before)


ARRAYS = ["safetensors", "npz", "pth"]
KINDS = ["keras", "weights.h5", "h5", "safetensors", "npz", "pth"]


@pytest.mark.parametrize("ending", ARRAYS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: state.pop("layer1.0.bn1.weight"),
            ["missing: conv2_block1_1_bn/gamma"],
        ),
        (
            lambda state: state.update(fill({"layer2.1.conv1.weight": (32, 32, 3, 3)})),
            ["left over: layer2.1.conv1.weight"],
        ),
        (
            lambda state: state.update(fill({"auxiliary.weight": (10, 32)})),
            ["auxiliary.weight"],
        ),
        (
            lambda state: state.update(fill({"layer2.0.conv1.weight": (32, 16, 1, 1)})),
            ["conv3_block1_1_conv/kernel", "(1, 1, 16, 32)", "(3, 3, 16, 32)"],
        ),
        (
            lambda state: state.update(fill({"linear.bias": (9,)})),
            ["predictions/bias", "(9,)", "(10,)"],
        ),
        (
            lambda state: [state.pop(f"linear.{leaf}") for leaf in ("weight", "bias")],
            ["missing: predictions/bias", "build with include_top=False"],
        ),
        (lambda state: state.clear(), ["layer1.0.conv1.weight"]),
    ],
    ids=["missing", "left over", "stranger", "shape", "bias", "headless", "nothing"],
)
def test_arrays_that_do_not_fit(ending, change, words, nets, tmp_path):
    state = cifar_state()
    change(state)
    path = write(state, tmp_path / f"net.{ending}")
    assert_refused(nets[NAME], path, "net.", *words)


@pytest.mark.parametrize("ending", ["keras", "weights.h5", *ARRAYS])
@pytest.mark.parametrize("classes", [10, 7])
def test_weights_of_another_depth(ending, classes, nets, tmp_path):
    """Also where the head differs too, which alone would be left out."""
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
        assert_refused(nets[other], path, other)


@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_file_of_keras_without_a_head(ending, nets, tmp_path):
    path = str(tmp_path / f"net.{ending}")
    model = small(include_top=False)
    model.save(path) if ending == "keras" else model.save_weights(path)
    assert_refused(nets[NAME], path, "net.")


def test_layers_left_over_in_weights_h5(tmp_path):
    """Keras itself loads the beginning of a deeper net without a word."""
    path = write(cifar_state(), tmp_path / "net.weights.h5")
    assert_refused(small(blocks=(1, 1), include_top=False), path, "left over")


@pytest.mark.parametrize(
    ("one", "other"), [(NAME, "cifar_plainnet8"), ("cifar_plainnet8", NAME)]
)
def test_plain_net_is_no_residual_net(one, other, tmp_path):
    """Their weights have the same shapes; a `.keras` file shows which it is."""
    path = str(tmp_path / "net.keras")
    keras_resnet.ResNet(one).save(path)
    with pytest.raises(InputError, match="shortcut"):
        keras_resnet.ResNet(other, weights=path)


@pytest.mark.parametrize("ending", ARRAYS)
def test_vgg(ending, nets, tmp_path):
    shapes = {"features.0.weight": (64, 3, 3, 3), "features.0.bias": (64,)}
    shapes |= {"classifier.0.weight": (10, 64), "classifier.0.bias": (10,)}
    path = write(fill(shapes), tmp_path / f"vgg.{ending}")
    assert_refused(nets[NAME], path, "features.0.weight", "layer1.0.conv1.weight")


def test_foreign_model_of_keras(nets, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.save(tmp_path / "net.keras")
    model.save_weights(tmp_path / "net.weights.h5")
    model.save(tmp_path / "net.h5")
    for ending in ("keras", "weights.h5", "h5"):
        assert_refused(nets[NAME], tmp_path / f"net.{ending}", f"net.{ending}")


def test_arrays_that_are_no_numbers(nets, tmp_path):
    """The last of all, when the others could have been given to the net."""
    state = cifar_state()
    kernel = state["linear.weight"]
    path = write(
        {**state, "linear.weight": np.full(kernel.shape, "a")}, tmp_path / "net.npz"
    )
    assert_refused(nets[NAME], path, "net.npz")
    state["linear.weight"] = kernel.astype(ml_dtypes.float8_e4m3fn)
    path = write(state, tmp_path / "net.safetensors")
    assert_refused(nets[NAME], path, "net.safetensors")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a good file of every kind; of torch's where torch is there."""
    folder, state = tmp_path_factory.mktemp("good"), cifar_state()
    for ending in ("keras", "weights.h5", "safetensors", "npz"):
        write(state, folder / f"net.{ending}")
    write_published(model_of(state), folder / "net.h5")
    try:
        import torch
    except ModuleNotFoundError:
        (folder / "net.pth").write_bytes(pickle.dumps(state))
    else:
        torch.save(tensors(state), folder / "net.pth")
    return {ending: (folder / f"net.{ending}").read_bytes() for ending in KINDS}


@pytest.mark.parametrize("ending", KINDS)
@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 1], ids=str)
def test_cut_file(ending, share, good, nets, tmp_path):
    path = tmp_path / f"net.{ending}"
    data = good[ending]
    path.write_bytes(data[: min(int(share * len(data)), len(data) - 1)])
    assert_refused(nets[NAME], path, f"net.{ending}")


@pytest.mark.parametrize("ending", ["keras", "npz"])
def test_changed_byte(ending, good, nets, tmp_path):
    """These kinds have checksums."""
    path = tmp_path / f"net.{ending}"
    data = bytearray(good[ending])
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert_refused(nets[NAME], path, f"net.{ending}")


@pytest.mark.parametrize(
    ("kind", "ending"),
    [(kind, end) for kind in [*KINDS, "txt"] for end in KINDS if kind != end],
)
def test_wrong_ending(kind, ending, good, nets, tmp_path):
    path = tmp_path / f"net.{ending}"
    path.write_bytes(good.get(kind, b"No weights, but a text.\n" * 99))
    assert_refused(nets[NAME], path, f"net.{ending}")


@pytest.mark.parametrize("ending", KINDS)
def test_folder_and_missing_file(ending, nets, tmp_path):
    path = tmp_path / f"net.{ending}"
    assert_refused(nets[NAME], path, "no such file", f"net.{ending}")
    path.mkdir()
    assert_refused(nets[NAME], path, "no such file", f"net.{ending}")


@pytest.mark.parametrize("name", ["net.onnx", "net.pt", "net", "folder/"])
def test_unknown_ending(name, nets, tmp_path):
    path = f"{tmp_path}/{name}"
    pathlib.Path(path).mkdir() if path.endswith("/") else pathlib.Path(path).touch()
    words = (".weights.h5, .keras, .safetensors, .npz, .h5, .pth, .th", path)
    assert_refused(nets[NAME], path, *words)
    with pytest.raises(InputError) as error:
        small(weights=path)
    assert all(word in str(error.value) for word in words)


# Nothing of a file is run.


class Malice:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_malice_works(tmp_path):
    pickle.loads(pickle.dumps(Malice(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_pickled_objects_in_npz(nets, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "net.npz"
    state = cifar_state()
    np.savez(path, **state, extra=np.array([Malice(marker)], dtype=object))
    assert_refused(nets[NAME], path, "net.npz")
    np.savez(path, **{**state, "linear.bias": np.array([Malice(marker)], dtype=object)})
    assert_refused(nets[NAME], path, "net.npz")
    path.write_bytes(pickle.dumps(Malice(marker)))
    assert_refused(nets[NAME], path, "net.npz")
    assert not marker.exists()


def test_code_in_a_keras_file(nets, tmp_path):
    marker = str(tmp_path / "marker")
    path = tmp_path / "net.keras"
    layer = keras.layers.Lambda(
        lambda x, marker=marker: __import__("os").mkdir(marker) or x, output_shape=(4,)
    )
    keras.Sequential([keras.Input((4,)), layer]).save(path)
    os.path.isdir(marker) and os.rmdir(marker)
    assert_refused(nets[NAME], path, "net.keras")
    assert not os.path.exists(marker)


@pytest.mark.parametrize("wrapped", [False, True])
def test_pickle_without_torch(wrapped, nets, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    marker, path = tmp_path / "marker", tmp_path / "net.pth"
    malice = Malice(marker)
    path.write_bytes(pickle.dumps({"state_dict": malice} if wrapped else malice))
    assert_refused(nets[NAME], path, "keras-resnet-zoo[torch]", "net.pth")
    assert not marker.exists()


@pytest.mark.parametrize("writer", ["pickle", "torch", "beside weights"])
def test_pickle_with_torch(writer, nets, tmp_path):
    torch = pytest.importorskip("torch", reason=TORCH)
    marker, path = tmp_path / "marker", tmp_path / "net.pth"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Malice(marker)}))
    elif writer == "torch":
        torch.save(Malice(marker), path)
    else:
        torch.save({**tensors(cifar_state()), "extra": Malice(marker)}, path)
    assert_refused(nets[NAME], path, "net.pth", "refused", "nothing of it was run")
    assert not marker.exists()


# What belongs to the weights: where the stride is, and what pixels are.


def strides(model):
    """Of the first block that subsamples: of its 1x1 and of its 3x3."""
    layers = [model.get_layer(f"conv3_block1_{i}_conv") for i in (1, 2)]
    return tuple(layer.strides[0] for layer in layers)


def test_stride_of_torch_is_on_the_3x3(tmp_path):
    path = str(tmp_path / "net.safetensors")
    save_file(bottleneck_state(), path)
    assert strides(bottleneck()) == (2, 1)  # The paper's, with no weights.
    model = bottleneck(weights=path)
    assert strides(model) == (1, 2)
    assert model.origin.stride_on == "3x3"
    # Names alone are a habit and no proof: whoever knows better may say so.
    assert strides(bottleneck(weights=path, stride_on="1x1")) == (2, 1)


@pytest.mark.parametrize("ending", ["keras", "safetensors"])
@pytest.mark.parametrize(
    ("stride_on", "other", "expected"), [("1x1", "3x3", (2, 1)), ("3x3", "1x1", (1, 2))]
)
def test_stride_of_our_own_file(ending, stride_on, other, expected, tmp_path):
    path = str(tmp_path / f"net.{ending}")
    source = bottleneck(stride_on=stride_on)
    if ending == "keras":
        source.save(path)
    else:
        saving.save_state_dict(source, path)
    model = bottleneck(weights=path)
    assert strides(model) == expected
    assert_same(arrays_of(model), arrays_of(source))
    assert strides(bottleneck(weights=path, stride_on=stride_on)) == expected
    with pytest.raises(InputError) as error:
        bottleneck(weights=path, stride_on=other)
    for word in (f"stride_on='{stride_on}'", f"Received: stride_on='{other}'", path):
        assert word in str(error.value)


@pytest.mark.parametrize("ending", ["safetensors", "npz", "pth"])
@pytest.mark.parametrize("make", [cifar_state, bottleneck_state])
def test_pixels_of_torch_names(make, ending, tmp_path):
    path = write(make(), tmp_path / f"net.{ending}")
    build = bottleneck if make is bottleneck_state else small
    model = build(weights=path)
    images = pixels(2, 32)
    expected = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    found = first_layer(model)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_keras_file_keeps_its_own_pixels(channels, tmp_path):
    path = str(tmp_path / "net.keras")
    mean, variance = (33.5, 100.25, 7.0)[:channels], (4.0, 81.0, 6400.0)[:channels]
    image = keras.Input((32, 32, channels))
    own = keras.layers.Normalization(mean=mean, variance=variance, name="normalization")
    source = small(input_tensor=own(image))
    source.save(path)
    model = small(weights=path, input_shape=(32, 32, channels))
    images = pixels(2, 32)[..., :channels]
    expected = (images - np.array(mean)) / np.sqrt(variance)
    found = first_layer(model)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert_same(arrays_of(model), arrays_of(source))
    other = 4 - channels
    with pytest.raises(InputError, match=rf"{channels} channel.* Received: {other} "):
        small(weights=path, input_shape=(32, 32, other))


@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_file_that_knows_no_pixels(ending, tmp_path):
    path = write(cifar_state(), tmp_path / f"net.{ending}")
    model = small(weights=path)
    assert "normalization" not in [layer.name for layer in model.layers]
    assert model.origin.pixels is None


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18, b"{}", "half"])
def test_a_damaged_model(trained, tmp_path, content):
    whole = (trained / "final.keras").read_bytes()
    path = tmp_path / "final.keras"
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(InputError, match=r"final\.keras"):
        formats.load_model(str(path))
