"""The kinds of files that weights come in, and a reader for each.

The table `READERS` at the end has them by ending. Each reader returns arrays under
our names, which `keras_resnet.weights.dialects` translates, and what is known of
their origin.
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

from keras_resnet.nets import batch_norms
from keras_resnet.support import InputError, Path, first_line, shorten_list
from keras_resnet.weights import dialects
from keras_resnet.weights.checkpoint import Checkpoint, Tensor, tensors_of
from keras_resnet.weights.origin import NOTE, PIXELS, Origin
from keras_resnet.weights.recognition import describe_architecture, origin_of


def read_file(path: Path) -> Checkpoint:
    """Opens a file of weights, of any of the kinds in `ENDINGS`.

    Raises:
        InputError: There is no such file, or it is damaged, foreign or not to be
            trusted.
    """
    path = _check(path, ENDINGS)
    read = next(r for end, r in READERS.items() if path.lower().endswith(end))
    try:
        return read(path)
    except InputError:
        raise
    except Exception as error:  # Each library raises kinds of its own.
        raise unreadable(path, "weights", error) from error


def load_model(path: Path) -> keras.Model:
    """Loads a `.keras` file, with its `origin` where the file tells it.

    Raises:
        InputError: There is no such file, or it is damaged or foreign.
    """
    path = _check(path, (".keras",))
    try:
        model = keras.models.load_model(path)
        with zipfile.ZipFile(path) as archive:
            if archive.comment:
                model.origin = Origin.of_note(archive.comment, path)
        return model
    except Exception as error:  # Keras and h5py raise many kinds.
        raise unreadable(path, "a Keras model", error) from error


def _check(path: Path, endings: Collection[str]) -> str:
    """Returns the path of a file that is there and has one of these endings."""
    accepted = f"Accepted: a file {', '.join(endings)}. Received: {path!r}"
    is_path = isinstance(path, str | os.PathLike)
    if not is_path or not str(path).lower().endswith(tuple(endings)):
        raise InputError(accepted)
    if not os.path.isfile(path):
        raise InputError(f"There is no such file. {accepted}")
    if str(path).endswith((".keras", ".npz")) and not zipfile.is_zipfile(path):
        kind = os.path.splitext(path)[1]
        raise InputError(f"The file is damaged, or no {kind} file. Received: {path!r}")
    return os.fspath(path)


def unreadable(path: str, content: str, error: Exception) -> InputError:
    """Returns the error of a file that a library could not read."""
    return InputError(
        f"{path} is damaged, or does not hold {content}: {first_line(error)}"
    )


def _read_keras(path: str) -> Checkpoint:
    """Reads a `.keras` file that holds a network of this package."""
    model = load_model(path)
    origin = origin_of(model, path)
    if origin is None:
        raise InputError(f"{path} does not hold a network of keras_resnet")
    if any(abs(layer.epsilon - 1e-5) > 1e-9 for layer in batch_norms(model)):
        raise InputError(
            f"{path} holds a net whose batch normalisation is not ours, as those of "
            "keras.applications; its weights are read from a .h5 file"
        )
    return Checkpoint.of_tensors(origin, tensors_of(model))


def _read_weights_h5(path: str) -> Checkpoint:
    """Reads of a `.weights.h5` file what can be told before there is a model."""
    import h5py

    with h5py.File(path, "r") as file:
        if "layers" not in file:
            raise InputError(f"{path} does not hold weights that Keras wrote")
        bias = file.get("layers/dense/vars/1")
        classes = None if bias is None else bias.shape[0]
        note = file.attrs.get(NOTE)
    origin = Origin.of_note(note, path) if note else Origin(path, certain=False)
    return Checkpoint(origin, None, classes)


def _read_keras_applications(path: str) -> Checkpoint:
    """Reads a `.h5` file of keras.applications, with or without a head."""
    import h5py

    arrays = {}
    with h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        whole = json.loads(file.attrs.get("model_config", "{}")).get("config", {})
        for layer in map(_text, group.attrs.get("layer_names", ())):
            for name in map(_text, group[layer].attrs["weight_names"]):
                variable = name.split("/")[-1].removesuffix(":0")
                # The head has had three names.
                ours = "predictions" if layer in ("probs", "fc1000") else layer
                arrays[f"{ours}/{variable}"] = np.asarray(group[layer][name])
    if "conv2_block1_1_conv/kernel" not in arrays:
        raise InputError(
            "The weights' names are none of a ResNet of keras.applications, such as "
            f"conv2_block1_1_conv. Received: {path} with {shorten_list(arrays) or 'nothing'}"
        )
    preact = dialects.is_preactivated(arrays)
    layers = [layer["config"] for layer in whole.get("layers", ())]
    epsilons = {layer["epsilon"] for layer in layers if "epsilon" in layer}
    if epsilons - {1.001e-5} or not (preact or "conv1_conv/bias" in arrays):
        raise InputError(
            "A .h5 file is read as keras.applications', whose nets are not quite ours. "
            f"This is of another net; save ours as .keras. Received: {path}"
        )
    dialects.fold_keras_applications(arrays)
    pixels, stride_on = PIXELS["tf" if preact else "caffe"], "3x3" if preact else "1x1"
    origin = Origin(path, pixels, stride_on=stride_on, shortcut="B", avg_down=False)
    tensors = {name: Tensor.of_array(name, array) for name, array in arrays.items()}
    return Checkpoint.of_tensors(origin, tensors)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


class _Safetensors:
    """Reads arrays of a safetensors file.

    The library maps the file into memory, where it counts as long as it is open:
    it is opened anew after every 32 MiB.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        from safetensors import safe_open

        self.file, self._read = safe_open(self._path, framework="numpy"), 0

    def __call__(self, key: str) -> np.ndarray:
        if self._read > 2**25:
            self._open()
        array = self.file.get_tensor(key)
        self._read += array.nbytes
        return array


