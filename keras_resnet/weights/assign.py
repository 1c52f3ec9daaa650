"""Assignment of a checkpoint to a network, after a check that all arrays fit."""

import sys
import warnings

import h5py
import keras
import numpy as np
from keras import layers

from keras_resnet.support import InputError, shorten_list, to_printable
from keras_resnet.weights.checkpoint import (
    Checkpoint,
    Tensor,
    get_variables,
    to_tensors,
)
from keras_resnet.weights.formats import list_datasets, refuse_damage

_FLOATS = {"f16", "f32", "f64", "bf16", "float16", "float32", "float64", "bfloat16"}


def assign_weights(model: keras.Model, checkpoint: Checkpoint) -> None:
    """Assigns all weights of a checkpoint to a model.

    If the model has no head, or its head has another number of classes than the
    checkpoint, the head's weights are not assigned and standard error shows a warning.

    Raises:
        InputError: If the checkpoint has an unexpected array, lacks an array, or has an
            array of a wrong shape or type, or with values that are NaN or infinite. The
            model is then not changed.
    """
    source = checkpoint.origin.source
    variables = get_variables(model)
    if checkpoint.tensors is not None:
        tensors = dict(checkpoint.tensors)
    else:
        if not checkpoint.origin.certain:
            _warn(
                f"{source} does not specify how pixels are normalised or which "
                "convolution is strided. A .keras file written by keras_resnet specifies both."
            )
        tensors = _load_weights_h5(model, checkpoint)
    head_names = ("predictions/kernel", "predictions/bias")
    if head_names[0] in tensors and tensors[head_names[0]].shape:
        num_file_classes = tensors[head_names[0]].shape[-1]
        kernel = variables.get(head_names[0])
        num_model_classes = None if kernel is None else kernel.shape[-1]
        if num_model_classes != num_file_classes:
            message = f"{source}: the head of {num_file_classes} classes is not used"
            new_head = f"; a random head of {num_model_classes} classes replaces it"
            _warn(message + (new_head if num_model_classes else ""))
            variables = {n: v for n, v in variables.items() if n not in head_names}
            tensors = {n: t for n, t in tensors.items() if n not in head_names}
    missing_names = sorted(variables.keys() - tensors.keys())
    problems = {
        "Unexpected": sorted(t.key for n, t in tensors.items() if n not in variables),
        "Missing": missing_names,
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
    sentences = [f"{k}: {shorten_list(v)}" for k, v in problems.items() if v]
    if missing_names and all(name.startswith("predictions/") for name in missing_names):
        sentences.append("For weights without a head, build with include_top=False")
    if sentences:
        raise InputError(
            f"The weights in {source} do not fit {model.name}. {'. '.join(sentences)}"
        )
    if damaged := shorten_list(filter(None, map(_count_nonfinite, tensors.values()))):
        raise InputError(f"{source} has weights that are NaN or infinite: {damaged}")
    for name, variable in variables.items():
        variable.assign(tensors[name].read())


def _count_nonfinite(tensor: Tensor) -> str | None:
    """Returns the number of NaN and infinite values of a tensor as text, if any."""
    array = tensor.read()
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(array, dtype=np.float32)):  # Faster than `isfinite`.
            return None
        count = np.count_nonzero(~np.isfinite(array.astype(np.float32)))
    return f"{tensor.key} ({count:,} of {array.size:,} values)" if count else None


def _load_weights_h5(model: keras.Model, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Returns the arrays of a `.weights.h5` file, read with a copy of `model`."""
    path, num_classes = checkpoint.origin.source, checkpoint.num_classes

    def copy_layer(layer: layers.Layer) -> layers.Layer:
        config = layer.get_config()
        if layer.name == "predictions" and num_classes:
            config["units"] = num_classes
        return type(layer).from_config(config)

    with refuse_damage(path, f"weights of {model.name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Unexpected arrays raise an error below.
        model_copy = keras.models.clone_model(model, clone_function=copy_layer)
        model_copy.load_weights(path)
        with h5py.File(path, "r") as file:
            num_arrays = sum(n.startswith("layers/") for n in list_datasets(file, path))
    tensors = to_tensors(model_copy)
    drops_head = num_classes and "predictions/kernel" not in tensors
    if num_unexpected := num_arrays - len(tensors) - (2 if drops_head else 0):
        raise InputError(
            f"{path} does not fit {model.name}: {num_unexpected} arrays are unexpected"
        )
    if drops_head:
        _warn(f"{path}: the head of {num_classes} classes is not used")
    return tensors


def _warn(text: str) -> None:
    print(to_printable(text), file=sys.stderr)
