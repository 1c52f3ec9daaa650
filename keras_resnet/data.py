"""Data sets.

Small images are held in memory, as pixels; larger ones lie in files, one each or
many as the records of one, and are read where they are, in any order.
"""

import dataclasses
import os
import sys
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_resnet import records
from keras_resnet.errors import InputError, some
from keras_resnet.progress import progress
from keras_resnet.records import Records

IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 (number, height, width, channels); or encoded files, or
            with `are_paths` the paths of files, as an array of bytes or strings;
            or with `records` their places there.
        labels: int32 (number,).
        are_paths: whether `images` are paths.
        records: TFRecord files that hold the images.
        replaced: how many images stand in for a damaged one.
    """

    images: np.ndarray
    labels: np.ndarray
    are_paths: bool = False
    records: Records | None = None
    replaced: int = 0

    def __len__(self):
        return len(self.labels)

    def take(self, places) -> "Split":
        """Returns the images at some places, or where a mask is true."""
        return dataclasses.replace(
            self, images=self.images[places], labels=self.labels[places]
        )

    def __add__(self, other) -> "Split":
        """Returns the images of both."""
        found, more = self.records, other.images
        if found and other.records is not found:
            more = more + len(found)
            found = _joined(found, other.records)
        return dataclasses.replace(
            self,
            images=np.concatenate([self.images, more]),
            labels=np.concatenate([self.labels, other.labels]),
            records=found,
        )

    def names(self) -> list[str]:
        """Returns what to call each image: its path, its record, or its number."""
        if self.are_paths:
            return list(map(str, self.images))
        if self.records:
            return [self.records.name(place) for place in self.images]
        return list(map(str, range(len(self))))

    def without(self, places) -> "Split":
        """Returns this with the next good image in the place of each damaged one.

        Args:
            places: of the damaged images.
        """
        good = np.setdiff1d(np.arange(len(self)), places)
        stand_in = np.arange(len(self))
        stand_in[places] = good[np.searchsorted(good, places) % len(good)]
        return dataclasses.replace(
            self.take(stand_in), replaced=self.replaced + len(places)
        )

    def reader(self, decode: Callable, view: Callable) -> Callable:
        """Returns a function from one entry of `images` to pixels.

        Args:
            decode: from an encoded file to them.
            view: from a uint8 image to them.
        """
        if self.images.dtype == np.uint8:
            return view
        if self.are_paths:
            return lambda path: decode(tf.io.read_file(path))
        if self.records:
            read = records.reader(self.records)
            return lambda place: decode(read(place))
        return decode


def _joined(records, more):
    """The records of two lots of files."""
    if records.image != more.image:
        raise InputError(
            "Files that are read together must call their images alike. Received: "
            f"{records.image} in {records.paths[0]}, {more.image} in {more.paths[0]}"
        )
    columns = {
        name: np.concatenate([getattr(records, name), getattr(more, name)])
        for name in ("number", "offset", "length", "labels")
    }
    return dataclasses.replace(
        records,
        paths=records.paths + more.paths,
        shard=np.concatenate([records.shard, more.shard + len(records.paths)]),
        damaged=records.damaged + more.damaged,
        **columns,
    )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set with the names of its classes.

    Attributes:
        name: as given to `load_dataset`.
        classes: name of each label, in order.
        train: the images to train on.
        test: the images held out.
        shape: (height, width, channels) where all images have one, else None.
        own_split: whether the held-out images came so, not chosen here.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    shape: tuple[int, int, int] | None
    own_split: bool = True


def resolve_name(name):
    """Returns the name of a data set with the whole path of a folder in it."""
    kind, _, path = name.partition(":")
    if kind not in ("folder", "tfrecord") or "://" in path:
        return name
    return f"{kind}:{os.path.abspath(os.path.expanduser(path))}"


def load_dataset(name, data_dir=None, only_test=False):
    """Loads a data set.

    Args:
        name: `"digits"`, scikit-learn's 1,797 handwritten digits of 8x8 pixels,
            of which a fifth is held out; `"folder:PATH"`, image files in one
            folder for each class, below PATH/train and PATH/test (or PATH/val)
            or right below PATH, where a fifth of each class is held out;
            `"tfrecord:PATH"`, a folder of TFRecord files (see
            `keras_resnet.records.find`); or any image classification set of TFDS,
            such as `"cifar10"` or `"imagenet2012"`.
        data_dir: where TFDS keeps its sets; `None` is its own default.
        only_test: whether no training images are wanted: those of a TFDS set are
            not read, and a folder without a part held out is one, whole.

    Returns:
        A `Dataset`; with `only_test` its `train` may be empty.

    Raises:
        InputError: there is no such data set, or it cannot be used.
    """
    name = resolve_name(name)
    if name == "digits":
        found = _digits()
    elif name.startswith("folder:"):
        found = _folder(name, only_test)
    elif name.startswith("tfrecord:"):
        found = _tfrecord(name, only_test)
    else:
        found = _tfds(name, data_dir, only_test)
    for split in (found.train, found.test):
        _check_labels(name, split, found.classes)
    return found


def checked(images):
    """Returns a data set that somebody made, or says what is wrong with it.

    Args:
        images: a `Dataset`. Labels of any whole numbers become int32.

    Raises:
        InputError: images are no uint8 pixels, paths or encoded files, or the labels
            don't belong to them.
    """
    for part in ("train", "test"):
        split = getattr(images, part)
        labels = np.asarray(split.labels)
        pixels = split.images.dtype == np.uint8 and split.images.ndim == 4
        kinds = "i" if split.records else "OSU"
        if not pixels and split.images.dtype.kind not in kinds:
            raise InputError(
                "Images must be uint8 (number, height, width, channels), from 0 to 255, "
                f"or paths or encoded files. Received: {images.name}'s {part} images of "
                f"{split.images.dtype} and shape {split.images.shape}"
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(split.images),):
            raise InputError(
                "Labels must be whole numbers, one for each image. Received: "
                f"{images.name}'s {part} labels of {labels.dtype} and shape "
                f"{labels.shape} for {len(split.images)} images"
            )
        # Before they become 32 bits, in which another label may lie in range.
        _check_labels(
            images.name, dataclasses.replace(split, labels=labels), images.classes
        )
        split = dataclasses.replace(split, labels=labels.astype(np.int32))
        images = dataclasses.replace(images, **{part: split})
    return images


def _check_labels(name, split, classes):
    wrong = np.flatnonzero((split.labels < 0) | (split.labels >= len(classes)))
    if len(wrong):
        first = wrong[0]
        raise InputError(
            f"{len(wrong)} of {len(split)} images have a label that is none of the "
            f"{len(classes)} classes {some(classes, 5)}. Received: {name}, with the label "
            f"{split.labels[first]} of image {split.names()[first]}"
        )


def _digits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    parts = train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return Dataset(
        "digits",
        tuple(map(str, digits.target_names)),
        Split(parts[0], parts[2]),
        Split(parts[1], parts[3]),
        (8, 8, 1),
        own_split=False,
    )


def _folder(name, only_test):
    path = name.removeprefix("folder:")
    if not os.path.isdir(path):
        raise InputError(
            f"There is no such folder. Accepted: folder:PATH. Received: {name}"
        )
    parts = {part: os.path.join(path, part) for part in ("train", *records.HELD_OUT)}
    parts = {part: where for part, where in parts.items() if os.path.isdir(where)}
    held_out = [part for part in parts if part != "train"]
    own_split = "train" in parts and bool(held_out)
    if own_split:
        classes = _class_folders(parts["train"])
        train = _files(parts["train"], classes)
        test = _files(parts[held_out[0]], classes)
    else:
        classes = _class_folders(path)
        files = _files(path, classes)
        # Every fifth file of each class, in the order of their names.
        place = np.concatenate(
            [np.arange(n) for n in np.bincount(files.labels, minlength=len(classes))]
        )
        out = (place % 5 == 4) | only_test
        train, test = files.take(~out), files.take(out)
    held = np.bincount(test.labels, minlength=len(classes))
    if not only_test and (not len(train) or not held.all()):
        raise InputError(
            "Each class needs at least five images, or there must be folders train and "
            f"test with images of each. Received: {name} with {len(train)} images to "
            f"train on and, held out of each class, {held.tolist()}"
        )
    return Dataset(name, tuple(classes), train, test, None, own_split)


def _class_folders(path):
    classes = sorted(
        entry.name
        for entry in os.scandir(path)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    for name in classes:
        if any("\ud800" <= c <= "\udfff" for c in name):  # Bytes that are no text.
            raise InputError(
                "The name of a class, that of its folder, must be valid UTF-8. "
                f"Received: {os.fsencode(name)!r} in {path}"
            )
    if len(classes) < 2:
        raise InputError(
            "Images must lie in at least two folders, one for each class. "
            f"Received: {path} with {len(classes)} folder(s)"
        )
    return classes


def _files(path, classes):
    """The image files below `path`, class by class."""
    if strangers := set(_class_folders(path)) - set(classes):
        raise InputError(
            "The held-out images have classes that the training images lack: "
            f"{', '.join(sorted(strangers))}. Received: {path}"
        )
    images, labels = [], []
    for label, name in enumerate(classes):
        for folder, folders, files in os.walk(os.path.join(path, name)):
            folders.sort()
            found = [f for f in sorted(files) if f.lower().endswith(IMAGE_FILES)]
            images += [os.path.join(folder, f) for f in found]
            labels += [label] * len(found)
    if not images:
        raise InputError(
            f"There are no images. Accepted: files {' '.join(IMAGE_FILES)} in one folder "
            f"for each class. Received: {path}"
        )
    return Split(np.array(images, object), np.array(labels, np.int32), True)


def find_images(paths):
    """Returns the image files among paths and in the folders among them.

    Raises:
        InputError: no path was named.
    """
    if not paths:
        raise InputError(
            "Name at least one image or folder of images: JPEG, PNG, WebP, BMP or GIF"
        )
    found = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        inside = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if name.lower().endswith(IMAGE_FILES)
        ]
        found += sorted(inside) or [path]
    return found


def _tfds(name, data_dir, only_test):
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise InputError(
            "TFDS sets need its package: pip install 'keras-resnet-zoo[datasets]'. "
            "Accepted without it: digits, folder:PATH, tfrecord:PATH. "
            f"Received: dataset={name!r} ({error})"
        ) from None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            "There is no such data set. Accepted: digits, folder:PATH, tfrecord:PATH, "
            "the name of a TFDS image set such as cifar10. "
            f"Received: dataset={name!r} ({reason})"
        ) from None
    _prepare(builder)
    info, splits = builder.info, builder.info.splits
    held_out = next((s for s in records.HELD_OUT if s in splits), None)
    features = info.features
    features = (
        dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    )
    if not (
        "train" in splits
        and held_out
        and isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise InputError(
            "A TFDS set must have the features image and label, and the splits train "
            f"and test (or validation). Received: dataset={name!r} with splits "
            f"{', '.join(splits)}"
        )
    shape = features["image"].shape
    shape = None if None in shape else tuple(shape)
    classes = tuple(features["label"].names)
    size = splits[held_out].num_bytes if only_test else info.dataset_size
    if shape and size < MAX_SHARE * _memory():
        test = _tfds_split(builder, held_out)
        train = test.take([]) if only_test else _tfds_split(builder, "train")
        return Dataset(name, classes, train, test, shape)
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise InputError(
            "A TFDS set of images that differ in size, or too large for memory, must be "
            f"prepared as tfrecord files. Received: dataset={name!r} in the format "
            f"{builder.info.file_format.value}"
        )
    test = _records(splits[held_out].filepaths, 0)
    train = test.take([]) if only_test else _records(splits["train"].filepaths, 0)
    return Dataset(name, classes, train, test, None)


# Of the memory, for a set of small images that is held there.
MAX_SHARE = 0.25


def _memory():
    """Of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _records(paths, first_label=None):
    """The images and labels in TFRecord files; `first_label` stands for class 0."""
    paths = list(map(os.fspath, paths))
    with progress("indexing", len(paths)) as advance:
        found = records.index(paths, first_label, on_file=advance)
    return Split(np.arange(len(found)), found.labels, records=found)


