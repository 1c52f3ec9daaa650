"""Files that refer to other files, execute code, or declare more than they contain."""

import io
import json
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_damaged_files import KEY, write_h5
from test_weights import (
    assert_refused,
    build_bottleneck,
    build_from_state,
    build_resnet8,
    make_cifar_state,
    write_state,
)

import keras_resnet
from keras_resnet.convert import convert
from keras_resnet.support.errors import InputError
from keras_resnet.weights import formats, origin, saving

STATE = make_cifar_state()
SECRET = np.arange(16, dtype="float32")
GAMMA = {
    "h5": "conv1_bn/conv1_bn/gamma:0",
    "weights.h5": "layers/batch_normalization/vars/0",
    "keras": "layers/batch_normalization/vars/0",
}


@pytest.fixture(scope="module")
def model():
    """A network whose weights no test may change."""
    return build_resnet8()


def rewrite_archive(path, replacements, compression=zipfile.ZIP_STORED):
    """Replaces members of a ZIP archive, or adds members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (members | replacements).items():
            archive.writestr(name, content)


@pytest.fixture(scope="module")
def valid_files(tmp_path_factory):
    """Maps suffixes to paths of valid files."""
    folder = tmp_path_factory.mktemp("valid")
    network = build_from_state(STATE)
    network.save(folder / "net.keras")
    network.save_weights(folder / "net.weights.h5")
    write_h5(folder / "net.h5")
    return {suffix: folder / f"net.{suffix}" for suffix in GAMMA}


def write_edited(source, target, edit):
    """Copies a file and changes the HDF5 content of the copy with `edit`."""
    content = io.BytesIO(source.read_bytes())
    if source.suffix == ".keras":
        with zipfile.ZipFile(source) as archive:
            content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content, "r+") as file:
        edit(file)
    if source.suffix == ".keras":
        shutil.copy(source, target)
        rewrite_archive(target, {"model.weights.h5": content.getvalue()})
    else:
        target.write_bytes(content.getvalue())


def use_external_storage(file, name, folder):
    storage = [(str(folder / "secret"), 0, 64)]
    file.create_dataset(name, (16,), "float32", external=storage)


def use_virtual_dataset(file, name, folder):
    layout = h5py.VirtualLayout((16,), "float32")
    layout[:] = h5py.VirtualSource(folder / "secret.h5", "data", (16,))
    file.create_virtual_dataset(name, layout)


def use_external_link(file, name, folder):
    file[name] = h5py.ExternalLink(str(folder / "secret.h5"), "data")


def use_soft_link(file, name, folder):
    file["elsewhere"] = SECRET
    file[name] = h5py.SoftLink("/elsewhere")


def use_external_group(file, name, folder):
    """Links the whole group to another file."""
    group, _, _ = name.rpartition("/")
    if group in file:
        del file[group]
    file[group] = h5py.ExternalLink(str(folder / "secret.h5"), "/")


def use_another_name(file, name, folder):
    """Stores an array under two names, which could be a million."""
    file["elsewhere"] = SECRET
    file[name] = file["elsewhere"]


def use_string(file, name, folder):
    """Stores strings, of which a small array can refer to one long string often."""
    file.create_dataset(name, data=["x" * 10_000] * 1000, dtype=h5py.string_dtype())


@pytest.mark.parametrize("suffix", GAMMA)
@pytest.mark.parametrize(
    "write",
    [
        use_external_storage, use_virtual_dataset, use_external_link, use_soft_link,
        use_external_group, use_another_name, use_string,
    ],
)  # fmt: skip
def test_data_outside_the_file_is_not_read(write, suffix, valid_files, model, tmp_path):
    """Version 0.1.0 converted the content of any file to weights, in `.h5` files."""
    (tmp_path / "secret").write_bytes(SECRET.tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = file["gamma:0"] = file["0"] = SECRET

    def edit(file):
        del file[GAMMA[suffix]]
        write(file, GAMMA[suffix], tmp_path)

    path = tmp_path / f"net.{suffix}"
    write_edited(valid_files[suffix], path, edit)
    assert_refused(model, path, f"net.{suffix} is refused", "without links")
    if suffix == "keras":
        with pytest.raises(InputError, match="without links"):
            formats.load_model(path)


def fill(file):
    """Adds 4 TB that consist of a fill value and take no place in the file."""
    file.create_dataset("layers/a", (2**40,), "float32", chunks=(1024,))


def repeat(file):
    """Adds a group that contains itself."""
    file["again/again"] = file.require_group("again")


def nest(file):
    """HDF5's function `H5Lvisit` overflows the stack if there are 20,000 groups."""
    for _ in range(100):
        file = file.create_group("group")


def multiply(file):
    for i in range(30_001):
        file.create_group(f"{i}")


