"""Atomic writers of weights files."""

import zipfile

import keras
import numpy as np

from keras_resnet.nets import has_imagenet_stem, list_layers
from keras_resnet.support import InputError, StrPath, replace_atomically, shorten_list
from keras_resnet.weights.checkpoint import get_variables
from keras_resnet.weights.dialects import Dialect, transpose_kernel
from keras_resnet.weights.origin import METADATA_KEY
from keras_resnet.weights.recognition import find_origin


def save_model(model: keras.Model, path: StrPath) -> None:
    """Saves a model atomically as a `.keras` file.

    The metadata (`Origin`) is stored in the comment of the ZIP archive, because Keras
    ignores the comment. An additional archive member would make Keras extract the whole
    archive to disk.

    Raises:
        OSError: If writing fails, such as on a full disk. An existing file is kept.
    """
    with replace_atomically(path, ".keras") as temporary_path:
        model.save(temporary_path)
        if metadata := _make_metadata(model):
            with zipfile.ZipFile(temporary_path, "a") as archive:
                archive.comment = metadata.encode()


def save_weights(model: keras.Model, path: StrPath) -> None:
    """Saves weights and metadata of a model atomically as a `.weights.h5` file."""
    import h5py

    with replace_atomically(path, ".weights.h5") as temporary_path:
        model.save_weights(temporary_path)
        if metadata := _make_metadata(model):
            with h5py.File(temporary_path, "r+") as file:
                file.attrs[METADATA_KEY] = metadata


def save_state_dict(model: keras.Model, path: StrPath) -> None:
    """Saves a model's weights atomically as safetensors, with names for PyTorch.

    ImageNet networks get the names of torchvision. ResNet-D and networks with `se` get
    the names of timm. CIFAR networks get the names of CIFAR repositories.

    Args:
        model: Network of this package. Pre-activation networks are refused, because
            torchvision and timm have none with the same layout.
        path: File to write.

    Raises:
        InputError: If the PyTorch repositories have no name for a weight of the model.
        OSError: If writing fails. An existing file is kept.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    origin = find_origin(model, "")
    layer_names = {layer.name for layer in list_layers(model)}
    is_cifar = not has_imagenet_stem(layer_names)
    dialect = Dialect.make(
        deep_stem="conv1_1_conv" in layer_names,
        avg_down=bool(origin and origin.avg_down),
        linear_keys=is_cifar,
        shortcut_keys=is_cifar,
    )
    arrays, unnamed_weights = {}, []
    for name, variable in get_variables(model).items():
        key = dialect.to_torch_key(name)
        if key is None:
            unnamed_weights.append(name)
            continue
        array = transpose_kernel(keras.ops.convert_to_numpy(variable), to_torch=True)
        arrays[key] = np.ascontiguousarray(array)
        if key.endswith("running_var"):
            counter_key = key.replace("running_var", "num_batches_tracked")
            arrays[counter_key] = np.zeros((), np.int64)
    if unnamed_weights:
        raise InputError(
            f"{model.name} has weights that ResNets of torchvision and timm do not have: "
            f"{shorten_list(unnamed_weights)}"
        )
    metadata = {METADATA_KEY: origin.to_metadata()} if origin else {}
    with replace_atomically(path, library_error=SafetensorError) as temporary_path:
        save_file(arrays, temporary_path, metadata={"format": "pt"} | metadata)


def _make_metadata(model: keras.Model) -> str | None:
    """Returns JSON metadata, or `None` if another package built the model."""
    origin = find_origin(model, "")
    return origin.to_metadata() if origin else None
