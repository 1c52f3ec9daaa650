"""Exceptions with messages for users, and helpers that compose and print messages."""

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NoReturn


class InputError(ValueError):
    """Raised when an argument, a flag or a file from the user cannot be used.

    The message is one line that states what was received and what is accepted. A
    command prints this line and exits with status 1.
    """


class Preempted(RuntimeError):
    """Raised when SIGTERM or another worker has stopped a run after a checkpoint.

    A command prints the message and exits with `status`.
    """

    status = 143  # Exit status of a shell for SIGTERM: 128 + 15.


class CommandParser(argparse.ArgumentParser):
    """Parser of a command that must run without absl. Its errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {to_printable(message)}. Try --help\n")


class Interrupted(KeyboardInterrupt):
    """Raised when Ctrl-C has stopped a training run and a checkpoint was written."""


def check_choice(kind: str, name: str, choices: Iterable[str]) -> str:
    """Returns `name` if it is one of the accepted names.

    Args:
        kind: What the name stands for, such as `"strategy"`, for the error message.

    Raises:
        InputError: If `name` is not accepted. The message suggests the nearest match
            and lists every accepted name.
    """
    choices = list(choices)
    if name in choices:
        return name
    matches = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"Did you mean {matches[0]!r}? " if matches else ""
    raise InputError(
        f"Unknown {kind}. {hint}Accepted: {', '.join(choices)}. Received: {kind}={name!r}"
    )


def shorten_list(names: Iterable[Any], max_names: int = 4) -> str:
    """Returns a list of names or values as text, such as `"a, b, c, d and 7 more"`."""
    names = list(names)
    remainder = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return f"{', '.join(map(str, names[:max_names]))}{remainder}"


# Control characters, separators of lines, marks that reorder text, and surrogates.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def to_printable(text: str) -> str:
    r"""Returns text from outside with escapes like `\x1b`, which a terminal ignores."""
    return _UNPRINTABLE.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def report_errors(main: Callable[[], int | None], debug: bool) -> int | None:
    """Calls `main` and returns its exit status, or the status of an error.

    An `InputError`, an error of the operating system such as a full disk, and a
    non-finite loss are printed as one line on standard error with exit status 1. A run
    that SIGTERM ended exits with status 143, one that Ctrl-C ended with status 130. Any
    other exception is a bug in this package and keeps its traceback.

    Args:
        main: Function that returns an exit status, or `None` for 0.
        debug: Whether to print tracebacks, with the causes of errors, instead of lines.
    """
    try:
        return main()
    except (Preempted, KeyboardInterrupt) as error:
        print(str(error) or "interrupted", file=sys.stderr)
        return getattr(error, "status", 130)
    except (InputError, OSError, FloatingPointError) as error:
        if not debug:
            message = to_printable(" ".join(str(error).split()))
            print(f"error: {message}", file=sys.stderr, flush=True)
        else:
            cause: BaseException | None = error
            while cause:  # Shows the causes that `raise ... from None` hides.
                cause.__suppress_context__ = False
                cause = cause.__cause__ or cause.__context__
            traceback.print_exception(error)
        if isinstance(error, ConnectionError):
            exit_now(1)
        return 1


def exit_now(status: int, message: str = "") -> NoReturn:
    """Ends this process at once, without C++ destructors and Python's exit handlers.

    After the loss of a worker, TensorFlow's destructors may wait for that worker.
    `message` is a line for standard error, which may be closed already.
    """
    try:
        if message:
            print(message, file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(status)


NO_TENSORFLOW = (
    "keras_resnet requires TensorFlow. Install it with "
    "pip install 'keras-resnet-zoo[cpu]', or 'keras-resnet-zoo[gpu]' for GPUs"
)


def is_tensorflow_missing(error: ModuleNotFoundError) -> bool:
    """Returns whether an import failed because TensorFlow is not installed."""
    return (error.name or "").split(".")[0] == "tensorflow"
