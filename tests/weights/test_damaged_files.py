"""Damaged and hostile files are refused, and faults of this package are not hidden."""

import json
import os
import pathlib
import pickle
import random
import struct
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_weights import (
    SUFFIXES,
    TORCH_MISSING,
    assert_refused,
    build_from_state,
    build_resnet8,
    make_cifar_state,
    to_torch,
    write_keras_h5,
    write_state,
)

from keras_resnet.support.errors import InputError
from keras_resnet.weights import assign, checkpoint, dialects, formats, saving

STATE = make_cifar_state()


@pytest.fixture(scope="module")
def model():
    """A network whose weights no test may change."""
    return build_resnet8()


def write_h5(path, edit=lambda file: None):
    """Writes a `.h5` file as keras.applications does, and changes it with `edit`."""
    write_keras_h5(build_from_state(STATE), path)
    with h5py.File(path, "r+") as file:
        file["conv1_conv/conv1_conv/bias:0"] = np.zeros(16, "float32")
        names = [b"conv1_conv/kernel:0", b"conv1_conv/bias:0"]
        file["conv1_conv"].attrs["weight_names"] = names
        edit(file)


def replace(name, value):
    """Returns a function that replaces an array of an h5 file, for `write_h5`."""

    def edit(file):
        del file[name]
        if value is not None:
            file[name] = value

    return edit


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Maps each suffix to the path of a valid file.

    If PyTorch is not installed, the `.pth` file is a pickle of NumPy arrays.
    """
    folder = tmp_path_factory.mktemp("valid")
    model = build_from_state(STATE)
    model.save(folder / "net.keras")
    model.save_weights(folder / "net.weights.h5")
    write_h5(folder / "net.h5")
    write_state(STATE, folder / "net.safetensors")
    write_state(STATE, folder / "net.npz")
    try:
        import torch
    except ModuleNotFoundError:
        (folder / "net.pth").write_bytes(pickle.dumps(STATE))
    else:
        torch.save(to_torch(STATE), folder / "net.pth")
    return {suffix: folder / f"net.{suffix}" for suffix in SUFFIXES}


@pytest.fixture(scope="module")
def valid_files(files):
    """Maps each suffix to the bytes of a valid file."""
    return {suffix: path.read_bytes() for suffix, path in files.items()}


# The following tests damage files at random.


def damage(content, rng):
    """Truncates a file, inserts bytes, zeroes a part, or flips bits."""
    content, size = bytearray(content), len(content)
    position = rng.choice([rng.randrange(size), rng.randrange(min(size, 4096))])
    position = rng.choice([position, size - 1 - position])
    kind = rng.randrange(6)
    if kind == 0:
        return content[:position]
    if kind == 1:
        return content[:position] + rng.randbytes(8) + content[position:]
    if kind == 2:
        return content[:position] + bytes(99) + content[position + 99 :]
    for offset in range(rng.choice([1, 9, 99])):
        content[(position + 37 * offset) % size] ^= 1 << rng.randrange(8)
    return content


# HDF5 is left out, because its library may loop forever in a damaged file.
@pytest.mark.parametrize("suffix", ["keras", "safetensors", "npz", "pth"])
def test_random_damage_raises_only_input_errors(suffix, valid_files, tmp_path):
    rng, scratch_model, num_refused = random.Random(suffix), build_resnet8(), 0
    path = tmp_path / f"net.{suffix}"
    for _ in range(8 if suffix == "keras" else 80):
        path.write_bytes(damage(valid_files[suffix], rng))
        try:
            assign.assign_weights(scratch_model, formats.read_checkpoint(path))
        except InputError as error:
            assert str(path) in str(error)
            num_refused += 1
    assert num_refused > 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_undamaged_file_is_read(suffix, files):
    """Without this test, the tests below could pass for the wrong reason."""
    if suffix == "pth":
        pytest.importorskip("torch", reason=TORCH_MISSING)
    checkpoint = formats.read_checkpoint(files[suffix])
    assert checkpoint.num_classes == 10


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_file_is_refused(suffix, valid_files, model, tmp_path):
    path, content = tmp_path / f"net.{suffix}", valid_files[suffix]
    for fraction in (0, 0.001, 0.1, 0.5, 0.9, 1):
        path.write_bytes(content[: min(int(fraction * len(content)), len(content) - 1)])
        assert_refused(model, path, f"net.{suffix}")


@pytest.mark.parametrize("suffix", ["keras", "npz"])
def test_file_with_a_changed_byte_is_refused(suffix, valid_files, model, tmp_path):
    """`.keras` and `.npz` files are ZIP archives, so checksums reveal the change."""
    path = tmp_path / f"net.{suffix}"
    content = bytearray(valid_files[suffix])
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert_refused(model, path, f"net.{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_with_a_wrong_suffix_is_refused(suffix, valid_files, model, tmp_path):
    path = tmp_path / f"net.{suffix}"
    contents = {**valid_files, "txt": b"A text without weights.\n" * 99}
    for content_suffix, content in contents.items():
        if content_suffix != suffix:
            path.write_bytes(content)
            assert_refused(model, path, f"net.{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_folder_or_missing_file_is_refused(suffix, model, tmp_path):
    path = tmp_path / f"net.{suffix}"
    assert_refused(model, path, "does not exist", f"net.{suffix}")
    path.mkdir()
    assert_refused(model, path, "does not exist", f"net.{suffix}")


@pytest.mark.parametrize("name", ["net.onnx", "net.pt", "net", "folder/"])
def test_unknown_suffix_is_refused(name, model, tmp_path):
    path = f"{tmp_path}/{name}"
    pathlib.Path(path).mkdir() if path.endswith("/") else pathlib.Path(path).touch()
    parts = (".weights.h5, .keras, .safetensors, .npz, .h5, .pth, .th", path)
    assert_refused(model, path, *parts)
    with pytest.raises(InputError) as error:
        build_resnet8(weights=path)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + b"\0" * 18, b"{}", "half"])
def test_damaged_keras_file_is_no_model(content, valid_files, tmp_path):
    path, valid_content = tmp_path / "net.keras", valid_files["keras"]
    path.write_bytes(
        valid_content[: len(valid_content) // 2] if content == "half" else content
    )
    with pytest.raises(InputError, match=r"net\.keras"):
        formats.load_model(path)


# The following tests write files whose checksums are right, but not their structure.


def write_safetensors(path, header, data=b"", metadata=None):
    """Writes a safetensors file with any header, which `safetensors` may refuse."""
    if metadata is not None:
        header = header | {"__metadata__": {"keras_resnet": metadata}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_archive(path, members, comment=b""):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.comment = comment


def write_lzma_npz(path):
    """Writes an .npz file whose LZMA stream begins with impossible properties."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(f"{KEY}.npy", bytes(1000))
    content = bytearray(path.read_bytes())
    content[content.index(b".npy") + len(b".npy") + 4] = 255
    path.write_bytes(content)


