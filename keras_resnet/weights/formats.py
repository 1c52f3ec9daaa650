"""Readers for all formats of weights files.

The dict `READERS` at the end of this module maps file name suffixes to readers. A
reader returns a `Checkpoint`, whose weights have the names of this package (see
`keras_resnet.weights.dialects`) and whose `origin` has the fields known from the file.
"""

import contextlib
import functools
import importlib
import json
import lzma
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from types import ModuleType

import h5py
import keras
import numpy as np
import safetensors

from keras_resnet.nets import list_batch_norms
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
    except READ_ERRORS as error:
        raise InputError(
            f"{path} is damaged or does not contain {content}: {first_line(error)}"
        ) from error


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
        InputError: If the file is missing, damaged or not a Keras model.
    """
    path = _check_path(path, (".keras",))
    with refuse_damage(path, "a Keras model"), zipfile.ZipFile(path) as archive:
        metadata, model = archive.comment, keras.models.load_model(path)
    if not isinstance(model, keras.Model):
        raise InputError(f"{path} does not contain a Keras model")
    if metadata:
        model.origin = Origin.from_metadata(metadata, path)
    return model


def _check_path(path: StrPath, suffixes: Collection[str]) -> str:
    """Checks that a file exists and has an accepted suffix, and returns its path."""
    accepted = f"Accepted: a file {', '.join(suffixes)}. Received: {path!r}"
    is_path = isinstance(path, str | os.PathLike)
    if not is_path or not str(path).lower().endswith(tuple(suffixes)):
        raise InputError(accepted)
    if not os.path.isfile(path):
        raise InputError(f"The file does not exist. {accepted}")
    if str(path).endswith((".keras", ".npz")) and not zipfile.is_zipfile(path):
        suffix = os.path.splitext(path)[1]
        raise InputError(f"{path} is damaged or not a {suffix} file")
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
        has_layers = "layers" in file
        bias_shape = getattr(file.get("layers/dense/vars/1"), "shape", None)
        metadata = file.attrs.get(METADATA_KEY)
    if not has_layers:
        raise InputError(f"{path} does not contain weights that Keras saved")
    origin = Origin(path, certain=False)
    if metadata is not None:
        origin = Origin.from_metadata(metadata, path)
    return Checkpoint(origin, None, bias_shape[0] if bias_shape else None)


def _read_keras_applications(path: str) -> Checkpoint:
    """Reads a `.h5` file of keras.applications, whose network may have no head."""
    arrays: dict[str, np.ndarray] = {}
    epsilons = set()
    with refuse_damage(path, "weights"), h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        config = file.attrs.get("model_config", "{}")
        json.loads(config, object_hook=lambda item: epsilons.add(item.get("epsilon")))
        for layer in np.asarray(group.attrs.get("layer_names", ())).astype(str):
            for name in np.asarray(group[layer].attrs["weight_names"]).astype(str):
                variable = name.split("/")[-1].removesuffix(":0")
                # In files of older Keras versions, the head is named probs or fc1000.
                layer_name = "predictions" if layer in ("probs", "fc1000") else layer
                arrays[f"{layer_name}/{variable}"] = np.asarray(group[layer][name])
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
