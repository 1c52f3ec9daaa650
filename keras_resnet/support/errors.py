"""What a user is told when an input cannot be used."""

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """An input that a user controls is wrong.

    The message is one line: what was received and what would be accepted. The
    programs print it as it is and exit with status 1; in a notebook it is a
    `ValueError`.
    """


class Preempted(RuntimeError):
    """A run was told to stop, by SIGTERM; its checkpoint is written.

    The programs print the message and exit with `status`.
    """

    status = 143  # 128 + SIGTERM, as a shell has it.


def choose(what: str, name: str, accepted: Iterable[str]) -> str:
    """Returns `name` if it is accepted.

    Args:
        what: what the name stands for, such as `"strategy"`.
        name: the name that was received.
        accepted: the names that would be accepted.

    Raises:
        InputError: naming the nearest match and every accepted name.
    """
    accepted = list(accepted)
    if name in accepted:
        return name
    near = difflib.get_close_matches(str(name), accepted, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise InputError(
        f"Unknown {what}. {hint}Accepted: {', '.join(accepted)}. Received: {what}={name!r}"
    )


def shorten_list(names: Iterable[Any], most: int = 4) -> str:
    """Returns the first few of some names as text, with the number of the others.

    Args:
        names: The names.
        most: Number of names that are listed.
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(map(str, names[:most]))}{more}"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


NO_TENSORFLOW = (
    "keras_resnet needs TensorFlow, which comes with one of its extras: "
    "pip install 'keras-resnet-zoo[cpu]' or 'keras-resnet-zoo[gpu]'"
)


def lacks_tensorflow(error: ModuleNotFoundError) -> bool:
    """Whether an import failed because TensorFlow is not installed."""
    return (error.name or "").split(".")[0] == "tensorflow"
