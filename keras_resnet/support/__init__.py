"""What every room stands on: errors, files, tables, progress, and how a command starts."""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__, __file__)
