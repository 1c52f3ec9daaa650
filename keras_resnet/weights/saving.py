"""Atomic writers of weights files."""

import zipfile

import keras
import numpy as np

from keras_resnet.nets import flat_layers, has_imagenet_stem
from keras_resnet.support import InputError, StrPath, replace_atomically, shorten_list
from keras_resnet.weights.checkpoint import variables_of
from keras_resnet.weights.dialects import Dialect, transpose_kernel
from keras_resnet.weights.origin import NOTE
from keras_resnet.weights.recognition import find_origin


def save_model(model: keras.Model, path: StrPath) -> None:
    """Saves a model atomically as a `.keras` file.

    The note about the weights (`Origin`) becomes the comment of the ZIP archive, which
    Keras ignores. An additional archive member would make Keras extract the whole
    archive to disk.

    Raises:
        OSError: If writing fails, such as on a full disk. An existing file is kept.
    """
    with replace_atomically(path, ".keras") as temporary_path:
        model.save(temporary_path)
        if note := _make_note(model):
            with zipfile.ZipFile(temporary_path, "a") as archive:
                archive.comment = note.encode()


def save_weights(model: keras.Model, path: StrPath) -> None:
    """Saves a model's weights atomically as a `.weights.h5` file with a note."""
    import h5py

    with replace_atomically(path, ".weights.h5") as temporary_path:
        model.save_weights(temporary_path)
        if note := _make_note(model):
            with h5py.File(temporary_path, "r+") as file:
                file.attrs[NOTE] = note


def save_state_dict(model: keras.Model, path: StrPath) -> None:
    """Saves a model's weights atomically as safetensors, with names for PyTorch.

    Networks for ImageNet get the names of torchvision, or those of timm for ResNet-D
    and squeeze and excitation. Networks for CIFAR get those of CIFAR repositories.

    Args:
        model: Network of this package, but not a pre-activation network, because
            torchvision and timm have none with the same layout.
        path: File to write.

    Raises:
        InputError: If a weight of the model has no name in PyTorch.
        OSError: If writing fails. An existing file is kept.
    """
    from safetensors.numpy import save_file

    origin = find_origin(model, "")
    names = {layer.name for layer in flat_layers(model)}
    is_cifar = not has_imagenet_stem(names)
    dialect = Dialect.make(
        deep_stem="conv1_1_conv" in names,
        avg_down=bool(origin and origin.avg_down),
        cifar=is_cifar,
        shortcut=is_cifar,
    )
    arrays, unnamed = {}, []
    for name, variable in variables_of(model).items():
        key = dialect.to_torch_key(name)
        if key is None:
            unnamed.append(name)
            continue
        array = transpose_kernel(keras.ops.convert_to_numpy(variable), to_torch=True)
        arrays[key] = np.ascontiguousarray(array)
        if key.endswith("running_var"):
            counter = key.replace("running_var", "num_batches_tracked")
            arrays[counter] = np.zeros((), np.int64)
    if unnamed:
        raise InputError(
            f"{model.name} has weights without a counterpart in the ResNets of PyTorch: "
            f"{shorten_list(unnamed)}"
        )
    metadata = {"format": "pt"} | ({NOTE: origin.to_note()} if origin else {})
    with replace_atomically(path) as temporary_path:
        save_file(arrays, temporary_path, metadata=metadata)


def _make_note(model: keras.Model) -> str | None:
    """Returns the note for a file, or `None` for a network of another package."""
    origin = find_origin(model, "")
    return origin.to_note() if origin else None
