"""Console script of the export command."""

from keras_resnet.support import console_script

export = console_script(f"{__package__}.__main__")
