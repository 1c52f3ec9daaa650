"""Weights: published ones, names in other frameworks, file formats, and giving them to a network."""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__, __file__)
