"""Evaluation of a network.

classifier.py     loading of classifiers and of the datasets to evaluate them on
evaluator.py      predictions and losses of all images of a split
views.py          crops or scales of an image over which predictions are averaged
recalibration.py  recomputation of the statistics of batch normalisation
reports.py        JSON, CSV and confusion matrix of an evaluation
run_record.py     `run.json`, the record of a training run
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
