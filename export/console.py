"""Console script of the export command."""

from keras_resnet.support import make_console_script

export = make_console_script(f"{__package__}.__main__")
