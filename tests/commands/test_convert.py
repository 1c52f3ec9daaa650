"""Weights from file to file: no bit is lost, and a file is whole or not there."""

import contextlib
import functools
import hashlib
import http.server
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import threading

import keras
import numpy as np
import pytest
import safetensors.numpy
from conftest import assert_one_line, run_program, run_python
from safetensors.numpy import load_file, save_file
from state_dicts import digest, fill

import keras_resnet
from keras_resnet import convert as program
from keras_resnet.convert import convert
from keras_resnet.support.errors import InputError
from keras_resnet.weights import formats, saving

FIXTURE = json.loads(
    (pathlib.Path(__file__).parents[1] / "fixtures/torch_logits.json").read_text(
        "utf-8"
    )
)
DIGESTS = {(net["source"], net["model"]): net["digest"] for net in FIXTURE["nets"]}
MEAN, VARIANCE = (120.1, 115.25, 1 / 3), (3025.7, 0.1, 1e4)


def network(name, channels=3, **options):
    """A net with weights, each number another one, for raw pixels."""
    image = keras.Input((32, 32, channels), name="image")
    normalised = keras.layers.Normalization(
        mean=MEAN[:channels], variance=VARIANCE[:channels], name="normalization"
    )(image)
    options = {"classes": 8, **options}
    model = keras_resnet.ResNet(name, input_tensor=normalised, **options)
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


def saved(path, *arguments, **options):
    """The path of such a net's file."""
    saving.save_model(network(*arguments, **options), str(path))
    return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The file of a small one."""
    return saved(tmp_path_factory.mktemp("small") / "a.keras", "cifar_resnet8")


def assert_same(found, expected):
    """Every array; and every layer, with strides, mean and variance."""
    for variable, other in zip(found.variables, expected.variables, strict=True):
        assert variable.path == other.path
        assert variable.dtype == other.dtype
        np.testing.assert_array_equal(variable, other)
    found, expected = (
        {layer.name: layer.get_config() for layer in model.layers[1:]}
        for model in (found, expected)
    )
    assert found.keys() == expected.keys()
    for name, config in expected.items():
        assert found[name] == config


def long(*case):
    return pytest.param(*case, marks=pytest.mark.full)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet8", {"shortcut": "A"}),
        ("cifar_resnet8", {"shortcut": "B"}),
        ("cifar_resnet8", {"shortcut": "C"}),
        ("cifar_resnet8", {"shortcut": "none"}),
        ("cifar_plainnet8", {}),
        ("resnet20", {"shortcut": "C"}),
        long("plainnet20", {}),
        long("resnet18", {}),
        ("resnet18", {"shortcut": "A"}),
        long("resnet18", {"shortcut": "C"}),
        long("plainnet18", {}),
        long("resnet50", {"shortcut": "A"}),
        ("resnet50", {"stride_on": "1x1"}),
        long("resnet50", {"stride_on": "3x3"}),
        long("resnet50", {"avg_down": True}),
        long("resnet50", {"stem": "deep"}),
        long("resnet18d", {}),
        long("resnet50d", {}),
        long("seresnet50", {}),
        long("resnext50_32x4d", {}),
        long("wide_resnet50_2", {}),
    ],
)
def test_to_torchs_names_and_back(name, options, tmp_path):
    there, back = (str(tmp_path / name) for name in ("a.safetensors", "b.keras"))
    model = network(name, **options)
    saving.save_model(model, str(tmp_path / "a.keras"))
    convert(str(tmp_path / "a.keras"), there)
    convert(there, back)
    assert_same(formats.load_model(back), model)


@pytest.mark.parametrize(
    ("source", "name", "options"),
    [
        ("cifar", "resnet20 A", {"shortcut": "A"}),
        ("cifar", "resnet20 B", {"shortcut": "B"}),
        ("torchvision", "resnet18", {}),
        long("torchvision", "resnet50", {"stride_on": "3x3"}),
        long("torchvision", "resnext50_32x4d", {}),
        long("timm", "resnet50d", {}),
        long("timm", "seresnet50", {}),
    ],
)
def test_from_torch_and_back(source, name, options, tmp_path):
    """The keys and shapes are torch's own; a state dict comes back as it was."""
    torch, there, back = (
        str(tmp_path / name) for name in ("a.safetensors", "b.keras", "c.safetensors")
    )
    saving.save_state_dict(
        keras_resnet.ResNet(name.split()[0], classes=8, **options), torch
    )
    shapes = {key: array.shape for key, array in load_file(torch).items()}
    assert digest(shapes) == DIGESTS[source, name]
    state_dict = fill(shapes)
    save_file(state_dict, torch)  # Without our notes: as torch would write it.
    convert(torch, there)
    convert(there, back)
    found = load_file(back)
    assert found.keys() == state_dict.keys()
    for key, array in state_dict.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
    norms = [key.removesuffix("var") for key in found if key.endswith("running_var")]
    counters = {k for k, array in found.items() if array.dtype == np.int64}
    assert counters == {key.replace("running_", "num_batches_tracked") for key in norms}


