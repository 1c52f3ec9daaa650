"""From what a user asks for to a run that is ready to be trained."""

import dataclasses
import math
import os
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import (
    Dataset,
    Preprocessing,
    channel_statistics,
    check_batch_size,
    check_dataset,
    hold_out,
    load_dataset,
    load_views,
    replace_damaged,
    resolve_dataset_name,
    steps_per_epoch,
)
from keras_resnet.distribution import (
    is_chief,
    make_strategy,
    worker_count,
)
from keras_resnet.evaluation import read_record
from keras_resnet.nets import channel_axis, profile, stages
from keras_resnet.spec import (
    FREE_FIELDS,
    Execution,
    Recipe,
    changed_fields,
    default_recipe,
    find_recipe,
    find_variant,
    may_be_mirrored,
)
from keras_resnet.support import InputError, choose
from keras_resnet.training.optimizers import learning_rate
from keras_resnet.training.run_folder import remove_leftovers
from keras_resnet.weights import ENDINGS, Origin, open_checkpoint, pixels_of
from keras_resnet.zoo import ResNet


@dataclasses.dataclass
class Run:
    """What a run is made of.

    Attributes:
        network: the `keras.Model`.
        strategy: in whose scope it was made.
        images: a `keras_resnet.data.Dataset`; its `test` is what it is judged by.
        preprocessing: from its images to the network's input.
        recipe: a `keras_resnet.recipes.Recipe`.
        execution: a `keras_resnet.recipes.Execution`.
        seed: of the order and the augmentation.
        steps: in an epoch.
        total: steps in all.
        settings: what `run.json` records and a resumed run repeats.
        model_dir: the run folder.
    """

    network: keras.Model
    strategy: tf.distribute.Strategy
    images: Dataset
    preprocessing: Preprocessing
    recipe: Recipe
    execution: Execution
    seed: int
    steps: int
    sum_over_workers: int
    settings: dict
    model_dir: str

    @property
    def epochs(self) -> int:
        """Number of passes over the images, the last of which may be a part."""
        return math.ceil(self.total / self.steps)


