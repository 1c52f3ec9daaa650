"""Holding back the notes that C++ libraries print while they start."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Beginnings of lines that say nothing to a user: TensorFlow 2.21 prints them on newer
# CPUs whatever TF_CPP_MIN_LOG_LEVEL says, and LiteRT for each interpreter. Its converter
# prints the last three, of absl's level W, unless TF_CPP_MIN_LOG_LEVEL is set.
_NOTE = re.compile(
    r"""I0000 | INFO:\  | WARNING:\ All\ log\ messages\ before
    | To\ enable\ the\ following\ instr
    | fully_quantize:\   # TFLite's converter, of each int8 file
    | W\d{4}\ [\d:.]+\ +\d+\ (  # absl's prefix: level and date, time, thread
        tf_tfl_flatbuffer_helpers\.cc:\d+\]\ Ignored\ (output_format|drop_control_dependency)
        | flatbuffer_export\.cc:\d+\]\ Skipping\ runtime\ version\ metadata
    )""",
    re.VERBOSE,
)


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Holds back lines of standard error that begin like a known note.

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
                if not _NOTE.match(line):
                    print(line, file=sys.stderr)
