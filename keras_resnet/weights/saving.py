"""Saving weights, whole or not at all."""

import zipfile

import keras
import numpy as np

from keras_resnet.nets import flat_layers
from keras_resnet.support import InputError, replace_when_whole, shorten_list
from keras_resnet.weights import dialects
from keras_resnet.weights.checkpoint import averages_shortcuts, origin_of, variables_of
from keras_resnet.weights.origin import NOTE


def save_model(model, path):
    """Saves a model as a `.keras` file that appears whole or not at all.

    What belongs to the weights (`Origin`) is in the archive's comment, which Keras
    does not read; a file more in it would make Keras unpack all on disk.

    Raises:
        OSError: it could not be written, as on a full disk; what stood there
            before still does.
    """
    origin = origin_of(model, path)
    with replace_when_whole(
        path, f"{path.removesuffix('.keras')}.part.keras"
    ) as beside:
        model.save(beside)
        if origin:
            with zipfile.ZipFile(beside, "a") as archive:
                archive.comment = origin.note().encode()


def save_weights(model, path):
    """Saves a model's weights as a `.weights.h5` file, as `save_model` does."""
    import h5py

    name = path.removesuffix(".weights.h5")
    with replace_when_whole(path, f"{name}.part.weights.h5") as beside:
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
    dialect = dialects.Dialect.of_names(names, averages_shortcuts(model))
    arrays, strangers = {}, []
    for name, variable in variables_of(model).items():
        key = dialect.theirs(name)
        if key is None:
            strangers.append(name)
            continue
        array = dialects.turn(keras.ops.convert_to_numpy(variable), to_torch=True)
        arrays[key] = np.ascontiguousarray(array)
        if key.endswith("running_var"):
            tracked = key.replace("running_var", "num_batches_tracked")
            arrays[tracked] = np.zeros((), np.int64)
    if strangers:
        raise InputError(
            f"{model.name} has weights that torch's ResNets have no names for: "
            f"{shorten_list(strangers)}"
        )
    metadata = {"format": "pt", NOTE: origin_of(model, path).note()}
    with replace_when_whole(path, f"{path}.part") as beside:
        save_file(arrays, beside, metadata=metadata)
