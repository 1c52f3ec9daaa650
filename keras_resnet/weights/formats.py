"""Readers for all formats of weights files.

The dict `READERS` at the end of this module maps file name suffixes to readers. A
reader returns a `Checkpoint`, whose weights have the names of this package (see
`keras_resnet.weights.dialects`) and whose `origin` has the fields known from the file.
"""

import functools
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from types import ModuleType

import keras
import numpy as np

from keras_resnet.nets import list_batch_norms
from keras_resnet.support import InputError, StrPath, first_line, shorten_list
from keras_resnet.weights import dialects
from keras_resnet.weights.checkpoint import Checkpoint, Tensor, to_tensors
from keras_resnet.weights.origin import METADATA_KEY, PIXEL_FORMATS, Origin
from keras_resnet.weights.recognition import describe_variant, find_origin


def read_checkpoint(path: StrPath) -> Checkpoint:
    """Opens a weights file. The path must end with one of `SUFFIXES`.

    Raises:
        InputError: If the file is missing or damaged, may contain code, or contains
            weights of a network that is not a ResNet.
    """
    path = _check_path(path, SUFFIXES)
    reader = next(r for suffix, r in READERS.items() if path.lower().endswith(suffix))
    try:
        return reader(path)
    except InputError:
        raise
    except Exception as error:  # Libraries raise errors of many types.
        raise unreadable_error(path, "weights", error) from error


def load_model(path: StrPath) -> keras.Model:
    """Loads a `.keras` file. Sets `model.origin` if keras_resnet wrote the file.

    Raises:
        InputError: If the file is missing, damaged or not a Keras model.
    """
    path = _check_path(path, (".keras",))
    try:
        model = keras.models.load_model(path)
        with zipfile.ZipFile(path) as archive:
            if archive.comment:
                model.origin = Origin.from_metadata(archive.comment, path)
        return model
    except Exception as error:  # Keras and h5py raise errors of many types.
        raise unreadable_error(path, "a Keras model", error) from error


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


def unreadable_error(path: str, content: str, error: Exception) -> InputError:
    """Makes the error to raise if reading a file fails with `error` in a library."""
    return InputError(
        f"{path} is damaged or does not contain {content}: {first_line(error)}"
    )


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
    import h5py

    with h5py.File(path, "r") as file:
        if "layers" not in file:
            raise InputError(f"{path} does not contain weights that Keras saved")
        bias = file.get("layers/dense/vars/1")
        num_classes = None if bias is None else bias.shape[0]
        metadata = file.attrs.get(METADATA_KEY)
    origin = Origin.from_metadata(metadata, path) if metadata else None
    return Checkpoint(origin or Origin(path, certain=False), None, num_classes)


def _read_keras_applications(path: str) -> Checkpoint:
    """Reads a `.h5` file of keras.applications, whose network may have no head."""
    import h5py

    arrays = {}
    with h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        config = json.loads(file.attrs.get("model_config", "{}")).get("config", {})
        for layer in map(_decode_name, group.attrs.get("layer_names", ())):
            for name in map(_decode_name, group[layer].attrs["weight_names"]):
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
    layer_configs = [layer["config"] for layer in config.get("layers", ())]
    epsilons = {layer["epsilon"] for layer in layer_configs if "epsilon" in layer}
    if epsilons - {1.001e-5} or not (is_preact or "conv1_conv/bias" in arrays):
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


def _decode_name(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


class _SafetensorsReader:
    """Function that returns an array of a safetensors file by its key.

    The library safetensors maps the file into memory. While the file is open, the bytes
    that were read count as used memory. Reopening the file every 32 MiB frees them.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        from safetensors import safe_open

        self.file, self._num_bytes = safe_open(self._path, framework="numpy"), 0

    def __call__(self, key: str) -> np.ndarray:
        if self._num_bytes > 2**25:
            self._open()
        array = self.file.get_tensor(key)
        self._num_bytes += array.nbytes
        return array


def _read_safetensors(path: str) -> Checkpoint:
    reader = _SafetensorsReader(path)
    metadata = (reader.file.metadata() or {}).get(METADATA_KEY)
    tensors = []
    for key in list(reader.file.keys()):
        tensor_slice = reader.file.get_slice(key)
        shape, dtype = tuple(tensor_slice.get_shape()), tensor_slice.get_dtype()
        tensors.append(Tensor(key, shape, dtype, functools.partial(reader, key)))
    return _from_state_dict(tensors, path, metadata)


def _read_npz(path: str) -> Checkpoint:
    with np.load(path, allow_pickle=False) as archive:
        return _from_arrays(dict(archive), path)


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
    arrays = {
        k: (v.float() if v.dtype == torch.bfloat16 else v).detach().numpy()
        for k, v in state.items()
        if isinstance(v, torch.Tensor)
    }
    return _from_arrays(arrays, path)


def _from_arrays(arrays: Mapping[str, np.ndarray], path: str) -> Checkpoint:
    return _from_state_dict([Tensor.from_array(k, a) for k, a in arrays.items()], path)


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
