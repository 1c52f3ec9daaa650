"""Check of values that were read from a file against type annotations."""

import dataclasses
import itertools
import re
import reprlib
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, NotRequired, Required

from keras_resnet.support.errors import InputError

MAX_SIDE = 2**15  # Largest accepted height, width and number of channels of an image.

# Number of things, and height, width or number of channels of an image.
Count = Annotated[int, range(2**63).__contains__]
PixelCount = Annotated[int, range(1, MAX_SIDE + 1).__contains__]

_SURROGATE = re.compile("[\ud800-\udfff]")  # Characters that UTF-8 cannot encode.


def check_type(value: Any, hint: Any, name: str, max_depth: int = 20) -> None:
    """Raises `InputError` unless a value has the type that an annotation states.

    Numbers must be finite and at most 2**63. UTF-8 must be able to encode texts.

    Args:
        value: JSON value, or dataclass object that was made of JSON values.
        hint: Annotation. `Annotated[X, f]` accepts a value if `f(value)` is true, and
            `Any` accepts every JSON value. Items of lists, tuples and dicts are
            checked, and fields of dataclasses and typed dicts. A typed dict may have
            further keys; their values are checked against `Any`.
        name: Name of the value for the error message.
        max_depth: Number of nested lists and dicts that are accepted.
    """
    if hint is Any:
        hints_of_parts: dict[Any, Any] = {dict: dict[str, Any], list: list[Any]}
        hint = hints_of_parts.get(type(value), type(value))
    kind: Any = typing.get_origin(hint) or hint
    args = typing.get_args(hint)
    parts: Iterable[tuple[Any, Any, Any]] | None = ()
    is_union = kind in (typing.Union, types.UnionType)  # Every union is `X | None`.
    if is_union or kind in (Annotated, Required, NotRequired):
        if not is_union or value is not None:
            check_type(value, args[0], name, max_depth)
        is_accepted = kind is not Annotated or all(f(value) for f in args[1:])
    elif kind in (int, float):  # A float may be a whole number. A bool is no number.
        is_accepted = type(value) in (int, kind) and abs(value) <= 2**63
    elif kind is str:
        is_accepted = isinstance(value, str) and not _SURROGATE.search(value)
    else:
        parts = _list_parts(value, kind, args)
        is_accepted = parts is not None and max_depth >= 0
    if not is_accepted:
        raise InputError(f"{name} has the unexpected value {reprlib.repr(value)}")
    for part_name, part, part_hint in parts or ():
        check_type(part, part_hint, f"{name}.{part_name}", max_depth - 1)


def _list_parts(
    value: Any, kind: Any, args: tuple[Any, ...]
) -> Iterable[tuple[Any, Any, Any]] | None:
    """Returns name, value and annotation of each part, or `None` for a wrong type."""
    is_record = typing.is_typeddict(kind)
    if not isinstance(value, dict if is_record else kind):
        return None
    if is_record or dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(kind, include_extras=True)
        if not is_record:
            return ((name, getattr(value, name), hints[name]) for name in hints)
        parts = ((key, part, hints.get(key, Any)) for key, part in value.items())
        return parts if kind.__required_keys__ <= value.keys() else None
    if kind is dict:
        keys = ((repr(key), key, args[0]) for key in value)
        return itertools.chain(keys, ((k, v, args[1]) for k, v in value.items()))
    if kind not in (list, tuple):
        return ()
    if kind is list or ... in args:
        args = args[:1] * len(value)
    return zip(itertools.count(), value, args) if len(args) == len(value) else None