def _tfrecord(name, only_test):
    parts = records.find(name, only_test)
    # A part that is held out may lack the first class.
    train = _records(parts["train"]) if parts["train"] else None
    test = _records(parts["test"], train.records.first_label if train else None)
    train = train or test.take([])
    count = 1 + max(map(int, (*train.labels, *test.labels)))
    classes = records.read_class_names(name)
    return Dataset(name, classes or unnamed(count), train, test, None)


def unnamed(count):
    """Returns what classes are called that have no names."""
    return tuple(f"class {i}" for i in range(count))


def _prepare(builder):
    """Downloads a TFDS set, unless it lies there."""
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS and its download library raise many kinds.
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"Could not prepare {builder.name} in {builder.data_dir}. Where there is no "
            "network, point data_dir at a folder in which TFDS has prepared it. "
            f"({type(error).__name__}: {reason})"
        ) from None


def _tfds_split(builder, split):
    examples = builder.as_dataset(split=split, shuffle_files=False)
    examples = list(
        examples.map(lambda e: (e["image"], e["label"])).as_numpy_iterator()
    )
    images = np.stack([image for image, _ in examples])
    return Split(images, np.array([label for _, label in examples], np.int32))


def hold_out(images, share):
    """Holds out a share of the training images in the place of the test images.

    Always the same ones, whatever the seed of a run.

    Args:
        images: a `Dataset`.
        share: from 0 to 1.
    """
    order = np.random.default_rng(0).permutation(len(images.train))
    count = max(1, round(share * len(order)))
    held, left = np.sort(order[:count]), np.sort(order[count:])
    return dataclasses.replace(
        images, train=images.train.take(left), test=images.train.take(held)
    )


