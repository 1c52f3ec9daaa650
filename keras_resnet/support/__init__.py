"""Helpers that every other package uses: errors, files, options, commands, tables.

errors.py        exceptions with messages for users
files.py         atomic writing of files and folders
environment.py   package versions, machine and Git commit, for reports
schema.py        check of values from files against type annotations
tables.py        tables as text and as CSV
progress.py      progress bars
native_logs.py   filter for log lines of C++ libraries
options.py       definition of options, for flags and function arguments
program.py       start, error messages and exit of commands
lazy_imports.py  import of a package's public names at first use
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