def _read_safetensors(path: str) -> Checkpoint:
    read = _Safetensors(path)
    note = (read.file.metadata() or {}).get(NOTE)
    tensors = []
    for key in list(read.file.keys()):
        part = read.file.get_slice(key)
        shape, dtype = tuple(part.get_shape()), part.get_dtype()
        tensors.append(Tensor(key, shape, dtype, functools.partial(read, key)))
    return _of_state_dict(tensors, path, note)


def _read_npz(path: str) -> Checkpoint:
    with np.load(path, allow_pickle=False) as archive:
        return _of_arrays(dict(archive), path)


def import_torch(path: str) -> ModuleType:
    """Returns torch, which a `.pth` or `.th` file needs."""
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError(
            "Files .pth and .th need PyTorch to be read: pip install "
            f"'keras-resnet-zoo[torch]'. Received: {path!r}"
        ) from None
    return torch


def _read_torch(path: str) -> Checkpoint:
    """Reads the arrays of a file that torch wrote, and runs no code of it."""
    torch = import_torch(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused, and nothing of it was run: it is no torch file of weights "
            f"alone ({first_line(error)})"
        ) from error
    for wrapper in ("state_dict", "model", "model_state_dict", "net"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise InputError(f"{path} does not hold a state dict")
    arrays = {
        key: (value.float() if value.dtype == torch.bfloat16 else value)
        .detach()
        .numpy()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return _of_arrays(arrays, path)


def _of_arrays(arrays: Mapping[str, np.ndarray], path: str) -> Checkpoint:
    return _of_state_dict([Tensor.of_array(k, a) for k, a in arrays.items()], path)


def _of_state_dict(
    state: Iterable[Tensor], path: str, note: str | None = None
) -> Checkpoint:
    """Makes a checkpoint of a torch state dict; other programs' have no `Origin.note`."""
    by_key = {
        tensor.key.removeprefix("module."): tensor
        for tensor in state
        if not tensor.key.endswith("num_batches_tracked")
    }
    dialect = dialects.Dialect.of_keys({k: t.shape for k, t in by_key.items()})
    if dialect is None:
        raise InputError(
            "The weights' names are none of a ResNet of torchvision, timm or a CIFAR "
            f"repository, such as layer1.0.conv1.weight. Received: {path} with "
            f"{shorten_list(by_key) or 'nothing'}"
        )
    names = {key: dialect.ours(key) for key in by_key}
    if strangers := [key for key, name in names.items() if name is None]:
        raise InputError(
            f"{path} holds weights that no ResNet of ours has: {shorten_list(strangers)}"
        )
    tensors = {
        name: by_key[key]._replace(key=key).from_torch()
        for key, name in names.items()
        if name
    }
    if note:
        return Checkpoint.of_tensors(Origin.of_note(note, path), tensors)
    fields = describe_architecture(tensors) or {}
    cifar = fields.get("stem") == "cifar"
    origin = Origin(
        path,
        PIXELS["torch"]._replace(crop=1.0 if cifar else 0.875),
        stride_on="3x3" if fields.get("block") == "bottleneck" else None,
        avg_down=dialect.inside["0_conv"] == "downsample.1",
        certain=False,
    )
    return Checkpoint.of_tensors(origin, tensors)


# A file has the first of these endings that fits.
READERS: dict[str, Callable[[str], Checkpoint]] = {
    ".weights.h5": _read_weights_h5,
    ".keras": _read_keras,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".h5": _read_keras_applications,
    ".pth": _read_torch,
    ".th": _read_torch,
}
ENDINGS = tuple(READERS)
