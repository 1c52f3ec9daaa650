"""The learning-rate range test (Smith, arXiv:1506.01186, section 3.3)."""

import dataclasses
import os

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.distribution import common_work
from keras_resnet.spec import RunOptions
from keras_resnet.support import takes_options, to_csv, write_file
from keras_resnet.training.batch_source import BatchSource
from keras_resnet.training.figures import draw_rates
from keras_resnet.training.preparation import Run, prepare_run
from keras_resnet.training.worker_group import WorkerGroup

# Maximum number of steps, and the learning rates of the first and the last step.
MAX_STEPS, LOWEST_RATE, HIGHEST_RATE = 100, 1e-5, 10.0


@takes_options(RunOptions)
@common_work()
def find_learning_rate(options: RunOptions) -> tuple[list[float], list[float], float]:
    """Runs a learning-rate range test.

    The learning rate grows by a constant factor at every step, until the loss diverges.
    The trained weights are discarded. The results are written to `find_lr.csv` and
    `find_lr.png` in a folder whose name is `model_dir` followed by `-find_lr`.

    Args:
        {options}

    Returns:
        The learning rates, the smoothed loss at each learning rate, and the learning
        rate at which the loss fell fastest.
    """
    run = prepare_run(options, suffix="-find_lr", is_quiet=True)
    assert run is not None  # `prepare_run` returns `None` only without a suffix.
    losses = _measure_losses(run)
    fractions = np.arange(len(losses)) / (MAX_STEPS - 1)
    rates = (LOWEST_RATE * (HIGHEST_RATE / LOWEST_RATE) ** fractions).tolist()
    best_rate = rates[int(np.argmin(np.gradient(losses, np.log(rates))))]
    if WorkerGroup(run.strategy).is_chief:
        rows = [
            {"learning_rate": f"{rate:.6g}", "loss": f"{loss:.6g}"}
            for rate, loss in zip(rates, losses, strict=True)
        ]
        os.makedirs(run.model_dir, exist_ok=True)
        write_file(os.path.join(run.model_dir, "find_lr.csv"), to_csv(rows))
        figure = draw_rates(rates, losses, best_rate)
        write_file(os.path.join(run.model_dir, "find_lr.png"), figure)
        print(
            f"The loss falls fastest at a learning rate of {best_rate:.2g} and is "
            f"lowest at {rates[int(np.argmin(losses))]:.2g}. "
            f"Figure: {run.model_dir}/find_lr.png"
        )
    return rates, losses, best_rate


def _measure_losses(run: Run) -> list[float]:
    """Returns the smoothed loss of each step, until the loss diverges."""
    schedule = keras.optimizers.schedules.ExponentialDecay(
        LOWEST_RATE, MAX_STEPS - 1, HIGHEST_RATE / LOWEST_RATE
    )
    step = run.make_step(MAX_STEPS, schedule)
    recipe = dataclasses.replace(run.spec.recipe, sizes=(), iterations=MAX_STEPS)
    spec = dataclasses.replace(run.spec, recipe=recipe)
    source = BatchSource(dataclasses.replace(run, spec=spec))
    losses: list[float] = []
    while len(losses) < MAX_STEPS:
        batches, _ = source.batches_from(len(losses))
        step.clear_sums()
        try:
            step(batches)
        except tf.errors.OpError as error:
            source.replace_damaged(len(losses), error)
            continue
        loss_sum, _, num_images, *_ = step.sums.numpy()
        loss = loss_sum / num_images
        if losses:
            loss = 0.8 * losses[-1] + 0.2 * loss
        losses.append(loss)
        if not np.isfinite(loss) or loss > 4 * min(losses):
            break
    return [loss for loss in losses if np.isfinite(loss)]
