"""The training loop: any network, any data set, one device or many.

`Model.fit` is not used, because on Keras 3 it fails for several replicas with
XLA, with several steps for each host round trip and with several workers, and
because its checkpoints replay the interrupted epoch. This loop runs the step
through `strategy.run`, drives ordinary Keras callbacks, and resumes in the
middle of an epoch with nothing lost or repeated.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from keras_resnet import data
from keras_resnet.batch_norm import synchronized
from keras_resnet.blocks import channel_axis, flat_layers
from keras_resnet.checkpoints import Checkpoints, Progress
from keras_resnet.complexity import profile
from keras_resnet.errors import InputError, choose
from keras_resnet.evaluation import Evaluator
from keras_resnet.preprocessing import Preprocessing, statistics
from keras_resnet.recipes import default_recipe, find_recipe
from keras_resnet.resnet import ResNet
from keras_resnet.runs import RunFolder, read_record, write_record
from keras_resnet.strategies import make_strategy, next_batch
from keras_resnet.variants import find_variant
from keras_resnet.weight_files import ENDINGS, Origin, pixels_of
from keras_resnet.weights import open_checkpoint, save_model

# Measured (benchmarks/checkpoint.py): a checkpoint takes as long as a twelfth of a
# step of ResNet-20 with 128 images of CIFAR's size and a quarter of a step of
# ResNet-50 with 8 photographs. At this interval that is 0.1 % and 0.25 %; with the
# digits, whose steps take 0.06 s, it is under 2 %.
CHECKPOINT_EVERY = 100


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
    stage_rate=None,
    recipe=None,
    epochs=None,
    batch_size=None,
    learning_rate=None,
    seed=0,
    strategy="mirrored",
    virtual_devices=0,
    model_dir=None,
    checkpoint_every=CHECKPOINT_EVERY,
    callbacks=(),
    verbose=None,
):
    """Trains a network into a run folder, or resumes a run that was cut short.

    The same call again resumes where the last checkpoint was written, in the
    middle of an epoch too, and ends with the same weights, bit for bit, as a run
    never cut short; after the end it does nothing. For this it sets the global
    seed and switches TensorFlow's op determinism on.

    Args:
        model: name of a network; see `keras_resnet.list_models()`.
        dataset: see `keras_resnet.data.load_dataset`.
        data_dir: where TFDS keeps its sets.
        image_size: height and width of the network's input, in pixels; `None` is
            the data set's own size, or the network's where images differ.
        shortcut: `"A"`, `"B"`, `"C"` or `"none"`; `None` is the paper's.
        stride_on: see `keras_resnet.ResNet50`.
        weights: to start from; see `keras_resnet.ResNet50`. Their preprocessing is
            used, and a new head where the number of classes differs.
        freeze: stages that stay as they are, such as `"conv1..conv4"` or
            `"conv1,conv2"`; their batch normalisation stays in inference mode.
        stage_rate: learning rate of a stage as a share of that of what follows it:
            with 0.5 the head learns at the full rate, conv5 at a half, conv4 at a
            quarter. `None` is 1.
        recipe: key of `keras_resnet.recipes.RECIPES`; `None` chooses by data set,
            and `"finetune"` with weights.
        epochs: passes over the training images; `None` is the recipe's, as for
            the next two.
        batch_size: images in a step, over all replicas together.
        learning_rate: the highest.
        seed: of the initial weights, the order and the augmentation.
        strategy: `"one_device"` or `"mirrored"`.
        virtual_devices: splits the CPU in that many devices, for trying out.
        model_dir: the run folder; `None` is `runs/MODEL-DATASET`.
        checkpoint_every: steps from one checkpoint to the next. A killed run
            redoes at most that many.
        callbacks: Keras callbacks. Their attributes travel in the checkpoint where
            they are numbers, strings, arrays, or lists and dicts of them.
        verbose: 0 silent, 1 progress bar, 2 one line for each epoch; `None` is 1
            on a terminal, else 2.

    Returns:
        The rows of `metrics.csv`, one dict for each epoch; empty if the run had
        ended before.

    Raises:
        InputError: an argument cannot be used, or the run folder holds something
            else.
        OSError: the run folder cannot be written.
    """
    if checkpoint_every < 1:
        raise InputError(
            f"checkpoint_every must be at least 1. Received: {checkpoint_every}"
        )
    if not 0 <= seed < 2**31:
        raise InputError(f"seed must be from 0 to 2**31 - 1. Received: seed={seed}")
    if keras.config.image_data_format() != "channels_last":
        raise InputError(
            "Training needs Keras's image_data_format to be 'channels_last'"
        )
    if verbose is None:
        verbose = 1 if sys.stdout.isatty() else 2
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    strategy_name, strategy = strategy, make_strategy(strategy, virtual_devices)
    replicas = strategy.num_replicas_in_sync

    variant = find_variant(model)
    images = data.load_dataset(dataset, data_dir)
    if weights is not None:
        weights = os.path.expanduser(os.fspath(weights))
    frozen = parse_stages(freeze, len(variant.blocks)) if freeze else ()
    if stage_rate is not None and not 0 < stage_rate <= 1:
        raise InputError(
            "stage_rate must be above 0 and no more than 1. "
            f"Received: stage_rate={stage_rate}"
        )
    preprocessing = _choose_preprocessing(variant, images, image_size)
    recipe_name = recipe or (
        "finetune"
        if weights
        else default_recipe(dataset, photographs=preprocessing.crop < 1)
    )
    recipe = find_recipe(
        recipe_name, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate
    )
    data.check_batch_size(recipe.batch_size, replicas)
    steps = data.steps_per_epoch(images.train, recipe.batch_size, replicas)
    if not steps:
        raise InputError(
            f"{replicas} replicas cannot share {len(images.train)} training image(s)"
        )
    settings = {
        "model": model.lower(),
        "shortcut": variant.shortcut if shortcut is None else shortcut,
        "stride_on": stride_on or ("of the weights" if weights else variant.stride_on),
        "weights": os.path.abspath(weights)
        if weights and weights.endswith(ENDINGS)
        else weights,
        "freeze": list(frozen) or None,
        "stage_rate": stage_rate,
        "dataset": data.resolve_name(dataset),
        "images": [len(images.train), len(images.test)],
        "input_shape": list(preprocessing.shape),
        "recipe": recipe_name,
        **dataclasses.asdict(recipe),
        "seed": seed,
        "strategy": strategy_name,
        "replicas": replicas,
    }
    source = settings["dataset"].removeprefix("folder:").replace(":", "-")
    where = os.path.basename(source) or "root"
    model_dir = model_dir or os.path.join("runs", f"{settings['model']}-{where}")
    if _has_ended(model_dir, settings):
        print(f"The run in {model_dir} has ended; nothing to do.")
        return []

    checkpoint = open_checkpoint(weights, model.lower()) if weights else None
    if checkpoint and (pixels := checkpoint.origin.pixels):
        preprocessing = dataclasses.replace(
            preprocessing,
            crop=1.0 if images.shape else pixels.crop,
            interpolation=pixels.interpolation,
        )
    with strategy.scope():
        network = _build(settings, images, preprocessing, checkpoint, stride_on)
        _compile(network, recipe, steps)
    started = f", from {weights}" if weights else ""
    started += f", {' '.join(frozen)} frozen" if frozen else ""
    print(
        f"{settings['model']} (shortcut {settings['shortcut']}{started}, "
        f"{profile(network).parameters:,} parameters) on {dataset}: {len(images.train):,} "
        f"training and {len(images.test):,} held-out images, "
        f"{preprocessing.height}x{preprocessing.width}x{preprocessing.channels}, "
        f"{len(images.classes)} classes; {recipe.epochs} epochs of {steps} steps of "
        f"{recipe.batch_size}; {strategy_name} on {replicas} replica(s); into {model_dir}"
    )
    _open_folder(model_dir, settings, images.classes, preprocessing)

    folder = RunFolder(model_dir)
    loop = _Loop(
        network,
        strategy,
        images,
        preprocessing,
        recipe,
        stage_rate,
        seed,
        [*callbacks, folder],
    )
    loop.run(os.path.join(model_dir, "checkpoints"), steps, checkpoint_every, verbose)
    save_model(network, os.path.join(model_dir, "final.keras"))
    shutil.rmtree(os.path.join(model_dir, "checkpoints"), ignore_errors=True)
    return folder.rows


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
    stages = [f"conv{i}" for i in range(1, count + 2)]
    found = set()
    for part in text.replace(" ", "").split(","):
        ends = part.split("..")
        for end in ends:
            choose("stage", end, stages)
        first, last = stages.index(ends[0]), stages.index(ends[-1])
        if len(ends) > 2 or first > last:
            raise InputError(
                "Stages are named as conv1, conv1,conv2 or conv1..conv3. "
                f"Received: freeze={text!r}"
            )
        found.update(stages[first : last + 1])
    return tuple(stage for stage in stages if stage in found)


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


def _has_ended(model_dir, settings):
    """Whether the folder holds this run's end; refuses another run's folder."""
    record = read_record(model_dir)
    if record is None:
        if os.path.isdir(model_dir) and os.listdir(model_dir):
            raise InputError(
                "model_dir must be a new or empty folder, or that of the same run. "
                f"Received: {model_dir!r}, which holds other files"
            )
        return False
    began = record["settings"]
    differ = [
        f"{key} (began with {began.get(key)!r}, now {settings.get(key)!r})"
        for key in {**began, **settings}
        if began.get(key) != settings.get(key)
    ]
    if differ:
        raise InputError(
            f"The run in {model_dir} began with other settings; repeat them, or choose "
            f"another model_dir. Different: {', '.join(differ)}"
        )
    return os.path.exists(os.path.join(model_dir, "final.keras"))


def _open_folder(model_dir, settings, classes, preprocessing):
    try:
        os.makedirs(model_dir, exist_ok=True)
        write_record(model_dir, settings, classes, preprocessing)
    except OSError as error:
        raise InputError(
            "model_dir must be a folder that can be written. "
            f"Received: {model_dir!r} ({error.strerror})"
        ) from None


def _build(settings, images, preprocessing, checkpoint=None, stride_on=None):
    """The network behind a layer that normalises raw pixels.

    With weights that layer is theirs.

    The paper subtracts each pixel's mean; this subtracts each channel's and
    divides by its standard deviation, both over (up to 1,000 of) the training
    images, so that one network takes any size.
    """
    options = {
        "classes": len(images.classes),
        "shortcut": settings["shortcut"],
        "stride_on": stride_on,
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
        _describe(network, settings, images, preprocessing)
        return network
    count = min(1000, len(images.train))
    sample = images.train.take(np.linspace(0, len(images.train) - 1, count).astype(int))
    try:
        mean, variance = statistics(data.load_views(sample, preprocessing))
    except tf.errors.OpError:
        data.refuse_damaged(images.train, preprocessing)
        raise
    image = keras.Input(preprocessing.shape, name="image")
    normalised = keras.layers.Normalization(
        axis=channel_axis(), mean=mean, variance=variance, name="normalization"
    )(image)
    network = ResNet(settings["model"], input_tensor=normalised, **options)
    _describe(network, settings, images, preprocessing)
    return network


def _describe(network, settings, images, preprocessing):
    """Freezes what is to be, and notes what travels with the weights."""
    _freeze(network, settings.get("freeze") or ())
    pixels = pixels_of(network)._replace(
        crop=preprocessing.crop, interpolation=preprocessing.interpolation
    )
    network.origin = Origin("", pixels, images.classes, settings["model"])


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


def _stages(network):
    """Yields each layer with the number of its stage: conv1 is 1, the head the last."""
    layers = flat_layers(network)
    numbers = [re.match(r"conv(\d+)_", layer.name) for layer in layers]
    last = max(int(number[1]) for number in numbers if number)
    for layer, number in zip(layers, numbers, strict=True):
        if number:
            yield layer, int(number[1])
        else:  # What follows a pre-activation net's last stage belongs to it.
            yield layer, last if layer.name.startswith("post_") else last + 1


def _freeze(network, stages):
    """Keeps stages as they are.

    A frozen `BatchNormalization` of Keras uses and keeps its moving statistics in
    training too.
    """
    for layer, number in _stages(network):
        if f"conv{number}" in stages:
            layer.trainable = False


def _rates(network, stage_rate):
    """Learning rate of each trainable variable, as a share of the head's."""
    stages = list(_stages(network))
    head = max(number for _, number in stages)
    shares = {
        id(variable): stage_rate ** (head - number)
        for layer, number in stages
        for variable in layer.trainable_variables
    }
    return [shares[id(variable)] for variable in network.trainable_variables]


