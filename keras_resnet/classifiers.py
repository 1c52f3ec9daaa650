"""A network that is ready to use, with all that belongs to its weights."""

import dataclasses
import os

import keras
import numpy as np

from keras_resnet import registry
from keras_resnet.blocks import channel_axis
from keras_resnet.data import load_dataset
from keras_resnet.errors import InputError
from keras_resnet.preprocessing import Preprocessing
from keras_resnet.resnet import ResNet
from keras_resnet.runs import read_record
from keras_resnet.variants import find_variant
from keras_resnet.weight_files import load_model, pixels_of


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
            was saved and loaded again, crop and interpolation are the usual ones
            (224 of 256 pixels, bilinear; CIFAR nets see the whole image): its file
            does not hold them.

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
    usual = 224 if any(la.name == "pool1_pool" for la in model.layers) else 32
    return Preprocessing(
        height or usual, width or usual, channels, pixels.crop, pixels.interpolation
    )


def load_classifier(model, weights=None, image_size=None):
    """Loads a trained run, or builds a network with weights.

    Args:
        model: a run folder or a `.keras` file; or the name of a network, such as
            `"resnet50"`.
        weights: with the name of a network, a name of `list_weights()` or a file;
            `None` is its published default, `"imagenet"`.
        image_size: with the name of a network, height and width of its input in
            pixels; `None` is the architecture's.

    Returns:
        A `Classifier`.

    Raises:
        InputError: there is no such model, or its run has not ended.
    """
    path = os.path.normpath(model)
    if not path.endswith(".keras") and not os.path.exists(path):
        if weights is None and os.sep in model:
            raise InputError(
                f"There is no run folder {path}, so there is no {path}/run.json. "
                f"Accepted: a run folder, a .keras file, or a network. Received: {model!r}"
            )
        find_variant(model)
        weights = registry.DEFAULT if weights is None else weights
        shape = image_size and (image_size, image_size, 3)
        if shape and channel_axis() == 1:
            shape = shape[::-1]
        network = ResNet(model, weights=weights, input_shape=shape)
        return _with_facts(network, model, weights)
    if weights is not None or image_size is not None:
        raise InputError(
            "weights and image_size go with the name of a network, such as resnet50; a "
            "run folder or a .keras file has its own. Received: "
            f"model={model!r}, weights={weights!r}, image_size={image_size!r}"
        )
    folder = os.path.dirname(path) if path.endswith(".keras") else path
    record = read_record(folder)
    if record is None:
        if path == folder:
            raise InputError(
                "model must be a run folder, as keras_resnet.train writes it, a .keras "
                "file, or the name of a network. "
                f"Received: {path!r}, where there is no {folder}/run.json"
            )
        return _with_facts(load_model(path), path, None)
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
    origin = getattr(model, "origin", None)
    classes = model.output_shape[-1]
    names = origin.classes if origin else None
    if names is None and classes == 1000:
        names = registry.class_names("imagenet")
    if names is None and classes == 10 and weights and model.input_shape[1] == 32:
        names = registry.class_names("cifar10")
    names = names or tuple(f"class {i}" for i in range(classes))
    if len(names) != classes:
        raise InputError(
            f"{name} has {classes} classes, and {len(names)} names are known for them"
        )
    settings = {"model": name, "weights": origin.source if origin else name}
    for entry in registry.list_weights(name.lower()):
        if origin and origin.source == f"{entry.model}/{entry.name}":
            settings |= {
                "publisher": entry.source,
                "licence": entry.licence,
                "published_top1": entry.top1,
            }
    short = os.path.basename(name).removesuffix(".keras")
    if weights is not None:
        short += f"-{os.path.basename(weights).split('.')[0]}"
    return Classifier(short, model, tuple(names), preprocessing_for(model), settings)


def load_images(classifier, dataset=None, data_dir=None, only_test=False):
    """Loads the data set that a classifier is to be tried on.

    Args:
        classifier: a `Classifier`.
        dataset: see `keras_resnet.data.load_dataset`; `None` is the one that the
            model was trained on. Its classes may be some of the model's, by name
            or, for ImageNet, by WordNet id, as its folders are called.
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
    images = load_dataset(dataset, data_dir, only_test)
    if images.classes != classifier.classes:
        places = _places(images.classes, classifier.classes)
        if places is None:
            raise InputError(
                f"The model knows the classes {_few(classifier.classes)}. "
                f"Received: {images.name} with the classes {_few(images.classes)}"
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
    ids = registry.class_ids("imagenet")
    named = [{name: i for i, name in enumerate(known)}]
    if tuple(known) == registry.class_names("imagenet"):
        named.append({name: i for i, name in enumerate(ids)})
    for places in named:
        if all(name in places for name in some):
            return np.array([places[name] for name in some], np.int32)
    return None


def _few(names):
    return ", ".join(names[:20]) + (
        f" and {len(names) - 20} more" if len(names) > 20 else ""
    )
