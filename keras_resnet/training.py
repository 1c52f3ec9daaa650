"""The training loop: any network, any data set, one device or many.

`Model.fit` is not used, because on Keras 3 it fails for several replicas with
XLA, with several steps for each host round trip and with several workers, and
because its checkpoints replay the interrupted epoch. This loop runs the step
through `strategy.run`, drives ordinary Keras callbacks, and resumes in the
middle of an epoch with nothing lost or repeated.
"""

import contextlib
import dataclasses
import math
import os
import signal
import sys
import threading
import time

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import data, pipelines
from keras_resnet.blocks import channel_axis
from keras_resnet.checkpoints import Checkpoints, Progress
from keras_resnet.complexity import profile
from keras_resnet.errors import InputError, Preempted, choose
from keras_resnet.evaluation import Evaluator
from keras_resnet.optimizers import learning_rate
from keras_resnet.preprocessing import Preprocessing, statistics
from keras_resnet.recipes import (
    FREE,
    Execution,
    Recipe,
    changed_fields,
    default_recipe,
    find_recipe,
    may_be_mirrored,
)
from keras_resnet.resnet import ResNet
from keras_resnet.run_folders import (
    RunFolder,
    locked,
    read_record,
    remove_leftovers,
    save_network,
    write_batch,
    write_range,
    write_record,
)
from keras_resnet.steps import Step, stages
from keras_resnet.strategies import (
    is_chief,
    iterate,
    local_replicas,
    lost_worker,
    make_strategy,
    total,
    worker_count,
    worker_index,
)
from keras_resnet.variants import find_variant
from keras_resnet.weight_files import ENDINGS, Origin, pixels_of
from keras_resnet.weights import open_checkpoint


@dataclasses.dataclass
class _Run:
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
    images: data.Dataset
    preprocessing: Preprocessing
    recipe: Recipe
    execution: Execution
    seed: int
    steps: int
    total: int
    settings: dict
    model_dir: str

    @property
    def epochs(self) -> int:
        """Number of passes over the images, the last of which may be a part."""
        return math.ceil(self.total / self.steps)


def train(
    model="resnet20",
    dataset="digits",
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
    callbacks=(),
    verbose=None,
    **changes,
):
    """Trains a network into a run folder, or resumes a run that was cut short.

    The same call again resumes where the last checkpoint was written, in the
    middle of an epoch too, and ends with the same weights, bit for bit, as a run
    never cut short; after the end it does nothing. For this it sets the global
    seed and, unless `deterministic` is false, switches TensorFlow's op determinism
    on.

    Args:
        model: name of a network; see `keras_resnet.list_models()`.
        dataset: see `keras_resnet.data.load_dataset`; or a `Dataset` of your own
            images.
        data_dir: where TFDS keeps its sets.
        image_size: height and width of the network's input, in pixels; `None` is
            the data set's own size, or the network's where images differ.
        shortcut: `"A"`, `"B"`, `"C"` or `"none"`; `None` is the paper's.
        stride_on: see `keras_resnet.ResNet50`.
        weights: to start from; see `keras_resnet.ResNet50`. Their preprocessing is
            used, and a new head where the number of classes differs.
        freeze: stages that stay as they are, such as `"conv1..conv4"` or
            `"conv1,conv2"`; their batch normalisation stays in inference mode.
        recipe: key of `keras_resnet.recipes.RECIPES`; `None` chooses by data set,
            and `"finetune"` with weights.
        seed: of the initial weights, the order and the augmentation.
        strategy: `"one_device"`, `"mirrored"`, `"multi_worker"` or `"tpu"`; see
            `keras_resnet.strategies.make_strategy`.
        virtual_devices: splits the CPU in that many devices, for trying out.
        model_dir: the run folder; `None` is `runs/MODEL-DATASET`. Several workers
            share it.
        callbacks: Keras callbacks. Their attributes travel in the checkpoint where
            they are numbers, strings, arrays, or lists and dicts of them.
        verbose: 0 silent, 1 progress bar, 2 one line for each epoch; `None` is 1
            on a terminal, else 2.
        **changes: fields of `keras_resnet.recipes.Recipe` and `Execution`, such as
            `epochs`, `batch_size`, `label_smoothing` or `precision`; `None` is the
            recipe's.

    Returns:
        The rows of `metrics.csv`, one dict for each epoch; empty if the run had
        ended before.

    Raises:
        InputError: an argument cannot be used, or the run folder holds something
            else.
        FloatingPointError: the loss is no longer a number.
        Preempted: SIGTERM came; a checkpoint was written.
        ConnectionError: another worker is gone.
        OSError: the run folder cannot be written.
    """
    if verbose is None:
        verbose = 1 if sys.stdout.isatty() else 2
    run = _prepare(
        model,
        dataset,
        data_dir=data_dir,
        image_size=image_size,
        shortcut=shortcut,
        stride_on=stride_on,
        weights=weights,
        freeze=freeze,
        recipe=recipe,
        seed=seed,
        strategy=strategy,
        virtual_devices=virtual_devices,
        model_dir=model_dir,
        quiet=verbose == 0,
        **changes,
    )
    if run is None:
        return []
    chief = is_chief(run.strategy)
    if worker_count(run.strategy) > 1:  # Until all of them have looked into the folder.
        total(run.strategy, tf.ones([]))
    with _open_folder(run) if chief else contextlib.nullcontext():
        folder = RunFolder(run.model_dir, writes=chief)
        loop = _Loop(run, [*callbacks, *_callbacks_of(run.recipe), folder])
        loop.train(verbose if chief else 0)
        if chief:
            with loop.step.evaluated():
                save_network(run.network, os.path.join(run.model_dir, "final.keras"))
            remove_leftovers(run.model_dir, ended=True)
    return folder.rows


