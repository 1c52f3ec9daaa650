"""Errors that a user can cause or meet, and helpers that word their messages."""

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Raised when an argument, a flag or a file of the user cannot be used.

    The message is one line that states what was received and what is accepted. A
    command prints the line and exits with status 1. A notebook shows a `ValueError`.
    """


class Preempted(RuntimeError):
    """Raised after SIGTERM stopped a run and its checkpoint was written.

    A command prints the message and exits with `status`.
    """

    status = 143  # 128 + 15 (SIGTERM), the convention of shells.


def check_choice(kind: str, name: str, accepted: Iterable[str]) -> str:
    """Returns `name` if it is one of the accepted names.

    Args:
        kind: Kind of name for the error message, such as `"strategy"`.
        name: Received name.
        accepted: Accepted names.

    Raises:
        InputError: If `name` is not accepted. The message suggests the nearest match
            and lists every accepted name.
    """
    accepted = list(accepted)
    if name in accepted:
        return name
    near = difflib.get_close_matches(str(name), accepted, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise InputError(
        f"Unknown {kind}. {hint}Accepted: {', '.join(accepted)}. Received: {kind}={name!r}"
    )


def shorten_list(names: Iterable[Any], limit: int = 4) -> str:
    """Returns text such as `"a, b, c, d and 7 more"`.

    Args:
        names: Names or other values, which are converted to text.
        limit: Largest number of names in the text.
    """
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(map(str, names[:limit]))}{more}"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type without a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


NO_TENSORFLOW = (
    "keras_resnet needs TensorFlow, which an extra installs: "
    "pip install 'keras-resnet-zoo[cpu]' or 'keras-resnet-zoo[gpu]'"
)


def is_tensorflow_missing(error: ModuleNotFoundError) -> bool:
    """Returns whether an import failed because TensorFlow is not installed."""
    return (error.name or "").split(".")[0] == "tensorflow"
