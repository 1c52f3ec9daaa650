"""Helpers that every other package uses: errors, files, options, commands, tables.

errors.py        errors that a user can cause or meet
files.py         atomic writing of files and folders
environment.py   versions, machine and commit of a run
tables.py        tables as text and as CSV
progress.py      progress bars
native_logs.py   filter for log lines that C++ libraries print
options.py       flag, type, default and description of an option, in one place
program.py       start, error reporting and exit of a command
lazy_imports.py  public names of a package, imported at first use
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
