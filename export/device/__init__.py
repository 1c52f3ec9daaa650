"""What runs on a device: runtimes, the manifest, comparison, timing and the card, with LiteRT and NumPy alone."""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__, __file__)
