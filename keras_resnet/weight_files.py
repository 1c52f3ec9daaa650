"""Files of weights, of every kind, as arrays under our names."""

import dataclasses
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_resnet import layouts
from keras_resnet.blocks import flat_layers
from keras_resnet.errors import InputError

ENDINGS = (".weights.h5", ".keras", ".safetensors", ".npz", ".h5", ".pth", ".th")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a network's weights came from, and what belongs to them.

    Attributes:
        source: a name of the registry, such as `"resnet50/keras"`, or a path.
        pixels: what the network was trained to see; `None` if that is unknown.
        stride_on: see `keras_resnet.ResNet50`; `None` if that is unknown.
        certain: whether the file says so itself, not only its dialect.
        classes: name of each class, in order; `None` if they are unknown.
        model: name of the architecture; `None` if that is unknown.
        shortcut: the paper's option, as far as it is noted in the file.
    """

    source: str
    pixels: layouts.Pixels | None = None
    stride_on: str | None = None
    certain: bool = False
    classes: tuple[str, ...] | None = None
    model: str | None = None
    shortcut: str | None = None


class Tensor(NamedTuple):
    """One array of a file.

    Attributes:
        key: its name in the file.
        shape: in our order of axes.
        dtype: name of its type, as the file's library calls it.
        read: function without arguments that returns it, in that order.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights that a network can be given.

    Attributes:
        origin: an `Origin`.
        tensors: a dict from our names of weights (see `keras_resnet.layouts`);
            `None` for a `.weights.h5` file, which only Keras can read, into a
            model of the same layers.
        classes: number of classes of its head; `None` if it has none.
    """

    origin: Origin
    tensors: dict[str, Tensor] | None
    classes: int | None


def _checkpoint(origin, tensors):
    head = tensors.get("predictions/bias")
    return Checkpoint(origin, tensors, head.shape[0] if head else None)


def read_file(path):
    """Opens a file of weights, of any of the kinds in `ENDINGS`.

    Raises:
        InputError: as in `open_checkpoint`.
    """
    _check(path, ENDINGS)
    path = os.fspath(path)
    try:
        if path.endswith(".weights.h5"):
            return Checkpoint(Origin(path), None, _head_in_keras_file(path))
        if path.endswith(".keras"):
            return _of_model(load_model(path), path)
        if path.endswith(".h5"):
            return _of_keras_applications(path)
        if path.endswith(".safetensors"):
            return _of_safetensors(path)
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as archive:
                return _of_state_dict({k: archive[k] for k in archive.files}, path)
        return _of_state_dict(_read_torch(path), path)
    except InputError:
        raise
    except Exception as error:  # Each library raises kinds of its own.
        raise unreadable(path, "weights", error) from error


def _of_model(model, path):
    """The weights of a model of this package."""
    layers = {layer.name: layer for layer in flat_layers(model)}
    tensors = tensors_of(model)
    fields = layouts.describe({n: t.shape for n, t in tensors.items()})
    if fields is None:
        raise InputError(f"{path} does not hold a network of keras_resnet")
    stride_on = None
    if fields["block"] == "bottleneck":  # Basic blocks have nothing to tell.
        first = [la for name, la in layers.items() if name.endswith("_1_conv")]
        on_1x1 = any(max(layer.strides) > 1 for layer in first if "block" in layer.name)
        stride_on = "1x1" if on_1x1 else "3x3"
    shortcut = fields.get("shortcut", "A")
    if not any(isinstance(layer, keras.layers.Add) for layer in layers.values()):
        shortcut = "none"
    origin = Origin(path, pixels_of(model), stride_on, True, shortcut=shortcut)
    return _checkpoint(origin, tensors)


def tensors_of(model):
    return {
        name: Tensor(
            name,
            tuple(v.shape),
            str(v.dtype),
            lambda v=v: keras.ops.convert_to_numpy(v),
        )
        for name, v in variables_of(model).items()
    }


def load_model(path):
    """Loads a `.keras` file.

    Raises:
        InputError: there is no such file, or it is damaged or foreign.
    """
    _check(path, (".keras",))
    try:
        return keras.models.load_model(path)
    except Exception as error:  # Keras and h5py raise many kinds.
        raise unreadable(path, "a Keras model", error) from error


def pixels_of(model):
    """What a model's first layer says of the pixels that it takes.

    Returns:
        A `keras_resnet.layouts.Pixels`, whose crop and interpolation are those
        of the model's origin, or else the usual ones; `None` if the model does
        not normalise its input itself.
    """
    origin = getattr(model, "origin", None)
    if origin is not None and origin.pixels is not None:
        return origin.pixels
    layers = {layer.name: layer for layer in flat_layers(model)}
    if "normalization" not in layers:
        return None
    layer = layers["normalization"]
    mean, variance = (
        tuple(np.ravel(values).astype(float).tolist())
        for values in (layer.input_mean, layer.input_variance)
    )
    return layouts.Pixels(mean, variance, 0.875 if "pool1_pool" in layers else 1.0)


def _of_state_dict(arrays, path, metadata=None):
    """The weights of a torch state dict.

    Args:
        arrays: dict from keys to arrays, or to (shape, type, function that reads).
        path: of its file.
        metadata: what our own `keras_resnet.convert` noted in the file.
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
    dialect = layouts.Dialect.of_keys({k: entry[0] for k, entry in entries.items()})
    if dialect is None:
        raise InputError(
            "The weights' names are none of a ResNet of torchvision, timm or a CIFAR "
            f"repository, such as layer1.0.conv1.weight. Received: {path} with "
            f"{some(entries) or 'nothing'}"
        )
    tensors, strangers = {}, []
    for key, (shape, dtype, read) in entries.items():
        name = dialect.ours(key)
        if name is None:
            strangers.append(key)
            continue
        tensors[name] = Tensor(
            key,
            layouts.turned_shape(shape),
            dtype,
            lambda read=read: layouts.turn(np.asarray(read()), to_torch=False),
        )
    if strangers:
        raise InputError(
            f"{path} holds weights that no ResNet of ours has: {some(strangers)}"
        )
    told = metadata or {}
    pixels = layouts.PIXELS["torch"]
    fields = layouts.describe({n: t.shape for n, t in tensors.items()})
    if fields and fields["stem"] == "cifar":
        pixels = pixels._replace(crop=1.0)
    if "pixels" in told:
        pixels = told["pixels"] and layouts.Pixels(
            *(tuple(v) if isinstance(v, list) else v for v in told["pixels"])
        )
    bottleneck = fields and fields["block"] == "bottleneck"
    origin = Origin(
        path,
        pixels,
        told.get("stride_on", "3x3" if bottleneck else None),
        bool(told),
        tuple(told["classes"]) if told.get("classes") else None,
        told.get("model"),
        told.get("shortcut"),
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
    told = (read.file.metadata() or {}).get("keras_resnet")
    arrays = {}
    for key in list(read.file.keys()):
        part = read.file.get_slice(key)
        shape = tuple(part.get_shape())
        arrays[key] = (shape, part.get_dtype(), lambda key=key: read(key))
    return _of_state_dict(arrays, path, json.loads(told) if told else None)


def _read_torch(path):
    """The arrays of a file that torch wrote, and no code of it."""
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError(
            "Files .pth and .th need PyTorch to be read: pip install "
            f"'keras-resnet-zoo[torch]'. Received: {path!r}"
        ) from None
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
            f"conv2_block1_1_conv. Received: {path} with {some(arrays) or 'nothing'}"
        )
    preact = layouts.is_preactivated(arrays)
    layers = [layer["config"] for layer in whole.get("layers", ())]
    epsilons = {layer["epsilon"] for layer in layers if "epsilon" in layer}
    if epsilons - {1.001e-5} or not (preact or "conv1_conv/bias" in arrays):
        raise InputError(
            "A .h5 file is read as keras.applications', whose nets are not quite ours. "
            f"This is of another net; save ours as .keras. Received: {path}"
        )
    layouts.fold_keras_applications(arrays)
    tensors = {
        n: Tensor(n, a.shape, str(a.dtype), lambda a=a: a) for n, a in arrays.items()
    }
    pixels = layouts.PIXELS["tf" if preact else "caffe"]
    return _checkpoint(Origin(path, pixels, "3x3" if preact else "1x1", True), tensors)


def _head_in_keras_file(path):
    """The number of classes of a `.weights.h5` file; `None` if it has no head."""
    import h5py

    with h5py.File(path, "r") as file:
        if "layers" not in file:
            raise InputError(f"{path} does not hold weights that Keras wrote")
        bias = file.get("layers/dense/vars/1")
        return bias.shape[0] if bias is not None else None


def variables_of(model):
    """The weights of a model by our names."""
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in flat_layers(model)
        if layer.name != "normalization"
        for variable in layer.weights
    }


def _check(path, endings):
    if not isinstance(path, str | os.PathLike) or not str(path).endswith(endings):
        raise InputError(f"Accepted: a file {', '.join(endings)}. Received: {path!r}")
    if not os.path.isfile(path):
        raise InputError(
            f"There is no such file. Accepted: a file {', '.join(endings)}. Received: {path!r}"
        )
    if str(path).endswith(".keras") and not zipfile.is_zipfile(path):
        raise InputError(f"The file is damaged, or no .keras file. Received: {path!r}")


def unreadable(path, what, error):
    return InputError(f"{path} is damaged, or does not hold {what}: {reason_of(error)}")


def reason_of(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def some(names: Any):
    """The first few of some names."""
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(map(str, names[:4]))}{more}"
