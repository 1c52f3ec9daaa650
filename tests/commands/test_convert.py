"""Conversion of weights between file formats without loss."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import importlib.util
import json
import os
import pathlib
import re
import shutil
import sys
import threading

import keras
import numpy as np
import pytest
import safetensors.numpy
from conftest import assert_one_line, run_program, run_python
from safetensors.numpy import load_file, save_file
from state_dicts import make_arrays

import keras_resnet
from keras_resnet import convert as command
from keras_resnet.convert import convert
from keras_resnet.spec.variants import VARIANTS
from keras_resnet.support.errors import InputError
from keras_resnet.weights import formats, saving

MEAN, VARIANCE = (120.1, 115.25, 1 / 3), (3025.7, 0.1, 1e4)


def make_network(name, channels=3, **options):
    """Returns a network with random weights and a layer that normalises raw pixels."""
    image = keras.Input((32, 32, channels), name="image")
    normalised_pixels = keras.layers.Normalization(
        mean=MEAN[:channels], variance=VARIANCE[:channels], name="normalization"
    )(image)
    options = {"classes": 8, **options}
    model = keras_resnet.ResNet(name, input_tensor=normalised_pixels, **options)
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


def save_network(path, *arguments, **options):
    """Saves a network that `make_network` builds. Returns the path of the file."""
    saving.save_model(make_network(*arguments, **options), str(path))
    return str(path)


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    """Path of the `.keras` file of a small network."""
    return save_network(tmp_path_factory.mktemp("small") / "a.keras", "cifar_resnet8")


def assert_same_network(actual, expected):
    """Asserts that two networks have the same variables and layer configurations."""
    for variable, reference in zip(actual.variables, expected.variables, strict=True):
        assert variable.path == reference.path
        assert variable.dtype == reference.dtype
        np.testing.assert_array_equal(variable.numpy(), reference.numpy())
    actual, expected = (
        {layer.name: layer.get_config() for layer in model.layers[1:]}
        for model in (actual, expected)
    )
    assert actual.keys() == expected.keys()
    for name, config in expected.items():
        assert actual[name] == config


@pytest.fixture
def small_variants(monkeypatch):
    """Replaces the ImageNet variants in the table by networks with two stages."""
    for name, variant in [*VARIANTS.items()]:
        if variant.stem != "cifar":
            # The second block of a stage tells shortcut C of bottlenecks from B.
            blocks = (1, 1) if variant.block == "basic" else (2, 1)
            small_variant = dataclasses.replace(variant, blocks=blocks, width=16)
            monkeypatch.setitem(VARIANTS, name, small_variant)


@pytest.mark.usefixtures("small_variants")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet8", {"shortcut": "A", "channels": 1}),
        ("cifar_resnet8", {"shortcut": "none"}),
        ("resnet18", {"shortcut": "A", "stem": "deep"}),
        ("resnet50", {"stride_on": "1x1"}),
        ("resnet50", {"stride_on": "3x3", "avg_down": True}),
    ],
)
def test_a_round_trip_from_keras_is_lossless(name, options, tmp_path):
    middle_path, target = (
        str(tmp_path / name) for name in ("a.safetensors", "b.keras")
    )
    model = make_network(name, **options)
    saving.save_model(model, str(tmp_path / "a.keras"))
    convert(str(tmp_path / "a.keras"), middle_path)
    convert(middle_path, target)
    assert_same_network(formats.load_model(target), model)


@pytest.mark.usefixtures("small_variants")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet8", {"shortcut": "A"}),
        ("resnet18", {}),
        ("resnet50", {"shortcut": "C", "stride_on": "3x3"}),
        ("resnext50_32x4d", {}),
        ("resnet50d", {}),
        ("seresnet18", {}),
    ],
)
def test_a_round_trip_from_torch_is_lossless(name, options, tmp_path):
    """Arrays are restored exactly. test_dialects.py tests that keys are PyTorch's."""
    torch_path, middle_path, target = (
        str(tmp_path / name) for name in ("a.safetensors", "b.keras", "c.safetensors")
    )
    saving.save_state_dict(keras_resnet.ResNet(name, classes=8, **options), torch_path)
    shapes = {key: array.shape for key, array in load_file(torch_path).items()}
    state_dict = make_arrays(shapes)
    save_file(state_dict, torch_path)  # Saves no metadata, like PyTorch.
    convert(torch_path, middle_path)
    convert(middle_path, target)
    arrays = load_file(target)
    assert arrays.keys() == state_dict.keys()
    for key, array in state_dict.items():
        assert arrays[key].dtype == array.dtype
        np.testing.assert_array_equal(arrays[key], array)
    norm_prefixes = [
        key.removesuffix("var") for key in arrays if key.endswith("running_var")
    ]
    counter_keys = {k for k, array in arrays.items() if array.dtype == np.int64}
    assert counter_keys == {
        key.replace("running_", "num_batches_tracked") for key in norm_prefixes
    }


