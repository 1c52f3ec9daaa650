"""Training a network into a run folder."""

import contextlib
import os
import sys
from collections.abc import Sequence

import keras

from keras_resnet.distribution import common_work
from keras_resnet.spec import Recipe, RunOptions
from keras_resnet.support import takes_options
from keras_resnet.training.loop import Loop
from keras_resnet.training.preparation import prepare_run
from keras_resnet.training.run_folder import (
    RunFolder,
    finish_run,
    open_run_folder,
    save_network,
)
from keras_resnet.training.worker_group import WorkerGroup


@takes_options(RunOptions)
@common_work()
def train(
    options: RunOptions,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | None = None,
) -> list[dict[str, float]]:
    """Trains a network into a run folder, or resumes an interrupted run.

    The same call resumes an interrupted run from its last checkpoint, even within an
    epoch. The final weights then equal those of an uninterrupted run bit for bit. If
    the run has ended, the call does nothing. For reproducibility, the function sets the
    global random seed and enables TensorFlow's op determinism (unless
    `deterministic=False`).

    All other keywords are fields of `keras_resnet.spec.Recipe` or
    `keras_resnet.spec.Execution`, such as `epochs`, `batch_size`, `label_smoothing` or
    `precision`. `None` keeps the recipe's value. `dataset` may also be a
    `keras_resnet.data.Dataset` with other images.

    Args:
        {options}
        callbacks: Keras callbacks. Checkpoints save the callback attributes that are
            numbers, strings, arrays, or lists and dicts of these.
        verbose: 0 for no output, 1 for a progress bar, 2 for one line per epoch.
            Default: 1 on a terminal, otherwise 2.

    Returns:
        The rows of `metrics.csv`, one for each epoch. The list is empty if the run had
        already ended.

    Raises:
        InputError: If an option is invalid, or `model_dir` contains another run.
        FloatingPointError: If the loss or the weights are not finite.
        Preempted: If SIGTERM was received. A checkpoint has been written.
        KeyboardInterrupt: If Ctrl-C was pressed, or a notebook's kernel interrupted. The
            current step is completed and a checkpoint is written. If Ctrl-C is pressed
            again, the run stops at once. The same call resumes the run in both cases.
        ConnectionError: If the connection to another worker is lost.
        OSError: If the run folder cannot be written.
    """
    if verbose is None:
        verbose = 1 if sys.stdout.isatty() else 2
    run = prepare_run(options, is_quiet=verbose == 0)
    if run is None:
        return []
    workers = WorkerGroup(run.strategy)
    workers.barrier()  # All workers inspect the folder before the chief writes to it.
    is_chief, record = workers.is_chief, run.record
    folder = RunFolder(run.model_dir, writes=is_chief)
    with contextlib.ExitStack() as stack:
        if is_chief:
            stack.enter_context(open_run_folder(run.model_dir, record))
        callbacks = [*callbacks, *_make_callbacks(run.spec.recipe), folder]
        loop = Loop(run, callbacks, workers)
        loop.train(verbose if is_chief else 0)
        if is_chief:
            with loop.step.load_averaged_weights():
                save_network(run.network, os.path.join(run.model_dir, "final.keras"))
            finish_run(run.model_dir, record)
    return folder.rows


def _make_callbacks(recipe: Recipe) -> list[keras.callbacks.Callback]:
    """Returns callbacks for the `"plateau"` schedule and for early stopping."""
    callbacks: list[keras.callbacks.Callback] = []
    if recipe.schedule == "plateau":
        plateau = keras.callbacks.ReduceLROnPlateau(
            "val_accuracy", factor=0.1, patience=recipe.patience, min_delta=0.0
        )
        callbacks.append(plateau)
    if patience := recipe.early_stopping:
        stopper = keras.callbacks.EarlyStopping("val_accuracy", patience=patience)
        callbacks.append(stopper)
    return callbacks
