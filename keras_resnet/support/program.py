"""How every command starts, reports errors and ends."""

import logging
import os
import runpy
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import absl.logging
from absl import app, flags

from keras_resnet.support.errors import (
    NO_TENSORFLOW,
    InputError,
    Preempted,
    lacks_tensorflow,
)
from keras_resnet.support.notes import without_notes
from keras_resnet.support.options import option_fields

Options = TypeVar("Options")

# Flags that are defined here belong to the command that calls `define_flags`:
# --helpshort lists them.
flags.disclaim_key_flags()


def run_command(
    main: Callable[[list[str]], int | None], positional: bool = False
) -> None:
    """Parses the flags, calls `main` and exits with its status.

    An `InputError`, an error of the operating system such as a full disk, and a loss
    that is no longer a number are printed as one line on standard error, and the
    status is 1. A run that SIGTERM ended has status 143. Anything else is a fault of
    this package and keeps its traceback.

    Args:
        main: A function of the positional arguments that returns an exit status, or
            `None` for 0. It imports what it needs itself, so that help and errors of
            flags appear at once.
        positional: Whether positional arguments are accepted.
    """
    # `bazel run` starts a command in a folder of its own, and names the user's folder.
    folder = os.environ.pop("BUILD_WORKING_DIRECTORY", None)
    if folder and ".runfiles" in __file__ and os.path.isdir(folder):
        os.chdir(folder)

    def guarded(argv: list[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            absl.logging.set_verbosity(absl.logging.WARNING)
        try:
            if argv[1:] and not positional:
                raise InputError(
                    "Only flags are accepted, such as --model=resnet20. "
                    f"Received: {' '.join(argv[1:])}"
                )
            import_keras()
            return main(argv[1:])
        except (InputError, OSError, FloatingPointError) as error:
            message = " ".join(str(error).split())
            print(f"error: {message}", file=sys.stderr, flush=True)
            if isinstance(error, ConnectionError):
                leave(1)
            return 1
        except Preempted as error:
            print(error, file=sys.stderr)
            return error.status
        except ModuleNotFoundError as error:
            if not lacks_tensorflow(error):
                raise
            print(f"error: {NO_TENSORFLOW}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    app.run(guarded)


def import_keras() -> None:
    """Imports Keras, and TensorFlow with it, so that only warnings and errors show."""
    # TensorFlow reads this when it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # A filter, because TensorFlow sets the level of its logger when it is imported.
    logging.getLogger("tensorflow").addFilter(lambda r: r.levelno >= logging.WARNING)
    with without_notes():
        import keras  # noqa: F401


def leave(status: int) -> None:
    """Ends this process at once, with that exit status.

    When a worker is lost, TensorFlow's destructors may wait for it. They and Python's
    exit handlers do not run.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def define_flags(options: type) -> None:
    """Defines a flag for each option of a class.

    Args:
        options: An options class; see `keras_resnet.support.options`.
    """
    for field, kind in option_fields(options):
        name = field.name
        default: Any = field.default
        description, lower = field.metadata["description"], field.metadata["lower"]
        if kind is bool:
            flags.DEFINE_boolean(name, default, description)
        elif kind is int:
            flags.DEFINE_integer(name, default, description, lower)
        elif kind is float:
            flags.DEFINE_float(name, default, description, lower)
        elif kind is tuple:
            flags.DEFINE_list(name, default, description)
        else:
            flags.DEFINE_string(name, default, description)


def read_flags(options: type[Options]) -> Options:
    """Returns the values of the flags that `define_flags` defined for a class."""
    values = {
        field.name: flags.FLAGS[field.name].value for field, _ in option_fields(options)
    }
    return options(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    )


def console_script(module: str) -> Callable[[], None]:
    """Returns an entry point that runs `module` as `python -m` does."""

    def entry_point() -> None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return entry_point


train = console_script("keras_resnet.train")
evaluate = console_script("keras_resnet.evaluate")
predict = console_script("keras_resnet.predict")
convert = console_script("keras_resnet.convert")
runs = console_script("keras_resnet.runs")
