"""Optimizers and learning rates of the recipes."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf
from keras import ops

from keras_resnet.spec import Recipe
from keras_resnet.support import InputError

# A constant learning rate, or one that depends on the step.
Rate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule
Gradients = list[tuple[tf.Tensor, keras.Variable]]

# Section 4.2 of the paper: "about 400 iterations".
CAREFUL_STEPS = 400


class _PerVariable(keras.optimizers.Optimizer):
    """What both optimizers share: their decay and their rate differ by variable.

    Gradients come summed over the replicas: the step clips them, and looks for
    values that are not finite, on the whole batch. Keras would sum them again.
    """

    def set_shares(
        self,
        variables: Sequence[keras.Variable],
        decays: Iterable[float],
        rates: Iterable[float],
    ) -> None:
        """Builds the optimizer.

        Args:
            variables: Trainable variables of a network.
            decays: Weight decay of each.
            rates: Learning rate of each, as a share of the optimizer's.
        """
        self.build(variables)
        self._decays, self._rates = list(decays), list(rates)

    def _shares(self, variable: keras.Variable) -> tuple[float, float]:
        place = self._get_variable_index(variable)
        return self._decays[place], self._rates[place]

    def _all_reduce_sum_gradients(self, grads_and_vars: Gradients) -> Gradients:
        return grads_and_vars


class SGD(_PerVariable, keras.optimizers.SGD):
    """SGD with momentum and coupled weight decay, the paper's.

    Keras's own `weight_decay` is decoupled: at momentum 0.9 about ten times weaker.
    """

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        decay, rate = self._shares(variable)
        if decay:
            gradient = gradient + ops.cast(decay, variable.dtype) * variable
        if rate != 1:
            learning_rate = rate * learning_rate
        super().update_step(gradient, variable, learning_rate)


class LAMB(_PerVariable, keras.optimizers.Lamb):
    """LAMB (You et al., arXiv:1904.00962) as timm has it.

    Weight decay is part of the update, as in the paper's Algorithm 2, where Keras
    decays apart from it; and what is not decayed (biases, normalisation) takes the
    update as it is, without the ratio of norms.
    """

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        decay, rate = self._shares(variable)
        place = self._get_variable_index(variable)
        m, v = self._momentums[place], self._velocities[place]
        gradient = ops.cast(gradient, variable.dtype)
        learning_rate = ops.cast(rate * learning_rate, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        self.assign_add(m, (gradient - m) * (1 - self.beta_1))
        self.assign_add(v, (ops.square(gradient) - v) * (1 - self.beta_2))
        mean = m / (1 - ops.power(ops.cast(self.beta_1, variable.dtype), step))
        square = v / (1 - ops.power(ops.cast(self.beta_2, variable.dtype), step))
        update = mean / (ops.sqrt(square) + self.epsilon)
        if decay:
            update = update + ops.cast(decay, variable.dtype) * variable
            weight_norm = ops.sqrt(ops.sum(ops.square(variable)))
            update_norm = ops.sqrt(ops.sum(ops.square(update)))
            known = (weight_norm > 0) & (update_norm > 0)
            ratio = weight_norm / ops.where(known, update_norm, 1)
            update = ops.where(known, ratio, 1) * update
        self.assign_sub(variable, learning_rate * update)


def make_optimizer(
    recipe: Recipe, steps: int, precision: str = "float32", rate: Rate | None = None
) -> tuple["SGD | LAMB", keras.optimizers.Optimizer]:
    """Makes a recipe's optimizer.

    Args:
        recipe: The recipe.
        steps: Number of steps of the whole run.
        precision: With `"mixed_float16"` the loss is scaled, and a step whose
            gradients overflow is left out.
        rate: Learning rate or schedule in the place of the recipe's.

    Returns:
        A Keras optimizer that `set_shares` has yet to build, and what is to be given
        its gradients: the same one, or a `LossScaleOptimizer` around it.
    """
    rate = learning_rate(recipe, steps) if rate is None else rate
    if recipe.optimizer == "lamb":
        inner = LAMB(rate, epsilon=1e-6, name="lamb")
    else:
        # With a name, since a checkpoint holds the names of its slots.
        inner = SGD(rate, momentum=recipe.momentum, name="sgd")
    if precision != "mixed_float16":
        return inner, inner
    return inner, keras.optimizers.LossScaleOptimizer(inner, name="loss_scale")


def learning_rate(recipe: Recipe, steps: int) -> Rate:
    """Returns the learning rate over a run of so many steps.

    It is a Keras schedule; for `"plateau"` the number that `ReduceLROnPlateau` begins
    with.

    Raises:
        InputError: The recipe's fields do not go together.
    """
    schedules, highest = keras.optimizers.schedules, recipe.learning_rate
    warmup = min(round(recipe.warmup * steps), steps - 1)
    if recipe.careful_start and (warmup or recipe.schedule != "steps"):
        raise InputError(
            "careful_start goes with the schedule 'steps' and no warmup. Received: "
            f"schedule={recipe.schedule!r}, warmup={recipe.warmup}"
        )
    if recipe.schedule == "cosine":
        return schedules.CosineDecay(
            recipe.warmup_from * highest if warmup else highest,
            steps - warmup,
            warmup_target=highest if warmup else None,
            warmup_steps=warmup,
        )
    if recipe.schedule == "plateau":
        if warmup:
            raise InputError(
                "warmup goes with the schedules 'cosine' and 'steps'. Received: "
                f"warmup={recipe.warmup}, schedule='plateau'"
            )
        return highest
    careful = [CAREFUL_STEPS] * recipe.careful_start
    boundaries = careful + [int(steps * share) for share in recipe.drops]
    rates = [highest / 10] * recipe.careful_start
    rates += [highest / 10**drop for drop in range(len(recipe.drops) + 1)]
    if sorted(set(boundaries)) != boundaries:
        raise InputError(
            f"The rate of {steps} steps changes after {boundaries}, which must ascend; "
            "train for longer, or choose other drops or careful_start"
        )
    return _Steps(boundaries, rates, warmup, recipe)


class _Steps(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that grows linearly, then changes after some steps.

    Keras's PiecewiseConstantDecay changes a step later, and must change once.
    """

    def __init__(
        self, boundaries: list[int], rates: list[float], warmup: int, recipe: Recipe
    ) -> None:
        self._boundaries, self._rates, self._warmup = boundaries, rates, warmup
        self._high = recipe.learning_rate
        self._low = recipe.warmup_from * self._high

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self._rates[0], "float32")
        for boundary, later in zip(self._boundaries, self._rates[1:], strict=True):
            rate = ops.where(step >= boundary, later, rate)
        if not self._warmup:
            return rate
        share = step / self._warmup
        growing = self._low + (self._high - self._low) * share
        return ops.where(share < 1, growing, rate)


def all_finite(tensors: Iterable[tf.Tensor]) -> tf.Tensor:
    """Whether no tensor has an infinity or a NaN."""
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(x)) for x in tensors])
