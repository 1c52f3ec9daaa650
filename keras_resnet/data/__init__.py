"""Images: sources, preprocessing, augmentation, and the batches made of them."""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__, __file__)