def prepare_run(
    model,
    dataset,
    *,
    data_dir=None,
    image_size=None,
    shortcut=None,
    stride_on=None,
    weights=None,
    freeze=None,
    recipe=None,
    seed=0,
    strategy="mirrored",
    virtual_devices=0,
    model_dir=None,
    suffix="",
    quiet=False,
    **changes,
):
    """Makes a run of `train`'s arguments; `None` if it has ended before.

    With a suffix, of the folder's name, it is none that is kept: nothing is looked
    for in the folder.
    """
    if not 0 <= seed < 2**31:
        raise InputError(f"seed must be from 0 to 2**31 - 1. Received: seed={seed}")
    if keras.config.image_data_format() != "channels_last":
        raise InputError(
            "Training needs Keras's image_data_format to be 'channels_last'"
        )
    known = {field.name for field in dataclasses.fields(Execution)}
    execution = changed_fields(
        Execution(),
        {k: v for k, v in changes.items() if k in known and v is not None},
    )
    changes = {k: v for k, v in changes.items() if k not in known}
    keras.utils.set_random_seed(seed)
    if execution.deterministic:
        tf.config.experimental.enable_op_determinism()
    if execution.tensorboard:
        _find_tensorboard()
    strategy_name, strategy = strategy, make_strategy(strategy, virtual_devices)
    replicas = strategy.num_replicas_in_sync
    if execution.jit_compile and replicas > 1:
        raise InputError(
            "jit_compile is for one replica (between virtual CPUs it fails, and on "
            f"several GPUs nobody has tried it). Received: jit_compile with {replicas} "
            "replicas"
        )

    variant = find_variant(model)
    images = dataset
    if isinstance(dataset, Dataset):
        images = check_dataset(dataset)
    else:
        images = load_dataset(dataset, data_dir)
    dataset = images.name
    if weights is not None:
        weights = os.path.expanduser(os.fspath(weights))
    frozen = parse_stages(freeze, len(variant.blocks)) if freeze else ()
    preprocessing = _choose_preprocessing(variant, images, image_size)
    recipe_name = recipe or (
        "finetune"
        if weights
        else default_recipe(dataset, photographs=preprocessing.crop < 1)
    )
    if changes.get("flip") is None and not may_be_mirrored(dataset):
        changes["flip"] = False
    if changes.get("careful_start") is None and variant.depth < 110:
        changes["careful_start"] = False  # The paper's, for deep nets.
    if images.shape or (weights and not changes.get("test_crop")):
        if changes.get("test_crop"):
            raise InputError(
                "test_crop is for photographs; these images are all of one size. "
                f"Received: test_crop={changes['test_crop']} with {dataset}"
            )
        changes["test_crop"] = 0.0
    recipe = find_recipe(recipe_name, **changes)
    if recipe.validation:
        images = hold_out(images, recipe.validation)
    if recipe.test_crop and not images.shape:
        preprocessing = dataclasses.replace(preprocessing, crop=recipe.test_crop)
    shares = recipe.shares(replicas)
    check_batch_size(recipe.batch_size, shares)
    if min(recipe.sizes, default=variant.stride) < variant.stride:
        raise InputError(
            f"sizes must be at least {variant.stride} pixels, from which {model} makes "
            f"one. Received: sizes={recipe.sizes}"
        )
    steps = steps_per_epoch(images.train, recipe.batch_size, shares)
    if not steps:
        raise InputError(
            f"{replicas} replicas cannot share {len(images.train)} training image(s)"
        )
    total = recipe.iterations or recipe.epochs * steps
    learning_rate(recipe, total)  # Refuses what does not go together.
    if len(images.test) < worker_count(strategy):
        raise InputError(
            f"There are too few held-out images to judge by. Received: {dataset} with "
            f"{len(images.test)}"
        )
    settings = {
        "model": model.lower(),
        "shortcut": variant.shortcut if shortcut is None else shortcut,
        "stride_on": stride_on or ("of the weights" if weights else variant.stride_on),
        "weights": os.path.abspath(weights)
        if weights and weights.endswith(ENDINGS)
        else weights,
        "freeze": list(frozen) or None,
        "dataset": resolve_dataset_name(dataset),
        "images": [len(images.train), len(images.test)],
        "input_shape": list(preprocessing.shape),
        "recipe": recipe_name,
        **dataclasses.asdict(recipe),
        **dataclasses.asdict(execution),
        "seed": seed,
        "strategy": strategy_name,
        "replicas": replicas,
    }
    settings = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in settings.items()
    }
    source = settings["dataset"].partition(":")[2] or settings["dataset"]
    where = os.path.basename(source).replace(":", "-") or "root"
    model_dir = model_dir or os.path.join("runs", f"{settings['model']}-{where}")
    model_dir = f"{os.path.normpath(model_dir)}{suffix}"
    if not suffix and _has_ended(model_dir, settings, images.classes):
        if is_chief(strategy):
            remove_leftovers(model_dir, ended=True)
        if not quiet:
            print(f"The run in {model_dir} has ended; nothing to do.")
        return None

    checkpoint = open_checkpoint(weights, model.lower()) if weights else None
    if checkpoint and (pixels := checkpoint.origin.pixels):
        preprocessing = dataclasses.replace(
            preprocessing,
            crop=1.0 if images.shape else recipe.test_crop or pixels.crop,
            interpolation=pixels.interpolation,
        )
    with strategy.scope():
        network, images = _build(settings, images, preprocessing, checkpoint, stride_on)
    run = Run(
        network, strategy, images, preprocessing, recipe, execution, seed, steps,
        total, settings, model_dir,
    )  # fmt: skip
    started = f", from {weights}" if weights else ""
    started += f", {' '.join(frozen)} frozen" if frozen else ""
    if is_chief(strategy) and not quiet:
        print(
            f"{settings['model']} (shortcut {settings['shortcut']}{started}, "
            f"{profile(network).parameters:,} parameters) on {dataset}: "
            f"{len(images.train):,} training and {len(images.test):,} held-out images, "
            f"{preprocessing.height}x{preprocessing.width}x{preprocessing.channels}, "
            f"{len(images.classes)} classes; {recipe_name}, {run.epochs} epochs of "
            f"{steps} steps of {recipe.batch_size}, rate {recipe.learning_rate:g}; "
            f"{strategy_name} on {replicas} replica(s); into {model_dir}",
            flush=True,
        )
    return run


def parse_stages(text, count):
    """Reads the names of stages.

    Args:
        text: such as `"conv1..conv3"` or `"conv1,conv2"`.
        count: number of the network's stages after the stem.

    Returns:
        Their names, in order.

    Raises:
        InputError: the network has no such stage.
    """
    known = [f"conv{i}" for i in range(1, count + 2)]
    found = set()
    for part in text.replace(" ", "").split(","):
        ends = part.split("..")
        for end in ends:
            choose("stage", end, known)
        first, last = known.index(ends[0]), known.index(ends[-1])
        if len(ends) > 2 or first > last:
            raise InputError(
                "Stages are named as conv1, conv1,conv2 or conv1..conv3. "
                f"Received: freeze={text!r}"
            )
        found.update(known[first : last + 1])
    return tuple(stage for stage in known if stage in found)


