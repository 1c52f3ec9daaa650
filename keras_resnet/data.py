"""Data sets and their input pipelines.

A data set is held in memory, as pixels or, where images differ in size, as
encoded files or the paths of files: every batch is then a function of the seed
and the step alone, and a run resumes anywhere without reading what came before.
"""

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.preprocessing import crop_and_flip

IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 (number, height, width, channels); or encoded files, or
            with `are_paths` the paths of files, as an array of bytes or strings.
        labels: int32 (number,).
        are_paths: whether `images` are paths.
    """

    images: np.ndarray
    labels: np.ndarray
    are_paths: bool = False

    def __len__(self):
        return len(self.labels)

    def take(self, places) -> "Split":
        """Returns the images at some places, or where a mask is true."""
        return dataclasses.replace(
            self, images=self.images[places], labels=self.labels[places]
        )

    def __add__(self, other) -> "Split":
        """Returns the images of both."""
        return dataclasses.replace(
            self,
            images=np.concatenate([self.images, other.images]),
            labels=np.concatenate([self.labels, other.labels]),
        )

    def names(self) -> list[str]:
        """Returns what to call each image: its path, or its number."""
        if self.are_paths:
            return list(map(str, self.images))
        return list(map(str, range(len(self))))

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
        return decode


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
    if not name.startswith("folder:"):
        return name
    path = os.path.expanduser(name.removeprefix("folder:"))
    return f"folder:{os.path.abspath(path)}"


def load_dataset(name, data_dir=None, only_test=False):
    """Loads a data set.

    Args:
        name: `"digits"`, scikit-learn's 1,797 handwritten digits of 8x8 pixels,
            of which a fifth is held out; `"folder:PATH"`, image files in one
            folder for each class, below PATH/train and PATH/test (or PATH/val)
            or right below PATH, where a fifth of each class is held out; or any
            image classification set of TFDS, such as `"cifar10"`.
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
        return _digits()
    if name.startswith("folder:"):
        return _folder(name, only_test)
    return _tfds(name, data_dir, only_test)


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
            "Accepted without it: digits, folder:PATH. "
            f"Received: dataset={name!r} ({error})"
        ) from None
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            "There is no such data set. Accepted: digits, folder:PATH, the name of a "
            f"TFDS image set such as cifar10. Received: dataset={name!r} ({reason})"
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
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = splits[held_out].num_bytes if only_test else info.dataset_size
    if needed > memory / 2:
        raise InputError(
            f"{name} takes {needed / 2**30:.0f} GiB, and data sets are held in "
            f"memory, of which there are {memory / 2**30:.0f} GiB"
        )
    shape = features["image"].shape
    shape = None if None in shape else tuple(shape)
    test = _tfds_split(builder, held_out, shape)
    train = test.take([]) if only_test else _tfds_split(builder, "train", shape)
    classes = features["label"].names
    if min(0, *train.labels, *test.labels) < 0:
        raise InputError(f"{name} has images without a label in its {held_out} split")
    return Dataset(name, tuple(classes), train, test, shape)


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


def _tfds_split(builder, split, shape):
    import tensorflow_datasets as tfds

    decoders = None if shape else {"image": tfds.decode.SkipDecoding()}
    examples = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False)
    examples = list(
        examples.map(lambda e: (e["image"], e["label"])).as_numpy_iterator()
    )
    images = [image for image, _ in examples]
    images = np.stack(images) if shape else np.array(images, object)
    return Split(images, np.array([label for _, label in examples], np.int32))


def steps_per_epoch(split, batch_size, replicas):
    """Number of training steps in a pass over the images.

    The last batch may be smaller than the others. One that would leave a replica
    without an image is dropped: at most `replicas - 1` images of each pass,
    other ones each time.
    """
    full, rest = divmod(len(split), batch_size)
    return full + (rest >= replicas)


def check_batch_size(batch_size, replicas):
    """Refuses a global batch that the replicas don't share equally."""
    if batch_size < 1 or batch_size % replicas:
        raise InputError(
            f"The batch is shared by {replicas} replica(s) and must be a multiple of "
            f"that. Received: batch_size={batch_size}"
        )


