"""Loading of classifiers and of the datasets to evaluate them on."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence

import keras
import numpy as np

from keras_resnet.data import (
    Dataset,
    Preprocessing,
    check_dataset,
    default_class_names,
    load_dataset,
)
from keras_resnet.evaluation.run_record import RunRecord, read_record
from keras_resnet.nets import channel_axis, has_imagenet_stem
from keras_resnet.spec import Provenance, find_variant
from keras_resnet.support import InputError, shorten_list, to_printable
from keras_resnet.weights import (
    DEFAULT_WEIGHTS,
    REGISTRY,
    SUFFIXES,
    class_ids,
    class_names,
    find_pixel_format,
    load_model,
    open_checkpoint,
)
from keras_resnet.zoo import build_from_checkpoint


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network with its class names and its preprocessing.

    Attributes:
        name: Short name, such as `"resnet50-imagenet"`, for the names of output files.
        model: Network that takes raw pixels and returns probabilities.
        classes: Names of the classes, in the order of the network's outputs.
        preprocessing: Conversion of an image to the network's input.
        provenance: Origin of the network and of its weights.
        folder: Run folder; `None` if the network does not belong to a training run.
    """

    name: str
    model: keras.Model
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    provenance: Provenance
    folder: str | None = None


def preprocessing_for(model: keras.Model) -> Preprocessing:
    """Returns the preprocessing that the weights of a network need.

        model = keras_resnet.ResNet50(weights="imagenet")
        image = keras_resnet.preprocessing_for(model).load("photo.jpg")
        probabilities = model.predict(image[None])

    The publisher of the weights measured the accuracy with this size, crop and
    interpolation. The first layer of the network normalises the pixels.

    Args:
        model: Network that `keras_resnet` trained, or built with weights. If Keras
            saved or loaded the network, crop and interpolation are unknown. The
            defaults are bilinear interpolation and the central 224 of 256 pixels, or
            the whole image for a CIFAR network.

    Raises:
        InputError: If the network has no layer that normalises raw pixels.
    """
    pixels = find_pixel_format(model)
    if pixels is None:
        raise InputError(
            "The first layer of the network must normalise raw pixels. Use a network "
            "that keras_resnet trained, or build the network with weights. "
            f"Received: model={model.name!r}, whose pixel format is unknown"
        )
    shape = tuple(model.input_shape[1:])
    height, width, channels = shape if channel_axis() == -1 else (*shape[1:], shape[0])
    is_imagenet = has_imagenet_stem({layer.name for layer in model.layers})
    size = pixels.size or (224 if is_imagenet else 32)
    return Preprocessing(
        height or size, width or size, channels, pixels.crop, pixels.interpolation
    )


def load_classifier(
    model: str, weights: str | None = None, image_size: int | None = None
) -> Classifier:
    """Loads the network of a training run, or builds a network with weights.

    Args:
        model: Run folder, weights file of any format that `weights=` takes, or name of
            a variant, such as `"resnet50"`. A run folder is preferred to a variant.
        weights: Name from `list_weights()`, or weights file. Accepted only if `model`
            is a variant. Default: `"imagenet"`.
        image_size: Input height and width in pixels. Not accepted with a run folder.
            Default: the size at which the accuracy of the weights was measured.

    Raises:
        InputError: If the model does not exist, or if the training run has not ended.
    """
    path = os.path.normpath(os.path.expanduser(model))
    is_file = path.lower().endswith(SUFFIXES)
    folder = (os.path.dirname(path) or ".") if is_file else path
    record = read_record(folder) if path.endswith(".keras") or not is_file else None
    is_variant = False
    with contextlib.suppress(InputError):
        is_variant = bool(find_variant(model))
    if record and is_variant:
        print(f"{path} is a run folder here, not the variant", file=sys.stderr)
    is_folder = os.path.exists(path) or (weights is None and os.sep in model)
    if record is None and (is_file or is_variant or not is_folder):
        if is_file and weights is None:
            checkpoint, name = open_checkpoint(path), None
        else:
            find_variant(model)
            name = model.lower()
            checkpoint = open_checkpoint(weights or DEFAULT_WEIGHTS, name)
        network = build_from_checkpoint(checkpoint, name, image_size)
        return _make_classifier(network, os.path.basename(path), weights)
    if record is None:
        raise InputError(
            "model must be a run folder, a weights file, or the name of a variant. "
            f"Received: {model!r}, but there is no {folder}/run.json"
        )
    if weights is not None or image_size is not None:
        raise InputError(
            "weights and image_size are accepted only with the name of a variant, such "
            "as resnet50, because a run has its own weights and image size. Received: "
            f"model={model!r}, weights={weights!r}, image_size={image_size!r}"
        )
    return _load_run(record, path, folder)


def _load_run(record: RunRecord, path: str, folder: str) -> Classifier:
    """Loads the network of a run. `path` is a `.keras` file or the run folder."""
    if path == folder:
        path = os.path.join(folder, "final.keras")
        if not os.path.exists(path):
            raise InputError(
                f"The run in {folder} has not ended. Repeat the training command to "
                f"resume it, or use {folder}/best.keras if that file exists"
            )
    network = load_model(path)
    *sides, channels = record.preprocessing.shape
    shape = (*sides, channels) if channel_axis() == -1 else (channels, *sides)
    expected = [*shape, len(record.classes)]
    received = [*network.input_shape[1:], *network.output_shape[-1:]]
    if [n or e for n, e in zip(received, expected, strict=False)] != expected:
        raise InputError(
            f"The input shape and the number of classes in {folder}/run.json must be "
            f"those of the network in {path}, {received}. Received: {expected}"
        )
    return Classifier(
        name=os.path.basename(os.path.abspath(folder)),
        model=network,
        classes=record.classes,
        preprocessing=record.preprocessing,
        provenance=Provenance(record.spec.model, record.spec.weights, record.spec),
        folder=folder,
    )


