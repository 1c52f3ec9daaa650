"""Options of a command: each one's flag, type, default and description in one place.

An options class is a frozen dataclass whose fields are made by `option`. A command
defines its flags from the class (`keras_resnet.support.program.define_flags`), and a
function that notebooks call takes the same options by keyword (`takes_options`).
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

Options = TypeVar("Options")
Result = TypeVar("Result")


def option(default: Any, description: str, lower: int | float | None = None) -> Any:
    """Makes a field of an options class.

    Args:
        default: Its default.
        description: What it is, for `--help` and for docstrings.
        lower: Smallest number that the flag accepts.
    """
    metadata = {"description": description, "lower": lower}
    return dataclasses.field(default=default, metadata=metadata)


def option_fields(options: type) -> list[tuple[dataclasses.Field[Any], type]]:
    """Returns the options of a class, each with the type that its flag has.

    A field that may be `None` has the type that it has otherwise. Fields that
    `option` did not make are left out.
    """
    hints = typing.get_type_hints(options)
    return [
        (field, _flag_type(hints[field.name]))
        for field in dataclasses.fields(options)
        if field.metadata
    ]


def _flag_type(hint: Any) -> type:
    kinds = [kind for kind in typing.get_args(hint) or [hint] if kind is not type(None)]
    if typing.get_origin(hint) is tuple:
        return tuple
    first = typing.get_origin(kinds[0]) or kinds[0]
    return first if first in (bool, int, float, tuple) else str


def takes_options(
    options: type[Options], order: Sequence[str] = (), required: Collection[str] = ()
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Lets a function of an options object be called with the options themselves.

    Args:
        options: The options class. A class method `of` makes an object from
            arguments; without it the class itself does.
        order: Options that come first in the signature, in this order.
        required: Options that a caller must name, although their flags have defaults.

    Returns:
        A decorator. The decorated function takes the options by position or keyword (as
        `of` does), or one options object, and its own keyword-only parameters. Its
        signature and the `Args` of its docstring, which must have the line `{options}`,
        list all of them. A type checker sees none: it takes any arguments.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        first, *rest = inspect.signature(function).parameters.values()
        del first
        own = {parameter.name for parameter in rest}
        fields = [field for field, _ in option_fields(options)]
        places = {name: place for place, name in enumerate(order)}
        fields.sort(key=lambda field: places.get(field.name, len(order)))
        hints = typing.get_type_hints(options)
        make = getattr(options, "of", options)
        known = inspect.signature(make).parameters
        parameters = [
            inspect.Parameter(
                field.name,
                known[field.name].kind
                if field.name in known
                else inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty
                if field.name in required
                else field.default,
                annotation=hints[field.name],
            )
            for field in fields
        ]
        open_ended = [p for p in known.values() if p.kind is p.VAR_KEYWORD]
        signature = inspect.Signature(
            [*parameters, *rest, *open_ended],
            return_annotation=inspect.signature(function).return_annotation,
        )

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Result:
            given = {name: kwargs.pop(name) for name in own & kwargs.keys()}
            if not (args and isinstance(args[0], options)):
                values = signature.bind(*args, **kwargs).arguments
                for parameter in open_ended:
                    values |= values.pop(parameter.name, {})
                args = (make(**values),)
                kwargs = {}
            return function(*args, **kwargs, **given)

        call.__signature__ = signature  # type: ignore[attr-defined]
        described = "\n".join(
            f"        {field.name}: {field.metadata['description']}" for field in fields
        )
        call.__doc__ = (function.__doc__ or "").replace("        {options}", described)
        return call

    return decorate