# Steps of a learning-rate range test, and the rates that it begins and ends with.
RANGE_STEPS, RANGE = 100, (1e-5, 10.0)


def find_learning_rate(model="resnet20", dataset="digits", **arguments):
    """Tries ever higher learning rates (Smith, arXiv:1506.01186, section 3.3).

    The rate grows from step to step by the same factor; the loss falls, and at some
    rate it blows up. Nothing of this is kept as a run.

    Args:
        model: see `train`.
        dataset: see `train`.
        **arguments: `train`'s, callbacks and verbose excepted. The folder whose name
            is `model_dir` and `-find_lr` gets `find_lr.csv` and `find_lr.png`.

    Returns:
        The rates and the smoothed losses, two lists, and the rate at which the loss
        fell fastest.
    """
    run = _prepare(model, dataset, suffix="-find_lr", quiet=True, **arguments)
    chief = is_chief(run.strategy)
    low, high = RANGE
    rate = keras.optimizers.schedules.ExponentialDecay(low, RANGE_STEPS - 1, high / low)
    step = Step(run.network, run.strategy, run.recipe, RANGE_STEPS, run.execution, rate)
    rates = (
        low * (high / low) ** (np.arange(RANGE_STEPS) / (RANGE_STEPS - 1))
    ).tolist()
    batches, losses, mean = _batches(run, run.preprocessing, 0, RANGE_STEPS), [], None
    for _ in range(RANGE_STEPS):
        step.sums.assign(tf.zeros_like(step.sums))
        step(batches)
        loss, _, count, *_ = step.sums.numpy()
        now = loss / count
        mean = now if mean is None else 0.8 * mean + 0.2 * now
        losses.append(mean)
        if not np.isfinite(mean) or mean > 4 * min(losses):
            break
    losses = [loss for loss in losses if np.isfinite(loss)]
    rates = rates[: len(losses)]
    falls = np.gradient(losses, np.log(rates))
    best = rates[int(np.argmin(falls))]
    if chief:
        write_range(run.model_dir, rates, losses, best)
        print(
            f"The loss falls fastest at a rate of {best:.2g} and is lowest at "
            f"{rates[int(np.argmin(losses))]:.2g}; see {run.model_dir}/find_lr.png"
        )
    return rates, losses, best


