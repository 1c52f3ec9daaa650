"""How every program of this package starts and how it reports errors."""

import logging
import os
import runpy
import sys
import tempfile

import absl.logging
from absl import app, flags

from keras_resnet.support.errors import (
    NO_TENSORFLOW,
    InputError,
    Preempted,
    lacks_tensorflow,
)

# What define_model_flags defines belongs to the program that calls it, for --helpshort.
flags.disclaim_key_flags()


def run_command(main, positional=False):
    """Parses the flags, calls `main` and exits with its status.

    An `InputError`, an error of the operating system, such as a full disk, and a
    loss that is no longer a number are one line on standard error and status 1; a
    run that SIGTERM ended has status 143; anything else is a fault of ours and
    keeps its traceback.

    Args:
        main: a function of the list of positional arguments, which returns an
            exit status or `None` for 0. It imports what it needs itself, so that
            help and flag errors appear at once.
        positional: whether positional arguments are accepted.
    """
    # `bazel run` starts programs in a folder of its own, and names the user's.
    folder = os.environ.pop("BUILD_WORKING_DIRECTORY", None)
    if folder and ".runfiles" in __file__ and os.path.isdir(folder):
        os.chdir(folder)
    # Read when TensorFlow is imported: warnings and errors only.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # A filter, since TensorFlow sets its logger's level when it is imported.
    logging.getLogger("tensorflow").addFilter(lambda r: r.levelno >= logging.WARNING)

    def guarded(argv):
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


def import_keras():
    """Imports Keras, and TensorFlow with it, without the notes of its C++ part.

    On newer CPUs TensorFlow 2.21 prints them on standard error whatever
    TF_CPP_MIN_LOG_LEVEL says. Anything else that it prints is passed on.
    """
    with tempfile.TemporaryFile() as noted:
        own = os.dup(2)
        os.dup2(noted.fileno(), 2)
        try:
            import keras  # noqa: F401
        finally:
            os.dup2(own, 2)
            os.close(own)
            noted.seek(0)
            for line in noted.read().decode(errors="replace").splitlines():
                if not line.startswith(_NOTES):
                    print(line, file=sys.stderr)


_NOTES = ("I0000", "WARNING: All log messages before", "To enable the following instr")


def define_model_flags():
    """Defines the flags by which a program is told which network to use."""
    flags.DEFINE_string(
        "model",
        "runs/resnet20-digits",
        "Run folder, .keras file, or a network, such as resnet50.",
    )
    flags.DEFINE_string(
        "weights", None, "A network's: imagenet, torchvision_v2 or a file."
    )
    flags.DEFINE_integer("image_size", None, "A network's input, pixels; its own.", 1)


def console_script(module):
    """Returns an entry point that runs `module` as `python -m` does."""

    def entry_point():
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return entry_point


train = console_script("keras_resnet.train")


evaluate = console_script("keras_resnet.evaluate")


predict = console_script("keras_resnet.predict")


convert = console_script("keras_resnet.convert")


runs = console_script("keras_resnet.runs")


def leave(status):
    """Ends this process for sure, with that exit status.

    After a worker is lost TensorFlow's destructors may wait for it, so they and
    Python's exit handlers do not run.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
