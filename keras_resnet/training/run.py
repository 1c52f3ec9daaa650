"""The training loop: any network, any data set, one device or many.

`Model.fit` is not used, because on Keras 3 it fails for several replicas with
XLA, with several steps for each host round trip and with several workers, and
because its checkpoints replay the interrupted epoch. This loop runs the step
through `strategy.run`, drives ordinary Keras callbacks, and resumes in the
middle of an epoch with nothing lost or repeated.
"""

import contextlib
import os
import sys

import keras
import tensorflow as tf

from keras_resnet.distribution import is_chief, sum_over_workers, worker_count
from keras_resnet.evaluation import write_record
from keras_resnet.support import InputError
from keras_resnet.training.loop import Loop
from keras_resnet.training.preparation import prepare_run
from keras_resnet.training.run_folder import (
    RunFolder,
    locked_folder,
    remove_leftovers,
    save_network,
)


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
    run = prepare_run(
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
        sum_over_workers(run.strategy, tf.ones([]))
    with _open_folder(run) if chief else contextlib.nullcontext():
        folder = RunFolder(run.model_dir, writes=chief)
        loop = Loop(run, [*callbacks, *_callbacks_of(run.recipe), folder])
        loop.train(verbose if chief else 0)
        if chief:
            with loop.step.evaluated():
                save_network(run.network, os.path.join(run.model_dir, "final.keras"))
            remove_leftovers(run.model_dir, ended=True)
    return folder.rows


@contextlib.contextmanager
def _open_folder(run):
    """Makes the run folder, which is this process's alone within."""
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(run.model_dir, exist_ok=True)
            stack.enter_context(locked_folder(run.model_dir))
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
