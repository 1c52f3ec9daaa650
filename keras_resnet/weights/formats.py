"""Files of weights, of every kind, as arrays under our names."""

import dataclasses
import json
import os
import pickle
import zipfile

import keras
import numpy as np

from keras_resnet.nets import flat_layers
from keras_resnet.support import InputError, shorten_list
from keras_resnet.weights import dialects, download, recognition, registry
from keras_resnet.weights.checkpoint import (
    Checkpoint,
    Tensor,
    _checkpoint,
    origin_of,
    tensors_of,
)
from keras_resnet.weights.origin import NOTE, PIXELS, Origin

ENDINGS = (".weights.h5", ".keras", ".safetensors", ".npz", ".h5", ".pth", ".th")


def read_file(path):
    """Opens a file of weights, of any of the kinds in `ENDINGS`.

    Raises:
        InputError: as in `open_checkpoint`.
    """
    _check(path, ENDINGS)
    path = os.fspath(path)
    name = path.lower()
    try:
        if name.endswith(".weights.h5"):
            return _of_weights_h5(path)
        if name.endswith(".keras"):
            return _of_model(load_model(path), path)
        if name.endswith(".h5"):
            return _of_keras_applications(path)
        if name.endswith(".safetensors"):
            return _of_safetensors(path)
        if name.endswith(".npz"):
            with np.load(path, allow_pickle=False) as archive:
                return _of_state_dict({k: archive[k] for k in archive.files}, path)
        return _of_state_dict(_read_torch(path), path)
    except InputError:
        raise
    except Exception as error:  # Each library raises kinds of its own.
        raise unreadable(path, "weights", error) from error


def _of_model(model, path):
    """The weights of a model of this package."""
    origin = origin_of(model, path)
    if origin is None:
        raise InputError(f"{path} does not hold a network of keras_resnet")
    norms = [la for la in flat_layers(model) if hasattr(la, "moving_variance")]
    if any(abs(layer.epsilon - 1e-5) > 1e-9 for layer in norms):
        raise InputError(
            f"{path} holds a net whose batch normalisation is not ours, as those of "
            "keras.applications; its weights are read from a .h5 file"
        )
    return _checkpoint(origin, tensors_of(model))


def load_model(path):
    """Loads a `.keras` file, with its `origin` where the file tells it.

    Raises:
        InputError: there is no such file, or it is damaged or foreign.
    """
    _check(path, (".keras",))
    try:
        model = keras.models.load_model(path)
        with zipfile.ZipFile(path) as archive:
            if archive.comment:
                model.origin = Origin.of_note(archive.comment, str(path))
        return model
    except Exception as error:  # Keras and h5py raise many kinds.
        raise unreadable(path, "a Keras model", error) from error


def _of_state_dict(arrays, path, note=None):
    """The weights of a torch state dict.

    Args:
        arrays: dict from keys to arrays, or to (shape, type, function that reads).
        path: of its file.
        note: see `Origin.note`; `None` in a file that others wrote.
    """
    entries = {}
    for full, value in arrays.items():
        key = full.removeprefix("module.")
        if key.endswith("num_batches_tracked"):
            continue
        entries[key] = (
            value
            if isinstance(value, tuple)
            else (value.shape, str(value.dtype), lambda value=value: value)
        )
    dialect = dialects.Dialect.of_keys({k: entry[0] for k, entry in entries.items()})
    if dialect is None:
        raise InputError(
            "The weights' names are none of a ResNet of torchvision, timm or a CIFAR "
            f"repository, such as layer1.0.conv1.weight. Received: {path} with "
            f"{shorten_list(entries) or 'nothing'}"
        )
    tensors, strangers = {}, []
    for key, (shape, dtype, read) in entries.items():
        name = dialect.ours(key)
        if name is None:
            strangers.append(key)
            continue
        tensors[name] = Tensor(
            key,
            dialects.turned_shape(shape),
            dtype,
            lambda read=read: dialects.turn(np.asarray(read()), to_torch=False),
        )
    if strangers:
        raise InputError(
            f"{path} holds weights that no ResNet of ours has: {shorten_list(strangers)}"
        )
    if note:
        return _checkpoint(Origin.of_note(note, path), tensors)
    fields = (
        recognition.describe_architecture({n: t.shape for n, t in tensors.items()})
        or {}
    )
    cifar = fields.get("stem") == "cifar"
    origin = Origin(
        path,
        PIXELS["torch"]._replace(crop=1.0 if cifar else 0.875),
        stride_on="3x3" if fields.get("block") == "bottleneck" else None,
        avg_down=dialect.inside["0_conv"] == "downsample.1",
        certain=False,
    )
    return _checkpoint(origin, tensors)


class _Safetensors:
    """Reads arrays of a safetensors file.

    The library maps the file into memory, where it counts as long as it is open:
    it is opened anew after every 32 MiB.
    """

    def __init__(self, path):
        self._path = path
        self._open()

    def _open(self):
        from safetensors import safe_open

        self.file, self._read = safe_open(self._path, framework="numpy"), 0

    def __call__(self, key):
        if self._read > 2**25:
            self._open()
        array = self.file.get_tensor(key)
        self._read += array.nbytes
        return array


def _of_safetensors(path):
    read = _Safetensors(path)
    note = (read.file.metadata() or {}).get(NOTE)
    arrays = {}
    for key in list(read.file.keys()):
        part = read.file.get_slice(key)
        shape = tuple(part.get_shape())
        arrays[key] = (shape, part.get_dtype(), lambda key=key: read(key))
    return _of_state_dict(arrays, path, note)


