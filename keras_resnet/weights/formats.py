"""Readers for all formats of weights files.

The dict `READERS` at the end of this module maps file name suffixes to readers. A
reader returns a `Checkpoint`, whose weights have the names of this package (see
`keras_resnet.weights.dialects`) and whose `origin` has the fields known from the file.
"""

import contextlib
import functools
import importlib
import io
import json
import lzma
import math
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from types import ModuleType
from typing import Any

import h5py
import keras
import numpy as np
import safetensors

from keras_resnet import support
from keras_resnet.nets import list_batch_norms
from keras_resnet.spec import find_variant
from keras_resnet.support import InputError, StrPath, first_line, shorten_list
from keras_resnet.weights import dialects
from keras_resnet.weights.checkpoint import Checkpoint, Tensor, to_tensors
from keras_resnet.weights.origin import METADATA_KEY, PIXEL_FORMATS, Origin
from keras_resnet.weights.recognition import describe_variant, find_origin

# Errors that Keras, h5py, NumPy, safetensors and PyTorch raise for damaged files.
READ_ERRORS: tuple[type[Exception], ...] = (
    OSError, EOFError, ArithmeticError, AssertionError, AttributeError, LookupError,
    MemoryError, RuntimeError, SyntaxError, TypeError, ValueError, lzma.LZMAError,
    safetensors.SafetensorError, struct.error, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
# Keras on TensorFlow raises an `OpError` for an array that does not fit into memory.
if keras.backend.backend() == "tensorflow":
    READ_ERRORS += (importlib.import_module("tensorflow").errors.OpError,)


@contextlib.contextmanager
def refuse_damage(path: str, content: str) -> Iterator[None]:
    """Raises an `InputError` if a library cannot read a file in the context.

    The context must contain only calls of libraries, so that it hides no other bugs.
    """
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(
            f"{path} is damaged or does not contain {content}: {first_line(error)}"
        ) from error


def _check_size(path: str, num_bytes: int) -> None:
    """Refuses a file that declares far larger arrays than it can contain."""
    # Fill values of HDF5 and compressed zeros take no space. Weights hardly compress.
    if num_bytes > max(2**28, 8 * os.path.getsize(path)):
        raise InputError(
            f"{path} is refused, because the small file declares {num_bytes:,} bytes"
        )


def list_datasets(file: h5py.File, path: str) -> dict[str, h5py.Dataset]:
    """Returns the arrays of an HDF5 file by name. Reads none of them.

    HDF5's own function for this purpose crashes if groups are nested too deeply.

    Raises:
        InputError: If the file refers to other files, names something twice, declares
            too large arrays, or contains strings or too many groups and arrays.
    """
    datasets: dict[str, h5py.Dataset] = {}
    groups, seen = [("", file)], {file}
    while groups:
        prefix, group = groups.pop()
        for key in group:
            name, item = f"{prefix}{key}", None
            if isinstance(group.get(key, getlink=True), h5py.HardLink):
                item = group[key]
            if isinstance(item, h5py.Group) and name.count("/") < 20:
                groups.append((f"{name}/", item))
            elif isinstance(item, h5py.Dataset) and not (
                item.external or item.is_virtual or item.dtype.hasobject
            ):
                datasets[name] = item
            else:
                item = None
            if item is None or item in seen or len(seen) > 30_000:
                raise InputError(
                    f"{path} is refused, because it must contain at most 30,000 groups "
                    f"and arrays of numbers, without links to others. Received: {name}"
                )
            seen.add(item)
    _check_size(path, sum((d.size or 0) * d.dtype.itemsize for d in datasets.values()))
    return datasets


def read_checkpoint(path: StrPath) -> Checkpoint:
    """Opens a weights file. The path must end with one of `SUFFIXES`.

    Raises:
        InputError: If the file is missing or damaged, may contain code, or contains
            weights of a network that is not a ResNet.
    """
    path = _check_path(path, SUFFIXES)
    reader = next(r for suffix, r in READERS.items() if path.lower().endswith(suffix))
    return reader(path)


def load_model(path: StrPath) -> keras.Model:
    """Loads a `.keras` file. Sets `model.origin` if keras_resnet wrote the file.

    Raises:
        InputError: If the file is missing or damaged, or if it contains anything other
            than a network with the classes of Keras that this package uses.
    """
    path = _check_path(path, (".keras",))
    with refuse_damage(path, "a Keras model"), zipfile.ZipFile(path) as archive:
        _check_archive(archive, path)
        metadata, model = archive.comment, keras.models.load_model(path, compile=False)
    if not isinstance(model, keras.Model):
        raise InputError(f"{path} does not contain a Keras model")
    if metadata:
        model.origin = Origin.from_metadata(metadata, path)
    return model


# Members of a `.keras` file, and the classes in the configuration of a network that this
# package builds. Other classes of Keras can read files or execute code.
_MEMBERS = ["config.json", "metadata.json", "model.weights.h5"]
_MODULES = {
    None, "keras", "keras.initializers", "keras.layers", "keras.src.models.functional",
}  # fmt: skip
_CLASSES = {
    "Activation", "Add", "AveragePooling2D", "BatchNormalization", "Conv2D", "DTypePolicy",
    "Dense", "Dropout", "Functional", "GlobalAveragePooling2D", "GlobalMaxPooling2D",
    "HeNormal", "InputLayer", "MaxPooling2D", "Multiply", "Normalization", "Ones",
    "ZeroPadding2D", "Zeros", "__keras_tensor__",
}  # fmt: skip


def _check_archive(archive: zipfile.ZipFile, path: str) -> None:
    """Checks the members of a `.keras` file before Keras reads them."""
    is_compressed = any(info.compress_type for info in archive.infolist())
    if sorted(archive.namelist()) != _MEMBERS or is_compressed:
        raise InputError(
            f"{path} is refused, because it must contain {', '.join(_MEMBERS)}, "
            f"uncompressed. It contains {shorten_list(archive.namelist())}"
        )
    with h5py.File(io.BytesIO(archive.read(_MEMBERS[2])), "r") as file:
        list_datasets(file, path)
    config = json.loads(archive.read(_MEMBERS[0]))
    config.pop("compile_config", None)  # `load_model` ignores it.
    values, num_weights = [config], 0
    while values:
        value = values.pop()
        if isinstance(value, dict):
            num_weights += _check_object(value, path) if "class_name" in value else 0
            value = list(value.values())
        values += value if isinstance(value, list) else []
    _check_size(path, 4 * num_weights)


def _check_object(value: dict[str, Any], path: str) -> int:
    """Checks the class of a layer or other object. Returns a bound of its weights."""
    module, name, config = value.get("module"), value["class_name"], value["config"]
    is_known = name in _CLASSES and module in _MODULES
    if not is_known or value.get("registered_name") not in (None, name):
        raise InputError(
            f"{path} is refused, because networks of keras_resnet do not contain "
            f"{module}.{name}"
        )
    if name not in ("BatchNormalization", "Conv2D", "Dense", "Normalization"):
        return 0
    num_inputs = max(filter(None, value["build_config"]["input_shape"]))
    num_outputs = config.get("filters") or config.get("units") or 4
    groups = config.get("groups", 1)
    sizes = [num_inputs, num_outputs, *config.get("kernel_size", ())]
    support.check_type([groups, *sizes], list[support.Count], f"{name} in {path}")
    return math.prod(sizes) // groups


def _check_path(path: StrPath, suffixes: Collection[str]) -> str:
    """Checks that a file exists and has an accepted suffix, and returns its path."""
    accepted = f"Accepted: a file {', '.join(suffixes)}. Received: {path!r}"
    is_path = isinstance(path, str | os.PathLike)
    if not is_path or not str(path).lower().endswith(tuple(suffixes)):
        raise InputError(accepted)
    if not os.path.isfile(path):
        raise InputError(f"The file does not exist. {accepted}")
    return os.fspath(path)


def _read_keras(path: str) -> Checkpoint:
    model = load_model(path)
    origin = find_origin(model, path)
    if origin is None:
        raise InputError(f"{path} does not contain a network of keras_resnet")
    if any(abs(layer.epsilon - 1e-5) > 1e-9 for layer in list_batch_norms(model)):
        raise InputError(
            f"{path} contains batch normalisations with an epsilon other than 1e-5. If the "
            "network is from keras.applications, save it as .h5"
        )
    return Checkpoint.from_tensors(origin, to_tensors(model))


def _read_weights_h5(path: str) -> Checkpoint:
    """Reads the number of classes and the metadata of a `.weights.h5` file."""
    with refuse_damage(path, "weights"), h5py.File(path, "r") as file:
        datasets = list_datasets(file, path)
        bias_shape = getattr(datasets.get("layers/dense/vars/1"), "shape", None)
        metadata = file.attrs.get(METADATA_KEY)
    if not any(name.startswith("layers/") for name in datasets):
        raise InputError(f"{path} does not contain weights that Keras saved")
    origin = Origin(path, certain=False)
    if metadata is not None:
        origin = Origin.from_metadata(metadata, path)
    if origin.model and sum(find_variant(origin.model).blocks) > len(datasets):
        raise InputError(f"{path} does not contain the network that its metadata names")
    return Checkpoint(origin, None, bias_shape[0] if bias_shape else None)


def _read_keras_applications(path: str) -> Checkpoint:
    """Reads a `.h5` file of keras.applications, whose network may have no head."""
    arrays: dict[str, np.ndarray] = {}
    epsilons = set()
    with refuse_damage(path, "weights"), h5py.File(path, "r") as file:
        datasets = list_datasets(file, path)
        group = file.get("model_weights", file)
        config = file.attrs.get("model_config", "{}")
        json.loads(config, object_hook=lambda item: epsilons.add(item.get("epsilon")))
        for layer in np.asarray(group.attrs.get("layer_names", ())).astype(str):
            for name in np.asarray(group[layer].attrs["weight_names"]).astype(str):
                variable = name.split("/")[-1].removesuffix(":0")
                # In files of older Keras versions, the head is named probs or fc1000.
                layer_name = "predictions" if layer in ("probs", "fc1000") else layer
                array = datasets.pop(f"{group.name}/{layer}/{name}".lstrip("/"))
                arrays[f"{layer_name}/{variable}"] = np.asarray(array)
    if "conv2_block1_1_conv/kernel" not in arrays:
        raise InputError(
            "A .h5 file must contain a ResNet of keras.applications, with names such as "
            f"conv2_block1_1_conv. Received: {path} with {shorten_list(arrays) or 'nothing'}"
        )
    is_preact = dialects.is_preactivated(arrays)
    if (
        epsilons - {None, 1.001e-5}
        or not (is_preact or "conv1_conv/bias" in arrays)
        or np.ndim(arrays.get("conv1_conv/kernel", 0)) != 4
        or any(array.dtype.kind != "f" for array in arrays.values())
    ):
        raise InputError(
            "A .h5 file must contain a ResNet of keras.applications. Save networks of "
            f"keras_resnet as .keras. Received: {path}"
        )
    dialects.convert_keras_applications(arrays)
    pixels = PIXEL_FORMATS["tf" if is_preact else "caffe"]
    stride_on = "3x3" if is_preact else "1x1"
    origin = Origin(path, pixels, stride_on=stride_on, shortcut="B", avg_down=False)
    tensors = {name: Tensor.from_array(name, array) for name, array in arrays.items()}
    return Checkpoint.from_tensors(origin, tensors)


class _SafetensorsReader:
    """Function that returns an array of a safetensors file by its key.

    The library safetensors maps the file into memory. While the file is open, the bytes
    that were read count as used memory. Reopening the file every 32 MiB frees them.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        self._num_bytes = 0
        with refuse_damage(self._path, "weights"):
            self.file = safetensors.safe_open(self._path, framework="numpy")

    def __call__(self, key: str) -> np.ndarray:
        if self._num_bytes > 2**25:
            self._open()
        with refuse_damage(self._path, "weights"):
            array = self.file.get_tensor(key)
        self._num_bytes += array.nbytes
        return array


def _read_safetensors(path: str) -> Checkpoint:
    reader = _SafetensorsReader(path)
    tensors = []
    with refuse_damage(path, "weights"):
        metadata = (reader.file.metadata() or {}).get(METADATA_KEY)
        for key in list(reader.file.keys()):
            tensor_slice = reader.file.get_slice(key)
            shape, dtype = tuple(tensor_slice.get_shape()), tensor_slice.get_dtype()
            np.broadcast_to(0, shape)  # Raises ValueError if the shape is impossible.
            tensors.append(Tensor(key, shape, dtype, functools.partial(reader, key)))
    return _from_state_dict(tensors, path, metadata)


def _read_npz(path: str) -> Checkpoint:
    with refuse_damage(path, "weights"), open(path, "rb") as file:
        archive = np.load(file, allow_pickle=False)
        _check_size(path, sum(member.file_size for member in archive.zip.infolist()))
        arrays = {key: np.asarray(array) for key, array in archive.items()}
    return _from_state_dict(map(Tensor.from_array, arrays, arrays.values()), path)


def import_torch(path: str) -> ModuleType:
    """Imports PyTorch to read the `.pth` or `.th` file `path`."""
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError(
            "Reading .pth and .th files requires PyTorch. Install it with pip install "
            f"'keras-resnet-zoo[torch]'. Received: {path!r}"
        ) from None
    return torch


def _read_torch(path: str) -> Checkpoint:
    """Reads a file that PyTorch wrote. Code in the file is not executed."""
    torch = import_torch(path)
    try:
        with refuse_damage(path, "weights"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused, because it is not a PyTorch file that contains arrays "
            f"only. No code in the file was executed ({first_line(error)})"
        ) from error
    for wrapper_key in ("state_dict", "model", "model_state_dict", "net"):
        if isinstance(state, dict) and isinstance(state.get(wrapper_key), dict):
            state = state[wrapper_key]
    if not isinstance(state, dict):
        raise InputError(f"{path} does not contain a state dict of PyTorch")
    with refuse_damage(path, "weights"):
        arrays = {
            k: (v.float() if v.dtype == torch.bfloat16 else v).detach().numpy()
            for k, v in state.items()
            if isinstance(k, str) and isinstance(v, torch.Tensor)
        }
    return _from_state_dict(map(Tensor.from_array, arrays, arrays.values()), path)


def _from_state_dict(
    torch_tensors: Iterable[Tensor], path: str, metadata: str | None = None
) -> Checkpoint:
    """Makes a checkpoint. `metadata` is the JSON of `Origin`, if the file has any."""
    state_dict = {
        tensor.key.removeprefix("module."): tensor
        for tensor in torch_tensors
        if not tensor.key.endswith("num_batches_tracked")
    }
    dialect = dialects.Dialect.recognise({k: t.shape for k, t in state_dict.items()})
    if dialect is None:
        raise InputError(
            "The file must contain a ResNet of torchvision, timm or a CIFAR repository, "
            f"with names such as layer1.0.conv1.weight. Received: {path} with "
            f"{shorten_list(state_dict) or 'nothing'}"
        )
    keras_names = {key: dialect.to_keras_name(key) for key in state_dict}
    if unknown_keys := [key for key, name in keras_names.items() if name is None]:
        raise InputError(
            f"{path} contains weights that a ResNet of torchvision, timm or a CIFAR "
            f"repository does not have: {shorten_list(unknown_keys)}"
        )
    tensors = {
        n: state_dict[k]._replace(key=k).to_keras() for k, n in keras_names.items() if n
    }
    if metadata:
        return Checkpoint.from_tensors(Origin.from_metadata(metadata, path), tensors)
    fields = describe_variant(tensors) or {}
    is_cifar = fields.get("stem") == "cifar"
    origin = Origin(
        path,
        PIXEL_FORMATS["torch"]._replace(crop=1.0 if is_cifar else 0.875),
        stride_on="3x3" if fields.get("block") == "bottleneck" else None,
        avg_down=dialect.block_layers["0_conv"] == "downsample.1",
        certain=False,
    )
    return Checkpoint.from_tensors(origin, tensors)


# Readers by file name suffix. The order matters: `.weights.h5` also ends with `.h5`.
READERS: dict[str, Callable[[str], Checkpoint]] = {
    ".weights.h5": _read_weights_h5,
    ".keras": _read_keras,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".h5": _read_keras_applications,
    ".pth": _read_torch,
    ".th": _read_torch,
}
SUFFIXES = tuple(READERS)
