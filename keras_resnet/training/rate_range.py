"""The learning-rate range test."""

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.distribution import is_chief
from keras_resnet.training.figures import write_range
from keras_resnet.training.loop import open_batches
from keras_resnet.training.preparation import prepare_run
from keras_resnet.training.step import Step

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
    run = prepare_run(model, dataset, suffix="-find_lr", quiet=True, **arguments)
    chief = is_chief(run.strategy)
    low, high = RANGE
    rate = keras.optimizers.schedules.ExponentialDecay(low, RANGE_STEPS - 1, high / low)
    step = Step(run.network, run.strategy, run.recipe, RANGE_STEPS, run.execution, rate)
    rates = (
        low * (high / low) ** (np.arange(RANGE_STEPS) / (RANGE_STEPS - 1))
    ).tolist()
    batches, losses, mean = (
        open_batches(run, run.preprocessing, 0, RANGE_STEPS),
        [],
        None,
    )
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
