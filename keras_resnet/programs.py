"""How every program of this package starts and how it reports errors."""

import logging
import os
import runpy
import sys

import absl.logging
from absl import app, flags

from keras_resnet.errors import NO_TENSORFLOW, InputError, lacks_tensorflow


def run(main, positional=False):
    """Parses the flags, calls `main` and exits with its status.

    An `InputError` and an error of the operating system, such as a full disk,
    are one line on standard error and status 1; anything else is a fault of
    ours and keeps its traceback.

    Args:
        main: a function of the list of positional arguments, which returns an
            exit status or `None` for 0. It imports what it needs itself, so that
            help and flag errors appear at once.
        positional: whether positional arguments are accepted.
    """
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
            return main(argv[1:])
        except (InputError, OSError) as error:
            message = " ".join(str(error).split())
            print(f"error: {message}", file=sys.stderr)
            return 1
        except ModuleNotFoundError as error:
            if not lacks_tensorflow(error):
                raise
            print(f"error: {NO_TENSORFLOW}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    app.run(guarded)


def console_script(module):
    """Returns an entry point that runs `module` as `python -m` does."""

    def entry_point():
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return entry_point


train = console_script("keras_resnet.train")
evaluate = console_script("keras_resnet.evaluate")
predict = console_script("keras_resnet.predict")
