"""What every room stands on.

errors.py       what a user is told when an input cannot be used
files.py        the one atomic writer of files and folders
environment.py  versions, machine and commit
tables.py       tables as text and as CSV
progress.py     progress bars
notes.py        holding back the notes of C++ libraries
options.py      options: flag, type, default and description in one place
program.py      how a command starts, fails and leaves
front_door.py   names of a room, imported at first use
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
