"""Reading and checking the fields of recipes and executions."""

import ast
import dataclasses
import math

from keras_resnet.support import InputError, choose

_CHOICES = {
    "optimizer": ("sgd", "lamb"),
    "schedule": ("cosine", "steps", "plateau"),
    "rate_rule": ("none", "linear", "sqrt"),
    "loss": ("cross_entropy", "bce"),
    "crop": ("pad", "shorter_side", "inception"),
    "policy": ("none", "rand_augment", "rand_augment_increasing", "trivial_augment"),
    "precision": ("float32", "mixed_float16", "mixed_bfloat16"),
}


# Fields that may not be 0, and shares, of which 1 is the most.
_ABOVE_ZERO = {
    "epochs", "batch_size", "learning_rate", "stage_rate", "accumulate", "repeats",
    "steps_per_execution", "checkpoint_every", "keep_checkpoints", "patience", "sizes",
}  # fmt: skip


_SHARES = {
    "warmup", "warmup_from", "momentum", "stage_rate", "label_smoothing", "ema",
    "stochastic_depth", "validation", "test_crop", "pad", "area", "erase", "drops",
}  # fmt: skip


# Of which even 1 would leave nothing.
_BELOW_ONE = {
    "warmup",
    "momentum",
    "ema",
    "stochastic_depth",
    "validation",
    "label_smoothing",
}


def changed_fields(settings, changes):
    """Returns a `Recipe` or `Execution` with some fields changed.

    Args:
        settings: either.
        changes: dict from fields to values; a string is read as the field's type.

    Raises:
        InputError: no such field, or no such value.
    """
    known = {field.name: field.type for field in dataclasses.fields(settings)}
    found = {}
    for field, value in changes.items():
        choose("field", field, known)
        read = _read(known[field], value)
        values = read if isinstance(read, tuple) else (read,)
        if field in _CHOICES:
            choose(field, value, _CHOICES[field])
        elif read is None:
            raise InputError(
                f"{field} must be {_WORDS[known[field]]}. Received: {field}={value!r}"
            )
        elif field in _ABOVE_ZERO and not all(v > 0 for v in values):
            raise InputError(f"{field} must be above 0. Received: {field}={value}")
        elif not isinstance(read, str) and not all(v >= 0 for v in values):
            raise InputError(f"{field} must not be below 0. Received: {field}={value}")
        elif field in _BELOW_ONE and read >= 1:
            raise InputError(f"{field} must be below 1. Received: {field}={value}")
        elif field in _SHARES and max(values, default=0) > 1:
            raise InputError(f"{field} must be at most 1. Received: {field}={value}")
        found[field] = read
    return dataclasses.replace(settings, **found)


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    tuple[int, ...]: "whole numbers, such as 128,160",
    tuple[float, ...]: "numbers, such as 0.5,0.75",
}


def _read(kind, value):
    """The value as that type; `None` if it is not."""
    if kind is str:
        return str(value)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(
                value.strip().capitalize() if kind is bool else value
            )
        except (ValueError, SyntaxError):
            return None
    if kind not in (int, float, bool):
        values = value if isinstance(value, tuple | list) else (value,)
        values = tuple(_read(kind.__args__[0], each) for each in values)
        return None if None in values else values
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return kind(value) if kind(value) == value else None
