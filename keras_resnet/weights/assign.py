"""Giving a network its weights, all of them or none."""

import sys
import warnings

import keras
from keras import layers

from keras_resnet.support import InputError, shorten_list
from keras_resnet.weights.checkpoint import Checkpoint, Tensor, tensors_of, variables_of
from keras_resnet.weights.formats import unreadable

_FLOATS = {"f16", "f32", "f64", "bf16", "float16", "float32", "float64", "bfloat16"}


def assign_weights(model: keras.Model, checkpoint: Checkpoint) -> None:
    """Gives a model all weights of a checkpoint, or none.

    The head is left as it is, with a note on standard error, where the model has
    none or one of another number of classes.

    Raises:
        InputError: Weights are left over, missing or of another shape.
    """
    source = checkpoint.origin.source
    variables = variables_of(model)
    if checkpoint.tensors is not None:
        tensors = dict(checkpoint.tensors)
    else:
        if not checkpoint.origin.certain:
            _say(
                f"{source} does not say how pixels are normalised, nor which convolution "
                "has the stride; a .keras file that keras_resnet wrote does"
            )
        tensors = _read_weights_h5(model, checkpoint)
    head = ("predictions/kernel", "predictions/bias")
    if head[0] in tensors:
        theirs = tensors[head[0]].shape[-1]
        ours = variables[head[0]].shape[-1] if head[0] in variables else None
        if ours != theirs:
            new = f"; the new one, of {ours}, is random" if ours else ""
            _say(f"{source}: its head of {theirs} classes is left out{new}")
            variables = {n: v for n, v in variables.items() if n not in head}
            tensors = {n: t for n, t in tensors.items() if n not in head}
    missing = sorted(variables.keys() - tensors.keys())
    faults = {
        "left over": sorted(t.key for n, t in tensors.items() if n not in variables),
        "missing": missing,
        "of another shape": [
            f"{name} {tensors[name].shape} in the file, {tuple(variable.shape)} in the model"
            for name, variable in variables.items()
            if name in tensors and tensors[name].shape != tuple(variable.shape)
        ],
        "of another type than float": [
            f"{tensor.key} {tensor.dtype}"
            for tensor in tensors.values()
            if tensor.dtype.lower() not in _FLOATS
        ],
    }
    texts = [
        f"{fault}: {shorten_list(names)}" for fault, names in faults.items() if names
    ]
    if missing and all(name.startswith("predictions/") for name in missing):
        texts.append("for weights without a head, build with include_top=False")
    if texts:
        raise InputError(
            f"{source} does not hold weights of {model.name}. {'; '.join(texts)}"
        )
    for name, variable in variables.items():
        try:
            variable.assign(tensors[name].read())
        except Exception as error:  # A file that ends early, of any library.
            raise unreadable(source, f"weights of {model.name}", error) from error


def _read_weights_h5(model: keras.Model, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Has Keras read a `.weights.h5` file into a copy of the model."""
    import h5py

    path, classes = checkpoint.origin.source, checkpoint.classes

    def copy(layer: layers.Layer) -> layers.Layer:
        config = layer.get_config()
        if layer.name == "predictions" and classes:
            config["units"] = classes
        return type(layer).from_config(config)

    try:
        twin = keras.models.clone_model(model, clone_function=copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What counts is raised, or seen below.
            twin.load_weights(path)
        counts: list[bool] = []
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


def _say(text: str) -> None:
    print(text, file=sys.stderr)
