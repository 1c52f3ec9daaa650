"""Conversion and validation of the fields of recipes and executions."""

import ast
import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from keras_resnet.support import InputError, check_choice

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
# Fractions, which must be at most 1.
_FRACTIONS = {
    "warmup", "warmup_from", "momentum", "stage_rate", "label_smoothing", "ema",
    "stochastic_depth", "validation", "test_crop", "pad", "area", "erase", "drops",
}  # fmt: skip
# Fields that must be below 1, because 1 would make training meaningless.
_BELOW_ONE = {
    "warmup", "momentum", "ema", "stochastic_depth", "validation", "label_smoothing",
}  # fmt: skip


def select_known_fields(class_: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that belong to fields of a dataclass, with lists as tuples.

    Files that a newer version wrote may contain other fields, which are dropped.
    """
    names = {field.name for field in dataclasses.fields(class_)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in names
    }


def replace_fields(values: "Fields", changes: Mapping[str, Any]) -> "Fields":
    """Returns a `Recipe` or an `Execution` with some fields changed.

    Args:
        values: `Recipe` or `Execution`.
        changes: New values by the name of the field. Strings are converted to the type
            of the field.

    Raises:
        InputError: If a field does not exist or its value is not accepted.
    """
    types = {field.name: field.type for field in dataclasses.fields(values)}
    converted = {}
    for field, value in changes.items():
        check_choice("field", field, types)
        converted[field] = _convert(types[field], value)
        if problem := _find_problem(field, types[field], converted[field], value):
            received = repr(value) if converted[field] is None else value
            raise InputError(f"{problem}. Received: {field}={received}")
    return dataclasses.replace(values, **converted)


def _find_problem(field: str, field_type: Any, converted: Any, value: Any) -> str:
    """Returns what is wrong with the value of a field, or an empty string.

    Args:
        field: Name of the field.
        field_type: Type of the field.
        converted: Value converted to this type; `None` if the conversion failed.
        value: Value as received.
    """
    if field in _CHOICES:
        check_choice(field, value, _CHOICES[field])
        return ""
    if converted is None:
        return f"{field} must be {_FORMS[field_type]}"
    if isinstance(converted, str):
        return ""
    numbers = converted if isinstance(converted, tuple) else (converted,)
    limits = (
        (field in _ABOVE_ZERO and min(numbers, default=1) <= 0, "be above 0"),
        (min(numbers, default=0) < 0, "not be below 0"),
        (field in _BELOW_ONE and max(numbers) >= 1, "be below 1"),
        (field in _FRACTIONS and max(numbers, default=0) > 1, "be at most 1"),
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


def _convert(type_: Any, value: Any) -> Any:
    """Converts a value to a type; returns `None` if that is impossible."""
    if type_ is str:
        return str(value)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(
                value.strip().capitalize() if type_ is bool else value
            )
        except (ValueError, SyntaxError):
            return None
    if type_ not in (int, float, bool):
        values = value if isinstance(value, tuple | list) else (value,)
        values = tuple(_convert(type_.__args__[0], item) for item in values)
        return None if None in values else values
    if isinstance(value, bool) or type_ is bool:
        return value if isinstance(value, bool) and type_ is bool else None
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return type_(value) if type_(value) == value else None