@pytest.mark.parametrize("suffix", ["h5", "weights.h5", "keras"])
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (fill, "declares 4,39"),
        (repeat, "without links"),
        (nest, "at most 30,000 groups"),
        pytest.param(multiply, "at most 30,000 groups", marks=pytest.mark.slow),
    ],
)
def test_endless_files_are_refused(edit, words, suffix, valid_files, model, tmp_path):
    path = tmp_path / f"net.{suffix}"
    write_edited(valid_files[suffix], path, edit)
    assert_refused(model, path, f"net.{suffix} is refused", words)


def test_an_array_is_read_once(valid_files, model, tmp_path):
    """A list of names can name one array a million times."""
    path = tmp_path / "net.h5"

    def edit(file):
        names = [b"conv1_bn/gamma:0"] * 2
        file["conv1_bn"].attrs["weight_names"] = names

    write_edited(valid_files["h5"], path, edit)
    assert_refused(model, path, "net.h5 is damaged", "conv1_bn/gamma:0")


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_compressed_arrays_are_read(compression, valid_files, tmp_path):
    def edit(file):
        for name in ("conv1_bn/conv1_bn/gamma:0", "conv1_bn/conv1_bn/beta:0"):
            array = file[name][()]
            del file[name]
            file.create_dataset(name, data=array, compression=compression)

    write_edited(valid_files["h5"], tmp_path / "net.h5", edit)
    checkpoint = formats.read_checkpoint(tmp_path / "net.h5")
    gamma = checkpoint.tensors["conv1_bn/gamma"].read()
    np.testing.assert_array_equal(gamma, STATE["bn1.weight"])


def test_compressed_zeros_are_refused(model, tmp_path):
    """The archive declares that a compressed member has 300 MB."""
    path = tmp_path / "net.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{KEY}.npy", bytes(1000))
        archive.getinfo(f"{KEY}.npy").file_size = 300_000_000
    assert_refused(model, path, "net.npz is refused", "declares 300,000,000 bytes")


# The following tests change the configuration or the members of `.keras` files.


@pytest.mark.parametrize(
    ("members", "compression"),
    [
        ({"../evil.txt": "x"}, zipfile.ZIP_STORED),
        ({"assets/vocabulary.txt": "x"}, zipfile.ZIP_STORED),
        ({"model.weights.npz": "x"}, zipfile.ZIP_STORED),
        ({}, zipfile.ZIP_DEFLATED),
    ],
)
def test_other_members_are_refused(
    members, compression, valid_files, model, tmp_path, monkeypatch
):
    """Keras would extract a file with further members."""
    path = tmp_path / "net.keras"
    shutil.copy(valid_files["keras"], path)
    rewrite_archive(path, members, compression)
    monkeypatch.setattr(zipfile.ZipFile, "extract", None)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", None)
    assert_refused(model, path, "net.keras is refused", "uncompressed")


