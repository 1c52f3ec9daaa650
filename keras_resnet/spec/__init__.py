"""Architectures, recipes and run settings, without Keras or TensorFlow.

variants.py   table of architectures
recipes.py    table of recipes; learning rate for another batch size
execution.py  execution of training steps; fields that may change on resuming
fields.py     conversion and validation of fields of recipes and executions
options.py    options that a user passes to commands
run_spec.py   resolved settings of a run; provenance of a network
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
