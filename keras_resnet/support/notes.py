"""Holding back the notes that C++ libraries print while they start."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

# How the lines begin that say nothing to a user: TensorFlow 2.21 prints them on newer
# CPUs whatever TF_CPP_MIN_LOG_LEVEL says, and LiteRT for each interpreter.
NOTES = (
    "I0000",
    "INFO: ",
    "fully_quantize: ",  # TFLite's converter, of each int8 file.
    "WARNING: All log messages before",
    "To enable the following instr",
)


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Holds back lines of standard error that begin as one of `NOTES`.

    Everything else that is printed within appears when the block ends, in order.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured:
        own = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            captured.seek(0)
            for line in captured.read().decode(errors="replace").splitlines():
                if not line.startswith(NOTES):
                    print(line, file=sys.stderr)