STRICTLY = """
import json, sys, torch
from make_torch_logits import build
from safetensors.torch import load_file
for path, *net in json.loads(sys.argv[1]):
    print(build(*net).load_state_dict(load_file(path), strict=True))
"""


@pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="needs PyTorch's nets")
def test_torch_loads_it_strictly(tmp_path):
    """In a process of its own: after TensorFlow, importing torchvision crashes."""
    nets = []
    for source, name, options in [
        ("torchvision", "resnet18", {}),
        ("torchvision", "resnet50", {"stride_on": "3x3"}),
        ("torchvision", "resnext50_32x4d", {}),
        ("timm", "resnet50d", {}),
        ("timm", "seresnet50", {}),
        ("cifar", "resnet20", {"shortcut": "A"}),
        ("cifar", "resnet20", {"shortcut": "B"}),
    ]:
        path = str(tmp_path / f"{len(nets)}.safetensors")
        convert(saved(tmp_path / "a.keras", name, **options), path)
        theirs = {"depth": 20, **options} if source == "cifar" else {}
        nets.append([path, source, name, theirs])
    places = os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path])
    result = run_python("-c", STRICTLY, json.dumps(nets), env={"PYTHONPATH": places})
    assert result.stdout == "<All keys matched successfully>\n" * 7, result.stderr


def test_grey_images(tmp_path):
    """Such as the digits: one channel."""
    model = network("cifar_resnet8", channels=1)
    there, back = (str(tmp_path / name) for name in ("a.safetensors", "b.keras"))
    saving.save_model(model, str(tmp_path / "a.keras"))
    convert(str(tmp_path / "a.keras"), there)
    assert load_file(there)["conv1.weight"].shape == (16, 1, 3, 3)
    convert(there, back)
    assert_same(formats.load_model(back), model)


def test_torch_has_no_names_for_pre_activation_nets(tmp_path):
    source = saved(tmp_path / "a.keras", "resnet50v2")
    with pytest.raises(InputError, match="names for: conv2_block1_preact_bn") as error:
        convert(source, str(tmp_path / "b.safetensors"))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["a.keras"]


@pytest.mark.full
@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
def test_keras_has(stride_on, tmp_path):
    source = saved(tmp_path / "a.keras", "resnet50v2", stride_on=stride_on)
    convert(source, str(tmp_path / "b.keras"))
    found, expected = (formats.load_model(str(tmp_path / f"{n}.keras")) for n in "ba")
    assert_same(found, expected)


