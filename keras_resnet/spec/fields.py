"""Reading and checking the fields of recipes and executions."""

import ast
import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from keras_resnet.support import InputError, choose

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Fields = TypeVar("Fields", bound=DataclassInstance)

_CHOICES = {
    "optimizer": ("sgd", "lamb"),
    "schedule": ("cosine", "steps", "plateau"),
    "rate_rule": ("none", "linear", "sqrt"),
    "loss": ("cross_entropy", "bce"),
    "crop": ("pad", "shorter_side", "inception"),
    "policy": ("none", "rand_augment", "rand_augment_increasing", "trivial_augment"),
    "precision": ("float32", "mixed_float16", "mixed_bfloat16"),
}

# Fields that must be above 0.
_ABOVE_ZERO = {
    "epochs", "batch_size", "learning_rate", "stage_rate", "accumulate", "repeats",
    "steps_per_execution", "checkpoint_every", "keep_checkpoints", "patience", "sizes",
}  # fmt: skip
# Shares, which are at most 1.
_SHARES = {
    "warmup", "warmup_from", "momentum", "stage_rate", "label_smoothing", "ema",
    "stochastic_depth", "validation", "test_crop", "pad", "area", "erase", "drops",
}  # fmt: skip
# Shares of which 1 would leave nothing.
_BELOW_ONE = {
    "warmup", "momentum", "ema", "stochastic_depth", "validation", "label_smoothing",
}  # fmt: skip


def known_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that are fields of a dataclass, with lists as tuples.

    Files of a newer version may hold others.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in names
    }


def changed_fields(values: "Fields", changes: Mapping[str, Any]) -> "Fields":
    """Returns a `Recipe` or an `Execution` with some fields changed.

    Args:
        values: The `Recipe` or `Execution`.
        changes: Fields and their new values. A string is read as the field's type.

    Raises:
        InputError: There is no such field, or it cannot have such a value.
    """
    types = {field.name: field.type for field in dataclasses.fields(values)}
    read = {}
    for field, value in changes.items():
        choose("field", field, types)
        read[field] = _read(types[field], value)
        if problem := _problem(field, types[field], read[field], value):
            received = repr(value) if read[field] is None else value
            raise InputError(f"{problem}. Received: {field}={received}")
    return dataclasses.replace(values, **read)


def _problem(field: str, kind: Any, read: Any, value: Any) -> str:
    """Says what is wrong with the value of a field; empty if nothing is.

    Args:
        field: Name of the field.
        kind: Type of the field.
        read: The value as the field's type; `None` if it could not be read.
        value: The value as it was received.
    """
    if field in _CHOICES:
        choose(field, value, _CHOICES[field])
        return ""
    if read is None:
        return f"{field} must be {_FORMS[kind]}"
    if isinstance(read, str):
        return ""
    numbers = read if isinstance(read, tuple) else (read,)
    limits = (
        (field in _ABOVE_ZERO and min(numbers, default=1) <= 0, "be above 0"),
        (min(numbers, default=0) < 0, "not be below 0"),
        (field in _BELOW_ONE and max(numbers) >= 1, "be below 1"),
        (field in _SHARES and max(numbers, default=0) > 1, "be at most 1"),
    )
    broken = [limit for is_broken, limit in limits if is_broken]
    return f"{field} must {broken[0]}" if broken else ""


_FORMS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    tuple[int, ...]: "whole numbers, such as 128,160",
    tuple[float, ...]: "numbers, such as 0.5,0.75",
}


def _read(kind: Any, value: Any) -> Any:
    """Returns a value as a type; `None` if it cannot be read as that."""
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
        values = tuple(_read(kind.__args__[0], part) for part in values)
        return None if None in values else values
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return kind(value) if kind(value) == value else None
