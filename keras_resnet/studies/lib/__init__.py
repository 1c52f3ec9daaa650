"""What the studies share: options, jobs, probes, surgery, tables, pictures and pages."""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__, __file__)