LOAD_SCRIPT = """
import json, sys, torch
from make_torch_logits import build
from safetensors.torch import load_file
for path, *net in json.loads(sys.argv[1]):
    print(build(*net).load_state_dict(load_file(path), strict=True))
"""


@pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="needs timm")
def test_torch_loads_converted_files_strictly(tmp_path):
    """PyTorch runs in its own process, as it crashes if imported after TensorFlow."""
    network_specs = []
    for source, name, options in [
        ("torchvision", "resnet18", {}),
        ("torchvision", "resnet50", {"stride_on": "3x3"}),
        ("torchvision", "resnext50_32x4d", {}),
        ("timm", "resnet50d", {}),
        ("timm", "seresnet50", {}),
        ("cifar", "resnet20", {"shortcut": "A"}),
        ("cifar", "resnet20", {"shortcut": "B"}),
    ]:
        path = str(tmp_path / f"{len(network_specs)}.safetensors")
        convert(save_network(tmp_path / "a.keras", name, **options), path)
        arguments = {"depth": 20, **options} if source == "cifar" else {}
        network_specs.append([path, source, name, arguments])
    search_path = os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path])
    result = run_python(
        "-c", LOAD_SCRIPT, json.dumps(network_specs), env={"PYTHONPATH": search_path}
    )
    assert result.stdout == "<All keys matched successfully>\n" * 7, result.stderr


@pytest.mark.usefixtures("small_variants")
def test_only_keras_formats_support_pre_activation_networks(tmp_path):
    """PyTorch's naming schemes have no names for the layers of these networks."""
    model = make_network("resnet50v2", stride_on="1x1")
    source, target = (str(tmp_path / name) for name in ("a.keras", "b.keras"))
    saving.save_model(model, source)
    with pytest.raises(InputError, match=": conv2_block1_preact_bn") as error:
        convert(source, str(tmp_path / "b.safetensors"))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["a.keras"]
    convert(source, target)
    assert_same_network(formats.load_model(target), model)