def training_batches(split, preprocessing, recipe, replicas, seed, start, stop):
    """Augmented batches for the steps `start` to `stop` of a run.

    Each is a function of the seed and its step, so that a resumed run sees what
    an undisturbed one would; and the images of a step, with their augmentation,
    are the same for any number of replicas.

    Args:
        split: the images.
        preprocessing: to the network's input.
        recipe: `batch_size`, `pad` and `flip` are read.
        replicas: that share each batch; their parts differ by one image at most.
        seed: whole number.
        start: first step, counted from the beginning of the run.
        stop: the step after the last.

    Returns:
        A `tf.data.Dataset` of (images, labels, weights), `replicas` elements for
        each step: uint8 (part, height, width, channels), int32 (part,) and
        float32 (part,), the weights of a step adding up to 1.
    """
    steps = steps_per_epoch(split, recipe.batch_size, replicas)
    used = min(steps * recipe.batch_size, len(split))

    def epoch(number):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(split)), (seed, number)
        )
        step = number * steps + tf.range(steps, dtype=tf.int64)
        order = tf.data.Dataset.from_tensor_slices(order[:used]).batch(
            recipe.batch_size
        )
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(step), order)

    def parts(step, order):
        count = tf.size(order)
        # Not the seed of the shuffling: both would draw the same numbers.
        draws = tf.random.stateless_uniform((count, 3), (seed + 1, step))
        bounds = tf.range(replicas + 1) * count // replicas
        return tf.data.Dataset.range(replicas).map(
            lambda r: (
                order[bounds[r] : bounds[r + 1]],
                draws[bounds[r] : bounds[r + 1]],
                tf.fill([bounds[r + 1] - bounds[r]], 1 / tf.cast(count, tf.float32)),
            )
        )

    pad = round(recipe.pad * preprocessing.height) if preprocessing.crop == 1 else 0
    view = _views(split, *central(preprocessing, preprocessing.margin))

    def load(order, draws, weights):
        images = tf.pad(view(order), [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        images = crop_and_flip(images, preprocessing.shape[:2], draws, recipe.flip)
        return images, tf.gather(split.labels, order), weights

    first = start // steps
    batches = tf.data.Dataset.range(first, -(-stop // steps)).flat_map(epoch)
    batches = batches.skip(start - first * steps).take(stop - start)
    return _finish(batches.flat_map(parts), load)


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
    return _finish(batches.flat_map(parts), load)


def load_views(split, preprocessing):
    """Returns every image as the network sees it.

    Returns:
        uint8 array (number, height, width, channels).
    """
    batches = evaluation_batches(split, central(preprocessing), 64, 1)
    return np.concatenate([images for images, _, _ in batches.as_numpy_iterator()])


def damaged_images(split, preprocessing):
    """Returns the places of the images that cannot be decoded, in order."""
    read = split.reader(preprocessing.decode, lambda image: image)
    damaged = []
    for place, entry in enumerate(split.images):
        try:
            read(entry)
        except tf.errors.OpError:
            damaged.append(place)
    return damaged


def refuse_damaged(split, preprocessing):
    """Raises an `InputError` that names the damaged images, if there are any."""
    damaged = damaged_images(split, preprocessing)
    if damaged:
        every = split.names()
        names = [every[i] if split.are_paths else f"number {i}" for i in damaged]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise InputError(
            f"{len(names)} of {len(split)} images cannot be decoded; repair or remove "
            f"them: {', '.join(names[:5])}{more}"
        )


def _views(split, decode, view, spec):
    """Returns a function from indices to a batch of what is cut from the images."""
    with tf.device("CPU:0"):  # Whole sets do not belong in a GPU's memory.
        images = tf.constant(split.images)
    if images.dtype == tf.uint8:
        sample = tf.zeros(images.shape[1:], tf.uint8)
        if view(sample) is sample:  # It leaves images of this size as they are.
            return lambda order: tf.gather(images, order)
    read = split.reader(decode, view)
    return lambda order: tf.map_fn(
        lambda i: read(images[i]), order, fn_output_signature=spec
    )


def _finish(batches, load):
    # tf.data's autotuning was seen to stall steps for up to seconds.
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = batches.map(load, num_parallel_calls=os.cpu_count(), deterministic=True)
    return batches.prefetch(2).with_options(options)
