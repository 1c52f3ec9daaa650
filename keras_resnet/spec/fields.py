"""Conversion and validation of the fields of `Recipe` and `Execution`."""

import ast
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from keras_resnet.support import MAX_SIDE, InputError, check_choice

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)

_ACCEPTED_NAMES = {
    "optimizer": ("sgd", "lamb"),
    "schedule": ("cosine", "steps", "plateau"),
    "rate_rule": ("none", "linear", "sqrt"),
    "loss": ("cross_entropy", "bce"),
    "crop": ("pad", "shorter_side", "inception"),
    "policy": ("none", "rand_augment", "rand_augment_increasing", "trivial_augment"),
    "precision": ("float32", "mixed_float16", "mixed_bfloat16"),
}

# Fields that must be above 0.
_POSITIVE_FIELDS = {
    "epochs", "batch_size", "learning_rate", "stage_rate", "accumulate", "repeats",
    "steps_per_execution", "checkpoint_every", "keep_checkpoints", "patience", "sizes",
}  # fmt: skip
# Fields that are fractions and therefore must be at most 1.
_FRACTION_FIELDS = {
    "warmup", "warmup_from", "momentum", "stage_rate", "label_smoothing", "ema",
    "stochastic_depth", "validation", "test_crop", "pad", "area", "erase", "drops",
}  # fmt: skip
# Fields that must be below 1, because the value 1 would make training meaningless.
_FIELDS_BELOW_ONE = {
    "warmup", "momentum", "ema", "stochastic_depth", "validation", "label_smoothing",
}  # fmt: skip


def select_known_fields(class_: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values whose names are fields of a dataclass, with lists as tuples.

    Values with other names are dropped, because newer versions may have more fields.
    """
    field_names = {field.name for field in dataclasses.fields(class_)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in field_names
    }


def replace_fields(settings: "Settings", changes: Mapping[str, Any]) -> "Settings":
    """Returns a `Recipe` or an `Execution` with some fields changed.

    Args:
        changes: New values by field name. Strings are converted to the field's type.

    Raises:
        InputError: If a field does not exist or its value is not accepted.
    """
    types = {field.name: field.type for field in dataclasses.fields(settings)}
    new_values = {}
    for field, value in changes.items():
        check_choice("field", field, types)
        new_values[field] = _convert(types[field], value)
        if problem := _find_problem(field, types[field], new_values[field], value):
            received_value = repr(value) if new_values[field] is None else value
            raise InputError(f"{problem}. Received: {field}={received_value}")
    return dataclasses.replace(settings, **new_values)


def _find_problem(field: str, field_type: Any, new_value: Any, raw_value: Any) -> str:
    """Returns an error message if a field does not accept a value, or an empty string.

    `new_value` is `raw_value` converted to the type, or `None` if that is impossible.
    """
    if field in _ACCEPTED_NAMES:
        check_choice(field, raw_value, _ACCEPTED_NAMES[field])
        return ""
    if new_value is None:
        return f"{field} must be {_TYPE_NAMES[field_type]}"
    if isinstance(new_value, str):
        return ""
    numbers = new_value if isinstance(new_value, tuple) else (new_value,)
    limit_checks = (  # Pairs: whether the limit is violated, and the limit as text.
        (field in _POSITIVE_FIELDS and min(numbers, default=1) <= 0, "be above 0"),
        (min(numbers, default=0) < 0, "not be below 0"),
        (field in _FIELDS_BELOW_ONE and max(numbers) >= 1, "be below 1"),
        (field in _FRACTION_FIELDS and max(numbers, default=0) > 1, "be at most 1"),
        (
            field == "sizes" and max(numbers, default=0) > MAX_SIDE,
            f"be at most {MAX_SIDE}",
        ),
    )
    violated_limits = [limit for is_violated, limit in limit_checks if is_violated]
    return f"{field} must {violated_limits[0]}" if violated_limits else ""


_TYPE_NAMES = {
    int: "a whole number below 2**31",
    float: "a number below 3.4e38",
    bool: "True or False",
    tuple[int, ...]: "whole numbers, such as 128,160",
    tuple[float, ...]: "numbers, such as 0.5,0.75",
}


def _convert(type_: Any, value: Any) -> Any:
    """Returns a value converted to a type, or `None` if it cannot be converted."""
    if type_ is str:
        return str(value)
    if isinstance(value, str):
        try:
            text = value.strip().capitalize() if type_ is bool else value
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
    if type_ not in (int, float, bool):
        values = value if isinstance(value, tuple | list) else (value,)
        values = tuple(_convert(type_.__args__[0], item) for item in values)
        return None if None in values else values
    if isinstance(value, bool) or type_ is bool:
        return value if isinstance(value, bool) and type_ is bool else None
    # Excludes NaN, infinities and numbers that are too large for int32 or float32.
    limit = 2**31 - 1 if type_ is int else 3.4e38
    if not isinstance(value, int | float) or not abs(value) <= limit:
        return None
    return type_(value) if type_(value) == value else None
