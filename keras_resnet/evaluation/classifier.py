"""A network that is ready to use, with all that belongs to its weights."""

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
    load_dataset,
    unnamed_classes,
)
from keras_resnet.evaluation.run_record import RunRecord, read_record
from keras_resnet.nets import channel_axis, has_imagenet_stem
from keras_resnet.spec import Provenance, find_variant
from keras_resnet.support import InputError, shorten_list
from keras_resnet.weights import (
    DEFAULT_WEIGHTS,
    ENDINGS,
    REGISTRY,
    class_ids,
    class_names,
    load_model,
    open_checkpoint,
    pixels_of,
)
from keras_resnet.zoo import build_from_checkpoint


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network with its classes and its preprocessing.

    Attributes:
        name: Short name, for files and folders that describe the network.
        model: Network that takes raw pixels.
        classes: Name of each class, in the order of the outputs.
        preprocessing: From an image to the model's input.
        provenance: Where the network comes from.
        folder: Run folder; `None` for published or foreign weights.
    """

    name: str
    model: keras.Model
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    provenance: Provenance
    folder: str | None = None


def preprocessing_for(model: keras.Model) -> Preprocessing:
    """Returns how an image becomes the input of a network that has weights.

        model = keras_resnet.ResNet50(weights="imagenet")
        image = keras_resnet.preprocessing_for(model).load("photo.jpg")
        probabilities = model.predict(image[None])

    Resizing, crop and interpolation belong to the weights, as their publisher
    measured them; the normalisation is the model's own first layer.

    Args:
        model: Network that `keras_resnet` built with weights, or trained. If Keras
            alone saved or loaded it, crop and interpolation are the usual ones (224 of
            256 pixels, bilinear; CIFAR nets see the whole image): only `weights=` reads
            what our commands note in a file.

    Raises:
        InputError: The model has no weights, or takes something other than pixels.
    """
    pixels = pixels_of(model)
    if pixels is None:
        raise InputError(
            "preprocessing_for() needs a network built with weights, or one that "
            "keras_resnet trained, whose first layer normalises raw pixels. Received: "
            f"model={model.name!r}, which has no such layer"
        )
    shape = tuple(model.input_shape[1:])
    height, width, channels = shape if channel_axis() == -1 else (*shape[1:], shape[0])
    stem = has_imagenet_stem({layer.name for layer in model.layers})
    usual = pixels.size or (224 if stem else 32)
    return Preprocessing(
        height or usual, width or usual, channels, pixels.crop, pixels.interpolation
    )


def load_classifier(
    model: str, weights: str | None = None, image_size: int | None = None
) -> Classifier:
    """Loads a trained run, or builds a network with weights.

    Args:
        model: Run folder, file of any kind that `weights=` takes, or name of a
            network, such as `"resnet50"`.
        weights: With the name of a network: name from `list_weights()`, or file.
            `None` is the published default, `"imagenet"`.
        image_size: With the name of a network or a file: input height and width in
            pixels. `None` is the size at which the weights were measured.

    Raises:
        InputError: There is no such model, or its run has not ended.
    """
    path = os.path.normpath(os.path.expanduser(model))
    is_file = path.lower().endswith(ENDINGS)
    folder = (os.path.dirname(path) or ".") if is_file else path
    record = read_record(folder) if path.endswith(".keras") or not is_file else None
    if record is None and (is_file or not os.path.exists(path)):
        if is_file and weights is None:
            checkpoint, name = open_checkpoint(path), None
        elif weights is None and os.sep in model:
            raise InputError(
                f"There is no run folder {path}, so there is no {path}/run.json. "
                f"Accepted: a run folder, a file of weights, or a network. "
                f"Received: {model!r}"
            )
        else:
            find_variant(model)
            name = model.lower()
            checkpoint = open_checkpoint(weights or DEFAULT_WEIGHTS, name)
        network = build_from_checkpoint(checkpoint, name, image_size)
        return _classify_with(network, os.path.basename(path), weights)
    if weights is not None or image_size is not None:
        raise InputError(
            "weights and image_size go with the name of a network, such as resnet50; a "
            "run has its own. Received: "
            f"model={model!r}, weights={weights!r}, image_size={image_size!r}"
        )
    if record is None:
        raise InputError(
            "model must be a run folder, as keras_resnet.train writes it, a file of "
            "weights, or the name of a network. "
            f"Received: {path!r}, where there is no {folder}/run.json"
        )
    return _load_run(record, path, folder)


def _load_run(record: RunRecord, path: str, folder: str) -> Classifier:
    """Loads the network of a run: the file `path`, or the last of its `folder`."""
    if path == folder:
        path = os.path.join(folder, "final.keras")
        if not os.path.exists(path):
            raise InputError(
                f"The run in {folder} has not ended: run its command again to resume, or "
                f"name {folder}/best.keras, if it is there"
            )
    return Classifier(
        name=os.path.basename(os.path.abspath(folder)),
        model=load_model(path),
        classes=record.classes,
        preprocessing=record.preprocessing,
        provenance=Provenance(record.spec.model, record.spec.weights, record.spec),
        folder=folder,
    )


def _classify_with(model: keras.Model, name: str, weights: str | None) -> Classifier:
    """Makes a classifier of a network that is not in a run folder."""
    if getattr(model.layers[-1], "activation", None) is not keras.activations.softmax:
        raise InputError(
            "A classifier ends in a softmax over its classes. "
            f"Received: {name}, whose last layer is {model.layers[-1].name}"
        )
    short = name.split(".", maxsplit=1)[0]
    if weights is not None:
        short += f"-{os.path.basename(weights).split('.')[0]}"
    return Classifier(
        name=short,
        model=model,
        classes=model.origin.classes or _usual_classes(model, name),
        preprocessing=preprocessing_for(model),
        provenance=_provenance(name, model.origin.source),
    )


def _usual_classes(model: keras.Model, name: str) -> tuple[str, ...]:
    """Returns the classes that a network has if its weights do not name them."""
    number, names = model.output_shape[-1], None
    if number == 1000:
        names = class_names("imagenet")
    elif number == 10 and model.input_shape[1:] == (32, 32, 3):
        note = f"{name} does not name its 10 classes; taken for CIFAR-10's"
        print(note, file=sys.stderr)
        names = class_names("cifar10")
    return names or unnamed_classes(number)


def _provenance(name: str, source: str) -> Provenance:
    """Returns what is known of weights: those of the registry have a publisher."""
    for entry in REGISTRY:
        if source == f"{entry.model}/{entry.name}":
            # Without an address, this package trained them and ships the run's record.
            shipped = "://" not in entry.address
            record = read_record(os.path.dirname(entry.path)) if shipped else None
            publisher = entry.source, entry.licence, entry.top1
            return Provenance(name, source, record.spec if record else None, *publisher)
    return Provenance(name, source)


def load_images(
    classifier: Classifier,
    dataset: Dataset | str | None = None,
    data_dir: str | None = None,
    only_test: bool = False,
) -> Dataset:
    """Loads the data set that a classifier is to be tried on; its classes are the model's.

    Args:
        classifier: Network with its classes.
        dataset: Data set, or what `load_dataset` takes; `None` is the one that the
            model was trained on. Its classes may be some of the model's, by name or,
            for ImageNet, by WordNet id, as its folders are called. Classes without
            names, in TFRecord files, are taken in order if they are as many.
        data_dir: Folder of TFDS sets.
        only_test: Whether no training images are wanted; see
            `keras_resnet.data.load_dataset`.

    Raises:
        InputError: It has other classes, or images of another number of channels.
    """
    run = classifier.provenance.run
    dataset = dataset or (run.dataset if run else None)
    if dataset is None:
        raise InputError(
            f"{classifier.name} has no data set of its own; name one. Accepted: "
            "--dataset=folder:PATH or the name of a TFDS set"
        )
    if isinstance(dataset, Dataset):
        images = check_dataset(dataset)
    else:
        images = load_dataset(dataset, data_dir, only_test)
    if images.classes != classifier.classes:
        places = _places(images.classes, classifier.classes)
        if places is None:
            raise InputError(
                f"The model knows the classes {shorten_list(classifier.classes, 20)}. "
                f"Received: {images.name} with the classes {shorten_list(images.classes, 20)}"
            )
        train, test = (
            dataclasses.replace(split, labels=places[split.labels])
            for split in (images.train, images.test)
        )
        images = dataclasses.replace(
            images, classes=classifier.classes, train=train, test=test
        )
    channels = classifier.preprocessing.channels
    if images.shape and images.shape[2] != channels:
        raise InputError(
            f"The model takes images of {channels} channel(s). "
            f"Received: {images.name} with {images.shape[2]}"
        )
    return images


def _places(names: Sequence[str], classes: Sequence[str]) -> np.ndarray | None:
    """Returns the places of a data set's classes among a model's; int32 (names,).

    `None` if not all of them are among the classes.
    """
    known = [classes]
    if tuple(classes) == class_names("imagenet"):
        known.append(class_ids("imagenet") or ())
    for order in known:
        places = {name: place for place, name in enumerate(order)}
        if all(name in places for name in names):
            return np.array([places[name] for name in names], np.int32)
    if tuple(names) == unnamed_classes(len(classes)):
        return np.arange(len(classes), dtype=np.int32)
    return None
