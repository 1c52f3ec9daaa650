"""The learning-rate range test (Smith, arXiv:1506.01186, section 3.3)."""

import os

import keras
import numpy as np

from keras_resnet.distribution import iterate_batches
from keras_resnet.spec import RunOptions
from keras_resnet.support import takes_options, to_csv, write_file
from keras_resnet.training.figures import draw_range
from keras_resnet.training.preparation import Run, prepare_run
from keras_resnet.training.worker_group import WorkerGroup

# Number of steps, and the rates that the first and the last one take.
STEPS, LOWEST, HIGHEST = 100, 1e-5, 10.0


@takes_options(RunOptions)
def find_learning_rate(options: RunOptions) -> tuple[list[float], list[float], float]:
    """Tries ever higher learning rates.

    The rate grows from step to step by the same factor. The loss falls, and at some
    rate it blows up. Nothing of this is kept as a run: the folder whose name is
    `model_dir` and `-find_lr` gets `find_lr.csv` and `find_lr.png`.

    Args:
        {options}

    Returns:
        The rates and the smoothed losses, two lists, and the rate at which the loss
        fell fastest.
    """
    run = prepare_run(options, suffix="-find_lr", is_quiet=True)
    assert run is not None  # A temporary run never has ended.
    losses = _losses(run)
    shares = np.arange(len(losses)) / (STEPS - 1)
    rates = (LOWEST * (HIGHEST / LOWEST) ** shares).tolist()
    best = rates[int(np.argmin(np.gradient(losses, np.log(rates))))]
    if WorkerGroup(run.strategy).is_chief:
        rows = [
            {"learning_rate": f"{rate:.6g}", "loss": f"{loss:.6g}"}
            for rate, loss in zip(rates, losses, strict=True)
        ]
        os.makedirs(run.model_dir, exist_ok=True)
        write_file(os.path.join(run.model_dir, "find_lr.csv"), to_csv(rows))
        picture = draw_range(rates, losses, best)
        write_file(os.path.join(run.model_dir, "find_lr.png"), picture)
        print(
            f"The loss falls fastest at a rate of {best:.2g} and is lowest at "
            f"{rates[int(np.argmin(losses))]:.2g}; see {run.model_dir}/find_lr.png"
        )
    return rates, losses, best


def _losses(run: Run) -> list[float]:
    """Returns the smoothed losses, up to where they blow up."""
    rate = keras.optimizers.schedules.ExponentialDecay(
        LOWEST, STEPS - 1, HIGHEST / LOWEST
    )
    step = run.make_step(STEPS, rate)
    batches = iterate_batches(run.strategy, run.batches().dataset(0, STEPS))
    losses: list[float] = []
    for _ in range(STEPS):
        step.clear_sums()
        step(batches)
        loss, _, count, *_ = step.sums.numpy()
        mean = loss / count
        if losses:
            mean = 0.8 * losses[-1] + 0.2 * mean
        losses.append(mean)
        if not np.isfinite(mean) or mean > 4 * min(losses):
            break
    return [loss for loss in losses if np.isfinite(loss)]