def damaged_images(split, preprocessing, places=None):
    """Returns the places of the images that cannot be decoded, in order.

    Args:
        split: the images.
        preprocessing: that decodes them.
        places: of those that are tried; `None` is all.
    """
    read = split.reader(preprocessing.decode, lambda image: image)
    encoded = split.reader(lambda encoded: encoded, lambda image: image)
    damaged = []
    for place in range(len(split)) if places is None else sorted(set(places)):
        try:
            read(split.images[place])
        except tf.errors.OpError:
            if split.records:
                _check_record(encoded, split, place)
            damaged.append(int(place))
    return damaged


def _check_record(read, split, place):
    """Refuses a file that is not what it was when its records were found."""
    try:
        read(split.images[place])
    except tf.errors.OpError as error:
        raise InputError(
            "A file of records has changed, or cannot be read any more; start again to "
            f"have it read anew. Received: {split.names()[place]} "
            f"({type(error).__name__})"
        ) from None


def refuse_damaged(split, preprocessing):
    """Raises an `InputError` that names the damaged images, if there are any."""
    if damaged := damaged_images(split, preprocessing):
        raise InputError(_tell(split, damaged))


def replace_damaged(split, preprocessing, places, error=None):
    """Lets the next good image stand in for each damaged one.

    Args:
        split: the images.
        preprocessing: that decodes them.
        places: of those that are tried.
        error: with which reading failed; raised if none of them is damaged.

    Returns:
        A `Split` of as many images. A share of MAX_DAMAGED may be replaced in all.

    Raises:
        InputError: there are more, or another fault made reading fail.
    """
    damaged = damaged_images(split, preprocessing, places)
    if not damaged:
        raise error or InputError("Reading failed, though no image is damaged")
    count = split.replaced + len(damaged)
    if count > records.MAX_DAMAGED * len(split):
        if len(split) < 10_000:
            refuse_damaged(split, preprocessing)
        raise InputError(_tell(split, damaged, count))
    print(f"{_tell(split, damaged, count)}; others stand in", file=sys.stderr)
    return split.without(damaged)


def _tell(split, damaged, count=None):
    names = split.names()
    names = [names[place] for place in damaged]
    names = [f"number {name}" if name.isdigit() else name for name in names]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"{count or len(names)} of {len(split)} images cannot be decoded; repair or "
        f"remove them: {', '.join(names[:5])}{more}"
    )