@pytest.mark.parametrize("classes", [10, 8])
def test_weights_h5(classes, tmp_path):
    """As Keras alone writes them, without a word on mean and variance."""
    model = network("cifar_resnet8", classes=classes)
    model.save_weights(str(tmp_path / "b.weights.h5"))
    options = {"mean": [120.0, 110.0, 100.0], "std": [60.0, 50.0, 40.0]}
    source, target = str(tmp_path / "b.weights.h5"), str(tmp_path / "c.keras")
    with pytest.raises(InputError, match="name it by --model"):
        convert(source, target, **options)
    convert(source, target, "cifar_resnet8", **options)
    found = formats.load_model(target)
    for array, expected in zip(found.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_weights_h5_for_other_classes(tmp_path):
    model = network("cifar_resnet8")
    path = str(tmp_path / "a.weights.h5")
    model.save_weights(path)
    found = keras_resnet.ResNet("cifar_resnet8", weights=path, classes=3)
    for array, expected in zip(
        found.get_weights()[:-2], model.get_weights()[:-2], strict=True
    ):
        np.testing.assert_array_equal(array, expected)


def test_a_plain_nets_weights_are_no_residual_nets(tmp_path):
    """Shortcut A has no parameters: the arrays fit, the answers would not."""
    source, target = saved(tmp_path / "a.keras", "cifar_plainnet8"), "b.safetensors"
    convert(source, str(tmp_path / target))
    for path in (source, str(tmp_path / target)):
        with pytest.raises(InputError, match="shortcut"):
            keras_resnet.ResNet("cifar_resnet8", shortcut="A", weights=path)


@pytest.mark.parametrize("ending", ["weights.h5", "safetensors"])
def test_a_run_comes_back_whole(ending, trained, tmp_path):
    """Grey pictures of 8x8 pixels, and the names of their classes."""
    between, target = str(tmp_path / f"a.{ending}"), str(tmp_path / "b.keras")
    convert(str(trained / "final.keras"), between)
    convert(between, target)
    expected = formats.load_model(str(trained / "final.keras"))
    found = formats.load_model(target)
    assert found.input_shape == expected.input_shape == (None, 8, 8, 1)
    assert found.origin.classes == expected.origin.classes == tuple("0123456789")
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype("float32")
    np.testing.assert_array_equal(found(images), expected(images))


def test_a_plain_net_of_another_program_is_named(tmp_path):
    """Its keys and shapes are those of the residual net with shortcut A."""
    net = keras_resnet.ResNet("cifar_plainnet8")
    path, target = (str(tmp_path / name) for name in ("a.safetensors", "b.keras"))
    saving.save_state_dict(net, path)
    save_file(load_file(path), path)  # As another program would write it.
    found = convert(path, target, model="cifar_plainnet8")
    assert not any(isinstance(layer, keras.layers.Add) for layer in found.layers)
    for array, expected in zip(found.get_weights(), net.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_deep_stem_alone_is_no_resnet_d(tmp_path):
    """As timm's resnet50c: all shapes fit ResNet-D, whose shortcuts average."""
    path = str(tmp_path / "a.safetensors")
    saving.save_state_dict(keras_resnet.ResNet("resnet18", stem="deep"), path)
    arrays = load_file(path)
    assert arrays["layer2.0.downsample.0.weight"].ndim == 4
    save_file(arrays, path)  # As another program would write it.
    with pytest.raises(InputError, match="avg_down"):
        keras_resnet.ResNet("resnet18d", weights=path)


@pytest.mark.parametrize("ending", [".keras", ".safetensors"])
def test_mean_and_std_are_taken_over_the_files(ending, small, tmp_path):
    path = str(tmp_path / f"b{ending}")
    mean, std = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]
    convert(small, path, mean=mean, std=std)
    convert(path, str(tmp_path / "c.keras"))
    model = formats.load_model(str(tmp_path / "c.keras"))
    pixels = np.full((1, 32, 32, 3), 50.0)
    normalised = np.asarray(model.get_layer("normalization")(pixels))
    np.testing.assert_allclose(normalised[0, 0, 0], [20.0, 7.5, 4.0], rtol=1e-6)


NAN = float("nan")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([1, 2, 3], None),
        (None, [1, 2, 3]),
        ([1, 2], [1, 2]),
        ([1, 2, 3], [1, 2, 3, 4]),
        ([-1, 2, 3], [1, 2, 3]),
        ([1, 2, 3], [1, 0, 3]),
        ([1, 2, 256], [1, 2, 3]),
        ([1, 2, NAN], [1, 2, 3]),
    ],
)
def test_wrong_mean_and_std(mean, std, small, tmp_path):
    with pytest.raises(InputError, match="three numbers each, from 0 to 255"):
        convert(small, str(tmp_path / "b.keras"), mean=mean, std=std)
    assert os.listdir(tmp_path) == []


def test_a_mean_that_is_no_number(small, monkeypatch):
    given = program.ConversionOptions(mean=("1", "2", "x"))
    monkeypatch.setattr(program, "read_flags", lambda options: given)
    with pytest.raises(InputError, match="numbers each, such as 123"):
        program.main([small, "b.keras"])


