"""Training a network into a run folder."""

import contextlib
import os
import sys
from collections.abc import Sequence

import keras

from keras_resnet.spec import Recipe, RunOptions
from keras_resnet.support import takes_options
from keras_resnet.training.loop import Loop
from keras_resnet.training.preparation import prepare_run
from keras_resnet.training.run_folder import (
    RunFolder,
    open_run_folder,
    remove_leftovers,
    save_network,
)
from keras_resnet.training.worker_group import WorkerGroup


@takes_options(RunOptions)
def train(
    options: RunOptions,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | None = None,
) -> list[dict[str, float]]:
    """Trains a network into a run folder, or resumes a run that was cut short.

    The same call again resumes where the last checkpoint was written, in the middle of
    an epoch too, and ends with the same weights, bit for bit, as a run never cut
    short. After the end it does nothing. For this it sets the global seed and, unless
    `deterministic` is false, switches TensorFlow's op determinism on.

    Any other keyword is a field of `keras_resnet.spec.Recipe` or
    `keras_resnet.spec.Execution`, such as `epochs`, `batch_size`, `label_smoothing` or
    `precision`; `None` keeps the recipe's value. `dataset` may be a
    `keras_resnet.data.Dataset` of your own images.

    Args:
        {options}
        callbacks: Keras callbacks. Their attributes are saved in the checkpoints if
            they are numbers, strings, arrays, or lists and dicts of them.
        verbose: 0 silent, 1 progress bar, 2 one line for each epoch; `None` is 1 on a
            terminal, else 2.

    Returns:
        The rows of `metrics.csv`, one for each epoch; empty if the run had ended
        before.

    Raises:
        InputError: An option cannot be used, or the run folder holds something else.
        FloatingPointError: The loss is no longer a number.
        Preempted: SIGTERM came; a checkpoint was written.
        ConnectionError: Another worker is gone.
        OSError: The run folder cannot be written.
    """
    if verbose is None:
        verbose = 1 if sys.stdout.isatty() else 2
    run = prepare_run(options, is_quiet=verbose == 0)
    if run is None:
        return []
    workers = WorkerGroup(run.strategy)
    workers.wait()  # All workers read the folder before the chief writes to it.
    is_chief = workers.is_chief
    folder = RunFolder(run.model_dir, writes=is_chief)
    with contextlib.ExitStack() as stack:
        if is_chief:
            stack.enter_context(open_run_folder(run.model_dir, run.record))
        loop = Loop(run, [*callbacks, *_callbacks_of(run.spec.recipe), folder], workers)
        loop.train(verbose if is_chief else 0)
        if is_chief:
            with loop.step.evaluated():
                save_network(run.network, os.path.join(run.model_dir, "final.keras"))
            remove_leftovers(run.model_dir, ended=True)
    return folder.rows


def _callbacks_of(recipe: Recipe) -> list[keras.callbacks.Callback]:
    """Returns the callbacks by which a recipe reacts to the validation accuracy."""
    callbacks: list[keras.callbacks.Callback] = []
    if recipe.schedule == "plateau":
        plateau = keras.callbacks.ReduceLROnPlateau(
            "val_accuracy", factor=0.1, patience=recipe.patience, min_delta=0.0
        )
        callbacks.append(plateau)
    if patience := recipe.early_stopping:
        stopping = keras.callbacks.EarlyStopping("val_accuracy", patience=patience)
        callbacks.append(stopping)
    return callbacks
