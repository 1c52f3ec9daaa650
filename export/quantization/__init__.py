"""int8: a network that loses less in it, and where it loses."""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__, __file__)
