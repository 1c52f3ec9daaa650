"""Data sets and their input pipelines.

Small images are held in memory, as pixels; larger ones lie in files, one each or
many as the records of one, and are read where they are: every batch is then a
function of the seed and the step alone, and a run resumes anywhere without reading
what came before.
"""

import dataclasses
import functools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_resnet import augmentation, records
from keras_resnet.errors import InputError, some
from keras_resnet.preprocessing import crop_and_flip
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
        return [f"number {place}" for place in range(len(self))]

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
    parts = {
        part: os.path.join(path, part)
        for part in ("train", "test", "val", "validation")
    }
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
    held_out = next((s for s in ("test", "validation") if s in splits), None)
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


def steps_per_epoch(split, batch_size, shares):
    """Number of training steps in a pass over the images.

    The last batch may be smaller than the others. One that would leave a share
    without an image is dropped: at most `shares - 1` images of each pass, other
    ones each time.

    Args:
        split: the images.
        batch_size: of a step, over all replicas.
        shares: parts in which each batch is computed: replicas, times the
            recipe's `accumulate`.
    """
    full, rest = divmod(len(split), batch_size)
    return full + (rest >= shares)


def check_batch_size(batch_size, shares):
    """Refuses a global batch that the replicas don't share equally."""
    if batch_size < 1 or batch_size % shares:
        raise InputError(
            f"The batch is shared by {shares} replica(s) and must be a multiple of "
            f"that. Received: batch_size={batch_size}"
        )


