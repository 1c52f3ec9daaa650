"""Optimizers and learning-rate schedules of the recipes."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf
from keras import ops

from keras_resnet.spec import Recipe
from keras_resnet.support import InputError

# A constant learning rate, or a function from the step to a learning rate.
Schedule: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule
Gradients = list[tuple[tf.Tensor, keras.Variable]]

# Number of initial steps at a tenth of the learning rate if `careful_start` is set.
# Section 4.2 of the paper: "about 400 iterations".
CAREFUL_STEPS = 400


class _PerVariableOptimizer(keras.optimizers.Optimizer):
    """Base class of optimizers with a weight decay and learning rate per variable.

    Fine-tuning uses smaller learning rates for early stages, and biases usually have no
    weight decay. A Keras optimizer has one learning rate for all variables.
    """

    def build_per_variable(
        self,
        variables: Sequence[keras.Variable],
        decays: Iterable[float],
        multipliers: Iterable[float],
    ) -> None:
        """Builds the optimizer with a decay and a rate multiplier for each variable."""
        self.build(variables)
        self._decays, self._multipliers = list(decays), list(multipliers)

    def _get_decay_and_factor(self, variable: keras.Variable) -> tuple[float, float]:
        index = self._get_variable_index(variable)
        return self._decays[index], self._multipliers[index]

    def _all_reduce_sum_gradients(self, grads_and_vars: Gradients) -> Gradients:
        # `Step` has already summed the gradients over the replicas, since clipping and
        # the overflow check of loss scaling need the sums. Keras would sum once more.
        return grads_and_vars


class SGD(_PerVariableOptimizer, keras.optimizers.SGD):
    """SGD with momentum and coupled weight decay, as in the paper.

    The decay is added to the gradient. Keras's own `weight_decay` is decoupled from the
    gradient and therefore about ten times weaker at momentum 0.9.
    """

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        decay, multiplier = self._get_decay_and_factor(variable)
        if decay:
            gradient = gradient + ops.cast(decay, variable.dtype) * variable
        if multiplier != 1:
            learning_rate = multiplier * learning_rate
        super().update_step(gradient, variable, learning_rate)


class LAMB(_PerVariableOptimizer, keras.optimizers.Lamb):
    """LAMB (You et al., arXiv:1904.00962), as implemented in timm.

    Weight decay is added before the trust ratio scales the update, as in the paper's
    Algorithm 2. Keras applies weight decay separately, without this scaling. Updates of
    variables without weight decay (biases, normalisation) are not scaled.
    """

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        decay, multiplier = self._get_decay_and_factor(variable)
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        gradient = ops.cast(gradient, variable.dtype)
        learning_rate = ops.cast(multiplier * learning_rate, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        self.assign_add(m, (gradient - m) * (1 - self.beta_1))
        self.assign_add(v, (ops.square(gradient) - v) * (1 - self.beta_2))
        mean = m / (1 - ops.power(ops.cast(self.beta_1, variable.dtype), step))
        mean_square = v / (1 - ops.power(ops.cast(self.beta_2, variable.dtype), step))
        update = mean / (ops.sqrt(mean_square) + self.epsilon)
        if decay:
            update = update + ops.cast(decay, variable.dtype) * variable
            weight_norm = ops.sqrt(ops.sum(ops.square(variable)))
            update_norm = ops.sqrt(ops.sum(ops.square(update)))
            is_defined = (weight_norm > 0) & (update_norm > 0)
            trust_ratio = weight_norm / ops.where(is_defined, update_norm, 1)
            update = ops.where(is_defined, trust_ratio, 1) * update
        self.assign_sub(variable, learning_rate * update)


def make_optimizer(
    recipe: Recipe, steps: int, precision: str = "float32", rate: Schedule | None = None
) -> tuple["SGD | LAMB", keras.optimizers.Optimizer]:
    """Makes the optimizer of a recipe.

    With the precision `"mixed_float16"`, the optimizer scales the loss and skips steps
    whose gradients overflow. `rate` replaces the recipe's learning-rate schedule.

    Returns:
        The SGD or LAMB optimizer, which has `build_per_variable`, and the optimizer
        that must receive the gradients: the same object or, with `"mixed_float16"`, a
        `LossScaleOptimizer` around it.
    """
    rate = make_learning_rate(recipe, steps) if rate is None else rate
    if recipe.optimizer == "lamb":
        optimizer = LAMB(rate, epsilon=1e-6, name="lamb")
    else:
        # The name is fixed, because the variable names in checkpoints contain the name.
        optimizer = SGD(rate, momentum=recipe.momentum, name="sgd")
    if precision != "mixed_float16":
        return optimizer, optimizer
    return optimizer, keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")


def make_learning_rate(recipe: Recipe, steps: int) -> Schedule:
    """Returns the learning-rate schedule of a run with `steps` steps.

    For `schedule="plateau"`, returns the rate that `ReduceLROnPlateau` starts from.

    Raises:
        InputError: If fields of the recipe contradict each other.
    """
    schedules, peak = keras.optimizers.schedules, recipe.learning_rate
    warmup_steps = min(round(recipe.warmup * steps), steps - 1)
    if recipe.careful_start and (warmup_steps or recipe.schedule != "steps"):
        raise InputError(
            "careful_start requires the schedule 'steps' and no warmup. Received: "
            f"schedule={recipe.schedule!r}, warmup={recipe.warmup}"
        )
    if recipe.schedule == "cosine":
        return schedules.CosineDecay(
            recipe.warmup_from * peak if warmup_steps else peak,
            steps - warmup_steps,
            warmup_target=peak if warmup_steps else None,
            warmup_steps=warmup_steps,
        )
    if recipe.schedule == "plateau":
        if warmup_steps:
            raise InputError(
                "warmup requires the schedule 'cosine' or 'steps'. Received: "
                f"warmup={recipe.warmup}, schedule='plateau'"
            )
        return peak
    boundaries = [CAREFUL_STEPS] * recipe.careful_start
    boundaries = boundaries + [int(steps * fraction) for fraction in recipe.drops]
    rates = [peak / 10] * recipe.careful_start
    rates += [peak / 10**num_drops for num_drops in range(len(recipe.drops) + 1)]
    if sorted(set(boundaries)) != boundaries:
        raise InputError(
            "The learning rate must change at ascending steps. Train longer, or change "
            "drops or careful_start. "
            f"Received: changes after {boundaries} of {steps} steps"
        )
    return _StepSchedule(boundaries, rates, warmup_steps, recipe)


class _StepSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up, followed by piecewise constant learning rates.

    Keras's `PiecewiseConstantDecay` changes the learning rate one step later than this
    class, and requires at least one change.
    """

    def __init__(
        self, bounds: list[int], rates: list[float], warmup_steps: int, recipe: Recipe
    ) -> None:
        self._bounds, self._rates = bounds, rates
        self._warmup_steps, self._peak = warmup_steps, recipe.learning_rate
        self._initial = recipe.warmup_from * self._peak

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self._rates[0], "float32")
        for bound, next_rate in zip(self._bounds, self._rates[1:], strict=True):
            rate = ops.where(step >= bound, next_rate, rate)
        if not self._warmup_steps:
            return rate
        fraction = step / self._warmup_steps
        warmup_rate = self._initial + (self._peak - self._initial) * fraction
        return ops.where(fraction < 1, warmup_rate, rate)


def all_finite(tensors: Iterable[tf.Tensor]) -> tf.Tensor:
    """Returns whether no tensor contains an infinity or a NaN."""
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in tensors])