def _compile(network, recipe, steps):
    """Gives the network its optimizer; `fit` and `evaluate` work with it too."""
    total = recipe.epochs * steps
    warmup = round(recipe.warmup * total)
    if recipe.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warmup else recipe.learning_rate,
            total - warmup,
            warmup_target=recipe.learning_rate if warmup else None,
            warmup_steps=warmup,
        )
    else:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [total // 2, total * 3 // 4],
            [recipe.learning_rate / divisor for divisor in (1, 10, 100)],
        )
    network.compile(
        # With a name, since a checkpoint holds the names of its slots.
        optimizer=keras.optimizers.SGD(rate, momentum=recipe.momentum, name="sgd"),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    network.optimizer.build(network.trainable_variables)
    # `fit` would make the metrics, of which EarlyStopping and ReduceLROnPlateau
    # ask whether more is better.
    network.compute_metrics(None, np.zeros(1), np.zeros((1, network.output_shape[-1])))
    network.reset_metrics()


def make_train_step(network, strategy, weight_decay, stage_rate=None):
    """Makes the training step.

    Args:
        network: a compiled `keras.Model`.
        strategy: in whose scope it was made.
        weight_decay: of every kernel, coupled (see `keras_resnet.recipes`).
        stage_rate: see `train`. The gradients are scaled by it, which is the same
            as scaling the rate for SGD, with momentum and coupled decay too.

    Returns:
        A function of an iterator over training batches (see
        `keras_resnet.data.training_batches`) that takes one step, and the
        variable [summed loss, right answers, images] that it adds to.
    """
    replicas = strategy.num_replicas_in_sync
    variables = network.trainable_variables
    decay = [weight_decay / replicas if v.name == "kernel" else 0.0 for v in variables]
    rates = _rates(network, stage_rate or 1.0)
    sums = tf.Variable(tf.zeros(3, tf.float64))

    def replica_step(images, labels, weights):
        with tf.GradientTape() as tape:
            probabilities = network(images, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
            loss = tf.reduce_sum(losses * tf.cast(weights, losses.dtype))
        gradients = tape.gradient(loss, [v.value for v in variables])
        # The optimizer sums the gradients over the replicas, each of which has
        # its share of the decay.
        gradients = [
            g + d * v.value if d else g
            for g, d, v in zip(gradients, decay, variables, strict=True)
        ]
        gradients = [
            g * rate if rate != 1 else g
            for g, rate in zip(gradients, rates, strict=True)
        ]
        network.optimizer.apply(gradients, variables)
        right = keras.metrics.sparse_categorical_accuracy(labels, probabilities)
        return tf.stack(
            [tf.reduce_sum(tf.cast(each, tf.float64)) for each in (losses, right)]
            + [tf.cast(tf.size(labels), tf.float64)]
        )

    @tf.function
    def step(batches):
        synchronize = (
            synchronized(network) if replicas > 1 else contextlib.nullcontext()
        )
        with synchronize:
            result = strategy.run(replica_step, args=next_batch(strategy, batches))
        sums.assign_add(strategy.reduce("SUM", result, axis=None))

    return step, sums


class _Loop:
    """Takes the steps, drives the callbacks, keeps the checkpoints."""

    def __init__(
        self,
        network,
        strategy,
        images,
        preprocessing,
        recipe,
        stage_rate,
        seed,
        callbacks,
    ):
        self.network = network
        self.strategy = strategy
        self.images = images
        self.preprocessing = preprocessing
        self.recipe = recipe
        self.seed = seed
        self.callbacks = callbacks
        self.step, self.sums = make_train_step(
            network, strategy, recipe.weight_decay, stage_rate
        )
        self.evaluate = Evaluator(
            network, images.test, preprocessing, recipe.batch_size, strategy
        )

    def run(self, directory, steps, checkpoint_every, verbose):
        """Trains to the end, from the last checkpoint if there is one."""
        progress = Progress(self.callbacks)
        checkpoints = Checkpoints(directory, self.network, self.sums, progress)
        callbacks = keras.callbacks.CallbackList(
            self.callbacks,
            add_progbar=verbose == 1,
            model=self.network,
            verbose=verbose,
            epochs=self.recipe.epochs,
            steps=steps,
        )
        callbacks.on_train_begin()
        self.network.stop_training = False
        if checkpoints.restore():
            print(
                f"Resuming after step {progress.step} of {self.recipe.epochs * steps}."
            )
        batches = self._batches(progress.step, steps)
        resuming = progress.step > 0
        for epoch in range(
            (progress.step - 1) // steps if resuming else 0, self.recipe.epochs
        ):
            callbacks.on_epoch_begin(epoch)
            if resuming:
                progress.restore_callbacks()
            else:
                self.sums.assign(tf.zeros_like(self.sums))
            resuming = False
            shown = 0.0
            while progress.step < (epoch + 1) * steps:
                batch = progress.step - epoch * steps
                callbacks.on_train_batch_begin(batch)
                self._take_step(batches)
                progress.step += 1
                # Reading the sums waits for the device: ten times a second.
                if time.monotonic() - shown > 0.1:
                    logs, shown = self._logs(), time.monotonic()
                callbacks.on_train_batch_end(batch, logs)
                if self.network.stop_training:  # At once, as in `fit`.
                    break
                if progress.step % checkpoint_every == 0:
                    checkpoints.save(progress.step)
            held_out = {f"val_{key}": value for key, value in self.evaluate().items()}
            rate = float(
                keras.ops.convert_to_numpy(self.network.optimizer.learning_rate)
            )
            logs = {
                **self._logs(),
                "val_loss": held_out["val_loss"],
                "val_accuracy": held_out["val_accuracy"],
                "learning_rate": rate,
            }
            callbacks.on_epoch_end(epoch, logs)
            if verbose == 2:
                values = " - ".join(
                    f"{key}: {value:.4f}" for key, value in logs.items()
                )
                print(f"epoch {epoch + 1}/{self.recipe.epochs} - {values}", flush=True)
            if self.network.stop_training:
                break
        callbacks.on_train_end()

    def _batches(self, start, steps):
        batches = data.training_batches(
            self.images.train,
            self.preprocessing,
            self.recipe,
            self.strategy.num_replicas_in_sync,
            self.seed,
            start,
            self.recipe.epochs * steps,
        )
        return iter(batches)

    def _take_step(self, batches):
        try:
            self.step(batches)
        except tf.errors.OpError:
            data.refuse_damaged(self.images.train, self.preprocessing)
            raise

    def _logs(self):
        loss, right, count = self.sums.numpy().tolist()
        return {"loss": loss / count, "accuracy": right / count}