def _prepare(
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
    if isinstance(dataset, data.Dataset):
        images = data.checked(dataset)
    else:
        images = data.load_dataset(dataset, data_dir)
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
        images = data.hold_out(images, recipe.validation)
    if recipe.test_crop and not images.shape:
        preprocessing = dataclasses.replace(preprocessing, crop=recipe.test_crop)
    shares = recipe.shares(replicas)
    pipelines.check_batch_size(recipe.batch_size, shares)
    if min(recipe.sizes, default=variant.stride) < variant.stride:
        raise InputError(
            f"sizes must be at least {variant.stride} pixels, from which {model} makes "
            f"one. Received: sizes={recipe.sizes}"
        )
    steps = pipelines.steps_per_epoch(images.train, recipe.batch_size, shares)
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
        "dataset": data.resolve_name(dataset),
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
    run = _Run(
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
        if began.get(key) != settings.get(key) and key not in FREE
    ]
    if differ:
        raise InputError(
            f"The run in {model_dir} began with other settings; repeat them, or choose "
            f"another model_dir. Different: {', '.join(differ)}"
        )
    return os.path.exists(os.path.join(model_dir, "final.keras"))


@contextlib.contextmanager
def _open_folder(run):
    """Makes the run folder, which is this process's alone within."""
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(run.model_dir, exist_ok=True)
            stack.enter_context(locked(run.model_dir))
            if os.path.exists(os.path.join(run.model_dir, "final.keras")):
                raise InputError(f"The run in {run.model_dir} has ended by now")
            remove_leftovers(run.model_dir)
            write_record(
                run.model_dir, run.settings, run.images.classes, run.preprocessing
            )
        except OSError as error:
            raise InputError(
                "model_dir must be a folder that can be written. "
                f"Received: {run.model_dir!r} ({error.strerror})"
            ) from None
        yield


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
            views = pipelines.load_views(images.train.take(places), preprocessing)
        except tf.errors.OpError:
            train = data.replace_damaged(images.train, preprocessing, places)
            images = dataclasses.replace(images, train=train)
            views = pipelines.load_views(train.take(places), preprocessing)
        mean, variance = statistics(views)
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


def _callbacks_of(recipe):
    """The callbacks by which a recipe reacts to how the training goes."""
    found = []
    if recipe.schedule == "plateau":
        found.append(
            keras.callbacks.ReduceLROnPlateau(
                "val_accuracy", factor=0.1, patience=recipe.patience, min_delta=0.0
            )
        )
    if recipe.early_stopping:
        found.append(
            keras.callbacks.EarlyStopping(
                "val_accuracy", patience=recipe.early_stopping
            )
        )
    return found


def _find_tensorboard():
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError:
        raise InputError(
            "tensorboard needs its package: pip install 'keras-resnet-zoo[tensorboard]'. "
            "Received: tensorboard=True"
        ) from None


def _tensorboard(run):
    """The folder of what TensorBoard shows; its `train` and `validation` are Keras's."""
    return os.path.join(run.model_dir, "tensorboard")


def _batches(run, preprocessing, start, stop):
    return iterate(run.strategy, _dataset(run, preprocessing, start, stop))


def _dataset(run, preprocessing, start, stop):
    strategy = run.strategy
    return pipelines.training_batches(
        run.images.train,
        preprocessing,
        run.recipe,
        strategy.num_replicas_in_sync,
        run.seed,
        start,
        stop,
        here=local_replicas(strategy),
        classes=len(run.images.classes),
        mean=pixels_of(run.network).mean,
        service=run.execution.data_service,
    )


# Steps from one question whether a worker was told to stop to the next: the answer is
# waited for.
ASK_EVERY = 10


class _Stop(Exception):
    """SIGTERM came."""


class _Loop:
    """Takes the steps, drives the callbacks, keeps the checkpoints."""

    def __init__(self, run, callbacks):
        self.run, self.callbacks = run, callbacks
        self.step = Step(
            run.network, run.strategy, run.recipe, run.total, run.execution
        )
        run.network.optimizer = self.step.optimizer
        self.workers = worker_count(run.strategy)
        places = np.arange(
            worker_index(run.strategy), len(run.images.test), self.workers
        )
        local = len(local_replicas(run.strategy))
        self.evaluator = Evaluator(
            run.network,
            run.images.test.take(places),
            run.preprocessing,
            -(-run.recipe.batch_size // self.workers // local) * local,
            run.strategy,
        )
        self.progress = Progress(callbacks)
        self.checkpoints = Checkpoints(
            os.path.join(run.model_dir, "checkpoints"),
            run.network,
            self.step,
            self.progress,
            run.execution.keep_checkpoints,
        )
        self.batches, self.batches_end = None, 0
        self.stopping = False

    def train(self, verbose):
        """Trains to the end, from the last checkpoint if there is one."""
        run, progress = self.run, self.progress
        chief = is_chief(run.strategy)
        # Not among those whose state a checkpoint holds: it may come and go.
        watching = []
        if run.execution.tensorboard and chief:
            watching = [keras.callbacks.TensorBoard(_tensorboard(run))]
        callbacks = keras.callbacks.CallbackList(
            [*self.callbacks, *watching],
            add_progbar=verbose == 1,
            model=run.network,
            verbose=verbose,
            epochs=run.epochs,
            steps=run.steps,
        )
        callbacks.on_train_begin()
        run.network.stop_training = False
        restored = self.checkpoints.restore()
        self._compare_steps()
        if restored:
            if verbose:
                print(
                    f"Resuming after step {progress.step} of {run.total}.", flush=True
                )
        else:
            self.step.average()
            if chief:
                _draw_batch(run)
        with self._told_to_stop():
            try:
                self._take_epochs(callbacks, verbose)
            except _Stop:
                self._save()
                callbacks.on_train_end()
                raise Preempted(
                    f"Stopped by SIGTERM after step {progress.step} of {run.total}; the "
                    "same command resumes"
                ) from None
            except tf.errors.OpError as error:
                if self.workers > 1 and lost_worker(error):
                    raise ConnectionError(
                        f"A worker is gone, after step {progress.step} of {run.total} or "
                        "a little later. Start all of them again with the same command; "
                        "they resume from the last checkpoint"
                    ) from error
                raise
        callbacks.on_train_end()

    def _compare_steps(self):
        """Refuses workers that go on from different steps."""
        if self.workers == 1:
            return
        step = float(self.progress.step)
        count, summed, squares = total(
            self.run.strategy, tf.constant([1.0, step, step**2], tf.float64)
        ).numpy()
        if round(count * squares) != round(summed**2):
            raise InputError(
                "The workers found different checkpoints; model_dir must be a folder "
                f"that they share. Received: {self.run.model_dir!r}, where this one found "
                f"step {self.progress.step}"
            )

    @contextlib.contextmanager
    def _told_to_stop(self):
        """SIGTERM, by which machines are taken away, ends the run between two steps."""

        def stop(*_):
            self.stopping = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _take_epochs(self, callbacks, verbose):
        run, progress, network = self.run, self.progress, self.run.network
        resuming = progress.step > 0
        for epoch in range(max(0, progress.step - 1) // run.steps, run.epochs):
            callbacks.on_epoch_begin(epoch)
            if resuming:
                progress.restore_callbacks()
            else:
                self.step.sums.assign(tf.zeros_like(self.step.sums))
            resuming = False
            begun, began_at, shown = time.monotonic(), progress.step, 0.0
            end = min((epoch + 1) * run.steps, run.total)
            while progress.step < end:
                batch = progress.step - epoch * run.steps
                callbacks.on_train_batch_begin(batch)
                count = self._take_steps(epoch, end)
                # Reading the sums waits for the device: ten times a second.
                if time.monotonic() - shown > 0.1:
                    logs, shown = self._logs(epoch), time.monotonic()
                callbacks.on_train_batch_end(batch + count - 1, logs)
                # At once, as in `fit`; several workers together, after the epoch.
                if network.stop_training and self.workers == 1:
                    break
                self._stop_if_told(count)
                if progress.step % run.execution.checkpoint_every == 0:
                    self._logs(epoch)
                    self._save()
            logs = self._logs(epoch)
            self._check_weights()
            took = time.monotonic() - begun
            with self.step.evaluated():
                rate = keras.ops.convert_to_numpy(network.optimizer.learning_rate)
                logs = {**logs, **self._held_out(), "learning_rate": float(rate)}
                if math.isnan(logs["val_loss"]):  # Of weights so large as to overflow.
                    raise FloatingPointError(
                        "The loss of the held-out images is no longer a number after "
                        f"step {progress.step}; {self._last_good()}"
                    )
                callbacks.on_epoch_end(epoch, logs)
            if self.workers > 1:
                asks = tf.constant(float(network.stop_training), tf.float64)
                network.stop_training = bool(total(run.strategy, asks) > 0)
            if verbose == 2:
                values = " - ".join(
                    f"{key}: {value:.4f}" for key, value in logs.items()
                )
                done = progress.step - began_at
                print(
                    f"epoch {epoch + 1}/{run.epochs} - {values} - "
                    f"{done * run.recipe.batch_size / took:.0f} images/s - "
                    f"{_duration((run.total - progress.step) * took / max(1, done))} left",
                    flush=True,
                )
            if network.stop_training:
                break

    def _take_steps(self, epoch, end):
        """Takes as many steps as the device may without Python; returns the number."""
        run, progress = self.run, self.progress
        if self.batches is None or progress.step == self.batches_end:
            self._open_batches()
        every = run.execution.checkpoint_every
        count = min(
            run.execution.steps_per_execution,
            min(end, self.batches_end) - progress.step,
            every - progress.step % every,
        )
        if self.workers > 1:
            self.step.asks_to_stop.assign(float(self.stopping))
        try:
            self.step(self.batches, count)
        except tf.errors.OpError as error:
            if self.workers > 1:
                # The others wait for this one: no image can stand in any more.
                if not lost_worker(error):
                    places = self._places_of(progress.step)
                    data.refuse_damaged(
                        run.images.train.take(places), run.preprocessing
                    )
                raise
            done = int(self.step.sums.numpy()[3])
            count = epoch * run.steps + done - progress.step
            self._replace_damaged(progress.step + count, error)
        progress.step += count
        return count

    def _open_batches(self):
        """From the next step on, up to where images of another size begin."""
        run, step = self.run, self.progress.step
        preprocessing, self.batches_end = run.preprocessing, run.total
        if sizes := run.recipe.sizes:
            part = step * len(sizes) // run.total
            self.batches_end = -(-(part + 1) * run.total // len(sizes))
            preprocessing = dataclasses.replace(
                preprocessing, height=sizes[part], width=sizes[part]
            )
        self.batches = _batches(run, preprocessing, step, self.batches_end)

    def _replace_damaged(self, step, error):
        """Goes on without the images of a step that cannot be decoded."""
        run, places = self.run, self._places_of(step)
        train = data.replace_damaged(run.images.train, run.preprocessing, places, error)
        run.images = dataclasses.replace(run.images, train=train)
        self.batches = None

    def _places_of(self, step):
        run = self.run
        return pipelines.places_of_step(
            run.images.train,
            run.recipe,
            run.strategy.num_replicas_in_sync,
            run.seed,
            step,
        )

    def _stop_if_told(self, count):
        told = self.stopping
        if self.workers > 1:  # All of them, after the same step.
            asking = self.progress.step % ASK_EVERY < count
            told = asking and bool(self.step.asked.numpy() > 0)
        if told:
            raise _Stop

    def _check_weights(self):
        if not self.step.is_finite():
            raise FloatingPointError(
                f"The weights are no longer numbers after step {self.progress.step}; "
                f"{self._last_good()}"
            )

    def _save(self):
        self._check_weights()
        if is_chief(self.run.strategy):
            self.checkpoints.save(self.progress.step)

    def _logs(self, epoch):
        loss, right, count, good = self.step.sums.numpy().tolist()
        if not math.isfinite(loss):
            step = epoch * self.run.steps + int(good) + 1
            rate = self.run.network.optimizer.learning_rate
            rate = float(keras.ops.convert_to_numpy(rate))
            raise FloatingPointError(
                f"The loss of step {step} is no longer a number, at a learning rate of "
                f"about {rate:.3g}; {self._last_good()}"
            )
        return {"loss": loss / count, "accuracy": right / count}

    def _last_good(self):
        path = self.checkpoints.newest()
        if path is None:
            return "there is no checkpoint before it. A lower learning_rate may help"
        return f"the last good checkpoint is {path}. A lower learning_rate may help"

    def _held_out(self):
        """Loss and accuracy on the held-out images, of all workers together."""

        def between_steps():
            if self.stopping and self.workers == 1:
                raise _Stop

        found = self.evaluator.predict(between_steps).summary()
        loss, accuracy, count = found["loss"], found["accuracy"], found["images"]
        if self.workers > 1:
            sums = tf.constant([loss * count, accuracy * count, count], tf.float64)
            loss, right, count = total(self.run.strategy, sums).numpy()
            loss, accuracy = float(loss / count), float(right / count)
        return {"val_loss": loss, "val_accuracy": accuracy}


def _draw_batch(run):
    """Leaves a picture of the first training batch, as the network gets it."""
    sizes = run.recipe.sizes
    size = {"height": sizes[0], "width": sizes[0]} if sizes else {}
    preprocessing = dataclasses.replace(run.preprocessing, **size)
    try:
        images, labels, _ = next(iter(_dataset(run, preprocessing, 0, 1)))
    except tf.errors.OpError:
        return  # The first step will say which image is damaged.
    write_batch(run.model_dir, images.numpy(), labels.numpy(), run.images.classes)
    if run.execution.tensorboard:
        with tf.summary.create_file_writer(_tensorboard(run)).as_default():
            tf.summary.image("augmented", images, step=0, max_outputs=32)


def _duration(seconds):
    """Such as 3:05 or 2:03:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
