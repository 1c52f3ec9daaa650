"""A network that is ready to use, with all that belongs to its weights."""

import dataclasses
import os
import sys

import keras
import numpy as np

from keras_resnet.data import (
    Dataset,
    Preprocessing,
    check_dataset,
    load_dataset,
    unnamed_classes,
)
from keras_resnet.evaluation.run_record import read_record
from keras_resnet.nets import channel_axis, has_imagenet_stem
from keras_resnet.spec import find_variant
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
        name: short, for files that are written of it.
        model: a `keras.Model` that takes raw pixels.
        classes: name of each class, in order.
        preprocessing: from an image to the model's input.
        settings: what a run was trained with, as in `run.json`; of published or
            foreign weights, `model`, `weights` and what is known of their source.
        folder: of the run; `None` for published or foreign weights.
    """

    name: str
    model: keras.Model
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    settings: dict
    folder: str | None = None


def preprocessing_for(model):
    """How an image becomes the input of a network that has weights.

        model = keras_resnet.ResNet50(weights="imagenet")
        image = keras_resnet.preprocessing_for(model).load("photo.jpg")
        probabilities = model.predict(image[None])

    Resizing, crop and interpolation belong to the weights, as their publisher
    measured them; the normalisation is the model's own first layer.

    Args:
        model: one that `keras_resnet` built with weights, or trained. Of one that
            Keras alone saved or loaded, crop and interpolation are the usual ones
            (224 of 256 pixels, bilinear; CIFAR nets see the whole image): only
            `weights=` reads what our programs note in a file.

    Returns:
        A `keras_resnet.preprocessing.Preprocessing`.

    Raises:
        InputError: the model has no weights, or takes something other than pixels.
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


def load_classifier(model, weights=None, image_size=None):
    """Loads a trained run, or builds a network with weights.

    Args:
        model: a run folder; a file of weights, of any kind that `weights=` takes;
            or the name of a network, such as `"resnet50"`.
        weights: with the name of a network, a name of `list_weights()` or a file;
            `None` is its published default, `"imagenet"`.
        image_size: height and width of the input in pixels, other than for a run;
            `None` is that at which the weights were measured.

    Returns:
        A `Classifier`.

    Raises:
        InputError: there is no such model, or its run has not ended.
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
            checkpoint = open_checkpoint(weights or DEFAULT_WEIGHTS, model.lower())
            name = model.lower()
        network = build_from_checkpoint(checkpoint, name, image_size)
        return _with_facts(network, os.path.basename(path), weights)
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
    if path == folder:
        path = os.path.join(folder, "final.keras")
        if not os.path.exists(path):
            raise InputError(
                f"The run in {folder} has not ended: run its command again to resume, or "
                f"name {folder}/best.keras, if it is there"
            )
    return Classifier(
        os.path.basename(os.path.abspath(folder)),
        load_model(path),
        tuple(record["classes"]),
        Preprocessing(**record["preprocessing"]),
        record["settings"],
        folder,
    )


def _with_facts(model, name, weights):
    """A classifier of a model that no run of ours tells about."""
    if getattr(model.layers[-1], "activation", None) is not keras.activations.softmax:
        raise InputError(
            "A classifier ends in a softmax over its classes. "
            f"Received: {name}, whose last layer is {model.layers[-1].name}"
        )
    origin = model.origin
    classes = model.output_shape[-1]
    names = origin.classes
    if names is None and classes == 1000:
        names = class_names("imagenet")
    if names is None and classes == 10 and model.input_shape[1:] == (32, 32, 3):
        names = class_names("cifar10")
        print(
            f"{name} does not name its 10 classes; taken for CIFAR-10's",
            file=sys.stderr,
        )
    names = names or unnamed_classes(classes)
    settings = {"model": name, "weights": origin.source}
    for entry in REGISTRY:
        if origin.source == f"{entry.model}/{entry.name}":
            settings |= {
                "publisher": entry.source,
                "licence": entry.licence,
                "published_top1": entry.top1,
            }
            if "://" not in entry.address:  # Trained by this package: its run says how.
                record = read_record(os.path.dirname(entry.path))
                settings = {**record["settings"], **settings}
    short = name.split(".")[0]
    if weights is not None:
        short += f"-{os.path.basename(weights).split('.')[0]}"
    return Classifier(short, model, tuple(names), preprocessing_for(model), settings)


def load_images(classifier, dataset=None, data_dir=None, only_test=False):
    """Loads the data set that a classifier is to be tried on.

    Args:
        classifier: a `Classifier`.
        dataset: a `keras_resnet.data.Dataset`, or what `load_dataset` takes; `None`
            is the one that the model was trained on. Its classes may be some of
            the model's, by name or, for ImageNet, by WordNet id, as its folders
            are called; as many classes that have no names, in TFRecord files, are
            taken in order.
        data_dir: where TFDS keeps its sets.
        only_test: see `keras_resnet.data.load_dataset`.

    Returns:
        A `Dataset` whose classes are the model's.

    Raises:
        InputError: it has other classes, or images of another number of channels.
    """
    dataset = dataset or classifier.settings.get("dataset")
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
        images = dataclasses.replace(
            images,
            classes=classifier.classes,
            train=dataclasses.replace(images.train, labels=places[images.train.labels]),
            test=dataclasses.replace(images.test, labels=places[images.test.labels]),
        )
    channels = classifier.preprocessing.channels
    if images.shape and images.shape[2] != channels:
        raise InputError(
            f"The model takes images of {channels} channel(s). "
            f"Received: {images.name} with {images.shape[2]}"
        )
    return images


def _places(some, known):
    """Places of a data set's classes among those of a model; `None` if not there."""
    ids = class_ids("imagenet")
    named = [{name: i for i, name in enumerate(known)}]
    if tuple(known) == class_names("imagenet"):
        named.append({name: i for i, name in enumerate(ids)})
    for places in named:
        if all(name in places for name in some):
            return np.array([places[name] for name in some], np.int32)
    if tuple(some) == unnamed_classes(len(known)):
        return np.arange(len(known), dtype=np.int32)
    return None
