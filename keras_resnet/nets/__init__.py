"""Networks as `keras.Model`s: blocks, whole networks, walking and folding them, their cost."""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__, __file__)