def import_torch(path):
    """Returns torch, which a `.pth` or `.th` file needs."""
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError(
            "Files .pth and .th need PyTorch to be read: pip install "
            f"'keras-resnet-zoo[torch]'. Received: {path!r}"
        ) from None
    return torch


def _read_torch(path):
    """The arrays of a file that torch wrote, and no code of it."""
    torch = import_torch(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused, and nothing of it was run: it is no torch file of weights "
            f"alone ({reason_of(error)})"
        ) from error
    for wrapper in ("state_dict", "model", "model_state_dict", "net"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold a state dict")
    tensors = {k: v.detach() for k, v in found.items() if isinstance(v, torch.Tensor)}
    return {
        key: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for key, tensor in tensors.items()
    }


def _text(name):
    return name.decode() if isinstance(name, bytes) else name


def _of_keras_applications(path):
    """The weights of a `.h5` file of keras.applications, with or without a head."""
    import h5py

    with h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        whole = json.loads(file.attrs.get("model_config", "{}")).get("config", {})
        arrays = {}
        for layer in map(_text, group.attrs.get("layer_names", ())):
            for name in map(_text, group[layer].attrs["weight_names"]):
                variable = name.split("/")[-1].removesuffix(":0")
                arrays[f"{layer}/{variable}"] = np.asarray(group[layer][name])
    # The head has had three names.
    for other in ("probs", "fc1000"):
        for variable in ("kernel", "bias"):
            if f"{other}/{variable}" in arrays:
                arrays[f"predictions/{variable}"] = arrays.pop(f"{other}/{variable}")
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
    tensors = {
        n: Tensor(n, a.shape, str(a.dtype), lambda a=a: a) for n, a in arrays.items()
    }
    origin = Origin(
        path,
        PIXELS["tf" if preact else "caffe"],
        stride_on="3x3" if preact else "1x1",
        shortcut="B",
        avg_down=False,
    )
    return _checkpoint(origin, tensors)


def _of_weights_h5(path):
    """A `.weights.h5` file: what can be told before there is a model to fill."""
    import h5py

    with h5py.File(path, "r") as file:
        if "layers" not in file:
            raise InputError(f"{path} does not hold weights that Keras wrote")
        bias = file.get("layers/dense/vars/1")
        classes = None if bias is None else bias.shape[0]
        note = file.attrs.get(NOTE)
    origin = Origin.of_note(note, path) if note else Origin(path, certain=False)
    return Checkpoint(origin, None, classes)


def _check(path, endings):
    known = isinstance(path, str | os.PathLike)
    if not known or not str(path).lower().endswith(endings):
        raise InputError(f"Accepted: a file {', '.join(endings)}. Received: {path!r}")
    if not os.path.isfile(path):
        raise InputError(
            f"There is no such file. Accepted: a file {', '.join(endings)}. Received: {path!r}"
        )
    if str(path).endswith((".keras", ".npz")) and not zipfile.is_zipfile(path):
        ending = os.path.splitext(path)[1]
        raise InputError(
            f"The file is damaged, or no {ending} file. Received: {path!r}"
        )


def unreadable(path, what, error):
    """Returns the error of a file that a library could not read."""
    return InputError(f"{path} is damaged, or does not hold {what}: {reason_of(error)}")


def reason_of(error):
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_ACCEPTED = (
    f"a name that keras_resnet.list_weights() gives, or a file {', '.join(ENDINGS)}"
)


def open_checkpoint(weights, model=None):
    """Opens weights by a name of the registry or by a path.

    Arrays are read only when they are asked for, where the format allows it.

    Args:
        weights: such as `"imagenet"`, `"resnet50/torchvision_v2"` or
            `"net.safetensors"`; a `Checkpoint` is returned as it is.
        model: name of the architecture that a name without one is of.

    Returns:
        A `Checkpoint`.

    Raises:
        InputError: there are no such weights, or the file is damaged, foreign or
            not to be trusted.
    """
    if isinstance(weights, Checkpoint):
        return weights
    if isinstance(weights, os.PathLike):
        weights = os.fspath(weights)
    if not isinstance(weights, str):
        raise InputError(f"weights must be None, {_ACCEPTED}. Received: {weights!r}")
    if "://" in weights:
        raise InputError(
            "weights must be a name or a file; an address is fetched and checked by "
            "python -m keras_resnet.convert ADDRESS TARGET --sha256=...  "
            f"Received: {weights!r}"
        )
    path = os.path.expanduser(weights)
    if path.lower().endswith(ENDINGS):
        entry = registry.find_file(path)
    else:
        first, _, rest = weights.partition("/")
        if rest and first and "." not in weights and os.sep not in rest:
            model, weights = first, rest
        elif os.sep in weights or "." in weights:
            raise InputError(f"weights must be {_ACCEPTED}. Received: {weights!r}")
        entry = registry.find_weights(model, weights)
        if entry.path.endswith(".pth"):
            import_torch(weights)
        path = download.fetch_weights(entry)
    found = read_file(path)
    if entry is None:
        return found
    if entry.pixels is None:
        source = f"{entry.model}/{entry.name}"
        origin = dataclasses.replace(found.origin, source=source)
        return dataclasses.replace(found, origin=origin)
    origin = Origin(
        f"{entry.model}/{entry.name}",
        entry.pixels,
        registry.class_names(entry.data),
        entry.model,
        entry.stride_on,
        avg_down=found.origin.avg_down,
    )
    return dataclasses.replace(found, origin=origin)