def test_a_repeated_member_is_refused(valid_files, model, tmp_path):
    path = tmp_path / "net.keras"
    shutil.copy(valid_files["keras"], path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Dupl"):
        archive.writestr("config.json", "{}")
    assert_refused(model, path, "net.keras is refused")


def make_layer(name, module="keras.layers", **config):
    return {"module": module, "class_name": name, "config": config}


FOREIGN_OBJECTS = {
    "vocabulary": make_layer("StringLookup", vocabulary="/etc/passwd"),
    "saved model": make_layer("TFSMLayer", filepath="/etc"),
    "lambda": make_layer("__lambda__", value="AAAA"),
    "function": {
        "module": "keras.utils", "class_name": "function", "config": "get_source_inputs"
    },
    "module": make_layer("Conv2D", "antigravity"),
    "legacy": {"class_name": "Conv2D", "config": {}},
    "registered": {**make_layer("Conv2D"), "registered_name": "Mine>Conv2D"},
    "list": make_layer("Conv2D", ["keras.layers"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN_OBJECTS)
def test_objects_of_other_networks_are_refused(
    name, valid_files, model, tmp_path, monkeypatch
):
    """The objects are refused before Keras makes any object."""
    path = tmp_path / "net.keras"
    shutil.copy(valid_files["keras"], path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    config["config"]["layers"][3]["config"]["activation"] = FOREIGN_OBJECTS[name]
    rewrite_archive(path, {"config.json": json.dumps(config)})
    monkeypatch.setattr(keras.models, "load_model", None)
    assert_refused(model, path, "net.keras")


@pytest.mark.parametrize(
    "changes",
    [
        {"filters": 10**9},
        {"filters": -(10**9)},
        {"filters": "9" * 9, "kernel_size": [10**9]},
        {"filters": 10**9, "groups": -1},
        {"kernel_size": [10**5, 10**5]},
        {"groups": 0},
    ],
)
def test_layers_larger_than_the_file_are_refused(
    changes, valid_files, model, tmp_path, monkeypatch
):
    path = tmp_path / "net.keras"
    shutil.copy(valid_files["keras"], path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    layers = config["config"]["layers"]
    next(la for la in layers if la["class_name"] == "Conv2D")["config"].update(changes)
    rewrite_archive(path, {"config.json": json.dumps(config)})
    monkeypatch.setattr(keras.models, "load_model", None)
    assert_refused(model, path, "net.keras")


def test_deeply_nested_configuration_is_refused(valid_files, model, tmp_path):
    path = tmp_path / "net.keras"
    shutil.copy(valid_files["keras"], path)
    for depth in (900, 100_000):
        rewrite_archive(
            path, {"config.json": '{"a": ' + "[" * depth + "]" * depth + "}"}
        )
        assert_refused(model, path, "net.keras")


@pytest.mark.parametrize(
    "options",
    [
        {"preact": True, "shortcut": "A", "include_top": False, "pooling": "max"},
        {
            "shortcut": "C", "stochastic_depth": 0.5, "zero_gamma": True, "se": True,
            "stem": "deep", "avg_down": True, "classifier_activation": None,
        },
    ],
)  # fmt: skip
def test_all_variations_are_saved_and_loaded(options, tmp_path):
    """The layers of every variation are accepted, also in float16 and compiled."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        network = build_bottleneck(**options)
        network.compile("adamw", "sparse_categorical_crossentropy", ["accuracy"])
        saving.save_model(network, tmp_path / "net.keras")
        arrays = formats.load_model(tmp_path / "net.keras").get_weights()
    finally:
        keras.config.set_dtype_policy(policy)
    for array, expected in zip(arrays, network.get_weights(), strict=True):
        np.testing.assert_array_equal(array, expected)


# The following tests change values.


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "keras", "weights.h5"])
def test_weights_that_are_no_numbers_are_refused(suffix, model, tmp_path):
    state = {key: array.copy() for key, array in STATE.items()}
    state["layer2.0.bn1.weight"][3:5] = np.nan, np.inf
    path = write_state(state, tmp_path / f"net.{suffix}")
    words = f"net.{suffix} has weights that are NaN or infinite: "
    assert_refused(model, path, words, "(2 of 32 values)")
    if suffix != "weights.h5":  # The file does not name its variant.
        target = tmp_path / "target.keras"
        with pytest.raises(InputError, match="2 of 32"):
            convert(str(path), str(target))
        assert not target.exists()


def test_large_values_are_no_infinite_values(tmp_path):
    """The sum of an array may exceed the range of float32, but not its values."""
    state = {**STATE, "bn1.bias": np.full(16, 3e38, "float32")}
    path = write_state(state, tmp_path / "net.npz")
    network = build_resnet8(weights=path)
    np.testing.assert_array_equal(network.get_layer("conv1_bn").beta, state["bn1.bias"])
    state["bn1.bias"] = np.full(16, 1e39)  # float64.
    write_state(state, path)
    with pytest.raises(InputError, match="16 of 16"):
        build_resnet8(weights=path)


DEEP = "cifar_resnet6002"


@pytest.mark.parametrize("suffix", ["safetensors", "weights.h5"])
def test_metadata_cannot_demand_a_deep_network(suffix, tmp_path):
    """Building a network with 6,000 layers would take hours."""
    network, path = build_resnet8(), tmp_path / f"net.{suffix}"
    network.origin = origin.Origin("", model=DEEP)
    (saving.save_weights if suffix == "weights.h5" else saving.save_state_dict)(
        network, path
    )
    if suffix == "weights.h5":
        with pytest.raises(InputError, match="metadata names"):
            convert(str(path), str(tmp_path / "b.keras"))
    else:
        assert convert(str(path), str(tmp_path / "b.keras")).name == "cifar_resnet8"


@pytest.mark.parametrize("depth", ["60000002", "9" * 5000])
def test_the_depth_is_limited(depth):
    with pytest.raises(InputError, match="Unknown model"):
        keras_resnet.ResNet(f"cifar_resnet{depth}")


def test_the_number_of_classes_is_limited(tmp_path):
    state = {**STATE, "linear.bias": np.zeros(200_000, "float32")}
    path = write_state(state, tmp_path / "net.npz")
    with pytest.raises(InputError, match="at most 131,072 classes"):
        build_resnet8(weights=path)


def test_each_class_needs_one_name(tmp_path):
    metadata = json.dumps({"classes": ["a", "b"]})
    save_file(STATE, tmp_path / "net.safetensors", {origin.METADATA_KEY: metadata})
    with pytest.raises(InputError, match="10 classes and 2 names"):
        formats.read_checkpoint(tmp_path / "net.safetensors")


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    path = str(tmp_path / "a\x1b[31mb.npz")
    write_state(STATE, path)
    build_resnet8(weights=path, classes=3)
    error = capsys.readouterr().err
    assert "\\x1b[31mb.npz: the head of 10 classes is not used" in error
    assert "\x1b" not in error