def test_a_weights_h5_file_of_keras_is_converted(tmp_path):
    """The caller specifies variant, mean and std, because the file contains none."""
    model = make_network("cifar_resnet8")
    model.save_weights(str(tmp_path / "b.weights.h5"))
    options = {"mean": [120.0, 110.0, 100.0], "std": [60.0, 50.0, 40.0]}
    source, target = str(tmp_path / "b.weights.h5"), str(tmp_path / "c.keras")
    with pytest.raises(InputError, match="--model"):
        convert(source, target, **options)
    convert(source, target, "cifar_resnet8", **options)
    converted_model = formats.load_model(target)
    arrays = converted_model.get_weights()
    for array, expected in zip(arrays, model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_plain_weights_do_not_fit_residual_networks(tmp_path):
    """Plain weights are rejected, although all shapes fit a network with shortcut A."""
    path = str(tmp_path / "b.safetensors")
    saving.save_state_dict(keras_resnet.ResNet("cifar_plainnet8"), path)
    with pytest.raises(InputError, match="shortcut"):
        keras_resnet.ResNet("cifar_resnet8", shortcut="A", weights=path)


@pytest.mark.parametrize("suffix", ["weights.h5", "safetensors"])
def test_a_round_trip_keeps_all_properties_of_a_run(suffix, trained_run, tmp_path):
    """The input shape (8, 8, 1), the class names and the outputs are unchanged."""
    middle_path, target = str(tmp_path / f"a.{suffix}"), str(tmp_path / "b.keras")
    convert(str(trained_run / "final.keras"), middle_path)
    convert(middle_path, target)
    expected = formats.load_model(str(trained_run / "final.keras"))
    converted_model = formats.load_model(target)
    assert converted_model.input_shape == expected.input_shape == (None, 8, 8, 1)
    assert (
        converted_model.origin.classes == expected.origin.classes == tuple("0123456789")
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype("float32")
    np.testing.assert_array_equal(converted_model(images), expected(images))


def test_model_selects_a_plain_network(tmp_path):
    """The file has no metadata and also fits a residual network, so `model` decides."""
    plain_model = keras_resnet.ResNet("cifar_plainnet8")
    path, target = (str(tmp_path / name) for name in ("a.safetensors", "b.keras"))
    saving.save_state_dict(plain_model, path)
    save_file(load_file(path), path)  # Saves no metadata, like PyTorch.
    converted_model = convert(path, target, model="cifar_plainnet8")
    assert not any(
        isinstance(layer, keras.layers.Add) for layer in converted_model.layers
    )
    arrays = converted_model.get_weights()
    for array, expected in zip(arrays, plain_model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.usefixtures("small_variants")
def test_a_deep_stem_alone_is_not_resnet_d(tmp_path):
    """A network such as timm's resnet50c is rejected, although all shapes fit ResNet-D.

    The shortcuts of resnet50c, unlike those of ResNet-D, have no average pooling.
    """
    path = str(tmp_path / "a.safetensors")
    saving.save_state_dict(keras_resnet.ResNet("resnet18", stem="deep"), path)
    arrays = load_file(path)
    assert arrays["layer2.0.downsample.0.weight"].ndim == 4
    save_file(arrays, path)  # Saves no metadata, like PyTorch.
    with pytest.raises(InputError, match="avg_down"):
        keras_resnet.ResNet("resnet18d", weights=path)


@pytest.mark.parametrize("suffix", [".keras", ".safetensors"])
def test_mean_and_std_override_the_file(suffix, keras_file, tmp_path):
    path = str(tmp_path / f"b{suffix}")
    mean, std = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]
    convert(keras_file, path, mean=mean, std=std)
    convert(path, str(tmp_path / "c.keras"))
    model = formats.load_model(str(tmp_path / "c.keras"))
    pixels = np.full((1, 32, 32, 3), 50.0)
    normalised_pixels = np.asarray(model.get_layer("normalization")(pixels))
    np.testing.assert_allclose(normalised_pixels[0, 0, 0], [20.0, 7.5, 4.0], rtol=1e-6)


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
def test_invalid_mean_and_std_are_refused(mean, std, keras_file, tmp_path):
    with pytest.raises(InputError, match="three numbers each, from 0 to 255"):
        convert(keras_file, str(tmp_path / "b.keras"), mean=mean, std=std)
    assert os.listdir(tmp_path) == []


def test_a_mean_that_is_not_a_number_is_refused(keras_file, monkeypatch):
    options = command.ConversionOptions(mean=("1", "2", "x"))
    monkeypatch.setattr(command, "read_flags", lambda _: options)
    with pytest.raises(InputError, match="numbers each, such as 123"):
        command.main([keras_file, "b.keras"])


def test_keras_settings_do_not_change(keras_file, tmp_path):
    """`convert` does not change the dtype policy of a notebook that calls it."""
    keras.config.set_dtype_policy("float64")
    try:
        convert(keras_file, str(tmp_path / "b.keras"))
        assert keras.config.dtype_policy().name == "float64"
    finally:
        keras.config.set_dtype_policy("float32")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serve(folder):
    """Serves a folder on this machine and yields its URL."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def web_folder(keras_file, tmp_path, monkeypatch):
    """Folder with `net.keras` for an HTTP server. The download cache is empty."""
    folder = tmp_path / "published"
    folder.mkdir()
    shutil.copy(keras_file, folder / "net.keras")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    return folder


def test_a_url_with_its_hash_is_downloaded_once(web_folder, tmp_path):
    """No server runs during the second conversion, which reads the cached file."""
    digest = hashlib.sha256((web_folder / "net.keras").read_bytes()).hexdigest()
    target = str(tmp_path / "b.keras")
    with serve(web_folder) as url:
        convert(f"{url}/net.keras", target, sha256=digest)
    expected = formats.load_model(str(web_folder / "net.keras"))
    assert_same_network(formats.load_model(target), expected)
    os.remove(target)
    convert(f"{url}/net.keras", target, sha256=digest.upper())
    assert os.path.exists(target)


def test_a_url_may_have_a_query(web_folder, tmp_path):
    digest = hashlib.sha256((web_folder / "net.keras").read_bytes()).hexdigest()
    with serve(web_folder) as url:
        source = f"{url}/net.keras?download=true"
        convert(source, str(tmp_path / "b.safetensors"), sha256=digest)
    assert (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("sha256", "words"),
    [
        (None, "needs --sha256.* 64 hex digits"),
        ("0123", "64 hex digits. Received: sha256='0123'"),
        ("01234567", "64 hex digits. Received: sha256='01234567'"),
        ("0" * 65, "64 hex digits"),
        ("x" * 64, "64 hex digits"),
        ("sha256:0123", "hex digits"),
        ("0" * 64, "is not the published file"),
    ],
)
def test_a_url_with_a_wrong_hash_is_refused(sha256, words, web_folder, tmp_path):
    target = tmp_path / "b.keras"
    with serve(web_folder) as url, pytest.raises(InputError, match=words) as error:
        convert(f"{url}/net.keras", str(target), sha256=sha256)
    assert "\n" not in str(error.value)
    assert not target.exists()
    assert [path for path in tmp_path.rglob("home/**/*") if path.is_file()] == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd.h5", "ftp://host/net.keras", "s3://bucket/net.keras",
        "https://", "https://host", "https://host/", "https:///net.keras",
        "https://host/folder/", "https://host/net", "https://host/net.exe",
        "https://host/?net.keras", "https://host/#net.keras", "https://?/net.keras",
        "https://host/.keras", "https://host/.bashrc.npz", "https://host/a\nb.npz",
        "data:text/html;base64,AAAA", "data://text/net.html", "x" * 10_000 + "://",
    ],
)  # fmt: skip
def test_a_url_must_name_a_weights_file(url, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    with pytest.raises(InputError):
        convert(url, str(tmp_path / "b.keras"), sha256="0" * 64)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["..%2f..%2fnet.keras", "..\\..\\net.keras"])
def test_a_url_cannot_name_a_file_outside_the_cache(name, web_folder, tmp_path):
    shutil.copy(web_folder / "net.keras", web_folder / name)
    digest = hashlib.sha256((web_folder / "net.keras").read_bytes()).hexdigest()
    with serve(web_folder) as url, contextlib.suppress(InputError):
        convert(f"{url}/{name}", str(tmp_path / "b.keras"), sha256=digest)
    new_files = [path for path in tmp_path.rglob("*") if path.is_file()]
    folders = {path.parent for path in new_files}
    assert folders <= {web_folder, tmp_path, tmp_path / "home/models"}
    assert not (tmp_path / "net.keras").exists()


def test_a_url_that_does_not_exist_is_reported(web_folder, tmp_path):
    with (
        serve(web_folder) as url,
        pytest.raises(InputError, match=r"Could not download .*File not found"),
    ):
        convert(f"{url}/nte.keras", str(tmp_path / "b.keras"), sha256="0" * 64)


@pytest.fixture(scope="module")
def source_folder(keras_file, tmp_path_factory):
    """Folder with intact files, damaged files and an existing target."""
    path = tmp_path_factory.mktemp("folder")
    shutil.copy(keras_file, path / "a.keras")
    convert(keras_file, str(path / "a.safetensors"))
    for suffix in ("keras", "safetensors"):
        content = (path / f"a.{suffix}").read_bytes()
        (path / f"half.{suffix}").write_bytes(content[: len(content) // 2])
    unknown_arrays = {"features.0.weight": np.zeros((8, 3, 3, 3))}
    save_file(unknown_arrays, path / "other.safetensors")
    (path / "b.keras").write_bytes(b"of yesterday")
    return path


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("missing.keras", "b.keras", "does not exist"),
        ("missing.safetensors", "b.keras", "does not exist"),
        ("resnet50/torchvision_v3", "b.keras", "Did you mean 'torchvision_v"),
        ("resnet51/torchvision_v1", "b.keras", "Accepted: "),
        ("a.keras", "b.pth", ".safetensors, .keras, .weights.h5"),
        ("a.keras", "b.h5", ".safetensors, .keras, .weights.h5"),
        ("a.keras", "nowhere/b.keras", "folder. Received: 'nowhere/b.keras'"),
        ("a.keras", "nowhere/b.safetensors", "Received: 'nowhere/b.safetensors'"),
        ("a.keras", "nowhere/b.weights.h5", "Received: 'nowhere/b.weights.h5'"),
        ("half.safetensors", "b.keras", "half.safetensors is damaged"),
        ("half.keras", "b.keras", "half.keras"),
        ("other.safetensors", "b.keras", "layer1.0.conv1.weight"),
    ],
)
def test_an_invalid_source_or_target_is_refused(
    source, target, words, source_folder, monkeypatch
):
    """The error is one line, and no file is written or changed."""
    monkeypatch.chdir(source_folder)
    files_before = {p.name: p.read_bytes() for p in source_folder.iterdir()}
    with pytest.raises((InputError, OSError)) as error:
        convert(source, target)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert files_before == {p.name: p.read_bytes() for p in source_folder.iterdir()}


def test_a_full_disk_does_not_change_the_old_file(keras_file, tmp_path, monkeypatch):
    def fill_disk(arrays, path, metadata):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    target = tmp_path / "b.safetensors"
    target.write_bytes(b"of yesterday")
    monkeypatch.setattr(safetensors.numpy, "save_file", fill_disk)
    with pytest.raises(
        OSError, match=r"Could not write .*b\.safetensors: No space left"
    ):
        convert(keras_file, str(target))
    assert target.read_bytes() == b"of yesterday"
    assert os.listdir(tmp_path) == ["b.safetensors"]


def test_one_argument_is_not_enough(tmp_path):
    result = run_program("keras_resnet.convert", "a.keras", cwd=tmp_path)
    assert_one_line(result, "convert SOURCE TARGET", "Received: a.keras")
    assert os.listdir(tmp_path) == []


def test_the_command_prints_the_size_and_the_use_in_torch(keras_file, tmp_path):
    result = run_program(
        "keras_resnet.convert", keras_file, "b.safetensors",
        "--mean=1,2,3", "--std=4,5,6", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    size_mb = (tmp_path / "b.safetensors").stat().st_size / 1e6
    assert f"{size_mb:.1f} MB: b.safetensors" in result.stdout
    assert len(result.stdout.splitlines()) == 1
    (hint,) = result.stderr.splitlines()
    assert re.search(r"from 0 to 1, .*\(0\.003922, .*\) .*\(0\.01569, ", hint)
    assert hint.endswith("has shortcut A")