def write_huge_head(path):
    """Writes a .weights.h5 file with a bias of 4 TiB, none of which is stored."""
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/dense/vars/1", (2**40,), "float32", chunks=(1024,))


def write_header(shape):
    """Returns the header of an .npy file as bytes."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    return MAGIC + struct.pack("<H", len(text)) + text


SCALAR = np.zeros((), "float32")
MAGIC = b"\x93NUMPY\x01\x00"
KEY = "layer1.0.conv1.weight"
NO_BYTES = {"dtype": "F32", "data_offsets": [0, 0]}
HOSTILE_FILES = {
    "huge stage.safetensors": lambda path: write_safetensors(
        path, {f"layer{10**9}.0.conv1.weight": {**NO_BYTES, "shape": [0]}}
    ),
    "long number.safetensors": lambda path: write_safetensors(
        path, {f"layer{'9' * 5000}.0.conv1.weight": {**NO_BYTES, "shape": [0]}}
    ),
    "impossible shape.safetensors": lambda path: write_safetensors(
        path, {KEY: {**NO_BYTES, "shape": [0] + 3 * [2**40]}}
    ),
    "many axes.safetensors": lambda path: write_safetensors(
        path, {KEY: {**NO_BYTES, "shape": 70 * [0]}}
    ),
    "scalar head.safetensors": lambda path: save_file(
        {**STATE, "linear.weight": SCALAR, "linear.bias": SCALAR}, path
    ),
    **{
        f"header {size}.safetensors": lambda path, size=size: path.write_bytes(
            struct.pack("<Q", size) + b'{"a":' + bytes(99)
        )
        for size in (2, 10**3, 10**8, 2**40, 2**64 - 1)
    },
    "deep.safetensors": lambda path: write_safetensors(path, {}, metadata="[" * 10**5),
    "empty stem.safetensors": lambda path: save_file(
        {**STATE, "conv1.weight": np.zeros((0, 0, 3, 3), "float32")}, path
    ),
    "metadata.safetensors": lambda path: write_safetensors(
        path, {KEY: {**NO_BYTES, "shape": [0]}}, metadata='{"pixels": 1}'
    ),
    "bytes.npz": lambda path: write_archive(path, {KEY: b"no array"}),
    "array.npz": lambda path: (
        write_archive(path, {KEY: b""}),
        path.write_bytes(b"\x93NUMPY" + path.read_bytes()),
    ),
    **{
        f"header {number}.npz": lambda path, header=header: write_archive(
            path, {f"{KEY}.npy": MAGIC + struct.pack("<H", len(header)) + header}
        )
        for number, header in enumerate([b"[", b"if x:\n  a\n b\n", b"(" * 99, b"{}"])
    },
    **{
        f"shape {size}.npz": lambda path, size=size: write_archive(
            path, {f"{KEY}.npy": write_header(f"({size}, 3, 3, 3)") + bytes(99)}
        )
        for size in (10**6, 10**9, 10**12, 10**30, -1)
    },
    "lzma.npz": write_lzma_npz,
    "head.weights.h5": write_huge_head,
    "text.npz": lambda path: np.savez(path, **{**STATE, "linear.bias": "text"}),
    "layers.h5": lambda path: write_h5(path, lambda f: f.attrs.update(layer_names=7)),
    "config.h5": lambda path: write_h5(path, lambda f: f.attrs.update(model_config=7)),
    "json.h5": lambda path: write_h5(
        path, lambda f: f.attrs.update(model_config='{"a": [{"epsilon": []}]}')
    ),
    **{
        f"{type(value).__name__}.h5": lambda path, value=value: write_h5(
            path, replace("conv1_conv/conv1_conv/kernel:0", value)
        )
        for value in (None, 1.0, "text", h5py.Empty("f"), np.zeros(3, "int32"))
    },
    "mean.h5": lambda path: write_h5(
        path, replace("conv1_bn/conv1_bn/moving_mean:0", np.zeros(3, "float32"))
    ),
    "layer.keras": lambda path: write_archive(
        path, {"config.json": '{"class_name": "Dense", "config": {}}'}
    ),
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_hostile_file_is_refused(name, model, tmp_path):
    path = tmp_path / name
    HOSTILE_FILES[name](path)
    assert_refused(model, path, name)


# The following tests load files with code, which must not be executed.


class Exploit:
    """An object whose unpickling creates the folder `marker`."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_unpickling_an_exploit_makes_a_folder(tmp_path):
    pickle.loads(pickle.dumps(Exploit(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_pickled_objects_in_npz_are_not_executed(model, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "net.npz"
    state = make_cifar_state()
    np.savez(path, **state, extra=np.array([Exploit(marker)], dtype=object))
    assert_refused(model, path, "net.npz")
    np.savez(
        path, **{**state, "linear.bias": np.array([Exploit(marker)], dtype=object)}
    )
    assert_refused(model, path, "net.npz")
    path.write_bytes(pickle.dumps(Exploit(marker)))
    assert_refused(model, path, "net.npz")
    assert not marker.exists()


def test_lambda_in_a_keras_file_is_not_executed(model, tmp_path):
    marker = str(tmp_path / "marker")
    path = tmp_path / "net.keras"
    layer = keras.layers.Lambda(
        lambda x, marker=marker: __import__("os").mkdir(marker) or x, output_shape=(4,)
    )
    keras.Sequential([keras.Input((4,)), layer]).save(path)
    os.path.isdir(marker) and os.rmdir(marker)
    assert_refused(model, path, "net.keras")
    assert not os.path.exists(marker)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_pickle_is_not_executed_without_torch(is_wrapped, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    marker, path = tmp_path / "marker", tmp_path / "net.pth"
    exploit = Exploit(marker)
    path.write_bytes(pickle.dumps({"state_dict": exploit} if is_wrapped else exploit))
    assert_refused(model, path, "keras-resnet-zoo[torch]", "net.pth")
    assert not marker.exists()


@pytest.mark.parametrize("writer", ["pickle", "torch", "torch with weights"])
def test_pickle_is_not_executed_by_torch(writer, model, tmp_path):
    torch = pytest.importorskip("torch", reason=TORCH_MISSING)
    marker, path = tmp_path / "marker", tmp_path / "net.pth"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Exploit(marker)}, protocol=2))
    elif writer == "torch":
        torch.save(Exploit(marker), path)
    else:
        torch.save({**to_torch(make_cifar_state()), "extra": Exploit(marker)}, path)
    assert_refused(
        model, path, "net.pth", "refused", "No code in the file was executed"
    )
    assert not marker.exists()


# The following tests break this package itself, which no message may call damage.


@pytest.mark.parametrize(
    ("suffix", "module", "name"),
    [
        ("keras", formats, "find_origin"),
        ("weights.h5", assign, "to_tensors"),
        ("h5", dialects, "convert_keras_applications"),
        ("safetensors", dialects.Dialect, "to_keras_name"),
        ("safetensors", checkpoint, "transpose_kernel"),
        ("npz", dialects.Dialect, "recognise"),
        ("pth", formats, "describe_variant"),
    ],
)
@pytest.mark.parametrize("fault", [AttributeError, ValueError])
def test_faults_of_this_package_are_not_hidden(
    suffix, module, name, fault, files, monkeypatch
):
    if suffix == "pth":
        pytest.importorskip("torch", reason=TORCH_MISSING)

    def fail(*args, **kwargs):
        raise fault("a fault of this package")

    monkeypatch.setattr(module, name, fail)
    with pytest.raises(fault, match="a fault of this package") as error:
        build_resnet8(weights=files[suffix])
    assert type(error.value) is fault


@pytest.mark.parametrize("fault", [AttributeError, TypeError, ValueError])
def test_faults_while_writing_are_not_hidden(fault, tmp_path, monkeypatch):
    """An error of the disk becomes a message, but a fault of this package does not."""

    def fail(*args, **kwargs):
        raise fault("a fault of this package")

    monkeypatch.setattr(saving, "transpose_kernel", fail)
    with pytest.raises(fault, match="a fault of this package"):
        saving.save_state_dict(build_resnet8(), tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
