"""Giving networks their weights, and saving them, whole or not at all."""

import contextlib
import dataclasses
import os
import sys
import warnings
import zipfile

import keras
import numpy as np

from keras_resnet import layouts, registry
from keras_resnet.blocks import flat_layers
from keras_resnet.errors import InputError
from keras_resnet.weight_files import (
    ENDINGS,
    NOTE,
    Checkpoint,
    Origin,
    averages,
    import_torch,
    origin_of,
    read_file,
    reason_of,
    some,
    tensors_of,
    unreadable,
    variables_of,
)

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
        path = registry.fetch(entry)
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


def assign(model, checkpoint):
    """Gives a model all weights of a checkpoint, or none.

    The head is left as it is, with a word on standard error, where the model has
    none or one of another number of classes.

    Args:
        model: a built `keras.Model`.
        checkpoint: a `Checkpoint`.

    Raises:
        InputError: weights are left over, missing or of another shape.
    """
    source = checkpoint.origin.source
    variables = variables_of(model)
    if checkpoint.tensors is None and not checkpoint.origin.certain:
        _say(
            f"{source} does not say how pixels are normalised, nor which convolution has "
            "the stride; a .keras file that keras_resnet wrote does"
        )
    if checkpoint.tensors is None:
        tensors = _of_keras_file(model, checkpoint)
    else:
        tensors = dict(checkpoint.tensors)
    head = ("predictions/kernel", "predictions/bias")
    if head[0] in tensors:
        classes = tensors[head[0]].shape[-1]
        if head[0] not in variables:
            _say(f"{source}: its head of {classes} classes is left out")
        elif variables[head[0]].shape[-1] != classes:
            _say(
                f"{source}: its head of {classes} classes is left out; the new one, of "
                f"{variables[head[0]].shape[-1]}, is random"
            )
            variables = {n: v for n, v in variables.items() if n not in head}
        if head[0] not in variables:
            tensors = {n: t for n, t in tensors.items() if n not in head}
    _refuse_misfits(model, variables, tensors, source)
    for name, variable in variables.items():
        try:
            variable.assign(tensors[name].read())
        except Exception as error:  # A file that ends early, of any library.
            raise unreadable(source, f"weights of {model.name}", error) from error


_FLOATS = {"f16", "f32", "f64", "bf16", "float16", "float32", "float64", "bfloat16"}


def _refuse_misfits(model, variables, tensors, source):
    differ = [
        f"{name} {tensors[name].shape} in the file, {tuple(variable.shape)} in the model"
        for name, variable in variables.items()
        if name in tensors and tensors[name].shape != tuple(variable.shape)
    ]
    left = [tensors[name].key for name in tensors.keys() - variables.keys()]
    missing = variables.keys() - tensors.keys()
    strange = [
        f"{tensor.key} {tensor.dtype}"
        for tensor in tensors.values()
        if tensor.dtype.lower() not in _FLOATS
    ]
    faults = [
        f"{what}: {some(found)}"
        for what, found in (
            ("left over", sorted(left)),
            ("missing", sorted(missing)),
            ("of another shape", differ),
            ("of another type than float", strange),
        )
        if found
    ]
    if missing and all(name.startswith("predictions/") for name in missing):
        faults.append("for weights without a head, build with include_top=False")
    if faults:
        raise InputError(
            f"{source} does not hold weights of {model.name}. {'; '.join(faults)}"
        )


def _of_keras_file(model, checkpoint):
    """The weights of a `.weights.h5` file, read by Keras into a copy of the model."""
    import h5py

    path, classes = checkpoint.origin.source, checkpoint.classes

    def copy(layer):
        config = layer.get_config()
        if layer.name == "predictions" and classes:
            config["units"] = classes
        return type(layer).from_config(config)

    try:
        twin = keras.models.clone_model(model, clone_function=copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What counts is raised, or seen below.
            twin.load_weights(path)
        counts = []
        with h5py.File(path, "r") as file:
            file["layers"].visititems(
                lambda name, item: counts.append(isinstance(item, h5py.Dataset))
            )
    except Exception as error:  # Keras and h5py raise many kinds.
        raise unreadable(path, f"weights of {model.name}", error) from error
    tensors = tensors_of(twin)
    headless = classes and "predictions/kernel" not in tensors
    if left := sum(counts) - len(tensors) - (2 if headless else 0):
        raise InputError(
            f"{path} does not hold weights of {model.name}. left over: {left} arrays"
        )
    if headless:
        _say(f"{path}: its head of {classes} classes is left out")
    return tensors


def load_weights(model, path):
    """Loads the weights of a file into a model that is built.

    Args:
        model: a built `keras.Model` of this package.
        path: of a file of any kind in `ENDINGS`.

    Raises:
        InputError: there is no such file, it is damaged, or its weights are not
            this architecture's.
    """
    assign(model, read_file(path))


def save_model(model, path):
    """Saves a model as a `.keras` file that appears whole or not at all.

    What belongs to the weights (`Origin`) is in the archive's comment, which Keras
    does not read; a file more in it would make Keras unpack all on disk.

    Raises:
        OSError: it could not be written, as on a full disk; what stood there
            before still does.
    """
    origin = origin_of(model, path)
    with replacing(path, f"{path.removesuffix('.keras')}.part.keras") as beside:
        model.save(beside)
        if origin:
            with zipfile.ZipFile(beside, "a") as archive:
                archive.comment = origin.note().encode()


def save_weights(model, path):
    """Saves a model's weights as a `.weights.h5` file, as `save_model` does."""
    import h5py

    name = path.removesuffix(".weights.h5")
    with replacing(path, f"{name}.part.weights.h5") as beside:
        model.save_weights(beside)
        with h5py.File(beside, "r+") as file:
            file.attrs[NOTE] = origin_of(model, path).note()


def save_state_dict(model, path):
    """Saves a model's weights as safetensors with the names that torch's nets use.

    A ResNet of ImageNet's gets torchvision's names, with ResNet-D and squeeze and
    excitation timm's, and one for CIFAR those of published CIFAR checkpoints.

    Args:
        model: a network of this package, other than a pre-activation net, of which
            torchvision and timm have none alike.
        path: of the file; it appears whole or not at all.

    Raises:
        InputError: the model has weights that have no such name.
        OSError: as in `save_model`.
    """
    from safetensors.numpy import save_file

    names = {layer.name for layer in flat_layers(model)}
    dialect = layouts.Dialect.of_names(names, averages(model))
    arrays, strangers = {}, []
    for name, variable in variables_of(model).items():
        key = dialect.theirs(name)
        if key is None:
            strangers.append(name)
            continue
        array = layouts.turn(keras.ops.convert_to_numpy(variable), to_torch=True)
        arrays[key] = np.ascontiguousarray(array)
        if key.endswith("running_var"):
            tracked = key.replace("running_var", "num_batches_tracked")
            arrays[tracked] = np.zeros((), np.int64)
    if strangers:
        raise InputError(
            f"{model.name} has weights that torch's ResNets have no names for: "
            f"{some(strangers)}"
        )
    metadata = {"format": "pt", NOTE: origin_of(model, path).note()}
    with replacing(path, f"{path}.part") as beside:
        save_file(arrays, beside, metadata=metadata)


@contextlib.contextmanager
def replacing(path, beside):
    """Puts the file `beside` in the place of another when it is whole."""
    try:
        yield beside
        os.replace(beside, path)
    except InputError:
        raise
    except Exception as error:  # h5py's, Keras's, safetensors' own.
        raise OSError(f"Could not write {path}: {reason_of(error)}") from error
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def _say(text):
    print(text, file=sys.stderr)
