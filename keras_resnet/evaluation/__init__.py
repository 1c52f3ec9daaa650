"""Judging a network: classifiers, evaluation, recalibration, reports, and the record of a run."""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__, __file__)
