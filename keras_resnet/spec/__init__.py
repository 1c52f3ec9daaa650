"""Variants, recipes and run settings, without Keras or TensorFlow.

variants.py   table of variants (architectures)
recipes.py    table of training recipes
execution.py  execution settings, such as precision and checkpoint interval
fields.py     conversion and validation of fields of `Recipe` and `Execution`
options.py    options that commands share
run_spec.py   resolved settings of a training run; provenance of a network
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
