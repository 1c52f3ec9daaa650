"""Start, error messages and exit of commands."""

import functools
import logging
import os
import runpy
import sys
from collections.abc import Callable
from typing import TypeVar

import absl.logging
from absl import app, flags

from keras_resnet.support.errors import (
    NO_TENSORFLOW,
    InputError,
    is_tensorflow_missing,
    report_errors,
    to_printable,
)
from keras_resnet.support.native_logs import filter_cpp_logs
from keras_resnet.support.options import list_options

Options = TypeVar("Options")

flags.DEFINE_boolean("debug", False, "Print the traceback of an error, not one line.")

# This call makes absl list the flags that `add_flags` defines in --helpshort of the
# command that calls `add_flags`. Otherwise these flags would belong to this module.
flags.disclaim_key_flags()


def run_command(
    main: Callable[[list[str]], int | None], accepts_positional: bool = False
) -> None:
    """Parses the flags, calls `main` and exits with its status.

    `report_errors` describes how errors are printed. Unlike the flags of a command, the
    flag `--debug` is listed only by `--helpfull`.

    Args:
        main: Function that takes the positional arguments and returns an exit status,
            or `None` for 0. It imports heavy modules itself, so that `--help` and
            errors in flags appear at once.
    """
    # `bazel run` leaves the user's folder, to which relative paths in flags refer.
    user_folder = os.environ.pop("BUILD_WORKING_DIRECTORY", None)
    if user_folder and ".runfiles" in __file__ and os.path.isdir(user_folder):
        os.chdir(user_folder)

    def run_main(argv: list[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            absl.logging.set_verbosity(absl.logging.WARNING)
        if argv and not accepts_positional:
            raise InputError(
                "Only flags are accepted, such as --model=resnet20. "
                f"Received: {' '.join(argv)}"
            )
        for argument in [] if accepts_positional else sys.argv:
            if argument.encode(errors="ignore").decode() != argument:
                raise InputError(f"Flags must be in UTF-8. Received: {argument}")
        try:
            import_keras()
            return main(argv)
        except ModuleNotFoundError as error:
            if is_tensorflow_missing(error):
                raise InputError(NO_TENSORFLOW) from error
            raise

    debug = flags.FLAGS["debug"]
    app.run(
        lambda argv: report_errors(lambda: run_main(argv[1:]), bool(debug.value)),
        flags_parser=_parse_flags,
    )


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags and returns the positional arguments, after the program's name."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {to_printable(' '.join(str(error).split()))}. Try --help")


@functools.cache  # A second call must add no second filter.
def import_keras() -> None:
    """Imports Keras and TensorFlow, and hides their log lines below warnings."""
    # TensorFlow reads this variable when it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Importing TensorFlow overwrites the level of this logger, but keeps the filter.
    logging.getLogger("tensorflow").addFilter(lambda r: r.levelno >= logging.WARNING)
    with filter_cpp_logs():
        import keras  # noqa: F401


def add_flags(options: type) -> None:
    """Defines a flag for each option of a class; see `keras_resnet.support.options`."""
    definers: dict[type, Callable[..., object]] = {
        bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, tuple: flags.DEFINE_list,
        float: flags.DEFINE_float, str: flags.DEFINE_string,
    }  # fmt: skip
    for field, flag_type in list_options(options):
        limits = field.metadata["limits"] if flag_type in (int, float) else ()
        definers[flag_type](
            field.name, field.default, field.metadata["description"], *limits
        )


def read_flags(options: type[Options]) -> Options:
    """Returns an options object with the values of the flags of its class."""
    values = {f.name: flags.FLAGS[f.name].value for f, _ in list_options(options)}
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return options(**values)


def make_console_script(module: str) -> Callable[[], None]:
    """Returns a function that runs a module as `python -m MODULE` does."""

    def run_module() -> None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return run_module


train = make_console_script("keras_resnet.train")
evaluate = make_console_script("keras_resnet.evaluate")
predict = make_console_script("keras_resnet.predict")
convert = make_console_script("keras_resnet.convert")
runs = make_console_script("keras_resnet.runs")
