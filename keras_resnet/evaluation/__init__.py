"""Judging a network.

classifier.py     a network with its classes and preprocessing, from a run, a file or
                  published weights; and the data set that fits it
evaluator.py      what a network says of each image, counted exactly once
views.py          the crops and scales that a prediction is averaged over
recalibration.py  batch normalisation's statistics, computed anew
reports.py        JSON, CSV and a confusion picture of an evaluation
run_record.py     `run.json`, the record of a training run
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