def _choose_preprocessing(variant, images, image_size):
    """The input of the network for a data set."""
    if image_size:
        height = width = image_size
    elif images.shape:
        height, width = images.shape[:2]
    else:
        height = width = variant.size
    channels = images.shape[2] if images.shape else 3
    photographs = variant.stem != "cifar" and not images.shape
    return Preprocessing(height, width, channels, 0.875 if photographs else 1.0)


def _has_ended(model_dir, settings, classes):
    """Whether the folder holds this run's end; refuses another run's folder."""
    record = read_record(model_dir)
    if record is None:
        if os.path.isdir(model_dir) and os.listdir(model_dir):
            raise InputError(
                "model_dir must be a new or empty folder, or that of the same run. "
                f"Received: {model_dir!r}, which holds other files"
            )
        return False
    trained = ("metrics.csv", "checkpoints", "final.keras")
    if not any(os.path.exists(os.path.join(model_dir, name)) for name in trained):
        return False
    began = {**record["settings"], "classes": record["classes"]}
    settings = {**settings, "classes": list(classes)}
    differ = [
        f"{key} (began with {began.get(key)!r}, now {settings.get(key)!r})"
        for key in {**began, **settings}
        if began.get(key) != settings.get(key) and key not in FREE_FIELDS
    ]
    if differ:
        raise InputError(
            f"The run in {model_dir} began with other settings; repeat them, or choose "
            f"another model_dir. Different: {', '.join(differ)}"
        )
    return os.path.exists(os.path.join(model_dir, "final.keras"))


def _build(settings, images, preprocessing, checkpoint=None, stride_on=None):
    """The network behind a layer that normalises raw pixels, and the images.

    With weights that layer is theirs. Damaged images among those that the mean is
    taken of are replaced, as in training.

    The paper subtracts each pixel's mean; this subtracts each channel's and
    divides by its standard deviation, both over (up to 1,000 of) the training
    images, so that one network takes any size.
    """
    options = {
        "classes": len(images.classes),
        "shortcut": settings["shortcut"],
        "stride_on": stride_on,
        "stochastic_depth": settings.get("stochastic_depth"),
        "zero_gamma": settings.get("zero_gamma"),
    }
    if checkpoint:
        if checkpoint.origin.pixels is None:
            raise InputError(
                "The file does not say how its network's pixels are normalised; take a "
                f".keras file. Received: weights={settings['weights']!r}"
            )
        network = ResNet(
            settings["model"],
            weights=checkpoint,
            input_shape=preprocessing.shape,
            **options,
        )
        _renew_head(network, checkpoint, images.classes)
    else:
        count = min(1000, len(images.train))
        places = np.linspace(0, len(images.train) - 1, count).astype(int)
        try:
            views = load_views(images.train.take(places), preprocessing)
        except tf.errors.OpError:
            train = replace_damaged(images.train, preprocessing, places)
            images = dataclasses.replace(images, train=train)
            views = load_views(train.take(places), preprocessing)
        mean, variance = channel_statistics(views)
        image = keras.Input(preprocessing.shape, name="image")
        normalised = keras.layers.Normalization(
            axis=channel_axis(), mean=mean, variance=variance, name="normalization"
        )(image)
        network = ResNet(settings["model"], input_tensor=normalised, **options)
    # A frozen BatchNormalization of Keras uses and keeps its moving statistics in
    # training too.
    for layer, number in stages(network):
        if f"conv{number}" in (settings.get("freeze") or ()):
            layer.trainable = False
    square = preprocessing.height == preprocessing.width
    pixels = pixels_of(network)._replace(
        crop=preprocessing.crop,
        interpolation=preprocessing.interpolation,
        size=preprocessing.height if square else None,
    )
    network.origin = Origin("", pixels, images.classes, settings["model"])
    # For `evaluate` of the saved network, and so that `fit` goes on with it.
    network.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    # `fit` would make the metrics, of which EarlyStopping and ReduceLROnPlateau
    # ask whether more is better.
    network.compute_metrics(None, np.zeros(1), np.zeros((1, network.output_shape[-1])))
    network.reset_metrics()
    return network, images


def _renew_head(network, checkpoint, classes):
    """Other classes get a new head, as many as they are."""
    known = checkpoint.origin.classes
    if checkpoint.classes != len(classes) or known == classes:
        return
    if known is None:
        print(
            f"{checkpoint.origin.source} does not name its {len(classes)} classes; its "
            "head is kept",
            file=sys.stderr,
        )
        return
    head = network.get_layer("predictions")
    head.kernel.assign(head.kernel_initializer(head.kernel.shape))
    head.bias.assign(keras.ops.zeros_like(head.bias))


def _find_tensorboard():
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(
            "tensorboard needs its package: pip install 'keras-resnet-zoo[tensorboard]'. "
            "Received: tensorboard=True"
        ) from None
