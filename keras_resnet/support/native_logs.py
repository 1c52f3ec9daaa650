"""Filter for log lines of C++ libraries."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Beginnings of log lines that do not help a user. TensorFlow 2.21 prints some of them
# on newer CPUs even if TF_CPP_MIN_LOG_LEVEL is set. LiteRT prints some for each
# interpreter. LiteRT's converter prints the last three with absl's level W (warning)
# unless TF_CPP_MIN_LOG_LEVEL is set.
_IGNORED_LINE_PATTERN = re.compile(
    r"""I0000 | INFO:\  | WARNING:\ All\ log\ messages\ before
    | To\ enable\ the\ following\ instr
    | fully_quantize:\   # printed by TFLite's converter for each int8 file
    | W\d{4}\ [\d:.]+\ +\d+\ (  # absl's prefix: level and date, time, thread
        tf_tfl_flatbuffer_helpers\.cc:\d+\]\ Ignored\ (output_format|drop_control_dependency)
        | flatbuffer_export\.cc:\d+\]\ Skipping\ runtime\ version\ metadata
    )""",
    re.VERBOSE,
)


@contextlib.contextmanager
def filter_cpp_logs() -> Iterator[None]:
    """Removes uninformative log lines from standard error inside the context.

    Standard error is redirected at the level of file descriptors, because C++ code
    writes there directly. When the context ends, the other lines are printed in order.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured_file:
        original_stderr = os.dup(2)
        os.dup2(captured_file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original_stderr, 2)
            os.close(original_stderr)
            captured_file.seek(0)
            for line in captured_file.read().decode(errors="replace").splitlines():
                if not _IGNORED_LINE_PATTERN.match(line):
                    print(line, file=sys.stderr)
