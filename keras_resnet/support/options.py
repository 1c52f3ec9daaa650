"""Definition of a command's options: flag, type, default and description.

An options class is a frozen dataclass whose fields are created by `option`. A command
defines its flags from the class (`keras_resnet.support.program.add_flags`). The Python
function with the same purpose takes the options as arguments (`takes_options`).
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

Options = TypeVar("Options")
Result = TypeVar("Result")


def option(
    default: Any,
    description: str,
    minimum: float | None = None,
    maximum: int = 2**31 - 1,
) -> Any:
    """Returns a dataclass field that defines an option.

    Args:
        description: Text that `--help` and docstrings show for the option.
        minimum: Smallest number that the flag accepts; `None` for no limit.
        maximum: Largest number that the flag accepts.
    """
    metadata = {"description": description, "limits": (minimum, maximum)}
    return dataclasses.field(default=default, metadata=metadata)


def list_options(options: type) -> list[tuple[dataclasses.Field[Any], type]]:
    """Returns the fields of an options class, each with the type of its flag.

    For example, a field with the annotation `int | None` has a flag of type `int`.
    """
    hints = typing.get_type_hints(options)
    return [
        (field, _find_flag_type(hints[field.name]))
        for field in dataclasses.fields(options)
        if field.metadata
    ]


def _find_flag_type(hint: Any) -> type:
    types = [t for t in typing.get_args(hint) or [hint] if t is not type(None)]
    if typing.get_origin(hint) is tuple:
        return tuple
    flag_type = typing.get_origin(types[0]) or types[0]
    return flag_type if flag_type in (bool, int, float, tuple) else str


def takes_options(
    options: type[Options],
    first_names: Sequence[str] = (),
    required_names: Collection[str] = (),
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Returns a decorator that expands an options object into arguments.

    The original function takes an options object and keyword-only parameters. The
    decorated function takes either an options object or every option as an argument,
    and the same keyword-only parameters. Its signature lists all options, and their
    descriptions replace the line `{options}` in the `Args` of its docstring. Type
    checkers accept any arguments.

    Args:
        options: Options class. Its class method `from_keywords`, if it has one, creates
            the options object from the arguments.
        first_names: Names of the options that the signature lists first.
        required_names: Names of the options without a default in the signature. The
            flags of these options have defaults nevertheless.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        original_signature = inspect.signature(function)
        _, *other_params = original_signature.parameters.values()
        other_names = {parameter.name for parameter in other_params}
        fields = [field for field, _ in list_options(options)]
        fields.sort(key=lambda field: [*first_names, field.name].index(field.name))
        hints = typing.get_type_hints(options)
        create = getattr(options, "from_keywords", options)
        create_params = inspect.signature(create).parameters
        empty, keyword_only = inspect.Parameter.empty, inspect.Parameter.KEYWORD_ONLY
        parameters = []
        for field in fields:
            name, hint = field.name, hints[field.name]
            kind = create_params[name].kind if name in create_params else keyword_only
            value = empty if name in required_names else field.default
            parameter = inspect.Parameter(name, kind, default=value, annotation=hint)
            parameters.append(parameter)
        var_keywords = [p for p in create_params.values() if p.kind is p.VAR_KEYWORD]
        parameters += [*other_params, *var_keywords]
        signature = original_signature.replace(parameters=parameters)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Result:
            other_args = {n: kwargs.pop(n) for n in other_names & kwargs.keys()}
            if not (args and isinstance(args[0], options)):
                values = signature.bind(*args, **kwargs).arguments
                for parameter in var_keywords:
                    values |= values.pop(parameter.name, {})
                args = (create(**values),)
                kwargs = {}
            return function(*args, **kwargs, **other_args)

        call.__signature__ = signature  # type: ignore[attr-defined]
        arg_docs = "\n".join(
            f"        {field.name}: {field.metadata['description']}" for field in fields
        )
        call.__doc__ = (function.__doc__ or "").replace("        {options}", arg_docs)
        return call

    return decorate
