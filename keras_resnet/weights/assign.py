"""Assignment of weights to a network, either completely or not at all."""

import sys
import warnings

import keras
from keras import layers

from keras_resnet.support import InputError, shorten_list
from keras_resnet.weights.checkpoint import Checkpoint, Tensor, tensors_of, variables_of
from keras_resnet.weights.formats import unreadable_error

_FLOATS = {"f16", "f32", "f64", "bf16", "float16", "float32", "float64", "bfloat16"}


def assign_weights(model: keras.Model, checkpoint: Checkpoint) -> None:
    """Assigns all weights of a checkpoint to a model.

    If the model has no head, or one for another number of classes, the checkpoint's
    head is not assigned and a warning is printed to standard error.

    Raises:
        InputError: If arrays are unexpected, missing or of a wrong shape or type. The
            model is not changed.
    """
    source = checkpoint.origin.source
    variables = variables_of(model)
    if checkpoint.tensors is not None:
        tensors = dict(checkpoint.tensors)
    else:
        if not checkpoint.origin.certain:
            _warn(
                f"{source} does not specify the normalisation of pixels or the strided "
                "convolution. A .keras file written by keras_resnet specifies both."
            )
        tensors = _read_weights_h5(model, checkpoint)
    head = ("predictions/kernel", "predictions/bias")
    if head[0] in tensors:
        num_in_file = tensors[head[0]].shape[-1]
        num_in_model = variables[head[0]].shape[-1] if head[0] in variables else None
        if num_in_model != num_in_file:
            new = f"; the new head of {num_in_model} is random" if num_in_model else ""
            _warn(f"{source}: the head of {num_in_file} classes is not used{new}")
            variables = {n: v for n, v in variables.items() if n not in head}
            tensors = {n: t for n, t in tensors.items() if n not in head}
    missing = sorted(variables.keys() - tensors.keys())
    problems = {
        "Unexpected": sorted(t.key for n, t in tensors.items() if n not in variables),
        "Missing": missing,
        "Wrong shape": [
            f"{name} {tensors[name].shape} in the file, {tuple(variable.shape)} in the model"
            for name, variable in variables.items()
            if name in tensors and tensors[name].shape != tuple(variable.shape)
        ],
        "Not floating-point": [
            f"{tensor.key} {tensor.dtype}"
            for tensor in tensors.values()
            if tensor.dtype.lower() not in _FLOATS
        ],
    }
    texts = [f"{k}: {shorten_list(v)}" for k, v in problems.items() if v]
    if missing and all(name.startswith("predictions/") for name in missing):
        texts.append("For weights without a head, build with include_top=False")
    if texts:
        raise InputError(
            f"The weights in {source} do not fit {model.name}. {'. '.join(texts)}"
        )
    for name, variable in variables.items():
        try:
            variable.assign(tensors[name].read())
        except Exception as error:  # Truncated files raise errors of many types.
            raise unreadable_error(source, f"weights of {model.name}", error) from error


def _read_weights_h5(model: keras.Model, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Loads a `.weights.h5` file into a copy of the model and returns the arrays."""
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
            warnings.simplefilter("ignore")  # Unused arrays are counted below.
            twin.load_weights(path)
        is_array: list[bool] = []
        with h5py.File(path, "r") as file:
            file["layers"].visititems(
                lambda name, item: is_array.append(isinstance(item, h5py.Dataset))
            )
    except Exception as error:  # Keras and h5py raise errors of many types.
        raise unreadable_error(path, f"weights of {model.name}", error) from error
    tensors = tensors_of(twin)
    drops_head = classes and "predictions/kernel" not in tensors
    if excess := sum(is_array) - len(tensors) - (2 if drops_head else 0):
        raise InputError(
            f"The weights in {path} do not fit {model.name}. Unexpected: {excess} arrays"
        )
    if drops_head:
        _warn(f"{path}: the head of {classes} classes is not used")
    return tensors


def _warn(text: str) -> None:
    print(text, file=sys.stderr)
