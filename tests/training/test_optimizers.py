"""Optimizers and learning rates, compared with published formulas in NumPy."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings, strategies

from keras_resnet.spec.recipes import RECIPES, Recipe
from keras_resnet.support.errors import InputError
from keras_resnet.training.optimizers import make_learning_rate, make_optimizer

LEARNING_RATE = 2.0**-7
VARIABLE_SHAPES = [(3, 3, 2, 4), (4,), (4, 3), (4, 3)]


@pytest.fixture
def use_float64():
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def apply_gradients(recipe, initial_values, gradients, weight_decays, rate_multipliers):
    """Returns the variables after one optimizer step per entry of `gradients`."""
    variables = [
        keras.Variable(initial_value, dtype="float64")
        for initial_value in initial_values
    ]
    inner_optimizer, outer_optimizer = make_optimizer(recipe, 100, rate=LEARNING_RATE)
    assert inner_optimizer is outer_optimizer
    inner_optimizer.build_per_variable(variables, weight_decays, rate_multipliers)
    for step_gradients in gradients:
        outer_optimizer.apply(
            [keras.ops.convert_to_tensor(gradient) for gradient in step_gradients],
            variables,
        )
    return [np.asarray(v) for v in variables]


def make_values_and_gradients(seed=0, num_steps=6):
    """Returns initial values of four variables, and their gradients for each step.

    The last variable is 0. The gradients of the variables differ by powers of 10.
    """
    random = np.random.default_rng(seed)
    initial_values = [random.normal(0, 2, shape) for shape in VARIABLE_SHAPES]
    initial_values[3][:] = 0
    scales = 10.0 ** np.arange(-5, len(VARIABLE_SHAPES) - 5)
    gradients = [
        [
            random.normal(0.3, 1, shape) * scale
            for shape, scale in zip(VARIABLE_SHAPES, scales, strict=True)
        ]
        for _ in range(num_steps)
    ]
    return initial_values, gradients


def test_lamb_follows_algorithm_2_of_the_paper(use_float64):
    """LAMB is Algorithm 2 of arXiv:1904.00962 with bias-corrected moments, as in timm.

    The update is r = m / (sqrt(v) + eps). If a variable w has a weight decay, decay * w
    is added to r, and the sum is multiplied by the trust ratio |w| / |r + decay * w|.
    The trust ratio is 1 without a weight decay, and for a variable that is 0.
    """
    initial_values, gradients = make_values_and_gradients()
    weight_decays, rate_multipliers = [0.02, 0.0, 0.01, 0.02], [1.0, 1.0, 0.5, 1.0]
    expected = []
    for i, initial_value in enumerate(initial_values):
        weight = initial_value.copy()
        m = v = 0.0
        for step, step_gradients in enumerate(gradients, 1):
            gradient = step_gradients[i]
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            update = m / (1 - 0.9**step)
            update = update / (np.sqrt(v) / np.sqrt(1 - 0.999**step) + 1e-6)
            trust_ratio = 1.0
            if weight_decays[i]:
                update = update + weight_decays[i] * weight
                norms = np.linalg.norm(weight), np.linalg.norm(update)
                trust_ratio = norms[0] / norms[1] if norms[0] > 0 else 1.0
            weight = weight - LEARNING_RATE * rate_multipliers[i] * trust_ratio * update
        expected.append(weight)
    final_values = apply_gradients(
        RECIPES["rsb_a2"], initial_values, gradients, weight_decays, rate_multipliers
    )
    for final_value, expected_value, initial_value in zip(
        final_values, expected, initial_values, strict=True
    ):
        assert np.abs(final_value - initial_value).max() > 1e-3
        # The tolerance is large, as Keras stores 0.9 and 0.999 in single precision.
        np.testing.assert_allclose(final_value, expected_value, rtol=1e-5, atol=1e-7)


def test_sgd_equals_that_of_pytorch(use_float64):
    """Each step sets v = 0.9 * v + (g + decay * w) and then w = w - rate * v.

    w is a variable, g is the gradient and v is the velocity, which starts at 0.
    """
    initial_values, gradients = make_values_and_gradients(1)
    weight_decays, rate_multipliers = [0.02, 0.0, 0.01, 0.5], [1.0, 1.0, 0.5, 0.25]
    final_values = apply_gradients(
        Recipe(1, 1, 0.1), initial_values, gradients, weight_decays, rate_multipliers
    )
    for i, initial_value in enumerate(initial_values):
        velocity, weight = 0.0, initial_value.copy()
        for step_gradients in gradients:
            velocity = 0.9 * velocity + step_gradients[i] + weight_decays[i] * weight
            weight = weight - LEARNING_RATE * rate_multipliers[i] * velocity
        np.testing.assert_allclose(final_values[i], weight, rtol=1e-7, atol=1e-12)


def list_learning_rates(recipe, num_steps):
    schedule = make_learning_rate(recipe, num_steps)
    return np.array([float(schedule(step)) for step in range(num_steps)])


FRACTIONS = strategies.floats(0, 1, exclude_max=True)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    schedule=strategies.sampled_from(["cosine", "steps"]),
    num_steps=strategies.integers(1, 100_000),
    position=FRACTIONS,
    warmup=strategies.one_of(strategies.just(0.0), FRACTIONS),
    warmup_from=FRACTIONS,
    drops=strategies.lists(FRACTIONS, max_size=3),
)
def test_schedules_follow_their_formulas(
    schedule, num_steps, position, warmup, warmup_from, drops
):
    """With peak rate 1, the rate of step t of n is one of these three values.

    With a warm-up of w steps: f + (1 - f) * t / w in steps 0 to w - 1.
    Cosine: (1 + cos(pi * (t - w) / (n - w))) / 2.
    Steps: 10**-k if k of the given fractions of the run have passed.
    """
    recipe = Recipe(
        1, 1, 1.0, schedule=schedule, warmup=warmup, warmup_from=warmup_from,
        drops=tuple(drops),
    )  # fmt: skip
    num_warmup_steps = min(round(warmup * num_steps), num_steps - 1)
    bounds = [math.floor(num_steps * fraction) for fraction in drops]
    if schedule == "steps" and bounds != sorted(set(bounds)):
        with pytest.raises(InputError, match="ascending steps"):
            make_learning_rate(recipe, num_steps)
        return
    rate = make_learning_rate(recipe, num_steps)
    ends = [num_warmup_steps, *(bounds if schedule == "steps" else [])]
    steps = {math.floor(num_steps * position), 0, num_steps - 1}
    steps |= {step + i for step in ends for i in (-1, 0)}
    for step in steps & set(range(num_steps)):
        if step < num_warmup_steps:
            expected = warmup_from + (1 - warmup_from) * step / num_warmup_steps
        elif schedule == "steps":
            expected = 10.0 ** -sum(step >= bound for bound in bounds)
        else:
            fraction = (step - num_warmup_steps) / (num_steps - num_warmup_steps)
            expected = (1 + math.cos(math.pi * fraction)) / 2
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_step_schedule_drops_after_50_and_75_percent():
    """Each drop divides the learning rate by 10, at the exact step."""
    rates = list_learning_rates(Recipe(1, 1, 0.1, schedule="steps"), 80)
    np.testing.assert_allclose(rates[:40], 0.1, rtol=1e-6)
    np.testing.assert_allclose(rates[40:60], 0.01, rtol=1e-6)
    np.testing.assert_allclose(rates[60:], 0.001, rtol=1e-6)


def test_a_careful_start_lowers_the_first_400_learning_rates():
    """The rate drops after 32k and 48k of 64k steps, as in section 4.2 of the paper."""
    schedule = make_learning_rate(RECIPES["paper_cifar"], 64_000)
    rates = {
        step: float(schedule(step))
        for step in (0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999)
    }
    expected = [0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    np.testing.assert_allclose(list(rates.values()), expected, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_short_runs_have_a_step_without_warmup(schedule):
    """The warm-up starts at 0, so it must not take all steps of a short run."""
    recipe = Recipe(1, 1, 0.4, warmup=0.9, schedule=schedule, drops=())
    assert list_learning_rates(recipe, 1) == pytest.approx([0.4])
    assert list_learning_rates(recipe, 2) == pytest.approx([0.0, 0.4])


def test_a_plateau_schedule_starts_at_the_peak_rate():
    assert make_learning_rate(Recipe(1, 1, 0.3, schedule="plateau"), 10) == 0.3


@pytest.mark.parametrize(
    ("changes", "num_steps", "message"),
    [
        ({"schedule": "plateau", "warmup": 0.1}, 10, "schedule='plateau'"),
        ({"schedule": "steps", "drops": (0.75, 0.5)}, 80, "[60, 40] of 80"),
        ({"schedule": "steps", "drops": (0.5, 0.51)}, 10, "[5, 5] of 10"),
        (
            {"schedule": "steps", "careful_start": True},
            600,
            "changes after [400, 300, 450] of 600",
        ),
        (
            {"schedule": "cosine", "careful_start": True},
            64_000,
            "the schedule 'steps' and no warmup. Received: "
            "schedule='cosine', warmup=0.0",
        ),
        (
            {"schedule": "steps", "careful_start": True, "warmup": 0.1},
            64_000,
            "schedule='steps', warmup=0.1",
        ),
    ],
)
def test_conflicting_recipe_fields_are_refused(changes, num_steps, message):
    with pytest.raises(InputError) as error:
        make_learning_rate(Recipe(1, 1, 0.1, **changes), num_steps)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_only_float16_scales_the_loss():
    recipe = Recipe(1, 1, 0.1)
    inner_optimizer, outer_optimizer = make_optimizer(recipe, 10, "mixed_float16")
    assert isinstance(outer_optimizer, keras.optimizers.LossScaleOptimizer)
    assert outer_optimizer.inner_optimizer is inner_optimizer
    for precision in ("float32", "mixed_bfloat16"):
        inner_optimizer, outer_optimizer = make_optimizer(recipe, 10, precision)
        assert inner_optimizer is outer_optimizer