def training_batches(
    split,
    preprocessing,
    recipe,
    replicas,
    seed,
    start,
    stop,
    *,
    here=None,
    classes=None,
    mean=(0.0,),
    service="",
):
    """Augmented batches for the steps `start` to `stop` of a run.

    Each is a function of the seed and its step, so that a resumed run sees what
    an undisturbed one would; and the images of a step, with their augmentation,
    are the same for any number of replicas.

    Args:
        split: the images.
        preprocessing: to the training images' size.
        recipe: a `keras_resnet.recipes.Recipe`, of which the batch and all about
            augmentation is read.
        replicas: that share each batch; their parts differ by one image at most, or
            by two where images are mixed in pairs.
        seed: whole number.
        start: first step, counted from the beginning of the run.
        stop: the step after the last.
        here: range of the replicas whose parts are wanted; `None` is all.
        classes: their number, which mixing needs.
        mean: of each channel, which erased rectangles get.
        service: address of a `tf.data` service that is to prepare the batches; or
            several, with commas between, which take turns. Each has one worker.

    Returns:
        A `tf.data.Dataset` of (images, labels, weights), an element for each
        replica and step: uint8 (part, height, width, channels); int32 (part,), or
        float32 (part, classes) where images are mixed; and float32 (part,), the
        weights of a step adding up to 1.
    """
    here = range(replicas) if here is None else here
    steps = steps_per_epoch(split, recipe.batch_size, recipe.shares(replicas))
    orders = _orders(split, recipe, replicas, seed)
    whole, one = _pixels(split, preprocessing, recipe, mean)
    # Of pairs, which are mixed, neither goes alone.
    unit = 2 if recipe.mixes else 1

    def bounds_of(count):
        """Where the replicas' parts of a batch begin and end."""
        bounds = tf.range(here.start, here.stop + 1) * -(-count // unit) // replicas
        return tf.minimum(bounds * unit, count)

    def plan(step, order):
        """A row for each image of this process's part of a step."""
        count = tf.size(order)
        # Not the seed of the shuffling: both would draw the same numbers.
        draws = tf.random.stateless_uniform((count, 3), (seed + 1, step))
        seeds = tf.random.stateless_uniform(
            (count, 2), (seed + 2, step), None, None, tf.int32
        )
        bounds = bounds_of(count)
        part = slice(bounds[0], bounds[-1])
        step, counts = tf.repeat(step, count), tf.repeat(count, count)
        return tuple(row[part] for row in (order, draws, seeds, step, counts))

    def fill(*rows):
        """All steps get as many rows: an image of the number -1 is none."""
        order, *rows = rows
        lacking = len(here) * recipe.batch_size // replicas - tf.size(order)
        rows = [tf.concat([r, tf.repeat(r[:1], lacking, 0)], 0) for r in rows]
        return tf.concat([order, tf.fill([lacking], -1)], 0), *rows

    def read(place, draws, seed, step, count):
        image = tf.cond(
            place >= 0,
            lambda: one(place, draws, seed),
            lambda: tf.zeros(preprocessing.shape, tf.uint8),
        )
        return image, place, step, count

    def finish(images, order, steps, counts):
        step, count = steps[0], counts[0]
        bounds = bounds_of(count) - bounds_of(count)[0]
        images, order = images[: bounds[-1]], order[: bounds[-1]]
        labels = tf.gather(split.labels, order)
        if recipe.mixes:
            labels = tf.one_hot(labels, classes)
            images, labels = augmentation.mix(
                images, labels, (seed + 3, step), recipe.mixup, recipe.cutmix
            )
        weights = tf.fill(tf.shape(order), 1 / tf.cast(count, tf.float32))
        return step, bounds, images, labels, weights

    def lane(number, count):
        """Every so many steps."""
        first = start // steps
        batches = tf.data.Dataset.range(first, -(-stop // steps)).flat_map(orders)
        batches = batches.skip(start - first * steps).take(stop - start)
        batches = batches.shard(count, number).map(plan)
        if whole is None:
            rows = batches.map(fill).unbatch()
            rows = rows.map(read, 4 * os.cpu_count(), deterministic=True)
            batches = rows.batch(len(here) * recipe.batch_size // replicas)
        else:
            batches = batches.map(
                lambda *r: (whole(*r[:3]), r[0], *r[3:]),
                os.cpu_count(),
                deterministic=True,
            )
        batches = batches.map(finish, os.cpu_count(), deterministic=True)
        return batches.with_options(_options())

    def part(_, bounds, *batch):
        return tf.data.Dataset.range(len(here)).map(
            lambda r: tuple(each[bounds[r] : bounds[r + 1]] for each in batch)
        )

    batches = _served(lane, service, start, stop) if service else lane(0, 1)
    if len(here) == 1:
        batches = batches.map(lambda step, bounds, *batch: batch)
    else:
        batches = batches.flat_map(part)
    return batches.prefetch(2 * len(here)).with_options(_options())


# Seconds for a tf.data service to answer; TensorFlow would wait for an hour.
SERVICE_TIMEOUT = 60


def _served(lane, service, start, stop):
    """Steps prepared by tf.data services, which take turns.

    A service of several workers would repeat every step: there each worker prepares
    all of a data set, or an unforeseeable part of it.

    Args:
        lane: function of a number and a count that gives every so many steps.
        service: addresses, such as `"grpc://one:5000,grpc://two:5000"`.
        start: first step.
        stop: the step after the last.
    """
    addresses = [address.strip() for address in service.split(",")]
    for address in addresses:
        _check_service(address)
    lanes = [
        lane(number, len(addresses)).apply(
            tf.data.experimental.service.distribute("parallel_epochs", address)
        )
        for number, address in enumerate(addresses)
    ]
    turns = tf.data.Dataset.range(stop - start).map(lambda step: step % len(lanes))
    batches = tf.data.Dataset.choose_from_datasets(lanes, turns, False)

    def check(expected, batch):
        step, *rest = batch
        message = f"{_ONE_WORKER} Received: {service}"
        equal = tf.debugging.assert_equal(step, expected, message)
        with tf.control_dependencies([equal]):
            return tf.identity(step), *rest

    return tf.data.Dataset.zip(tf.data.Dataset.range(start, stop), batches).map(check)


_ONE_WORKER = (
    "Each tf.data service may have one worker; name several services, with commas "
    "between, for more."
)


def _check_service(address):
    """Refuses a service that does not answer, or that has several workers."""
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if scheme != "grpc" or not host or not port.isdigit():
        raise InputError(
            "data_service is an address such as grpc://host:5000, or several with "
            f"commas between. Received: {address!r}"
        )
    deadline = time.monotonic() + SERVICE_TIMEOUT
    problem = None
    while problem is None or time.monotonic() < deadline:
        try:
            socket.create_connection((host.strip("[]"), int(port)), 5).close()
            break
        except OSError as error:
            problem = error
            time.sleep(0.2)
    else:
        raise InputError(
            f"No tf.data service answered within {SERVICE_TIMEOUT} s ({problem}). "
            f"Received: data_service={address}"
        )
    # Of this each worker prepares its own.
    probe = tf.data.Dataset.range(1).apply(
        tf.data.experimental.service.distribute("parallel_epochs", address)
    )
    found = []
    thread = threading.Thread(
        target=lambda: found.append(len(list(probe.as_numpy_iterator()))), daemon=True
    )
    thread.start()
    thread.join(SERVICE_TIMEOUT)
    if not found:
        raise InputError(
            f"The tf.data service had no worker within {SERVICE_TIMEOUT} s. "
            f"Received: data_service={address}"
        )
    if found[0] > 1:
        raise InputError(
            f"{_ONE_WORKER} Received: data_service={address} with {found[0]}"
        )


def _orders(split, recipe, replicas, seed):
    """Returns a function from an epoch to the number and the images of its steps."""
    steps = steps_per_epoch(split, recipe.batch_size, recipe.shares(replicas))
    used = min(steps * recipe.batch_size, len(split))

    def orders(epoch):
        shuffled = tf.random.experimental.stateless_shuffle(
            tf.range(len(split)), (seed, epoch)
        )
        # Of repeated images the second round follows the first.
        place, distinct = tf.range(used), -(-recipe.batch_size // recipe.repeats)
        place = place // recipe.batch_size * distinct + (
            place % recipe.batch_size % distinct
        )
        step = epoch * steps + tf.range(steps, dtype=tf.int64)
        order = tf.data.Dataset.from_tensor_slices(tf.gather(shuffled, place))
        return tf.data.Dataset.zip(
            tf.data.Dataset.from_tensor_slices(step), order.batch(recipe.batch_size)
        )

    return orders


def places_of_step(split, recipe, replicas, seed, step):
    """Returns the places of the images of a step, in order; see `training_batches`."""
    steps = steps_per_epoch(split, recipe.batch_size, recipe.shares(replicas))
    epoch = tf.constant(step // steps, tf.int64)
    orders = _orders(split, recipe, replicas, seed)(epoch).skip(step % steps)
    return next(orders.as_numpy_iterator())[1]


def _pixels(split, preprocessing, recipe, mean):
    """How the images of a step come about.

    Returns:
        Two functions of a place in the split, three draws and a seed: one of a whole
        batch of them, `None` where images are better taken one by one; and of one.
    """
    size = preprocessing.shape[:2]
    polish = _polish(recipe, mean)
    entries = _entries(split)

    def turn(image, draws):
        if not recipe.flip:
            return image
        return tf.cond(draws[2] < 0.5, lambda: image, lambda: tf.reverse(image, [1]))

    if recipe.crop != "pad":
        draw = {"inception": _inception, "shorter_side": _shorter_side}[recipe.crop]

        def boxed(place, draws, seed):
            seeds = tf.random.experimental.stateless_split(seed, 2)
            read = functools.partial(
                preprocessing.cut,
                box_of=lambda sides: draw(sides, seeds[0], size, recipe),
            )
            image = split.reader(read, read)(entries[place])
            return polish(turn(image, draws), seeds[1])

        return None, boxed

    pad = 0 if preprocessing.crop < 1 else round(recipe.pad * preprocessing.height)
    border = [[pad, pad], [pad, pad], [0, 0]]
    decode, view, _ = central(preprocessing, preprocessing.margin)

    def padded(place, draws, seed):
        image = tf.pad(split.reader(decode, view)(entries[place]), border)
        room = tf.shape(image)[:2] - size + 1
        corner = tf.cast(draws[:2] * tf.cast(room, tf.float32), tf.int32)
        image = tf.slice(image, [*tf.unstack(corner), 0], preprocessing.shape)
        return polish(turn(image, draws), seed)

    def all_padded(order, draws, seeds):
        del seeds
        images = tf.pad(tf.gather(entries, order), [[0, 0], *border])
        return crop_and_flip(images, size, draws, recipe.flip)

    changes = recipe.policy != "none" or recipe.colour or recipe.erase
    return None if changes or not _as_they_are(entries, view) else all_padded, padded


def _inception(sides, seed, size, recipe):
    del size
    return augmentation.inception_box(sides, seed, (recipe.area, 1.0))


def _shorter_side(sides, seed, size, recipe):
    """The paper's box, moved to whole pixels of the image."""
    del recipe
    box = augmentation.shorter_side_box(sides, seed, size)
    first, last = tf.round(box[:2]), tf.round(box[:2] + box[2:])
    first = tf.minimum(tf.cast(first, tf.int32), sides - 1)
    last = tf.clip_by_value(tf.cast(last, tf.int32), first + 1, sides)
    return tf.concat([first, last - first], 0)


def _polish(recipe, mean):
    """Returns a function from an image and a seed to one of other colours and shapes."""

    def polish(image, seed):
        seeds = tf.random.experimental.stateless_split(seed, 3)
        if recipe.policy == "trivial_augment":
            image = augmentation.trivial_augment(image, seeds[0])
        elif recipe.policy == "rand_augment":
            image = augmentation.rand_augment(image, seeds[0], 2, recipe.magnitude)
        elif recipe.policy == "rand_augment_increasing":
            image = augmentation.rand_augment(
                image, seeds[0], 2, recipe.magnitude, 0.5, increasing=True, fill=mean
            )
        if recipe.colour:
            image = augmentation.pca_colour(image, seeds[1], recipe.colour)
        if recipe.erase:
            image = augmentation.erase(image, seeds[2], recipe.erase, mean)
        return image

    return polish


def central(preprocessing, margin=0):
    """The central crop of each image, as `evaluation_batches` takes it.

    Returns:
        Three things: a function from an encoded file, one from a uint8 image, both
        to the same crop, and what they give, a `tf.TensorSpec`.
    """
    height, width, channels = preprocessing.shape
    shape = (height + 2 * margin, width + 2 * margin, channels)
    return (
        lambda encoded: preprocessing.read(encoded, margin, upright=False),
        lambda image: preprocessing.view(image, margin),
        tf.TensorSpec(shape, tf.uint8),
    )


def evaluation_batches(split, cut, batch_size, replicas):
    """Every image once, in order.

    Args:
        split: the images.
        cut: what is taken of each image; see `central`.
        batch_size: over all replicas; a multiple of `replicas`.
        replicas: that share each batch equally; the last one is filled up with
            images of weight 0.

    Returns:
        A `tf.data.Dataset` like `training_batches`', with weights of 1 or 0.
    """
    filled = -(-len(split) // replicas) * replicas
    order = np.arange(filled) % len(split)
    weights = (np.arange(filled) < len(split)).astype(np.float32)
    view = _views(split, *cut)

    def load(order, weights):
        return view(order), tf.gather(split.labels, order), weights

    def parts(order, weights):
        share = tf.size(order) // replicas
        return tf.data.Dataset.from_tensor_slices((order, weights)).batch(
            tf.cast(share, tf.int64)
        )

    batches = tf.data.Dataset.from_tensor_slices((order, weights)).batch(batch_size)
    batches = batches.flat_map(parts).map(
        load, num_parallel_calls=os.cpu_count(), deterministic=True
    )
    return batches.prefetch(2).with_options(_options())


def load_views(split, preprocessing):
    """Returns every image as the network sees it.

    Returns:
        uint8 array (number, height, width, channels).
    """
    batches = evaluation_batches(split, central(preprocessing), 64, 1)
    return np.concatenate([images for images, _, _ in batches.as_numpy_iterator()])


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
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"{count or len(names)} of {len(split)} images cannot be decoded; repair or "
        f"remove them: {', '.join(names[:5])}{more}"
    )


def _views(split, decode, view, spec):
    """Returns a function from indices to a batch of what is cut from the images."""
    images = _entries(split)
    if _as_they_are(images, view):
        return lambda order: tf.gather(images, order)
    read = split.reader(decode, view)
    return lambda order: tf.map_fn(
        lambda i: read(images[i]), order, fn_output_signature=spec
    )


def _as_they_are(images, view):
    """Whether these are pixels, of a size that a view leaves as it is."""
    if images.dtype != tf.uint8:
        return False
    sample = tf.zeros(images.shape[1:], tf.uint8)
    return view(sample) is sample


def _entries(split):
    with tf.device("CPU:0"):  # Whole sets do not belong in a GPU's memory.
        return tf.constant(split.images)


def _options():
    # tf.data's autotuning was seen to stall steps for up to seconds.
    options = tf.data.Options()
    options.autotune.enabled = False
    return options
