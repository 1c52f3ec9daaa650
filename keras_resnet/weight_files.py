"""Files of weights, of every kind, as arrays under our names."""

import dataclasses
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from keras_resnet import layouts
from keras_resnet.blocks import flat_layers
from keras_resnet.errors import InputError, some

ENDINGS = (".weights.h5", ".keras", ".safetensors", ".npz", ".h5", ".pth", ".th")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a network's weights came from, and what belongs to them.

    It travels in the files that this package writes.

    Attributes:
        source: a name of the registry, such as `"resnet50/keras"`, or a path.
        pixels: what the network was trained to see; `None` if that is unknown.
        classes: name of each class, in order; `None` if they are unknown.
        model: name of the architecture; `None` if that is unknown.
        stride_on: see `keras_resnet.variants.Variant`, as for the next two; `None`
            where it is unknown or makes no difference.
        shortcut: the paper's option.
        avg_down: whether shortcuts average.
        certain: whether `stride_on` is known, not only the dialect's habit.
    """

    source: str
    pixels: layouts.Pixels | None = None
    classes: tuple[str, ...] | None = None
    model: str | None = None
    stride_on: str | None = None
    shortcut: str | None = None
    avg_down: bool | None = None
    certain: bool = True

    def note(self) -> str:
        """Returns what is written into a file: JSON of less than 64 KiB."""
        note = dataclasses.asdict(self) | {"source": None}
        text = json.dumps(note)
        return text if len(text) < 2**16 else json.dumps(note | {"classes": None})

    @classmethod
    def of_note(cls, note, source):
        """Reads a note again."""
        known = {field.name for field in dataclasses.fields(cls)}
        found = {k: v for k, v in json.loads(note).items() if k in known}
        if found.get("pixels"):
            mean, variance, *rest = found["pixels"]
            found["pixels"] = layouts.Pixels(tuple(mean), tuple(variance), *rest)
        if found.get("classes"):
            found["classes"] = tuple(found["classes"])
        return cls(**found | {"source": source})


# The note's name in the metadata of files; in a .keras file it is the comment.
NOTE = "keras_resnet"


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


def origin_of(model, source):
    """What belongs to a model's weights, from its layers and its `origin`.

    Args:
        model: a `keras.Model`.
        source: see `Origin`.

    Returns:
        An `Origin`; `None` if it is no network of this package.
    """
    layers = {layer.name: layer for layer in flat_layers(model)}
    fields = layouts.describe(
        {name: tuple(v.shape) for name, v in variables_of(model).items()}
    )
    if fields is None:
        return None
    stride_on = None
    if fields["block"] == "bottleneck":  # Basic blocks have nothing to tell.
        first = [la for n, la in layers.items() if re.search(r"_block\d+_1_conv$", n)]
        stride_on = "1x1" if any(max(la.strides) > 1 for la in first) else "3x3"
    adds = any(isinstance(layer, keras.layers.Add) for layer in layers.values())
    known = getattr(model, "origin", None)
    return Origin(
        source,
        pixels_of(model),
        known.classes if known else None,
        known.model if known else None,
        stride_on,
        fields["shortcut"] if adds else "none",
        averages(model),
    )


def averages(model):
    """Whether shortcuts of a model average before they subsample (ResNet-D)."""
    pools = [la for la in flat_layers(model) if la.name.endswith("_0_pool")]
    return any(tuple(pool.pool_size) == (2, 2) for pool in pools)


def tensors_of(model):
    """The weights of a model as a file's are given."""
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


def pixels_of(model):
    """What a model's first layer says of the pixels that it takes.

    Returns:
        A `keras_resnet.layouts.Pixels`, whose crop and interpolation are those
        of the model's origin, or else the usual ones; `None` if the model does
        not normalise its input itself.
    """
    known = getattr(model, "origin", None)
    layers = {layer.name: layer for layer in flat_layers(model)}
    if known and known.pixels:
        pixels = known.pixels
    elif "normalization" in layers:
        layer = layers["normalization"]
        mean, variance = (
            tuple(np.ravel(values).astype(float).tolist())
            for values in (layer.input_mean, layer.input_variance)
        )
        crop = 0.875 if layouts.has_imagenet_stem(layers) else 1.0
        pixels = layouts.Pixels(mean, variance, crop)
    else:
        return None
    size = model.input_shape[2]  # A width in either data format, or None.
    return pixels._replace(size=size or pixels.size)


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
    if note:
        return _checkpoint(Origin.of_note(note, path), tensors)
    fields = layouts.describe({n: t.shape for n, t in tensors.items()}) or {}
    cifar = fields.get("stem") == "cifar"
    origin = Origin(
        path,
        layouts.PIXELS["torch"]._replace(crop=1.0 if cifar else 0.875),
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
    origin = Origin(
        path,
        layouts.PIXELS["tf" if preact else "caffe"],
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


def variables_of(model):
    """The weights of a model by our names."""
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in flat_layers(model)
        if layer.name != "normalization"
        for variable in layer.weights
    }


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
