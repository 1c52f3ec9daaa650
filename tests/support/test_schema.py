"""Check of values against type annotations."""

import dataclasses
import json
from typing import Annotated, Any, NotRequired, Required, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_resnet.support import Count, InputError, PixelCount, check_type


class Record(TypedDict, total=False):
    name: Required[str]
    size: PixelCount
    parts: "list[Record]"


class Extended(Record):
    count: NotRequired[Count]
    optional: Required[Annotated[list[int], len] | None]


@dataclasses.dataclass
class Settings:
    sides: tuple[int, int]
    rates: tuple[float, ...]
    record: Extended | None = None


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int),
        (1, float),
        (2**63, int),
        (1.5, float),
        (True, bool),
        ("é", str),
        (None, str | None),
        ("a", str | None),
        ([], list[int]),
        ([[1], []], list[list[int]]),
        ({"a": 1.0}, dict[str, float]),
        ((), tuple[int, ...]),
        ((1, "a"), tuple[int, str]),
        ({"name": "a"}, Record),
        ({"name": "a", "size": 1, "unknown": [None, {"b": False}]}, Record),
        ({"name": "a", "parts": [{"name": "b"}]}, Record),
        ({"name": "a", "optional": None}, Extended),
        ({"name": "a", "optional": [1], "count": 0}, Extended),
        (Settings((1, 2), (0.5, 1)), Settings),
        (Settings((1, 2), (), {"name": "a", "optional": None}), Settings),
        ([None, True, 1, 1.5, "a", [], {}], Any),
    ],
)
def test_values_of_the_type_are_accepted(value, hint):
    check_type(value, hint, "value")


@pytest.mark.parametrize(
    ("value", "hint", "name"),
    [
        (True, int, "v"),
        (1.0, int, "v"),
        ("1", int, "v"),
        (2**63 + 1, int, "v"),
        (-(2**64), float, "v"),
        (float("nan"), float, "v"),
        (float("inf"), float, "v"),
        (True, float, "v"),
        (1, bool, "v"),
        (None, str, "v"),
        ("\ud800", str, "v"),
        (1, str | None, "v"),
        (-1, Count, "v"),
        (0, PixelCount, "v"),
        (2**15 + 1, PixelCount, "v"),
        ((1,), list[int], "v"),
        ([1, "a"], list[int], "v.1"),
        ([1], tuple[int, ...], "v"),
        ((1,), tuple[int, int], "v"),
        ((1, 2, 3), tuple[int, int], "v"),
        ({1: 1}, dict[str, int], "v.1"),
        ({"a": None}, dict[str, int], "v.a"),
        ({}, Record, "v"),
        ([], Record, "v"),
        ({"name": "a", "size": 0}, Record, "v.size"),
        ({"name": "a", "unknown": float("nan")}, Record, "v.unknown"),
        ({"name": "a", "parts": [{}]}, Record, "v.parts.0"),
        ({"name": "a"}, Extended, "v"),
        ({"name": "a", "optional": []}, Extended, "v.optional"),
        (Settings([1, 2], ()), Settings, "v.sides"),
        (Settings((1, 2), ("a",)), Settings, "v.rates.0"),
        ({}, Settings, "v"),
        ([b"a", object()], list[str], "v.0"),
    ],
)
def test_other_values_are_refused(value, hint, name):
    with pytest.raises(InputError) as error:
        check_type(value, hint, "v")
    assert str(error.value).startswith(f"{name} has the unexpected value ")


def test_nested_values_are_accepted_up_to_a_limit():
    def nest(depth):
        return [nest(depth - 1)] if depth else []

    check_type(nest(20), Any, "value", max_depth=20)
    with pytest.raises(InputError, match=r"value(\.0){21} has the unexpected"):
        check_type(nest(21), Any, "value", max_depth=20)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
    max_leaves=8,
)


@given(JSON, st.sampled_from([Any, Record, Extended, dict[str, Any], list[Count]]))
def test_an_accepted_value_can_be_written_as_json(value, hint):
    try:
        check_type(value, hint, "value")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
