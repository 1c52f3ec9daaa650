"""Tools that reduce and measure the accuracy loss of int8.

repair.py    prepares a network for int8 by equalisation and GPTQ
equalize.py  cross-layer equalisation of channel ranges
gptq.py      weight rounding that compensates for earlier rounding errors
debug.py     comparison of int8 and float32 outputs, layer by layer
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