def _make_classifier(model: keras.Model, name: str, weights: str | None) -> Classifier:
    """Makes the classifier of a network that is not stored in a run folder."""
    if getattr(model.layers[-1], "activation", None) is not keras.activations.softmax:
        raise InputError(
            "The last layer of a classifier must be a softmax over the classes. "
            f"Received: {name}, whose last layer is {model.layers[-1].name}"
        )
    short_name = name.split(".", maxsplit=1)[0]
    if weights is not None:
        short_name += f"-{os.path.basename(weights).split('.')[0]}"
    return Classifier(
        name=short_name,
        model=model,
        classes=model.origin.classes or _guess_classes(model, name),
        preprocessing=preprocessing_for(model),
        provenance=_find_provenance(name, model.origin.source),
    )


def _guess_classes(model: keras.Model, name: str) -> tuple[str, ...]:
    """Guesses the class names of a network whose weights do not contain them."""
    num_classes, names = model.output_shape[-1], None
    if num_classes == 1000:
        names = class_names("imagenet")
    elif num_classes == 10 and model.input_shape[1:] == (32, 32, 3):
        warning = f"{name} has no class names, so the names of CIFAR-10 are used"
        print(to_printable(warning), file=sys.stderr)
        names = class_names("cifar10")
    return names or default_class_names(num_classes)


def _find_provenance(name: str, source: str) -> Provenance:
    """Returns the origin of weights, including the publisher of registered weights."""
    for entry in REGISTRY:
        if source == f"{entry.model}/{entry.name}":
            # Registered weights without a URL are part of this package. The folder of
            # the weights file also contains the `run.json` of the training run.
            is_shipped = "://" not in entry.address
            record = read_record(os.path.dirname(entry.path)) if is_shipped else None
            publisher = entry.source, entry.licence, entry.top1
            return Provenance(name, source, record.spec if record else None, *publisher)
    return Provenance(name, source)


def load_images(
    classifier: Classifier,
    dataset: Dataset | str | None = None,
    data_dir: str | None = None,
    only_test: bool = False,
) -> Dataset:
    """Loads a dataset for a classifier and maps its labels to the classifier's classes.

    Args:
        dataset: A dataset, or a name that `load_dataset` accepts. Default: the dataset
            that the network was trained on. The dataset may have fewer classes than the
            classifier. Classes are matched by name or, for ImageNet, by WordNet id.
            Unnamed classes of TFRecord files are matched by index, if the dataset has
            as many classes as the classifier.
        data_dir: Folder in which TFDS stores its datasets. Default: TFDS chooses it.
        only_test: Whether to skip the training images; see
            `keras_resnet.data.load_dataset`.

    Raises:
        InputError: If the classifier lacks a class of the dataset, or if the images
            and the network's input have different numbers of channels.
    """
    run = classifier.provenance.run
    dataset = dataset or (run.dataset if run else None)
    if dataset is None:
        raise InputError(
            f"The training dataset of {classifier.name} is unknown, so a dataset must "
            "be given. Accepted: --dataset=folder:PATH, tfrecord:PATH or a TFDS name"
        )
    if isinstance(dataset, Dataset):
        dataset = check_dataset(dataset)
    else:
        dataset = load_dataset(dataset, data_dir, only_test)
    classes = classifier.classes
    if dataset.classes != classes:
        indices = _match_classes(dataset.classes, classes)
        if indices is None:
            raise InputError(
                "Every class of the dataset must be a class of the network. The classes "
                f"of the network are {shorten_list(classes, 20)}. Received: "
                f"{dataset.name} with the classes {shorten_list(dataset.classes, 20)}"
            )
        train, test = (
            dataclasses.replace(split, labels=indices[split.labels])
            for split in (dataset.train, dataset.test)
        )
        dataset = dataclasses.replace(dataset, classes=classes, train=train, test=test)
    channels = classifier.preprocessing.channels
    if dataset.shape and dataset.shape[2] != channels:
        raise InputError(
            f"The network takes images with {channels} channel(s). "
            f"Received: {dataset.name} with {dataset.shape[2]} channel(s)"
        )
    return dataset


def _match_classes(names: Sequence[str], classes: Sequence[str]) -> np.ndarray | None:
    """Returns the index of each name in `classes`, int32, or `None` if one is missing."""
    naming_schemes = [classes]
    if tuple(classes) == class_names("imagenet"):
        naming_schemes.append(class_ids("imagenet") or ())
    for scheme in naming_schemes:
        index_by_name = {name: index for index, name in enumerate(scheme)}
        if all(name in index_by_name for name in names):
            return np.array([index_by_name[name] for name in names], np.int32)
    if tuple(names) == default_class_names(len(classes)):
        return np.arange(len(classes), dtype=np.int32)
    return None
