"""Saving weights, whole or not at all."""

import zipfile

import keras
import numpy as np

from keras_resnet.nets import flat_layers, has_imagenet_stem
from keras_resnet.support import InputError, Path, replace_when_whole, shorten_list
from keras_resnet.weights.checkpoint import variables_of
from keras_resnet.weights.dialects import Dialect, turn
from keras_resnet.weights.origin import NOTE
from keras_resnet.weights.recognition import origin_of


def save_model(model: keras.Model, path: Path) -> None:
    """Saves a model as a `.keras` file that appears whole or not at all.

    What belongs to the weights (`Origin`) is in the archive's comment, which Keras
    does not read; an extra archive member would make Keras extract the whole
    archive to disk.

    Raises:
        OSError: It could not be written, as on a full disk; what was there before
            still is.
    """
    with replace_when_whole(path, ".keras") as beside:
        model.save(beside)
        if note := _note_of(model):
            with zipfile.ZipFile(beside, "a") as archive:
                archive.comment = note.encode()


def save_weights(model: keras.Model, path: Path) -> None:
    """Saves a model's weights as a `.weights.h5` file, as `save_model` does."""
    import h5py

    with replace_when_whole(path, ".weights.h5") as beside:
        model.save_weights(beside)
        if note := _note_of(model):
            with h5py.File(beside, "r+") as file:
                file.attrs[NOTE] = note


def save_state_dict(model: keras.Model, path: Path) -> None:
    """Saves a model's weights as safetensors with the names that torch's nets use.

    A ResNet of ImageNet's gets torchvision's names, with ResNet-D and squeeze and
    excitation timm's, and one for CIFAR those of published CIFAR checkpoints.

    Args:
        model: Network of this package, other than a pre-activation net, of which
            torchvision and timm have none alike.
        path: File to write; it appears whole or not at all.

    Raises:
        InputError: The model has weights that have no such name.
        OSError: See `save_model`.
    """
    from safetensors.numpy import save_file

    origin = origin_of(model, "")
    names = {layer.name for layer in flat_layers(model)}
    is_cifar = not has_imagenet_stem(names)
    dialect = Dialect.choose(
        deep_stem="conv1_1_conv" in names,
        avg_down=bool(origin and origin.avg_down),
        cifar=is_cifar,
        shortcut=is_cifar,
    )
    arrays, strangers = {}, []
    for name, variable in variables_of(model).items():
        key = dialect.theirs(name)
        if key is None:
            strangers.append(name)
            continue
        array = turn(keras.ops.convert_to_numpy(variable), to_torch=True)
        arrays[key] = np.ascontiguousarray(array)
        if key.endswith("running_var"):
            tracked = key.replace("running_var", "num_batches_tracked")
            arrays[tracked] = np.zeros((), np.int64)
    if strangers:
        raise InputError(
            f"{model.name} has weights that torch's ResNets have no names for: "
            f"{shorten_list(strangers)}"
        )
    metadata = {"format": "pt"} | ({NOTE: origin.note()} if origin else {})
    with replace_when_whole(path) as beside:
        save_file(arrays, beside, metadata=metadata)


def _note_of(model: keras.Model) -> str | None:
    """Returns what is written into a file; `None` for a net of another package."""
    origin = origin_of(model, "")
    return origin.note() if origin else None