def test_settings_of_keras_stay(small, tmp_path):
    """A notebook that calls `convert` goes on with its own policy."""
    keras.config.set_dtype_policy("float64")
    try:
        convert(small, str(tmp_path / "b.keras"))
        assert keras.config.dtype_policy().name == "float64"
    finally:
        keras.config.set_dtype_policy("float32")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def served(folder):
    """The address of a folder, on this machine."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def published(small, tmp_path, monkeypatch):
    """A folder with a file that somebody published; the cache is empty."""
    folder = tmp_path / "published"
    folder.mkdir()
    shutil.copy(small, folder / "net.keras")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    return folder


def test_an_address_with_its_hash(published, tmp_path):
    """Kept, and verified again: the second time nothing is fetched."""
    right = hashlib.sha256((published / "net.keras").read_bytes()).hexdigest()
    target = str(tmp_path / "b.keras")
    with served(published) as address:
        convert(f"{address}/net.keras", target, sha256=right)
    expected = formats.load_model(str(published / "net.keras"))
    assert_same(formats.load_model(target), expected)
    os.remove(target)
    convert(f"{address}/net.keras", target, sha256=right[:8].upper())
    assert os.path.exists(target)


def test_an_address_that_asks_for_a_download(published, tmp_path):
    right = hashlib.sha256((published / "net.keras").read_bytes()).hexdigest()
    with served(published) as address:
        source = f"{address}/net.keras?download=true"
        convert(source, str(tmp_path / "b.safetensors"), sha256=right)
    assert (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("sha256", "words"),
    [
        (None, "needs --sha256, as its publisher states it"),
        ("0123", "or at least the first 8. Received: sha256='0123'"),
        ("sha256:0123", "hex digits"),
        ("0" * 64, "is not the published file"),
    ],
)
def test_an_address_without_the_right_hash(sha256, words, published, tmp_path):
    target = tmp_path / "b.keras"
    with served(published) as address, pytest.raises(InputError, match=words) as error:
        convert(f"{address}/net.keras", str(target), sha256=sha256)
    assert "\n" not in str(error.value)
    assert not target.exists()
    assert [path for path in tmp_path.rglob("home/**/*") if path.is_file()] == []


def test_an_address_where_nothing_is(published, tmp_path):
    with (
        served(published) as address,
        pytest.raises(InputError, match=r"Could not download .*File not found"),
    ):
        convert(f"{address}/nte.keras", str(tmp_path / "b.keras"), sha256="0" * 64)


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """Files whole and damaged, and a target that is there."""
    path = tmp_path_factory.mktemp("folder")
    shutil.copy(small, path / "a.keras")
    convert(small, str(path / "a.safetensors"))
    for ending in ("keras", "safetensors"):
        whole = (path / f"a.{ending}").read_bytes()
        (path / f"half.{ending}").write_bytes(whole[: len(whole) // 2])
    other = {"features.0.weight": np.zeros((8, 3, 3, 3))}
    save_file(other, path / "other.safetensors")
    (path / "b.keras").write_bytes(b"of yesterday")
    return path


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("missing.keras", "b.keras", "There is no such file"),
        ("missing.safetensors", "b.keras", "There is no such file"),
        ("resnet50/torchvision_v3", "b.keras", "Did you mean 'torchvision_v"),
        ("resnet51/torchvision_v1", "b.keras", "Accepted: "),
        ("a.keras", "b.pth", "must be a file .safetensors, .keras, .weights.h5"),
        ("a.keras", "b.h5", "must be a file .safetensors, .keras, .weights.h5"),
        (
            "a.keras",
            "nowhere/b.keras",
            "folder that is there. Received: 'nowhere/b.keras'",
        ),
        ("a.keras", "nowhere/b.safetensors", "Received: 'nowhere/b.safetensors'"),
        ("a.keras", "nowhere/b.weights.h5", "Received: 'nowhere/b.weights.h5'"),
        ("half.safetensors", "b.keras", "half.safetensors is damaged"),
        ("half.keras", "b.keras", "half.keras"),
        ("other.safetensors", "b.keras", "names are none of a ResNet"),
    ],
)
def test_wrong_source_or_target(source, target, words, folder, monkeypatch):
    """One line; nothing is written, and what was there stays."""
    monkeypatch.chdir(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises((InputError, OSError)) as error:
        convert(source, target)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_disk_that_is_full_leaves_the_old_file(small, tmp_path, monkeypatch):
    def fill_disk(arrays, path, metadata):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    target = tmp_path / "b.safetensors"
    target.write_bytes(b"of yesterday")
    monkeypatch.setattr(safetensors.numpy, "save_file", fill_disk)
    with pytest.raises(
        OSError, match=r"Could not write .*b\.safetensors: No space left"
    ):
        convert(small, str(target))
    assert target.read_bytes() == b"of yesterday"
    assert os.listdir(tmp_path) == ["b.safetensors"]


def test_one_argument_only(tmp_path):
    result = run_program("keras_resnet.convert", "a.keras", cwd=tmp_path)
    assert_one_line(result, "convert SOURCE TARGET", "Received: a.keras")
    assert os.listdir(tmp_path) == []


def test_the_program(small, tmp_path):
    result = run_program(
        "keras_resnet.convert", small, "b.safetensors", "--mean=1,2,3", "--std=4,5,6",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    size = (tmp_path / "b.safetensors").stat().st_size / 1e6
    assert f"{size:.1f} MB: b.safetensors" in result.stdout
    assert len(result.stdout.splitlines()) == 1
    (hint,) = result.stderr.splitlines()
    assert hint.startswith("In torch, take pixels from 0 to 1, less (0.003922, ")
    assert hint.endswith("This net has shortcut A; torchvision's has not")
